"""Gains pooled over pairs and judged together, published numbers and links, in tables of hand-made runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ikdlib.reporting import tables
from ikdlib.reporting.statistics import pooled_difference
from ikdlib.studies import protocol

NOBODY = protocol.published().head(0)
PAIRS = ("resnet56/resnet20", "resnet110/resnet32", "vgg13/vgg8")


def pair_of_cells(folders, pair, differences, method="kd", **more):
    base = {seed: 70 + 0.3 * seed for seed in range(1, len(differences) + 1)}
    treated = {seed: base[seed] + d for seed, d in enumerate(differences, start=1)}
    names = (method, f"{method}+ikd")
    return [folders.changed(n, {}, v, pair=pair, **more) for n, v in zip(names, (base, treated), strict=True)]


GAINS = ([0.6, 0.8, 0.75], [0.35, 0.6, 0.5, 0.45], [-0.1, 0.6])


@pytest.fixture
def cells(folders):
    """kd with and without the term on three pairs, dkd on the first with one seed, nkd not run."""
    made = [
        cell
        for pair, values in zip(PAIRS, GAINS, strict=True)
        for cell in pair_of_cells(folders, pair, values)
    ]
    made += pair_of_cells(folders, PAIRS[0], [0.3], "dkd")
    return [
        *made,
        folders.cell("nkd", folders.run("nkd", 1)),
        folders.cell("nkd+ikd", folders.run("nkd+ikd", 1)),
    ]


def test_a_studys_gains_are_judged_together(cells):
    table = tables.study_table(cells, NOBODY, "last")
    gained = table[table["gain"].notna()].set_index(["pair", "method"])
    assert len(gained) == 4
    ps = [stats.ttest_1samp(values, 0).pvalue for values in GAINS]
    kd = gained.loc[[(pair, "kd+ikd") for pair in PAIRS]]
    np.testing.assert_allclose(kd["p"].astype(float), ps, rtol=1e-6)
    first, second, third = sorted(ps)
    steps = [3 * first, max(3 * first, 2 * second), max(3 * first, 2 * second, third)]
    assert sorted(kd["p_holm"]) == pytest.approx(steps)
    assert list(kd["verdict"]) == ["supported", "supported", "undecided"]
    assert pd.isna(gained.loc[(PAIRS[0], "dkd+ikd"), "p_holm"]), "one seed has no p and counts for nothing"


def test_more_cells_can_take_a_verdict_away(folders):
    """p = 0.04 alone; beside another of no effect it is no finding."""
    few = pair_of_cells(folders, PAIRS[0], [0.5, 0.95, 1.2, 0.25])
    (alone,) = tables.verdicts(tables.study_table(few, NOBODY, "last"))
    more = pair_of_cells(folders, PAIRS[1], [0.5, -0.5, 0.2, -0.3])
    beside = tables.verdicts(tables.study_table(few + more, NOBODY, "last"))[0]
    assert alone.endswith(": supported") and ": undecided (Holm's p 0.0" in beside


def test_the_pooled_gain_is_that_of_the_pairs_differences(cells):
    """That `pooled_difference` is a linear model's is test_pooling's to prove."""
    rows = tables.pooled(cells, "last").set_index("method")
    expected = pooled_difference([(dict(enumerate(v)), dict.fromkeys(range(9), 0.0)) for v in GAINS])
    kd = rows.loc["kd"]
    found = kd[["gain", "gain_low", "gain_high", "p"]].astype(float)
    np.testing.assert_allclose(found, (expected.mean, expected.low, expected.high, expected.p), rtol=1e-6)
    assert expected.mean == pytest.approx(np.mean([np.mean(values) for values in GAINS]))
    assert (kd["pairs"], kd["gain_n"], kd["verdict"]) == (3, 9, "supported")
    assert rows.loc["dkd", "pairs"] == 1 and rows.loc["dkd", "verdict"] == "undecided"
    assert list(rows.index) == ["kd", "dkd"], "nkd was not run"


def test_pooled_leaves_out_changed_settings_and_pairs_with_one_side(folders, cells):
    expected = tables.pooled(cells, "last")
    other = folders.changed("kd+ikd", {"ikd.temperature": 2.0}, {1: 10.0, 2: 11.0})
    lonely = folders.changed("kd+ikd", {}, {1: 10.0, 2: 11.0}, pair="resnet32x4/resnet8x4")
    pd.testing.assert_frame_equal(tables.pooled([*cells, other, lonely], "last"), expected)
    assert tables.pooled(cells[-2:], "last").empty and tables.pooled([], "last").empty


def test_verdicts_begin_with_what_holds_over_the_pairs(cells):
    table, over = tables.study_table(cells, NOBODY, "last"), tables.pooled(cells, "last")
    lines = tables.verdicts(table, over)
    assert lines[0].startswith("over 3 pairs: kd+ikd minus kd: +0.4") and lines[0].endswith(
        "(n=9): supported"
    )
    assert lines[1:] == tables.verdicts(table) and len(lines) == 5, "dkd has one pair, and no line over pairs"
    assert lines[1].startswith(f"{PAIRS[0]}: kd+ikd minus kd: +0.72")


def test_one_changed_result_flips_a_sentence(folders, cells):
    before = tables.verdicts(tables.study_table(cells, NOBODY, "last"), tables.pooled(cells, "last"))
    cells[1] = folders.changed("kd+ikd", {}, {1: 40.0, 2: 71.4, 3: 71.6})
    after = tables.verdicts(tables.study_table(cells, NOBODY, "last"), tables.pooled(cells, "last"))
    assert ": supported" in before[0] and ": supported" in before[1]
    assert ": undecided" in after[0] and ": undecided" in after[1] and before[2:] == after[2:]


def test_ours_minus_published_stays_within_one_convention(folders):
    published = pd.DataFrame(
        [("resnet56", "resnet20", method, 70.0, how, 72.0, "somewhere") for method, how in
         (("kd", "last"), ("dkd", "best"), ("nkd", "not stated"), ("wttm", "last"))],
        columns=["teacher", "student", "method", "top1", "convention", "teacher_top1", "source"],
    )  # fmt: skip
    made = [folders.changed(name, {}, {1: 71.0, 2: 72.0}) for name in ("kd", "dkd", "nkd", "kd+ikd")]
    table = tables.study_table([*made, folders.cell("wttm", folders.run("wttm", 1))], published, "last")
    found = table.set_index("method")["minus_published"]
    assert (found["kd"], found["dkd"]) == (1.5, 2.5), "the best epoch is a point more"
    assert found[["nkd", "kd+ikd", "wttm"]].isna().all()
    shown = tables.readable(table, "last").set_index("method")["ours minus published"]
    assert list(shown) == ["+1.50", "+2.50", "", "", ""]


@pytest.mark.parametrize("folders_at", ["../runs", "by id"])
def test_cells_link_their_runs_by_seed(folders, folders_at):
    made = [folders.changed("kd+ikd", {}, {1: 70.0, 12: 71.0}), folders.cell("dkd", folders.run("dkd", 1))]
    ids = [run.spec.run_id for run in made[0].runs]
    ways = dict(zip(ids, ("short/runs", "paper/runs"), strict=True))
    table = tables.study_table(made, NOBODY, "last")
    shown = tables.readable(table, "last", ways if folders_at == "by id" else folders_at)["runs"]
    roots = list(ways.values()) if folders_at == "by id" else [folders_at] * 2
    ids = [run_id.replace("+", "%2B") for run_id in ids]
    assert shown[0] == f"[seed 1]({roots[0]}/{ids[0]}/) [seed 12]({roots[1]}/{ids[1]}/)" and shown[1] == ""
    assert "runs" not in tables.readable(table, "last")
