"""Claims 3 and 4 beside what hand-made runs say of them: how a student answers, and what none can say."""

from __future__ import annotations

import numpy as np
import pytest
from claim_pages import (
    BATCH,
    BATCHES,
    CONFUSED,
    CONSISTENT,
    IMBALANCE,
    KD,
    KD_T,
    LOWERS,
    MENDS,
    OTHER,
    PAIR,
    page,
    plus,
    runs,
    said,
    words,
)  # fmt: skip
from scipy import stats

from ikdlib.reporting import claims, collect
from ikdlib.reporting.statistics import pooled_difference
from ikdlib.studies.variants import RATE

SURE = {1: 50.0, 2: 50.6, 3: 50.4}


def kd_temperature(folders, high, base, low_term, high_term, method="kd"):
    """Confidences: of the base SURE at T = 1 and ``base`` at ``high``; the term's gains over them at both."""
    found = runs(folders, method, KD, {KD_T: 1.0}, SURE)
    found += runs(folders, method, KD, {KD_T: high}, base)
    found += runs(folders, f"{method}+ikd", KD, {KD_T: 1.0}, plus(SURE, *low_term))
    return found + runs(folders, f"{method}+ikd", KD, {KD_T: high}, plus(base, *high_term))


def interval(differences):
    return stats.ttest_1samp(differences, 0).confidence_interval(0.95)


# Claim 3: the KD temperature


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_a_large_temperature_takes_what_t_1_has_more(folders, method):
    base = plus(SURE, -20, -20.5, -19.5)
    found = kd_temperature(folders, 8.0, base, (1, 1.2, 1.1), (5, 5.5, 5.2), method)
    (row,) = said(found, LOWERS).to_dict("records")
    low, high = interval([20, 20.5, 19.5])
    assert (row["effect"], row["verdict"]) == (words(low, 20.0, high, 3), "supported")
    assert row["measured"] == f"{PAIR}, {method} at T = 1 minus T = 8, points of probability"


@pytest.mark.parametrize("low_term, high_term, verdicts", [
    ((1, 1.2, 1.1), (5, 5.5, 5.2), ("supported", "supported")),
    ((5, 5.5, 5.2), (1, 1.2, 1.1), ("supported", "contradicted")),
    ((15, 15.3, 14.9), (15.2, 15.1, 15.0), ("supported", "undecided")),
    ((-10, -10.5, -9.6), (-1, -1.2, -0.9), ("contradicted", "undecided")),
], ids=["mends", "more at T = 1", "15 points at every T", "takes less at the large T"])  # fmt: skip
def test_mending_is_to_add_at_the_large_temperature_and_more_than_at_t_1(
    folders, low_term, high_term, verdicts
):
    """The third makes students sure, whatever T; the last adds nothing anywhere. Neither mends."""
    found = kd_temperature(folders, 8.0, plus(SURE, -20, -20.5, -19.5), low_term, high_term)
    rows = said(found, MENDS).to_dict("records")
    told = f"{PAIR}, kd+ikd minus kd at T = 8"
    why = " (but the first is not surely above zero)" if verdicts == ("contradicted", "undecided") else ""
    assert [row["measured"] for row in rows] == [
        f"{told}, points of probability", f"{told}, minus the same at T = 1, points of probability{why}",
    ]  # fmt: skip
    added = high_term, np.subtract(high_term, low_term)
    for row, gains, verdict in zip(rows, added, verdicts, strict=True):
        low, high = interval(gains)
        assert (row["effect"], row["verdict"]) == (words(low, np.mean(gains), high, 3), verdict)


def test_temperatures_of_several_base_methods_are_judged_together(folders):
    """One has p = 0.026; Holm's correction doubles the least of two."""
    taken = (1.0, 1.5, 0.9)
    assert 0.025 < stats.ttest_1samp(taken, 0).pvalue < 0.05
    base = plus(SURE, *np.negative(taken))
    found = kd_temperature(folders, 8.0, base, (1, 1, 1), (2, 2, 2))
    (alone,) = said(found, LOWERS).to_dict("records")
    found += kd_temperature(folders, 8.0, base, (1, 1, 1), (2, 2, 2), "dkd")
    both = said(found, LOWERS).to_dict("records")
    assert [row["effect"] for row in both] == 2 * [alone["effect"]]
    assert (alone["verdict"], {row["verdict"] for row in both}) == ("supported", {"undecided"})


@pytest.mark.parametrize("largest", [2.0, 3.9])
def test_a_temperature_below_4_is_not_large(folders, largest):
    found = kd_temperature(folders, largest, plus(SURE, -20, -20.5, -19.5), (1, 1, 1), (5, 5.5, 5.2))
    assert set(page(found, numbers=("3",))["verdict"]) == {"not run"}


def test_what_the_term_does_at_the_tables_own_temperature_is_told_without_runs_at_t_1(folders):
    found = runs(folders, "kd", KD, None, SURE) + runs(
        folders, "kd+ikd", KD, None, plus(SURE, -2, -2.4, -2.1)
    )
    (row,) = said(found, MENDS).to_dict("records")
    low, high = interval([-2, -2.4, -2.1])
    assert (row["effect"], row["verdict"]) == (words(low, -6.5 / 3, high, 3), "contradicted")
    told = f"{PAIR}, kd+ikd minus kd at T = 4, points of probability (at T = 1 it was not run)"
    assert row["measured"] == told
    assert set(said(found, LOWERS)["verdict"]) == {"not run"}


def test_of_several_large_temperatures_the_largest_counts_and_t_1_must_be_there(folders):
    found = kd_temperature(folders, 8.0, plus(SURE, -20, -20.5, -19.5), (1, 1.1, 1), (5, 5.5, 5.2))
    found += runs(folders, "kd", KD, {KD_T: 6.0}, plus(SURE, -30, -30.5, -29.5))
    (row,) = said(found, LOWERS).to_dict("records")
    assert "T = 1 minus T = 8" in row["measured"] and row["effect"].startswith("+20.00 [")
    without = [run for run in found if run.spec.method.settings["temperature"] != 1.0]
    assert set(said(without, LOWERS)["verdict"]) == {"not run"}


# Claim 3: from kept logits


def answers(wrong_inside, wrong_outside, sure):
    """Logits of CIFAR-100's 10,000 test images, with errors in the first class; and their accuracy.

    beaver's group (aquatic mammals) has the dolphin, class 30; the apple, class 0, is fruit.
    """
    labels = np.repeat(np.arange(100), 100)
    answer = labels.copy()
    answer[400 : 400 + wrong_inside] = 30
    answer[450 : 450 + wrong_outside] = 0
    logits = np.zeros((10000, 100))
    logits[np.arange(10000), answer] = sure
    return {"logits": logits, "top1": 100 * float((answer == labels).mean())}


def test_consistency_has_three_readings_and_confusion_two(folders):
    """The treated student errs 18 times where its base errs 50 times, 40 of them within the group."""
    base, treated = answers(40, 10, 6.0), answers(8, 10, 6.0)
    found = [
        folders.finished(name, 1, kept["top1"], logits=kept["logits"])
        for name, kept in (("kd", base), ("kd+ikd", treated))
    ]
    (spread, scaled, variance), (images, errors) = (
        said(found, text).to_dict("records") for text in (CONSISTENT, CONFUSED)
    )
    first = f"{PAIR}, kd minus kd+ikd, "
    last = " (of one seed, by design)"
    assert spread["measured"] == f"{first}spread of softmax outputs within a class (%){last}"
    assert scaled["measured"] == f"{first}spread at the best temperature (%){last}"
    assert variance["measured"] == f"{first}variance of logits within classes (%){last}"
    assert images["measured"] == f"{first}% of images taken for others of their group{last}"
    assert errors["measured"] == f"{first}% of errors that stay in the group{last}"
    assert images["effect"] == "+0.32 (n=1, no interval from one seed)", "40 - 8 of 10,000 images"
    assert errors["effect"] == f"{100 * (40 / 50 - 8 / 18):+.2f} (n=1, no interval from one seed)"

    def difference(sure_of_base, sure_of_treated):
        """||p_i - mean||^2 of a class is (p of the answer - p of others)^2 * (1 - sum of squared shares)."""
        shares = ((50, 40, 10), (82, 8, 10))
        gaps = [(p - (1 - p) / 99) ** 2 for p in (sure_of_base, sure_of_treated)]
        one, other = (
            gap * (1 - sum((n / 100) ** 2 for n in each)) for gap, each in zip(gaps, shares, strict=True)
        )
        return pytest.approx(one - other, abs=0.005)

    p = np.exp(6.0) / (np.exp(6.0) + 99)
    assert float(spread["effect"].split()[0]) == difference(p, p)
    # The likelihood is greatest where the answers are as sure as they are often right: 50 and 18 errors.
    assert float(scaled["effect"].split()[0]) == difference(0.995, 0.9982)
    assert {row["verdict"] for row in (spread, scaled, variance, images, errors)} == {"undecided"}
    (found[1].folder / "test_logits.safetensors").unlink()
    assert set(page(found, numbers=("3",))["verdict"]) == {"not run"}


def test_fewer_errors_alone_are_less_confusion_of_images_and_not_of_errors(folders):
    """Half as many errors, of which as many as before stay in the group: 4 of 5."""
    found = [
        folders.finished(name, seed, kept["top1"], logits=kept["logits"])
        for seed, factor in ((1, 1), (2, 2), (3, 2))
        for name, kept in (("kd", answers(16 * factor, 4 * factor, 6.0)),
                           ("kd+ikd", answers(8 * factor, 2 * factor, 6.0)))
    ]  # fmt: skip
    images, errors = said(found, CONFUSED).to_dict("records")
    low, high = interval([0.08, 0.16, 0.16])
    assert (images["effect"], images["verdict"]) == (words(low, 0.4 / 3, high, 3), "supported")
    assert errors["verdict"] == "undecided" and errors["effect"].startswith("+0.00 ")


def measured(folders, method, values, **more):
    """Runs with some logits, and with a number that a test's own measure reads."""
    return [
        folders.finished(method, s, 70.0, recorded={"number": v}, logits=np.eye(3), **more)
        for s, v in values.items()
    ]


def number(run) -> float:
    return float(run.history["number"].iloc[-1])


def findings(found, sign=1):
    ((table,), _) = collect.tables(found)
    return {f.sentence: f for f in claims.from_logits(number, "units", sign)(table)}


def test_from_one_pair_the_base_methods_are_judged_together(folders):
    """KD's gain has p = 0.04: alone a finding, beside DKD's of no effect none."""
    values = {1: 5.0, 2: 5.2, 3: 5.1, 4: 5.3}
    found = measured(folders, "kd", values)
    found += measured(folders, "kd+ikd", plus(values, 0.5, 0.95, 1.2, 0.25))
    name = f"{PAIR}, kd+ikd minus kd, units"
    assert {words: f.verdict for words, f in findings(found).items()} == {name: "supported"}
    found += measured(folders, "dkd", values) + measured(
        folders, "dkd+ikd", plus(values, 0.5, -0.5, 0.2, -0.3)
    )
    both = findings(found)
    ps = [stats.ttest_1samp(d, 0).pvalue for d in ([0.5, 0.95, 1.2, 0.25], [0.5, -0.5, 0.2, -0.3])]
    assert [f.effect.holm for f in both.values()] == pytest.approx([2 * ps[0], max(2 * ps[0], ps[1])])
    assert list(both) == [name, f"{PAIR}, dkd+ikd minus dkd, units"]
    assert {f.verdict for f in both.values()} == {"undecided"}


@pytest.mark.parametrize("sign", [1, -1])
def test_from_several_pairs_it_is_pooled_over_them(folders, sign):
    values, more, fewer = {1: 5.0, 2: 5.2, 3: 5.1}, (0.6, 0.8, 0.75), (0.2, 0.6, 0.4)
    found = []
    for pair, gained in ((PAIR, more), (OTHER, fewer)):
        found += measured(folders, "kd", values, pair=pair)
        found += measured(folders, "kd+ikd", plus(values, *gained), pair=pair)
    found += measured(folders, "nkd", values)  # without its +ikd
    expected = pooled_difference([(plus(values, *gained), values) for gained in (more, fewer)])
    ((sentence, finding),) = findings(found, sign).items()
    assert sentence == f"2 pairs, {'kd+ikd minus kd' if sign > 0 else 'kd minus kd+ikd'}, units"
    assert finding.verdict == ("supported" if sign > 0 else "contradicted")
    assert sign * finding.effect.mean == pytest.approx(np.mean([*more, *fewer]))
    bounds = (expected.low, expected.high) if sign > 0 else (-expected.high, -expected.low)
    assert (finding.effect.low, finding.effect.high, finding.effect.n) == pytest.approx((*bounds, 6))


# Claim 4


def test_no_study_can_speak_to_distillation_within_a_batch(folders):
    """Even where the term gains more at small batches: no loss here compares a batch's images."""
    found = []
    for size, gained in {64: (0.8, 0.7, 0.9), 256: (0.1, 0.2, 0.3)}.items():
        changes = {BATCH: size, RATE: size / 64} if size != 64 else {}
        found += runs(folders, "kd", KD, changes) + runs(folders, "kd+ikd", plus(KD, *gained), changes)
    assert list(said(found, IMBALANCE)["verdict"]) == ["not studied"]
    assert list(said(found, BATCHES)["verdict"]) == ["not studied"]
