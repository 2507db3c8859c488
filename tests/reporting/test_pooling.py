"""Differences pooled over pairs and judged together, against linear models, brute force and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from powers import power
from scipy import stats

from ikdlib.reporting.statistics import Difference, corrected, paired_difference, pooled_difference


def strata(*differences, base=70.0):
    """A pair for each list of differences, over seeds 1, 2, ...; the bases are not all alike."""
    made = []
    for number, values in enumerate(differences):
        plain = {seed: base + number + 0.1 * seed for seed in range(1, len(values) + 1)}
        made.append(({seed: plain[seed] + d for seed, d in enumerate(values, start=1)}, plain))
    return made


def linear_model(differences, level=0.95):
    """Mean, interval and p of the average over pairs, from least squares with the pair as a factor."""
    y = np.concatenate([np.asarray(values, float) for values in differences])
    factor = np.repeat(np.arange(len(differences)), [len(values) for values in differences])
    design = (factor[:, None] == np.arange(len(differences))).astype(float)
    effects, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - np.linalg.matrix_rank(design)
    residual = y - design @ effects
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual) / freedom
    weights = np.full(len(differences), 1 / len(differences))
    mean, error = weights @ effects, np.sqrt(weights @ covariance @ weights)
    half = error * stats.t(freedom).interval(level)[1]
    return mean, mean - half, mean + half, 2 * stats.t(freedom).cdf(-abs(mean) / error)


def holm(ps):
    """Holm (1979) from its definition: the largest of (m - k + 1) p_(k) up to a p's own rank, at most 1."""
    order = np.argsort(ps, kind="stable")
    steps = [(len(ps) - k) * ps[place] for k, place in enumerate(order)]
    adjusted = np.empty(len(ps))
    adjusted[order] = [min(1.0, max(steps[: k + 1])) for k in range(len(ps))]
    return adjusted


def close(found: Difference, expected):
    np.testing.assert_allclose((found.mean, found.low, found.high, found.p), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("n, gain, spread", [(2, 1, 0.3), (3, 0.2, 0.5), (10, -0.4, 0.6)])
def test_pooled_over_one_pair_it_is_scipys_paired_t_interval(n, gain, spread, level):
    rng = np.random.default_rng(n)
    base = 70 + rng.normal(size=n)
    treated = base + gain + spread * rng.normal(size=n)
    one = (dict(enumerate(treated)), dict(enumerate(base)))
    test = stats.ttest_rel(treated, base)
    pooled, single = pooled_difference([one], level), paired_difference(*one, level)
    close(pooled, ((treated - base).mean(), *test.confidence_interval(level), test.pvalue))
    close(single, (pooled.mean, pooled.low, pooled.high, pooled.p))
    assert (pooled.n, pooled.needed, pooled.verdict) == (single.n, single.needed, single.verdict)


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5, 3), (1, 4), (1, 1, 2), (5, 5, 5, 5)])
def test_pooled_over_pairs_it_is_least_squares_with_the_pair_as_a_factor(sizes):
    rng = np.random.default_rng(sum(sizes))
    differences = [rng.normal(0.4 * number, 0.5, size) for number, size in enumerate(sizes)]
    found = pooled_difference(strata(*differences))
    close(found, linear_model(differences))
    assert found.n == sum(sizes) and found.correlation is None
    close(pooled_difference(strata(*differences), 0.8), linear_model(differences, 0.8))


def test_each_pair_weighs_the_same_however_many_seeds_it_has():
    found = pooled_difference(strata([1.0, 1.2] * 5, [0.0, 0.2]))
    assert found.mean == pytest.approx((1.1 + 0.1) / 2)


def test_pairs_that_differ_do_not_widen_the_interval_of_their_mean():
    """The interval speaks of these very pairs: only the spread of seeds within them counts."""
    near = pooled_difference(strata([1.0, 1.2, 0.8], [1.0, 1.2, 0.8]))
    far = pooled_difference(strata([0.0, 0.2, -0.2], [2.0, 2.2, 1.8]))
    assert (near.low, near.high) == pytest.approx((far.low, far.high)) and near.verdict == "supported"


def test_pairs_without_common_seeds_do_not_count():
    both = strata([1.0, 1.3, 0.9])
    assert pooled_difference([*both, ({1: 99.0}, {2: 1.0}), ({}, {})]) == pooled_difference(both)
    assert pooled_difference([]) is None and pooled_difference([({1: 1.0}, {2: 1.0})]) is None


def test_one_seed_in_every_pair_gives_no_interval():
    found = pooled_difference(strata([1.0], [3.0], base=50.0))
    assert (found.mean, found.low, found.high, found.n, found.p) == (pytest.approx(2.0), None, None, 2, None)
    assert found.verdict == "undecided"


def test_the_order_of_pairs_and_seeds_changes_nothing_and_the_sign_mirrors():
    made = strata([0.5, 0.9, 0.1], [0.2, 0.8], [1.1, 0.6, 0.7, 0.3])
    expected = pooled_difference(made)
    for order in itertools.permutations(made):
        turned = [(dict(reversed(t.items())), dict(reversed(b.items()))) for t, b in order]
        found = pooled_difference(turned)
        close(found, (expected.mean, expected.low, expected.high, expected.p))
    mirrored = pooled_difference([(b, t) for t, b in made])
    close(mirrored, (-expected.mean, -expected.high, -expected.low, expected.p))
    assert (expected.verdict, mirrored.verdict) == ("supported", "contradicted")


def test_the_seeds_a_pooled_gain_needs_are_found_by_trying_each():
    differences = [np.array([0.9, -0.5, 0.4]), np.array([-0.3, 0.8, 0.1])]
    found = pooled_difference(strata(*differences))
    assert found.verdict == "undecided"
    within = np.mean([values.var(ddof=1) for values in differences])  # equally many seeds in both
    mean = np.mean(differences)

    def enough(n):  # n seeds of each of the two pairs
        return power(mean, np.sqrt(within / (2 * n)), 2 * (n - 1)) >= 0.8

    assert found.needed == next(n for n in range(2, 1000) if enough(n)) > 3
    told = f"about {found.needed}" if found.needed <= 30 else "more than 30"
    assert str(found).endswith(f": undecided, {told} seeds a pair would tell")


def test_pairs_that_lie_on_both_sides_have_no_common_verdict():
    """Five seeds of one pair, two of another: their mean is above zero, and says nothing of the other."""
    helps, harms = [3.3, 3.5, 3.1, 3.6, 2.9], [-1.5, -1.6]
    found = pooled_difference(strata(helps, harms))
    assert found.low > 0 and found.pairs == 2
    assert found.verdict == "undecided" and str(found).endswith(": undecided (the pairs disagree)")
    mirrored = pooled_difference([(base, treated) for treated, base in strata(helps, harms)])
    assert mirrored.objection == "the pairs disagree" and mirrored.verdict == "undecided"
    level = pooled_difference(strata(helps, helps, [0.1, -0.3]))
    assert level.verdict == "supported", "one pair of three without an effect is no objection"


@pytest.mark.parametrize("harm", [-0.1, -0.35, -0.45, -0.6, -2.0])
def test_a_pair_objects_where_its_own_effect_is_significant_among_all(harm):
    """By the linear model's residual variance, and Holm's correction over the three pairs."""
    noise = np.array([0.2, -0.2, 0.1, -0.1])
    differences = [2 + noise, 1 - noise, harm + noise]
    freedom, error = 9, np.sqrt(np.mean([d.var(ddof=1) for d in differences]) / 4)
    ps = holm([2 * stats.t(freedom).sf(abs(d.mean()) / error) for d in differences])
    found = pooled_difference(strata(*differences))
    assert found.mean > 0 and found.objection == ("the pairs disagree" if ps[2] < 0.05 else "")
    assert found.verdict == ("undecided" if found.objection else "supported")


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize("sizes", [(5, 3), (3, 3, 3), (4, 2, 5)])
def test_one_pair_carries_a_mean_that_is_gone_without_it(sizes, level):
    """By scipy's F test, and the interval of each group of others, with the variance of all."""
    rng, seen = np.random.default_rng(sum(sizes)), set()
    for _ in range(60):
        center = rng.choice([-1.0, 1.0]) * np.append(rng.uniform(0, 2.5), rng.uniform(0, 0.8, len(sizes) - 1))
        differences = [m + rng.normal(0, 0.4, size) for m, size in zip(center, sizes, strict=True)]
        found = pooled_difference(strata(*differences), level)
        if found.low <= 0 <= found.high or found.objection == "the pairs disagree":
            continue
        freedom = sum(sizes) - len(sizes)
        variance = sum(((d - d.mean()) ** 2).sum() for d in differences) / freedom
        gone = False
        for left_out in range(len(sizes)):
            others = [d for place, d in enumerate(differences) if place != left_out]
            mean = np.mean([d.mean() for d in others])
            error = np.sqrt(sum(variance / len(d) for d in others)) / len(others)
            low, high = stats.t(freedom, mean, error).interval(level)
            gone |= low <= 0 or high <= 0 if found.mean > 0 else low >= 0 or high >= 0
        carried = gone and stats.f_oneway(*differences).pvalue < 1 - level
        assert found.objection == ("one pair carries it" if carried else "")
        seen.add(carried)
    assert seen == {True, False}, "both were tried"


def test_a_pair_that_carries_the_mean_is_said():
    """The resnet8 and the resnet20 of this project's 48 epochs."""
    found = pooled_difference(strata([3.34, 2.76, 3.17, 2.97, 3.18], [-0.11, -0.41, -0.16]))
    assert found.low > 0 and str(found).endswith("(n=8): undecided (one pair carries it)")
    alike = pooled_difference(strata([0.5, 0.3, 0.6], [0.4, 0.0, 0.5]))
    assert alike.verdict == "supported", "pairs that do not differ are judged by their mean"
    exact = pooled_difference(strata([1.0, 1.0], [0.0, 0.0], base=64.0))
    assert exact.objection == "one pair carries it", "no spread at all within the pairs"


@pytest.mark.parametrize("pairs", [1, 3])
def test_without_an_effect_the_verdicts_are_wrong_as_often_as_they_say(pairs):
    """2,000 null studies: 2.5 % supported, 2.5 % contradicted, within a binomial's 99.9 %."""
    rng = np.random.default_rng(20 + pairs)
    drawn = rng.normal(size=(2000, pairs, 3)) * rng.uniform(0.2, 0.8, size=(2000, 1, 1))
    said = []
    for study in drawn:
        made = [(dict(enumerate(values)), dict.fromkeys(range(3), 0.0)) for values in study]
        said.append(pooled_difference(made) if pairs > 1 else paired_difference(*made[0]))
    low, high = stats.binom(2000, 0.025).interval(0.999)
    above, below = [[d.low > 0 for d in said], [d.high < 0 for d in said]]
    assert low <= sum(above) <= high and low <= sum(below) <= high
    for beyond, verdict in ((above, "supported"), (below, "contradicted")):
        stands = [d.verdict == verdict for d in said]
        assert all(side or not word for side, word in zip(beyond, stands, strict=True))
        assert sum(stands) >= 0.5 * sum(beyond), "pairs that differ by chance alone are seldom objected to"


# Several differences judged together


def test_holm_by_hand():
    """0.01 x 4; 0.02 x 3; 0.03 x 2 is less than what came before; so is 0.04 x 1."""
    ps = [0.04, 0.01, 0.03, 0.02]
    found = corrected([Difference(1.0, 0.5, 1.5, 3, None, None, p) for p in ps])
    assert [d.holm for d in found] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert [d.verdict for d in found] == ["undecided", "supported", "undecided", "undecided"]
    assert [d.p for d in found] == ps, "in their own order"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1), st.just(0.01)), max_size=8))
def test_holm_is_its_definition_and_one_seed_does_not_count(ps):
    given_ = [
        Difference(1.0, None if p is None else 0.1, None if p is None else 2, 3, None, None, p) for p in ps
    ]
    found = corrected(given_)
    tested = [p for p in ps if p is not None]
    np.testing.assert_allclose([d.holm for d in found if d.p is not None], holm(np.array(tested)))
    assert all(d == before for d, before in zip(found, given_, strict=True) if d.p is None)


def test_alone_a_difference_is_not_corrected():
    (found,) = corrected([paired_difference({1: 71.0, 2: 72.1, 3: 73.3}, {1: 70.0, 2: 71.0, 3: 72.0})])
    assert found.holm == found.p < 0.05 and found.verdict == "supported"


def test_holm_keeps_false_findings_of_a_study_at_5_percent():
    rng = np.random.default_rng(7)
    nothing, wrong = dict.fromkeys(range(4), 0.0), 0
    for study in rng.normal(size=(800, 4, 4)):
        judged = corrected([paired_difference(dict(enumerate(values)), nothing) for values in study])
        wrong += any(d.verdict != "undecided" for d in judged)
    low, high = stats.binom(800, 0.05).interval(0.999)
    assert low <= wrong <= high


def test_an_undecided_one_says_that_the_correction_made_it_so():
    d = Difference(1.0, 0.2, 1.8, 3, None, None, 0.02, 0.08)
    assert d.verdict == "undecided" and str(d).endswith("undecided (Holm's p 0.080)")
