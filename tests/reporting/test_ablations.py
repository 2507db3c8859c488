"""Curves over a setting, their optimum and their gains, from hand-made runs and against scipy."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ikdlib.reporting import ablations, curves, targets  # noqa: E402
from ikdlib.studies.variants import RATE  # noqa: E402

PAIR = "resnet56/resnet20"
T, WEIGHT, BATCH, KD_T = "ikd.temperature", "ikd.weight", "recipe.batch_size", "temperature"
OWN = {1: 71.4, 2: 71.5, 3: 71.8}
LOW = {1: 70.2, 2: 70.5, 3: 70.4}
HIGH = {1: 70.9, 2: 71.1, 3: 71.2}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


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


def test_only_values_it_was_compared_with_are_counted(folders):
    cells = curve(folders) + [folders.changed("dkd+ikd", {T: 3.0}, {9: 99.0})]
    assert "the best of the 2 others" in str(best(cells))


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


def test_one_method_against_others_is_judged_over_all_of_them(folders):
    cells = [
        folders.changed("dkd+ikd", {}, OWN),
        folders.changed("dkd", {}, LOW),
        folders.changed("ce+ikd", {}, HIGH),
    ]
    asked = {"dkd": "the base?", "ce+ikd": "alone?", "dkd+ikd, towards one hot": "a control?"}
    found = ablations.against(cells, "dkd+ikd", asked, "last").set_index("other")
    ps = [stats.ttest_rel(list(OWN.values()), list(values.values())).pvalue for values in (LOW, HIGH)]
    assert found.loc["dkd", "gain"] == pytest.approx(71.5667 - 70.3667, abs=1e-3)
    first, second = sorted(ps)
    assert sorted(found["p_holm"].dropna()) == pytest.approx([2 * first, max(2 * first, second)])
    assert list(found["question"]) == list(asked.values())
    missing = found.loc["dkd+ikd, towards one hot"]
    assert missing[["gain", "gain_low", "gain_high", "gain_n", "p_holm", "effect", "verdict"]].isna().all()
    assert missing["name"] == f"{PAIR}: dkd+ikd minus dkd+ikd, towards one hot"


def test_against_nothing_has_its_columns_and_a_picture():
    none = ablations.against([], "dkd+ikd", {"dkd": "the base?"}, "last")
    assert none.empty and {"gain", "name", "question", "effect"} <= set(none)
    assert "not run" in words_of(curves.forest(none, "A title"))


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


# Pictures


def words_of(figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_a_curve_shows_mean_and_spread_of_each_value_and_the_papers_best(folders):
    found = ablations.points(curve(folders), T)
    figure = curves.setting_curve(found, T, ["test", "held_out"], "A title", {"dkd+ikd": 1.0})
    drawn, empty = figure.axes
    line, _, (bars,) = drawn.containers[0].lines
    expected = [list(values.values()) for values in (LOW, OWN, HIGH)]
    np.testing.assert_allclose(
        line.get_xydata(), [(v, np.mean(x)) for v, x in zip((0.5, 1, 2), expected, strict=True)]
    )
    heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(heights, [2 * np.std(x, ddof=1) for x in expected])
    assert "the paper's best for dkd+ikd: 1" in drawn.get_legend_handles_labels()[1]
    assert words_of(figure) == ["not run"] and not empty.lines, "nothing was held out"
    assert (drawn.get_title(), drawn.get_xlabel()) == (PAIR, ablations.AXES[T])


def test_a_base_method_without_the_setting_is_a_level_across_the_curve(folders):
    cells = curve(folders) + [folders.changed("dkd", {}, {1: 60.0, 2: 62.0})]
    figure = curves.setting_curve(ablations.points(cells, T), T, ["test"], "A title")
    (level,) = [line for line in figure.axes[0].lines if line.get_label() == "dkd"]
    assert list(level.get_ydata()) == [61.0, 61.0] and level.get_linestyle() == "--"


def test_a_curve_of_nothing_says_not_run():
    figure = curves.setting_curve(ablations.points([], BATCH), BATCH, ["test"], "A title")
    assert words_of(figure) == ["not run"] and figure.axes[0].get_title() == "no finished run"


def test_a_forest_shows_each_interval_and_hollow_dots_without_one():
    rows = pd.DataFrame({
        "name": ["a", "b", "c"], "method": ["kd+ikd", "dkd", "kd"], "gain": [0.5, -0.2, None],
        "gain_low": [0.1, None, None], "gain_high": [0.9, None, None], "gain_n": [3, 1, None],
    })  # fmt: skip
    axis = curves.forest(rows, "A title").axes[0]
    _, interval, full, hollow = axis.lines
    assert list(interval.get_xdata()) == [0.1, 0.9] and list(interval.get_ydata()) == [0, 0]
    assert (full.get_xdata()[0], hollow.get_xdata()[0]) == (0.5, -0.2)
    assert full.get_markerfacecolor() != "white" == hollow.get_markerfacecolor()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"], "c was not run"
    assert [text.get_text() for text in axis.texts] == ["+0.50 (n=3)", "-0.20 (n=1)"]


# What the term pulls towards


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_targets_in_numbers(temperature):
    means = np.random.default_rng(0).normal(size=(6, 6)) + 3 * np.eye(6)
    found = targets.summary(means, temperature)
    p = np.exp(means / temperature) / np.exp(means / temperature).sum(1, keepdims=True)
    own, entropy = np.diag(p).mean(), stats.entropy(p, axis=1).mean()
    other = (p - np.diag(np.diag(p))).max(1).mean()
    np.testing.assert_allclose(found.loc["means"], (own, entropy, other), rtol=1e-9)
    np.testing.assert_allclose(found.loc["permuted"], (own, entropy, other), rtol=1e-9)
    np.testing.assert_allclose(found.loc["one hot"], (1, 0, 0), atol=1e-12)
    smooth = found.loc["smoothed"]
    assert smooth["entropy (nats)"] == pytest.approx(entropy)
    assert smooth["largest other probability"] == pytest.approx((1 - smooth["probability of the class"]) / 5)
