"""Pictures of curves over a setting, of gains, and the targets of the term in numbers."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ikdlib.reporting import ablations, curves, targets  # noqa: E402

PAIR = "resnet56/resnet20"
T, BATCH = "ikd.temperature", "recipe.batch_size"
OWN = {1: 71.4, 2: 71.5, 3: 71.8}
LOW = {1: 70.2, 2: 70.5, 3: 70.4}
HIGH = {1: 70.9, 2: 71.1, 3: 71.2}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def curve(folders):
    """The term's temperature at 0.5, 1 and 2."""
    given = ((0.5, LOW), (1.0, OWN), (2.0, HIGH))
    return [folders.changed("dkd+ikd", {T: t} if t != 1 else {}, values) for t, values in given]


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
    (level,) = [line for line in figure.axes[0].lines if line.get_label() == "dkd (n=2)"]
    assert list(level.get_ydata()) == [61.0, 61.0] and level.get_linestyle() == "--"


def test_a_curve_says_of_how_many_seeds_and_a_point_of_one_has_no_bar(folders):
    given = ((0.5, {1: 70.2}), (1.0, OWN), (2.0, {1: 70.9, 2: 71.1}))
    cells = [folders.changed("dkd+ikd", {T: t} if t != 1 else {}, values) for t, values in given]
    (axis,) = curves.setting_curve(ablations.points(cells, T), T, ["test"], "A title").axes
    assert axis.get_legend_handles_labels()[1] == ["dkd+ikd (n=1 to 3)"]
    *_, (bars,) = axis.containers[0].lines
    none, *drawn = [np.asarray(segment) for segment in bars.get_segments()]
    assert none.size == 0
    spreads = [2 * np.std(list(scores.values()), ddof=1) for _, scores in given[1:]]
    np.testing.assert_allclose([segment[1, 1] - segment[0, 1] for segment in drawn], spreads)


def test_a_curve_of_nothing_says_not_run():
    figure = curves.setting_curve(ablations.points([], BATCH), BATCH, ["test"], "A title")
    assert words_of(figure) == ["not run"] and figure.axes[0].get_title() == "no finished run"


def test_a_forest_of_nothing_says_not_run():
    none = ablations.against([], {("dkd+ikd", "dkd"): "the base?"}, "last")
    assert "not run" in words_of(curves.forest(none, "A title"))


def test_a_forest_shows_each_interval_and_hollow_dots_of_what_is_undecided():
    rows = pd.DataFrame({
        "name": ["a", "b", "c", "d"], "method": ["kd+ikd", "dkd", "kd", "kd"],
        "gain": [0.5, -0.2, None, 0.3], "gain_low": [0.1, None, None, 0.1],
        "gain_high": [0.9, None, None, 0.5], "gain_n": [3, 1, None, 3],
        "verdict": ["supported", "undecided", "not run", "undecided"],
    })  # fmt: skip
    axis = curves.forest(rows, "A title").axes[0]
    _, interval, full, hollow, other, corrected = axis.lines
    assert list(other.get_xdata()) == [0.1, 0.5]
    assert corrected.get_markerfacecolor() == "white", "its interval lies off zero, Holm's p does not"
    assert list(interval.get_xdata()) == [0.1, 0.9] and list(interval.get_ydata()) == [0, 0]
    assert (full.get_xdata()[0], hollow.get_xdata()[0]) == (0.5, -0.2)
    assert full.get_markerfacecolor() != "white" == hollow.get_markerfacecolor()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "d"], "c was not run"
    assert [text.get_text() for text in axis.texts] == ["+0.50 (n=3)", "-0.20 (n=1)", "+0.30 (n=3)"]


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
    even = found.loc["even rest"]
    assert even["probability of the class"] == pytest.approx(own)
    assert even["largest other probability"] == pytest.approx((1 - own) / 5)
    smooth = found.loc["smoothed"]
    assert smooth["entropy (nats)"] == pytest.approx(entropy)
    assert smooth["largest other probability"] == pytest.approx((1 - smooth["probability of the class"]) / 5)
