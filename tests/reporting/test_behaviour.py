"""Measures of how a student answers, against values by hand and independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from ikdlib.reporting import behaviour, temperature_scaling

CLASSES = 5
LABELS = np.repeat(np.arange(CLASSES), 8)


@pytest.fixture
def logits() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(0, 2, (len(LABELS), CLASSES)) + 2 * np.eye(CLASSES)[LABELS]).astype(np.float32)


def of_probabilities(*rows) -> np.ndarray:
    return np.log(np.array(rows))


# Confidence and calibration


def test_confidence_and_likelihood_by_hand():
    logits = of_probabilities([0.7, 0.2, 0.1], [0.5, 0.3, 0.2])
    labels = np.array([0, 2])
    np.testing.assert_allclose(behaviour.target_confidence(logits, labels), [70, 20])
    assert behaviour.negative_log_likelihood(logits, labels) == pytest.approx(-np.log([0.7, 0.2]).mean())
    assert behaviour.accuracy(logits, labels) == 50


def test_probabilities_are_those_of_scipy_also_of_large_logits(logits):
    for scale in (1, 1e4):
        expected = special.log_softmax(scale * logits.astype(float), axis=1)
        np.testing.assert_allclose(
            temperature_scaling.log_softmax(scale * logits), expected, rtol=1e-6, atol=1e-3
        )


def test_calibration_error_by_hand():
    """Four images, two bins: |0 - 0.4| * 1/4 + |2/3 - 0.8| * 3/4 = 0.2."""
    logits = of_probabilities(
        [0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]
    )  # fmt: skip
    labels = np.array([1, 0, 1, 1])
    table = behaviour.reliability(logits, labels, bins=2)
    np.testing.assert_array_equal(table["count"], [1, 3])
    np.testing.assert_allclose(table[["low", "high"]], [[0, 50], [50, 100]])
    np.testing.assert_allclose(table["confidence"], [40, 80])
    np.testing.assert_allclose(table["accuracy"], [0, 200 / 3])
    assert behaviour.expected_calibration_error(logits, labels, bins=2) == pytest.approx(20.0)


def test_a_perfectly_calibrated_student_has_no_error():
    """Of ten answers at 0.6 six are right; of ten at 0.9 nine."""
    logits = np.concatenate([[np.log([p, 1 - p])] * 10 for p in (0.6, 0.9)])
    labels = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])
    assert behaviour.expected_calibration_error(logits, labels) == pytest.approx(0, abs=1e-9)
    assert behaviour.expected_calibration_error(logits, 1 - labels) > 40


def test_bins_are_open_below_and_closed_above_and_may_be_empty():
    logits = of_probabilities([0.5, 0.5], [0.51, 0.49], [1 - 1e-12, 1e-12])
    table = behaviour.reliability(logits, np.array([0, 0, 0]), bins=4)
    np.testing.assert_array_equal(table["count"], [0, 1, 1, 1])
    assert np.isnan(table.loc[0, "accuracy"]) and np.isnan(table.loc[0, "confidence"])
    assert behaviour.expected_calibration_error(logits, np.zeros(3, int), bins=4) == pytest.approx(
        33, abs=0.1
    )


def test_every_image_is_in_a_bin(logits):
    table = behaviour.reliability(logits, LABELS)
    assert len(table) == 15 and table["count"].sum() == len(LABELS)
    weighted = (table["accuracy"] * table["count"]).sum() / len(LABELS)
    assert weighted == pytest.approx(behaviour.accuracy(logits, LABELS))


# Confusion

GROUPS = ["a", "a", "a", "b", "b"]


def answering(*answers: int) -> np.ndarray:
    return np.eye(CLASSES)[list(answers)]


def test_errors_inside_and_outside_of_the_group():
    labels = np.array([0, 0, 1, 3, 3, 4])
    table = behaviour.confusion(answering(0, 2, 3, 4, 3, 0), labels, GROUPS)
    np.testing.assert_array_equal(table["count"], [2, 2])  # 0 for 2 and 3 for 4; 1 for 3 and 4 for 0
    np.testing.assert_allclose(table["of_images"], 100 * 2 / 6)
    np.testing.assert_allclose(table["of_errors"], 50)
    # Of four others, two are of group a's, one of group b's: (2 + 2 + 1 + 1) / 4 / 4 errors.
    np.testing.assert_allclose(table["by_chance"], [37.5, 62.5])


def test_chance_of_groups_of_five_among_a_hundred():
    labels = np.arange(100)
    table = behaviour.confusion(np.eye(100)[(labels + 1) % 100], labels, np.repeat(np.arange(20), 5).tolist())
    assert table.loc["inside", "by_chance"] == pytest.approx(100 * 4 / 99)
    np.testing.assert_allclose(table["count"], [80, 20])


def test_without_an_error_shares_of_errors_are_unknown():
    table = behaviour.confusion(answering(0, 1), np.array([0, 1]), GROUPS)
    assert table["count"].sum() == 0 and table[["of_errors", "by_chance"]].isna().all(axis=None)


def test_accuracy_of_each_class():
    found = behaviour.class_accuracy(answering(0, 1, 1, 1), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(found, [50, 100, np.nan, np.nan, np.nan])


# Spread


def test_spread_by_hand():
    """Two sure and opposite answers: half a unit from their mean each, squared and summed 0.5; KL log 2."""
    sure = np.array([[100.0, 0.0], [0.0, 100.0], [3.0, 1.0], [3.0, 1.0]])
    table = behaviour.spread(sure, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(table["squared"], [50, 0], atol=1e-9)
    np.testing.assert_allclose(table["kl"], [np.log(2), 0], atol=1e-9)


def test_spread_against_scipy(logits):
    p = special.softmax(logits.astype(float), axis=1)
    table = behaviour.spread(logits, LABELS)
    for label in range(CLASSES):
        own = p[label == LABELS]
        assert table.loc[label, "squared"] == pytest.approx(100 * own.var(axis=0).sum())
        kl = np.mean([stats.entropy(row, own.mean(axis=0)) for row in own])
        assert table.loc[label, "kl"] == pytest.approx(kl)


def test_spread_of_a_class_without_images_is_unknown(logits):
    table = behaviour.spread(logits[:8], LABELS[:8])
    assert table.loc[0].notna().all() and table.loc[1:].isna().all(axis=None)


def test_logit_spread_is_a_share_that_no_factor_or_shift_changes(logits):
    found = behaviour.logit_spread(logits, LABELS)
    centred = logits.astype(float) - logits.mean(axis=1, keepdims=True)
    within = sum(8 * centred[LABELS == c].var(axis=0).sum() for c in range(CLASSES))
    assert found == pytest.approx(100 * within / (len(LABELS) * centred.var(axis=0).sum()), rel=1e-6)
    assert behaviour.logit_spread(0.5 * logits, LABELS) == pytest.approx(found)
    shifted = logits + np.arange(len(LABELS), dtype=np.float32)[:, None]
    assert behaviour.logit_spread(shifted, LABELS) == pytest.approx(found, rel=1e-4)
    assert behaviour.spread(0.5 * logits, LABELS)["squared"].mean() < 0.8 * (
        behaviour.spread(logits, LABELS)["squared"].mean()
    )


# Fidelity and plane


def test_fidelity(logits):
    teacher = logits[:, ::-1]
    agreement, kl = behaviour.fidelity(logits, teacher)
    p, q = (special.softmax(z.astype(float), axis=1) for z in (teacher, logits))
    assert agreement == pytest.approx(100 * (p.argmax(1) == q.argmax(1)).mean())
    assert kl == pytest.approx(np.mean([stats.entropy(a, b) for a, b in zip(p, q, strict=True)]))
    assert behaviour.fidelity(logits, logits + 3) == (100, pytest.approx(0, abs=1e-6))


def test_plane_shows_both_runs_on_common_axes(logits):
    one, two, share = behaviour.plane(logits, 0.5 * logits)
    np.testing.assert_allclose(one - one.mean(axis=0), 2 * (two - two.mean(axis=0)), rtol=1e-4, atol=1e-5)
    both = np.concatenate([logits, 0.5 * logits]).astype(float)
    both -= both.mean(axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(both.T))[::-1]
    np.testing.assert_allclose(share, 100 * values[:2] / values.sum(), rtol=1e-5)
    variance = np.concatenate([one, two]).var(axis=0, ddof=1)
    np.testing.assert_allclose(variance, values[:2], rtol=1e-5)


def test_plane_does_not_see_what_softmax_does_not(logits):
    shifts = np.linspace(-50, 50, len(logits), dtype=np.float32)[:, None]
    for one, two in zip(
        behaviour.plane(logits, logits), behaviour.plane(logits, logits + shifts), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-3)
