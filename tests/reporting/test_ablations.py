"""Curves over a setting, their optimum and their gains, from hand-made runs and against scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from powers import power
from scipy import stats

from ikdlib.reporting import ablations
from ikdlib.studies.variants import RATE

PAIR = "resnet56/resnet20"
T, WEIGHT, BATCH, KD_T = "ikd.temperature", "ikd.weight", "recipe.batch_size", "temperature"
OWN = {1: 71.4, 2: 71.5, 3: 71.8}
LOW = {1: 70.2, 2: 70.5, 3: 70.4}
HIGH = {1: 70.9, 2: 71.1, 3: 71.2}


def curve(folders, own=OWN, low=LOW, high=HIGH, method="dkd+ikd"):
    """The term's temperature at 0.5, 1 and 2."""
    given = ((0.5, low), (1.0, own), (2.0, high))
    return [folders.changed(method, {T: t} if t != 1 else {}, values) for t, values in given if values]


def best(cells, value=1.0, measure="test"):
    return ablations.optimum(ablations.points(cells, T), PAIR, "dkd+ikd", value, measure, "T")


def values_of(found) -> dict:
    """Series -> value -> seed -> test top-1."""
    return {
        series: {v: dict(zip(p["seed"], p["test"], strict=True)) for v, p in part.groupby("value")}
        for series, part in found[found["value"].notna()].groupby("series")
    }


# Points


def test_a_curve_has_the_runs_in_which_nothing_else_was_changed(folders):
    cells = curve(folders) + [
        folders.changed("dkd+ikd", {T: 0.5, WEIGHT: 2.0}, {1: 1.0}),
        folders.changed("dkd+ikd", {T: 0.5, "ikd.target": "one_hot"}, {1: 2.0}),
        folders.changed("dkd+ikd", {BATCH: 128, RATE: 2.0}, {1: 3.0}),
        folders.changed("dkd", {}, {1: 4.0}),
        folders.cell("dkd+ikd", folders.unfinished("dkd+ikd", 7), folders.diverged("dkd+ikd", 8)),
        folders.cell("teacher", folders.finished("ce", 0, 5.0, pair="-/resnet20")),
    ]
    assert values_of(ablations.points(cells, T)) == {"dkd+ikd": {0.5: LOW, 1.0: OWN, 2.0: HIGH}}
    beside = ablations.points(cells, T).query("value.isna()")
    assert beside[["series", "seed", "test"]].values.tolist() == [["dkd", 1, 4.0]], "it has no T"
    assert ablations.points(cells[-3:-2], T).empty, "a base method alone is no curve"
    assert values_of(ablations.points(cells, WEIGHT)) == {"dkd+ikd": {0.0: {1: 4.0}, 6.5: OWN}}
    assert values_of(ablations.points(cells, BATCH)) == {
        "dkd": {64.0: {1: 4.0}}, "dkd+ikd": {64.0: OWN, 128.0: {1: 3.0}},
    }  # fmt: skip
    assert values_of(ablations.points(cells, KD_T)) == {"dkd": {4.0: {1: 4.0}}, "dkd+ikd": {4.0: OWN}}


def test_a_batch_size_whose_rate_does_not_follow_is_no_point(folders):
    changes = [{}, {BATCH: 128, RATE: 2.0}, {BATCH: 128}, {BATCH: 256, RATE: 2.0}, {RATE: 2.0}]
    cells = [folders.changed("kd", c, {1: 60.0 + i}) for i, c in enumerate(changes)]
    assert values_of(ablations.points(cells, BATCH)) == {"kd": {64.0: {1: 60.0}, 128.0: {1: 61.0}}}


def test_the_order_of_cells_and_runs_changes_no_point(folders):
    cells = curve(folders)
    turned = [folders.cell(c.method, *reversed(c.runs)) for c in reversed(cells)]
    expected = ablations.points(cells, T)
    pd.testing.assert_frame_equal(ablations.points(turned, T), expected)
    assert list(expected) == list(ablations.COLUMNS) and list(expected["seed"]) == [1, 2, 3] * 3
    assert expected["run"].nunique() == 9


def test_what_a_run_did_not_record_is_missing(folders):
    recorded = {"held_out_top1": 68.0, "test_confidence": 50.0}
    cells = [
        folders.changed("kd+ikd", {}, {1: 70.0}),
        folders.changed("kd+ikd", {T: 2.0}, {1: 70.0}, recorded=recorded),
    ]
    found = ablations.points(cells, T)
    assert found.loc[0, ["held_out", "confidence"]].isna().all()
    assert list(found.loc[1, ["held_out", "confidence"]]) == [68.0, 50.0]
    assert ablations.scores(found, PAIR, "kd+ikd", 1.0, "held_out") == {}
    assert ablations.scores(found, PAIR, "kd+ikd", 2.0, "held_out") == {1: 68.0}


def test_under_best_each_split_is_at_its_best_epoch_and_confidence_at_the_tests(folders):
    """Of the columns the second epoch has one less than the last, the first has two more."""
    recorded = {"held_out_top1": 68.0, "test_confidence": 50.0}
    cells = [folders.changed("kd+ikd", {}, {1: 70.0}, recorded=recorded)]
    (row,) = ablations.points(cells, T, "best").to_dict("records")
    assert (row["test"], row["held_out"], row["confidence"]) == (71.0, 70.0, 49.0)


# The best value of a curve


def test_a_value_above_all_others_is_supported(folders):
    finding = best(curve(folders))
    rival = stats.ttest_rel(list(OWN.values()), list(HIGH.values()))
    assert finding.verdict == "supported" and finding.effect.p == pytest.approx(rival.pvalue)
    assert (finding.effect.low, finding.effect.high) == pytest.approx(tuple(rival.confidence_interval(0.95)))
    low, high = rival.confidence_interval(0.95)
    assert str(finding) == (
        f"{PAIR} dkd+ikd: T = 1 minus T = 2, the best of the 2 others: "
        f"+0.50 [{low:+.2f}, {high:+.2f}] (n=3): supported"
    )


def test_one_changed_result_flips_its_sentence(folders):
    curve(folders)
    assert best(curve(folders, high={**HIGH, 3: 79.0})).verdict == "undecided"
    finding = best(curve(folders, high={s: v + 1 for s, v in OWN.items()}))
    assert finding.verdict == "contradicted" and "T = 1 minus T = 2" in str(finding)


def test_one_value_that_is_no_worse_leaves_it_undecided(folders):
    finding = best(curve(folders, high=OWN))
    assert finding.verdict == "undecided" and finding.effect.mean == 0


def test_it_takes_holms_correction_to_contradict(folders):
    """A single rival above with p = 0.04 contradicts; beside three that say nothing it does not."""
    above = {
        seed: OWN.get(seed, 71.0) + d for seed, d in zip((1, 2, 3, 4), (0.5, 0.95, 1.2, 0.25), strict=True)
    }
    own = {**OWN, 4: 71.0}
    p = stats.ttest_rel(list(above.values()), list(own.values())).pvalue
    assert 0.04 < p < 0.05
    cells = curve(folders, own=own, low=None, high=above)
    assert best(cells).verdict == "contradicted"
    noise = [1.0, -1.0, 0.5, -0.6]
    more = [
        folders.changed("dkd+ikd", {T: t}, {s: own[s] + d for s, d in zip(own, noise, strict=True)})
        for t in (0.5, 3.0, 4.0)
    ]
    finding = best(cells + more)
    assert finding.verdict == "undecided" and "T = 1 minus T = 2, the best of the 4 others" in str(finding)


def test_only_values_it_was_compared_with_are_counted_and_all_must_be_to_support_it(folders):
    cells = curve(folders) + [folders.changed("dkd+ikd", {T: 3.0}, {9: 9.0})]
    finding = best(cells)
    assert "the best of the 2 others" in str(finding) and finding.verdict == "undecided"
    cells.append(folders.changed("dkd+ikd", {}, {9: 71.0}))
    cells = [folders.cell("all", *(run for cell in cells for run in cell.runs))]
    assert best(cells).verdict == "undecided", "of one common seed there is no interval"


def test_an_undecided_finding_names_the_seeds_that_would_tell(folders):
    finding = best(curve(folders, high={1: 71.4, 2: 71.4, 3: 71.6}))
    differences = np.array([0.0, 0.1, 0.2])
    spread = differences.std(ddof=1)
    needed = next(n for n in range(2, 99) if power(0.1, spread / n**0.5, n - 1) >= 0.8)
    assert str(finding).endswith(f"(n=3): undecided, about {needed} seeds would tell") and needed > 3
    decided = [best(curve(folders)), best(curve(folders, high={s: v + 1 for s, v in OWN.items()}))]
    assert [str(one).rpartition(": ")[2] for one in decided] == ["supported", "contradicted"]
    assert str(best(curve(folders, high=OWN))).endswith(": undecided"), "no number of seeds is enough"


def test_without_runs_to_compare_there_is_no_finding(folders):
    assert best(curve(folders, own=None)) is None
    assert best(curve(folders, low=None, high=None)) is None
    assert best(curve(folders), measure="held_out") is None
    assert best([]) is None


def test_held_out_images_choose_where_they_were_recorded(folders):
    cells = []
    for value, top1, held_out in ((0.5, 75.0, 60.0), (1.0, 70.0, 66.0), (2.0, 76.0, 61.0)):
        changes = {T: value} if value != 1 else {}
        recorded = [{"held_out_top1": held_out + s / 9} for s in (1, 2, 3)]
        runs = [
            folders.finished("dkd+ikd", s, top1 + s / 9, changes=changes, recorded=recorded[s - 1])
            for s in (1, 2, 3)
        ]
        cells.append(folders.cell("any", *runs))
    assert (best(cells, measure="held_out").verdict, best(cells).verdict) == ("supported", "contradicted")


# One cell against others, and gains along a curve


def test_all_pairs_and_questions_are_judged_as_one_family(folders):
    """Two questions on one pair and one on another are three tests; what was not run is none."""
    other = "vgg13/vgg8"
    cells = [
        folders.changed("dkd+ikd", {}, OWN), folders.changed("dkd", {}, LOW),
        folders.changed("ce+ikd", {}, HIGH), folders.changed("ce", {}, LOW),
        folders.changed("dkd+ikd", {}, HIGH, pair=other), folders.changed("dkd", {}, LOW, pair=other),
    ]  # fmt: skip
    control = "dkd+ikd, towards one hot"
    asked = {("dkd+ikd", "dkd"): "the base?", ("ce+ikd", "ce"): "alone?", ("dkd+ikd", control): "a control?"}
    found = ablations.against(cells, asked, "last")
    assert [*zip(found["pair"], found["method"], found["other"], found["question"], strict=True)] == [
        (pair, *labels, text) for pair in (PAIR, other) for labels, text in asked.items()
    ]
    sides = {0: (OWN, LOW), 1: (HIGH, LOW), 3: (HIGH, LOW)}
    ps = {row: stats.ttest_rel(*(list(v.values()) for v in values)).pvalue for row, values in sides.items()}
    expected, largest = {}, 0.0
    for rank, row in enumerate(sorted(ps, key=ps.get)):
        expected[row] = largest = max(largest, (3 - rank) * ps[row])
    assert found["p_holm"].dropna().to_dict() == pytest.approx(expected)
    assert found.loc[0, "gain"] == pytest.approx(71.5667 - 70.3667, abs=1e-3)
    assert found.loc[1, "name"] == f"{PAIR}: ce+ikd minus ce" and found.loc[1, "gain_n"] == 3
    nothing = found.loc[[2, 4, 5]]
    assert nothing[["gain", "gain_low", "gain_high", "gain_n", "p_holm"]].isna().all(axis=None)
    assert (nothing[["effect", "verdict"]] == "not run").all(axis=None)
    assert found.loc[2, "name"] == f"{PAIR}: dkd+ikd minus dkd+ikd, towards one hot"


def test_another_pair_can_take_the_answer_of_a_question_away(folders):
    """p = 0.04 alone; beside a pair without an effect it is no finding."""
    base = {1: 70.0, 2: 70.3, 3: 70.1, 4: 70.6}
    more, noise = ({s: v + d for (s, v), d in zip(base.items(), ds, strict=True)}
                   for ds in ((0.5, 0.95, 1.2, 0.25), (0.5, -0.5, 0.2, -0.3)))  # fmt: skip
    cells = [folders.changed("dkd", {}, base), folders.changed("dkd+ikd", {}, more)]
    asked = {("dkd+ikd", "dkd"): "the base?"}
    assert list(ablations.against(cells, asked, "last")["verdict"]) == ["supported"]
    for name, values in (("dkd", base), ("dkd+ikd", noise)):
        cells.append(folders.changed(name, {}, values, pair="vgg13/vgg8"))
    found = ablations.against(cells, asked, "last")
    assert list(found["verdict"]) == ["undecided"] * 2 and "(Holm's p 0.0" in found.loc[0, "effect"]


def test_against_nothing_has_its_columns():
    none = ablations.against([], {("dkd+ikd", "dkd"): "the base?"}, "last")
    assert none.empty and {"pair", "method", "other", "gain", "name", "question", "effect"} <= set(none)


def test_the_gain_along_a_curve_is_paired_and_judged_at_each_value(folders):
    cells = [folders.changed("kd", {}, LOW), folders.changed("kd+ikd", {}, HIGH)]
    cells += [folders.changed("kd", {KD_T: 8.0}, HIGH), folders.changed("kd+ikd", {KD_T: 8.0}, OWN)]
    cells += [folders.changed("kd", {KD_T: 2.0}, LOW)]
    found = ablations.gains(ablations.points(cells, KD_T), "test")
    assert list(found["value"]) == [4.0, 8.0] and set(found["series"]) == {"kd+ikd"}
    ps = [stats.ttest_rel(list(a.values()), list(b.values())).pvalue for a, b in ((HIGH, LOW), (OWN, HIGH))]
    first, second = sorted(ps)
    assert sorted(found["p_holm"]) == pytest.approx([2 * first, max(2 * first, second)])
    none = ablations.gains(ablations.points([], KD_T), "test")
    assert none.empty and list(none) == list(found)
