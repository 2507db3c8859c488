"""Intervals against scipy, and what is concluded from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from powers import power
from scipy import stats

from ikdlib.reporting.statistics import Difference, mean_and_std, paired_difference


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(values, start=1))


def draws(n: int, gain: float, spread: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    base = 70 + rng.normal(size=n)
    return base + gain + spread * rng.normal(size=n), base


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n, gain, spread", [(2, 1, 0.3), (3, 0.2, 0.5), (5, -1, 0.2), (20, 0, 1)])
def test_interval_is_scipys(n, gain, spread, level):
    treated, base = draws(n, gain, spread)
    ours = paired_difference(by_seed(treated), by_seed(base), level)
    theirs = stats.ttest_rel(treated, base).confidence_interval(level)
    np.testing.assert_allclose((ours.low, ours.high), theirs, rtol=1e-9)
    assert ours.mean == pytest.approx((treated - base).mean()) and ours.n == n


def test_default_level_is_95_percent():
    treated, base = draws(4, 1, 0.5)
    ours = paired_difference(by_seed(treated), by_seed(base))
    np.testing.assert_allclose(
        (ours.low, ours.high), stats.ttest_rel(treated, base).confidence_interval(0.95), rtol=1e-9
    )


@pytest.mark.parametrize(
    "gain, spread, verdict, mirrored",
    [(2, 0.2, "supported", "contradicted"), (0.05, 1.0, "undecided", "undecided")],
)
def test_the_verdict_flips_with_the_sign(gain, spread, verdict, mirrored):
    treated, base = (by_seed(values) for values in draws(5, gain, spread))
    one, other = paired_difference(treated, base), paired_difference(base, treated)
    assert (one.verdict, other.verdict) == (verdict, mirrored)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert (one.needed is not None) == (verdict == "undecided") and one.needed == other.needed


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_the_verdict_says_where_the_interval_lies(differences):
    found = paired_difference(by_seed(differences), by_seed([0.0] * len(differences)))
    expected = "supported" if found.low > 0 else "contradicted" if found.high < 0 else "undecided"
    assert found.verdict == expected and found.low <= found.mean <= found.high


def test_one_seed_gives_no_interval_and_decides_nothing():
    found = paired_difference({3: 72.0}, {3: 70.0, 4: 71.0})
    assert found == Difference(2.0, None, None, 1, None, None)
    assert found.verdict == "undecided" and "no interval" in str(found) and "n=1" in str(found)


def test_only_common_seeds_count():
    found = paired_difference({1: 71.0, 2: 72.5, 9: 0.0}, {2: 72.0, 1: 70.0, 8: 100.0})
    assert (found.n, found.mean) == (2, 0.75)
    assert paired_difference({1: 70.0}, {2: 70.0}) is None
    assert paired_difference({}, {}) is None


def test_pairs_are_joined_by_seed_not_by_order():
    treated, base = {1: 71.0, 2: 81.0, 3: 91.0}, {3: 90.0, 2: 80.0, 1: 70.0}
    found = paired_difference(treated, base)
    assert (found.low, found.mean, found.high) == (1.0, 1.0, 1.0) and found.verdict == "supported"


def test_equal_runs_are_undecided():
    found = paired_difference({1: 70.0, 2: 71.0}, {1: 70.0, 2: 71.0})
    assert found.verdict == "undecided" and found.needed is None


@pytest.mark.parametrize(
    "n, gain, spread, seed",
    [(3, 0.3, 1, 1), (3, 0.5, 0.6, 2), (4, 0.2, 1, 3), (6, 0.1, 0.5, 4), (3, 0.2, 1, 9)],
)
def test_seeds_needed_by_brute_force(n, gain, spread, seed):
    """The least n at which four of five experiments like this one find its effect: found by trying each."""
    treated, base = draws(n, gain, spread, seed)
    found = paired_difference(by_seed(treated), by_seed(base))
    assert found.verdict == "undecided", "the example must be an undecided one"
    mean, std = (treated - base).mean(), (treated - base).std(ddof=1)

    least = next((n for n in range(2, 1001) if power(mean, std / np.sqrt(n), n - 1) >= 0.8), None)
    assert found.needed == least
    if least is None:
        assert "would tell" not in str(found)
    else:
        told = f"about {least}" if least <= 10 * n else f"more than {10 * n}"
        assert least > n and f", {told} seeds would tell" in str(found)


def test_the_seeds_needed_find_such_an_effect_four_times_in_five():
    """20,000 experiments as large as needed, and as many with a seed less."""
    found = paired_difference(*map(by_seed, draws(3, 0.5, 0.6, seed=2)))
    differences = np.subtract(*draws(3, 0.5, 0.6, seed=2))
    rng = np.random.default_rng(0)

    def share(count):
        drawn = rng.normal(differences.mean(), differences.std(ddof=1), size=(20000, count))
        return (stats.ttest_1samp(drawn, 0, axis=1, alternative="greater").pvalue < 0.025).mean()

    assert share(found.needed) > 0.79 and share(found.needed - 1) < 0.81


def test_two_seeds_tell_too_little_of_their_spread_to_plan_with():
    found = paired_difference({1: 71.0, 2: 70.5}, {1: 70.0, 2: 70.4})
    assert found.verdict == "undecided" and found.needed is None and str(found).endswith(": undecided")


def test_correlation_is_pearsons():
    treated, base = draws(6, 0.5, 0.4)
    found = paired_difference(by_seed(treated), by_seed(base))
    assert found.correlation == pytest.approx(stats.pearsonr(treated, base).statistic)
    assert paired_difference({1: 1.0, 2: 2.0}, {1: 1.0, 2: 3.0}).correlation is None
    assert paired_difference({1: 1.0, 2: 2.0, 3: 3.0}, {1: 5.0, 2: 5.0, 3: 5.0}).correlation is None


def test_mean_and_std_are_numpys():
    values = [70.1, 70.9, 71.3]
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(np.mean(values)) and std == pytest.approx(np.std(values, ddof=1))
    assert mean_and_std([70.0]) == (70.0, None)
