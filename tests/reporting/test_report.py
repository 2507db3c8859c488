"""The report's own pieces, from whatever lies in a results folder."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ikdlib.errors import IkdError
from ikdlib.reporting import collect, curves, report, tables
from ikdlib.studies import protocol
from ikdlib.studies.profiles import LOGIT_METHODS
from ikdlib.studies.variants import RATE

PAIR = "resnet56/resnet20"
T, BATCH, KD_T = "ikd.temperature", "recipe.batch_size", "temperature"
KD = {1: 70.1, 2: 70.4, 3: 69.9}
KD_IKD = {1: 70.9, 2: 71.1, 3: 70.8}


def runs(folders, method, scores, changes=None, **more):
    return [folders.finished(method, s, v, changes=changes, **more) for s, v in scores.items()]


def table_of(found):
    (table,), left_out = collect.tables(found)
    assert left_out == []
    return table


def rows_of(table) -> pd.DataFrame:
    return tables.study_table(report.cells_of(table), protocol.published().head(0), table.primary)


def plus(scores, *more):
    return {seed: value + d for (seed, value), d in zip(scores.items(), more, strict=True)}


def labels(cells) -> list[str]:
    return [cell.method for cell in cells]


def test_the_papers_table_has_all_nine_methods_of_each_of_its_pairs_then_the_changed_ones(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD), folders.unfinished("dkd", 1)]
    found += runs(folders, "kd+ikd", KD, {T: 2.0})
    found += [folders.finished("ce", 0, 72.0, pair="-/resnet56")]
    cells = report.cells_of(table_of(found))
    assert labels(cells) == [*LOGIT_METHODS, "kd+ikd, T 2"] and {cell.pair for cell in cells} == {PAIR}
    shown = tables.readable(rows_of(table_of(found)), "last")
    ends = ["t run", "(n=3)", "(n=3)"] + ["t run"] * 6 + ["(n=3)"]
    assert list(shown["top-1 % (last epoch)"].str[-5:]) == ends
    assert collect.TEACHER in labels(table_of(found).cells), "a teacher is no method"


def test_another_pair_run_with_one_method_alone_is_not_filled_up(folders):
    found = runs(folders, "kd", KD, pair="resnet32/resnet20")
    assert labels(report.cells_of(table_of(found))) == ["kd"]
    more = runs(folders, "kd+ikd", KD, pair="resnet32/resnet20")
    assert labels(report.cells_of(table_of(found + more))) == list(LOGIT_METHODS)
    assert labels(report.cells_of(table_of(runs(folders, "kd", KD, {KD_T: 2.0})))) == ["kd, KD T 2"]


def test_rows_with_changed_settings_stand_behind_what_they_are_compared_with(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD), *runs(folders, "dkd", KD)]
    found += runs(folders, "dkd", KD, pair="vgg13/vgg8") + runs(folders, "kd+ikd", KD, pair="vgg13/vgg8")
    assert report.changed(rows_of(table_of(found))).empty
    found += runs(folders, "kd+ikd", KD_IKD, {T: 2.0}) + runs(folders, "kd+ikd", KD, {BATCH: 128, RATE: 2.0})
    found += [folders.finished("ce", 0, 72.0, pair="-/resnet56")]
    every = rows_of(table_of(found))
    rows = report.changed(every)
    assert list(rows["method"]) == ["kd", "kd+ikd", "kd+ikd, T 2", "kd+ikd, batch 128"]
    assert set(rows["pair"]) == {PAIR} and rows.equals(every.loc[rows.index]), "the table's own rows"
    assert list(rows.set_index("method")["verdict"].dropna().index) == ["kd+ikd", "kd+ikd, T 2"]
    found += runs(folders, "kd", KD, {BATCH: 128, RATE: 2.0})
    assert "kd, batch 128" in list(report.changed(rows_of(table_of(found)))["method"])


def test_every_run_of_a_table_is_counted_once_and_no_other(folders):
    """Cross-entropy stands beside two teachers; a run of another teacher file stands in no table."""
    found = [*runs(folders, "kd", KD), *runs(folders, "ce", KD), folders.diverged("kd", 4)]
    found += [folders.unfinished("kd", 5), folders.finished("kd", 1, 70.0, pair="resnet110/resnet20")]
    found += runs(folders, "kd", KD, epochs=6)
    other = folders.finished("kd", 9, 70.0, teacher_sha256="2" * 64)
    made, left_out = collect.tables([*found, other])
    assert len(left_out) == 1
    assert report.counted(made) == sorted(found, key=lambda run: run.spec.run_id)
    assert report.counted([]) == []


def test_the_headline_is_each_tables_pooled_gain(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    found += [folders.finished("dkd", 1, 70.0, epochs=6), folders.finished("dkd+ikd", 1, 69.0, epochs=6)]
    made, _ = collect.tables(found)
    rows = report.headline(made)
    assert list(rows["name"]) == [
        "dkd+ikd minus dkd, resnet56/resnet20\ncifar100, 6 epochs, fp32, paper protocol",
        "kd+ikd minus kd, resnet56/resnet20\ncifar100, 3 epochs, fp32, paper protocol",
    ], "the longest first"
    assert list(rows["gain"]) == pytest.approx([-1.0, 0.8]) and list(rows["gain_n"]) == [1, 3]
    second, first = report.headline_words(rows).splitlines()
    assert first.startswith("- kd+ikd minus kd, resnet56/resnet20; cifar100") and first.endswith(
        "points, n=3: supported"
    )
    assert "**+0.80** [+0.5" in first or "**+0.80** [+0.6" in first
    assert second.endswith("**-1.00** points, n=1: undecided")


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "profiles without runs", "the demo alone"])
def test_without_any_run_no_report_is_written(folders, tmp_path, what):
    results = tmp_path / "results"
    if what != "nothing":
        results.mkdir()
    if what == "profiles without runs":
        (results / "short" / "runs").mkdir(parents=True)
    if what == "the demo alone":
        type(folders)(results / "demo" / "runs").finished("kd", 1, 70.0)
    with pytest.raises(IkdError, match="no run in .*results; `make demo`"):
        report.write(results)
    assert not (results / "report.html").exists()


def test_one_changed_result_flips_the_headline(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    said = [report.headline_words(report.headline([table_of(found)]))]
    folders.finished("kd+ikd", 2, 60.0)
    said.append(report.headline_words(report.headline([table_of(found)])))
    assert said[0].endswith(": supported") and ": undecided, more than 30 seeds" in said[1]


def test_the_headline_shows_each_pair_while_they_are_few(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    found += [*runs(folders, "kd", KD, pair="vgg13/vgg8")]
    found += [*runs(folders, "kd+ikd", plus(KD, -0.9, -1.0, -0.8), pair="vgg13/vgg8")]
    rows = report.headline([table_of(found)])
    over = [name.partition("kd, ")[2].partition("\n")[0] for name in rows["name"]]
    assert over == [f"mean of {PAIR}, vgg13/vgg8", PAIR, "vgg13/vgg8"] and set(rows["method"]) == {"kd"}
    assert list(rows["gain"]) == pytest.approx([-0.05, 0.8, -0.9])
    assert report.headline_words(rows).splitlines()[0].endswith(": undecided (the pairs disagree)")
    told = [text.get_text() for text in curves.forest(rows, "").axes[0].texts]
    assert [one.partition(" (n=")[0] for one in told] == ["-0.05", "+0.80", "-0.90"]
    assert not any("disagree" in one for one in told), "an interval across zero is enough of a reason"
    for pair in ("resnet110/resnet20", "resnet110/resnet32"):
        found += [*runs(folders, "kd", KD, pair=pair), *runs(folders, "kd+ikd", KD_IKD, pair=pair)]
    (name,) = report.headline([table_of(found)])["name"]
    assert name.startswith("kd+ikd minus kd, mean of 4 pairs\n")


def test_the_headlines_picture_tells_why_an_interval_off_zero_is_undecided(folders):
    """Of two pairs one gains three points and the other none: their mean lies off zero by the one alone."""
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", plus(KD, 3.0, 3.1, 3.05))]
    found += [*runs(folders, "kd", KD, pair="vgg13/vgg8")]
    found += [*runs(folders, "kd+ikd", plus(KD, -0.1, 0.1, 0.05), pair="vgg13/vgg8")]
    rows = report.headline([table_of(found)])
    first, *others = (text.get_text() for text in curves.forest(rows, "").axes[0].texts)
    assert rows["gain_low"][0] > 0 and first.endswith("(n=6)\none pair carries it")
    assert not any("\n" in one for one in others)


def test_nothing_run_is_said(folders):
    assert "**not run**" in report.headline_words(report.headline([]))
    assert report.nothing(report.overview([])) == report.nothing(report.teachers([])) == "*not run*"
    assert report.nothing(report.behaviours([])) == "*not run*"
    table = table_of([folders.unfinished("kd", 1), folders.diverged("kd+ikd", 1)])
    assert report.headline([table]).empty and list(report.curves_of(table)) == []
    assert list(report.controls_of(table)) == [] and report.behaviours([table]).empty
    columns = "table", "pair", "method", "seed", "measure", "unit", "paper", "base", "+ikd", "difference"
    assert tuple(report.behaviours([])) == tuple(report.behaviours([table])) == columns


def test_the_overview_counts_runs_and_hours(folders):
    found = runs(folders, "kd", KD, hours=1.0) + runs(folders, "kd", KD, hours=0.5, epochs=6)
    found += [folders.diverged("kd", 8), folders.unfinished("kd", 9)]
    rows = report.overview(found).set_index(["epochs", "status"])
    assert rows["runs"].to_dict() == {
        (3, "finished"): 3, (3, "diverged"): 1, (3, "unfinished"): 1, (6, "finished"): 3,
    }  # fmt: skip
    assert rows["hours"].to_dict() == {
        (3, "finished"): 3.0, (3, "diverged"): 0.0, (3, "unfinished"): 0.0, (6, "finished"): 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("text", [None, "{}", '{"seconds": {}}', "{", "[]", '{"seconds": null}'])
def test_the_overview_counts_runs_whose_provenance_is_not_there_or_says_no_hours(folders, text):
    found = runs(folders, "kd", KD)
    if text:
        for run in found:
            (run.folder / "provenance.json").write_text(text)
    found += [folders.finished("dkd", 1, 70.0, hours=2.0, epochs=6)]
    rows = report.overview(found).set_index("epochs")
    assert rows["runs"].to_dict() == {3: 3, 6: 1} and rows.loc[6, "hours"] == 2.0


def test_teachers_are_named_once_with_their_students(folders):
    found = runs(folders, "kd", KD) + [folders.finished("dkd", 1, 70.0), folders.finished("ce", 1, 69.0)]
    found += [folders.finished("kd", 1, 70.0, pair="vgg13/vgg8", teacher_sha256="2" * 64)]
    found += [folders.unfinished("kd", 9, pair="ResNet50/vgg8", teacher_sha256="3" * 64)]
    rows = report.teachers(found).set_index("teacher")
    assert rows["students"].to_dict() == {"resnet56": 4, "vgg13": 1}
    assert rows.loc["vgg13", "sha256"] == "222222222222..." and rows.loc["vgg13", "test top-1 (%)"] == 77.5


def test_links_lead_from_the_report_to_the_runs(folders, tmp_path):
    found = runs(folders, "kd", {1: 70.0})
    assert report.links(found, tmp_path) == {found[0].spec.run_id: "runs"}


def test_a_setting_with_three_values_is_a_curve(folders):
    found = runs(folders, "dkd+ikd", KD) + runs(folders, "dkd+ikd", KD, {T: 2.0})
    assert list(report.curves_of(table_of(found))) == []
    found += runs(folders, "dkd+ikd", KD_IKD, {T: 0.5})
    found += runs(folders, "kd", KD) + runs(
        folders, "kd", KD, {KD_T: 8.0}, recorded={"test_confidence": 40.0}
    )
    made = {setting: (points, measures) for setting, points, measures in report.curves_of(table_of(found))}
    assert set(made) == {T, KD_T}
    points, measures = made[T]
    assert (
        measures == ["test"]
        and set(points["value"]) == {0.5, 1.0, 2.0}
        and set(points["series"]) == {"dkd+ikd"}
    )
    points, measures = made[KD_T]
    assert measures == ["test", "confidence"] and set(points["series"]) == {"kd"}


def test_controls_stand_beside_their_method(folders):
    found = [*runs(folders, "dkd", KD), *runs(folders, "dkd+ikd", KD_IKD), *runs(folders, "kd+ikd", KD)]
    assert list(report.controls_of(table_of(found))) == []
    found += runs(folders, "dkd+ikd", KD, {"ikd.target": "one_hot"})
    found += [folders.unfinished("dkd+ikd", 1, changes={"ikd.source": "clean"})]
    ((method, compared),) = report.controls_of(table_of(found))
    assert method == "dkd+ikd" and list(compared["other"]) == ["dkd", "dkd+ikd, towards one hot"]
    assert set(compared["verdict"]) == {"supported"}
    assert report.nothing(compared[["name", "question", "effect"]]).count("\n") == 3
    found += runs(folders, "ce", KD) + runs(folders, "ce+ikd", plus(KD, 0.8, 0.9, 0.75))
    ((_, compared),) = report.controls_of(table_of(found))
    asked = dict(
        zip(zip(compared["method"], compared["other"], strict=True), compared["question"], strict=True)
    )
    assert list(asked) == [
        ("dkd+ikd", "dkd"),
        ("ce+ikd", "ce"),
        ("dkd+ikd", "dkd+ikd, towards one hot"),
    ]
    assert "work alone" in asked["ce+ikd", "ce"]
    ps = [stats.ttest_rel(list(KD_IKD.values()), list(KD.values())).pvalue] * 2
    ps += [stats.ttest_1samp([0.8, 0.9, 0.75], 0).pvalue]
    assert compared["p_holm"].min() == pytest.approx(3 * min(ps)), "all of them are one family"


def test_behaviour_is_of_the_lowest_seed_that_both_kept(folders):
    labels = np.repeat(np.arange(100), 100)
    logits = np.eye(100)[labels] * 8
    kept = [(name, seed) for name in ("kd", "kd+ikd") for seed in (2, 3)] + [("kd", 1)]
    found = [folders.finished(name, seed, 100.0, logits=logits) for name, seed in kept]
    found += [folders.finished("kd+ikd", 1, 70.0)]
    rows = report.behaviours([table_of(found)])
    assert set(rows["seed"]) == {2} and set(rows["pair"]) == {PAIR} and set(rows["method"]) == {"kd+ikd"}
    top1 = rows[rows["measure"] == "accuracy (top-1)"].iloc[0]
    assert (top1["base"], top1["+ikd"], top1["difference"]) == (100.0, 100.0, 0.0)


def test_the_order_of_runs_changes_nothing(folders):
    found = [*runs(folders, "kd", KD, hours=1.0), *runs(folders, "kd+ikd", KD_IKD, hours=1.0)]
    found += runs(folders, "kd+ikd", KD, {T: 2.0}, hours=1.0)
    turned = random.Random(1).sample(found, len(found))
    one, other = table_of(found), table_of(turned)
    pd.testing.assert_frame_equal(report.headline([one]), report.headline([other]))
    pd.testing.assert_frame_equal(report.overview(found), report.overview(turned))
    assert report.cells_of(one) == report.cells_of(other)
    pd.testing.assert_frame_equal(report.changed(rows_of(one)), report.changed(rows_of(other)))
    assert report.counted([one]) == report.counted([other])
