"""Tables from run folders whose numbers were made by hand."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pandas as pd
import pytest

from ikdlib.reporting import tables
from ikdlib.reporting.statistics import paired_difference
from ikdlib.studies import protocol

NOBODY = protocol.published().head(0)
KD = {1: 70.11, 2: 70.42, 3: 69.87}
KD_IKD = {1: 70.95, 2: 71.1, 3: 70.73}


@pytest.fixture
def cells(folders):
    """kd and kd+ikd with three seeds, dkd with one, nkd not run."""
    return [
        folders.cell("kd", *(folders.finished("kd", seed, value) for seed, value in KD.items())),
        folders.cell("kd+ikd", *(folders.finished("kd+ikd", seed, value) for seed, value in KD_IKD.items())),
        folders.cell("dkd", folders.finished("dkd", 1, 71.5)),
        folders.cell("nkd", folders.run("nkd", 1), folders.run("nkd", 2)),
    ]


def row(table: pd.DataFrame, method: str) -> pd.Series:
    (found,) = [line for _, line in table.iterrows() if line["method"] == method]
    return found


def test_mean_and_std_over_seeds(cells):
    table = tables.study_table(cells, NOBODY, "last")
    kd = row(table, "kd")
    values = np.array(list(KD.values()))
    assert kd["n"] == 3
    assert kd["last_top1"] == pytest.approx(values.mean()) and kd["last_std"] == pytest.approx(
        values.std(ddof=1)
    )
    assert kd["best_top1"] == pytest.approx(values.mean() + 1)
    assert kd["last_top5"] == pytest.approx(values.mean() + 10)
    assert kd["teacher_top1"] == 77.5
    assert len(kd["runs"].split()) == 3
    one = row(table, "dkd")
    assert one["n"] == 1 and one["last_top1"] == 71.5 and pd.isna(one["last_std"])


def test_how_it_reads(cells):
    shown = tables.readable(tables.study_table(cells, NOBODY, "last"), "last")
    assert row(shown, "kd")["top-1 % (last epoch)"] == "70.13 ± 0.28 (n=3)"
    assert row(shown, "kd")["(best epoch)"] == "71.13 ± 0.28 (n=3)"
    assert row(shown, "dkd")["top-1 % (last epoch)"] == "71.50 (n=1)"
    assert "published" not in shown


def test_the_primary_epoch_is_named_and_first(cells):
    table = tables.study_table(cells, NOBODY, "best")
    shown = tables.readable(table, "best")
    assert list(shown)[2:4] == ["top-1 % (best epoch)", "(last epoch)"]
    assert row(shown, "kd")["top-1 % (best epoch)"].startswith("71.13")


def test_cells_without_a_number_say_why(folders):
    made = [
        folders.cell("ce", folders.run("ce", 1)),
        folders.cell("kd", folders.unfinished("kd", 1)),
        folders.cell("dkd", folders.diverged("dkd", 1)),
        folders.cell(
            "nkd", folders.finished("nkd", 1, 70.0), folders.unfinished("nkd", 2),
            folders.diverged("nkd", 3), folders.run("nkd", 4),
        ),
    ]  # fmt: skip
    table = tables.study_table(made, NOBODY, "last")
    shown = tables.readable(table, "last")["top-1 % (last epoch)"]
    assert list(shown) == ["not run", "not run", "1 diverged", "70.00 (n=1, 1 diverged, 2 to come)"]
    assert list(table["n"]) == [0, 0, 0, 1]
    assert list(table["unfinished"]) == [1, 1, 0, 2] and list(table["diverged"]) == [0, 0, 1, 1]


def test_deleting_a_folder_turns_its_cell_into_not_run(cells):
    before = tables.readable(tables.study_table(cells, NOBODY, "last"), "last")
    (only,) = cells[2].runs
    shutil.rmtree(only.folder)
    after = tables.readable(tables.study_table(cells, NOBODY, "last"), "last")
    assert row(before, "dkd")["top-1 % (last epoch)"] == "71.50 (n=1)"
    assert row(after, "dkd")["top-1 % (last epoch)"] == tables.NOT_RUN == "not run"
    others = before["method"] != "dkd"
    pd.testing.assert_frame_equal(before[others], after[others])


def test_the_order_of_runs_changes_nothing(folders, cells):
    table = tables.study_table(cells, NOBODY, "last")
    numbers = table.select_dtypes("number").drop(columns=["n"])
    for order in itertools.permutations(range(3)):
        turned = [
            folders.cell(cell.method, *(cell.runs[i] for i in order)) if len(cell.runs) == 3 else cell
            for cell in cells
        ]
        other = tables.study_table(turned, NOBODY, "last")
        pd.testing.assert_frame_equal(tables.readable(table, "last"), tables.readable(other, "last"))
        pd.testing.assert_frame_equal(numbers, other[numbers.columns], rtol=1e-12)
        assert [set(runs.split()) for runs in other["runs"]] == [set(runs.split()) for runs in table["runs"]]


# The gain of the IKD term


def test_the_gain_is_paired_by_seed(cells):
    table = tables.study_table(cells, NOBODY, "last")
    found, expected = row(table, "kd+ikd"), paired_difference(KD_IKD, KD)
    assert (found["gain"], found["gain_low"], found["gain_high"], found["gain_n"]) == pytest.approx(
        (expected.mean, expected.low, expected.high, 3)
    )
    assert found["verdict"] == expected.verdict == "supported"
    assert found["correlation"] == pytest.approx(expected.correlation)
    assert table["gain"].notna().sum() == 1
    assert row(tables.readable(table, "last"), "kd+ikd")["+ikd minus base"] == str(expected)


def test_the_gain_uses_common_finished_seeds_only(folders):
    base = [folders.finished("kd", 1, 70.0), folders.finished("kd", 2, 71.0), folders.diverged("kd", 3)]
    more = [
        folders.finished("kd+ikd", 2, 71.5),
        folders.finished("kd+ikd", 3, 99.0),
        folders.unfinished("kd+ikd", 1),
    ]
    table = tables.study_table([folders.cell("kd", *base), folders.cell("kd+ikd", *more)], NOBODY, "last")
    found = row(table, "kd+ikd")
    assert (found["gain"], found["gain_n"], found["verdict"]) == (0.5, 1, "undecided")
    assert "no interval from one seed" in row(tables.readable(table, "last"), "kd+ikd")["+ikd minus base"]


def test_the_gain_is_of_the_primary_epoch(folders):
    made = [
        folders.cell("kd", folders.finished("kd", 1, 70.0, best=75.0)),
        folders.cell("kd+ikd", folders.finished("kd+ikd", 1, 71.0, best=74.0)),
    ]
    gains = {
        which: row(tables.study_table(made, NOBODY, which), "kd+ikd")["gain"] for which in ("last", "best")
    }
    assert gains == {"last": 1.0, "best": -1.0}


def test_the_gain_stays_within_its_pair(folders):
    made = [
        folders.cell("kd", folders.finished("kd", 1, 70.0)),
        folders.cell("kd+ikd", folders.finished("kd+ikd", 1, 80.0, pair="vgg13/vgg8"), pair="vgg13/vgg8"),
    ]
    table = tables.study_table(made, NOBODY, "last")
    assert tables.verdicts(table) == ["not run: no pair has finished runs both with and without the IKD term"]


def test_verdicts_are_sentences(cells):
    (said,) = tables.verdicts(tables.study_table(cells, NOBODY, "last"))
    assert said.startswith("resnet56/resnet20: kd+ikd minus kd: +0.79") and "supported" in said


def test_a_table_of_no_cell_has_its_columns(cells):
    none, some = (tables.study_table(made, NOBODY, "last") for made in ([], cells[2:]))
    assert none.empty and {"pair", "method", "n", "last_top1", "runs", "published"} <= set(none) <= set(some)
    assert list(tables.readable(none, "last")) == list(tables.readable(some, "last"))
    assert tables.verdicts(none) == tables.verdicts(some) == [
        "not run: no pair has finished runs both with and without the IKD term"
    ]  # fmt: skip


# Published numbers


def test_published_only_where_there_is_a_source(cells):
    table = tables.study_table(cells, protocol.published(), "last")
    assert row(table, "kd")["published"] == 70.66 and row(table, "kd")["convention"] == "last"
    assert row(table, "kd")["published_teacher_top1"] == 72.34
    assert row(table, "dkd")["convention"] == "best"
    assert (table["published"].notna() == table["source"].notna()).all()
    assert pd.isna(row(table, "kd+ikd")["published"]) and pd.isna(row(table, "nkd")["published"])
    shown = tables.readable(table, "last")
    named = "70.66 (last; teacher 72.34; HobbitLong/RepDistiller@b84f547 README.md)"
    assert row(shown, "kd")["published"] == named
    assert row(shown, "kd+ikd")["published"] == row(shown, "nkd")["published"] == ""


def test_published_numbers_are_of_the_very_pair(folders):
    pair = "resnet110/resnet20"
    made = [folders.cell("kd", folders.finished("kd", 1, 70.0, pair=pair), pair=pair)]
    assert row(tables.study_table(made, protocol.published(), "last"), "kd")["published"] == 70.67


# On disk


def test_the_csv_reads_back_to_the_bit(cells, tmp_path):
    table = tables.study_table(cells, protocol.published(), "last")
    text = tables.write(table, "last", "A caption.", tmp_path / "table")
    back = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    assert list(back) == list(table) and len(back) == 4
    for name in table:
        for ours, read in zip(table[name], back[name], strict=True):
            if isinstance(ours, str):
                assert read == ours, name
            else:
                assert float(read) == ours if pd.notna(ours) else read == "", name
    assert (tmp_path / "table.md").read_text() == text


def test_the_markdown_has_its_caption_and_a_line_a_cell(cells, tmp_path):
    text = tables.write(tables.study_table(cells, NOBODY, "last"), "last", "A caption.", tmp_path / "table")
    lines = text.splitlines()
    assert lines[0] == "A caption. Top-1 of the teacher: resnet56 77.50 %." and lines[1] == ""
    assert len([line for line in lines if line.startswith("| resnet56/resnet20")]) == 4
    assert str(tmp_path) not in text


def test_writing_again_gives_the_same_bytes(cells, tmp_path):
    for name in ("one", "two"):
        tables.write(tables.study_table(cells, NOBODY, "last"), "last", "A caption.", tmp_path / name)
    for ending in (".csv", ".md"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()
