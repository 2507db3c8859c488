"""The paper's claims beside what hand-made runs say of them."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ikdlib.reporting import claims, collect
from ikdlib.reporting.statistics import pooled_difference
from ikdlib.studies.variants import RATE

PAIR, OTHER = "resnet56/resnet20", "vgg13/vgg8"
T, WEIGHT, BATCH, KD_T = "ikd.temperature", "ikd.weight", "recipe.batch_size", "temperature"
KD = {1: 70.1, 2: 70.4, 3: 69.9}
KD_IKD = {1: 70.9, 2: 71.1, 3: 70.8}
ON_CIFAR = "Adding the IKD term raises top-1 accuracy over KD on CIFAR-100."
SUITS = {T: "T = 1.0 suits the term best.", WEIGHT: "λ = 6.5 suits DKD+IKD best."}
LOWERS = "A large KD temperature lowers the confidence of the target category."
MENDS = "The term mends the confidence that a large KD temperature takes."
CONSISTENT, CONFUSED = (
    "Predictions within a class become more consistent.",
    "Similar samples are less confused.",
)
BATCHES = "Distillation within a batch suffers from its size; class means over an epoch do not."


def page(found, **more) -> pd.DataFrame:
    made, left_out = collect.tables(found)
    assert left_out == []
    return claims.page(made, **more)


def said(found, sentence) -> pd.DataFrame:
    rows = page(found)
    return rows[rows["sentence"] == sentence].reset_index(drop=True)


def runs(folders, method, scores, changes=None, confidence=None, **more):
    recorded = {s: {"test_confidence": confidence[s]} if confidence else {} for s in scores}
    return [
        folders.finished(method, s, v, changes=changes, recorded=recorded[s], **more)
        for s, v in scores.items()
    ]


def plus(scores, *more):
    return {seed: value + d for (seed, value), d in zip(scores.items(), more, strict=True)}


def test_without_runs_every_claim_has_a_row_that_says_not_run():
    rows = claims.page([])
    assert len(rows) == 20 and set(rows["verdict"]) == {"not run"} and rows["sentence"].is_unique
    assert rows["claim"].value_counts().to_dict() == {"1": 12, "2": 3, "3": 4, "4": 1}
    lines = claims.readable(rows).splitlines()
    assert len(lines) == 20 and lines[0] == f"- **1. {ON_CIFAR}** *not run*"


def test_only_the_asked_claims():
    assert list(claims.page([], numbers=("2", "4"))["claim"]) == ["2", "2", "2", "4"]


def test_claim_1_is_the_gain_pooled_over_the_pairs(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD), *runs(folders, "kd", KD, pair=OTHER)]
    more = plus(KD, 0.2, 0.6, 0.5)
    found += runs(folders, "kd+ikd", more, pair=OTHER)
    (row,) = said(found, ON_CIFAR).to_dict("records")
    expected = pooled_difference([(KD_IKD, KD), (more, KD)])
    assert row["effect"] == f"{expected.mean:+.2f} [{expected.low:+.2f}, {expected.high:+.2f}] (n=6)"
    assert (row["verdict"], row["measured"], row["n"]) == ("supported", "2 pairs, top-1 points", 6)
    assert row["table"] == "cifar100, 3 epochs, fp32, paper protocol"
    others = page(found)
    assert set(others[(others["claim"] == "1") & (others["sentence"] != ON_CIFAR)]["verdict"]) == {"not run"}


def test_claim_1_flips_with_one_changed_result_and_goes_with_its_folder(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    one = claims.readable(said(found, ON_CIFAR))
    low, high = stats.ttest_rel(list(KD_IKD.values()), list(KD.values())).confidence_interval(0.95)
    assert (
        f"    - **supported**: +0.80 [{low:+.2f}, {high:+.2f}] (n=3); 1 pair, top-1 points; cifar100" in one
    )
    folders.finished("kd+ikd", 1, 60.0)
    two = claims.readable(said(found, ON_CIFAR))
    assert "**undecided**, about " in two and "seeds would tell: -2.83" in two
    for seed, value in plus(KD, -0.8, -0.7, -0.9).items():
        folders.finished("kd+ikd", seed, value)
    assert "**contradicted**: -0.80" in claims.readable(said(found, ON_CIFAR))
    for run in found[3:]:
        shutil.rmtree(run.folder)
    assert claims.readable(said(found, ON_CIFAR)) == f"- **1. {ON_CIFAR}** *not run*"


def test_one_seed_decides_nothing(folders):
    found = [folders.finished("kd", 1, 70.0), folders.finished("kd+ikd", 1, 75.0)]
    (row,) = said(found, ON_CIFAR).to_dict("records")
    assert row["verdict"] == "undecided" and row["effect"] == "+5.00 (n=1, no interval from one seed)"


def test_each_table_is_judged_by_itself(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    found += [*runs(folders, "kd", KD_IKD, epochs=6), *runs(folders, "kd+ikd", KD, epochs=6)]
    rows = said(found, ON_CIFAR)
    assert dict(zip(rows["table"].str[:18], rows["verdict"], strict=True)) == {
        "cifar100, 3 epochs": "supported", "cifar100, 6 epochs": "contradicted",
    }  # fmt: skip


def test_the_demos_data_says_nothing_of_claim_1(folders):
    more = {"data": "glyphs100", "data_sha256": "5" * 64}
    found = [*runs(folders, "kd", KD, **more), *runs(folders, "kd+ikd", KD_IKD, **more)]
    assert set(page(found, numbers=("1",))["verdict"]) == {"not run"}


def test_the_order_of_runs_changes_nothing(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD), folders.diverged("kd+ikd", 4)]
    found += runs(folders, "dkd+ikd", KD) + runs(folders, "dkd+ikd", KD_IKD, {T: 2.0})
    found += [*runs(folders, "dkd+ikd", KD, {T: 0.5}), folders.unfinished("dkd", 1)]
    expected = page(found)
    assert set(expected["verdict"]) == {"supported", "contradicted", "not run"}
    for seed in range(3):
        pd.testing.assert_frame_equal(page(random.Random(seed).sample(found, len(found))), expected)


# Claim 2


@pytest.mark.parametrize("setting, own, others", [(T, 1.0, (0.5, 2.0)), (WEIGHT, 6.5, (2.0, 8.0))])
@pytest.mark.parametrize("holdout", [0, 50])
def test_claim_2_on_held_out_images_where_there_are_some(folders, setting, own, others, holdout):
    scores = {1: 71.0, 2: 71.3, 3: 71.1}
    found = []
    for value, more in ((own, (0, 0, 0)), (others[0], (-1, -1.2, -0.9)), (others[1], (-2, -1.9, -2.1))):
        changes = {setting: value} if value != own else {}
        for seed, top1 in plus(scores, *more).items():
            held_out = {"held_out_top1": 100 - top1} if holdout else {}  # there the own value is the worst
            found.append(
                folders.finished("dkd+ikd", seed, top1, changes=changes, recorded=held_out, holdout=holdout)
            )
    (row,) = said(found, SUITS[setting]).to_dict("records")
    assert row["verdict"] == ("contradicted" if holdout else "supported")
    assert row["measured"].endswith("held-out top-1" if holdout else "test top-1") and PAIR in row["measured"]


def test_the_tables_own_cells_are_no_curve(folders):
    found = [*runs(folders, "dkd", KD), *runs(folders, "dkd+ikd", KD_IKD)]
    assert list(said(found, SUITS[WEIGHT])["verdict"]) == ["not run"]


# Claims 3 and 4


def test_claim_3_on_the_confidence_that_a_kd_temperature_takes(folders):
    """Without the term 50 % at T = 1 and 30 at 8; with it 45 at 8."""
    sure = {1: 50.0, 2: 50.6, 3: 50.4}
    found = runs(folders, "kd", KD, {KD_T: 1.0}, sure)
    found += runs(folders, "kd", KD, {KD_T: 8.0}, plus(sure, -20, -20.5, -19.5))
    found += runs(folders, "kd+ikd", KD, {KD_T: 1.0}, sure)
    found += runs(folders, "kd+ikd", KD, {KD_T: 8.0}, plus(sure, -5, -5.5, -5.2))
    (lowers,), (mends,) = (said(found, text).to_dict("records") for text in (LOWERS, MENDS))
    assert lowers["verdict"] == "supported" and lowers["effect"].startswith("+20.00 [")
    assert "kd at T = 1 minus T = 8, points of probability" in lowers["measured"]
    assert mends["verdict"] == "supported" and "kd+ikd minus kd at T = 8" in mends["measured"]
    found += runs(folders, "kd+ikd", KD, {KD_T: 8.0}, plus(sure, -25, -25.5, -25.2))
    assert list(said(found[:12], MENDS)["verdict"]) == ["contradicted"]


def test_claim_4_is_about_the_range_over_the_batch_sizes(folders):
    """The base loses 3 points at batch 256, its +ikd half a point."""
    large = {BATCH: 256, RATE: 4.0}
    found = [*runs(folders, "kd", KD), *runs(folders, "kd", plus(KD, -3, -3.2, -2.9), large)]
    found += [
        *runs(folders, "kd+ikd", KD_IKD),
        *runs(folders, "kd+ikd", plus(KD_IKD, -0.5, 0.4, -0.6), large),
    ]
    (row,) = said(found, BATCHES).to_dict("records")
    low, high = stats.ttest_rel([3, 3.2, 2.9], [0.5, 0.4, 0.6]).confidence_interval(0.95)
    assert row["effect"] == f"+2.53 [{low:+.2f}, {high:+.2f}] (n=3)" and row["verdict"] == "supported"
    assert "range over batches 64 to 256, kd minus kd+ikd" in row["measured"]
    assert list(said(found[:9], BATCHES)["verdict"]) == ["not run"], "the term has one batch size"


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


def test_claim_3_from_kept_logits(folders):
    base, treated = answers(40, 10, 6.0), answers(8, 10, 6.0)
    found = [
        folders.finished(name, 1, kept["top1"], logits=kept["logits"])
        for name, kept in (("kd", base), ("kd+ikd", treated))
    ]
    (consistent, variance), (confused,) = (
        said(found, text).to_dict("records") for text in (CONSISTENT, CONFUSED)
    )
    assert "softmax" in consistent["measured"] and "variance of logits" in variance["measured"]
    assert confused["effect"] == "+0.32 (n=1, no interval from one seed)", "40 - 8 of 10,000 images"
    assert f"{PAIR}, kd minus kd+ikd, % of test images" in confused["measured"]
    p = np.exp([6.0] + [0.0] * 99) / (np.exp(6.0) + 99)
    gap = (p[0] - p[1]) ** 2  # ||p_i - mean||^2 of a class is gap * (1 - sum of squared shares of answers)
    spread = [gap * (1 - sum((n / 100) ** 2 for n in shares)) for shares in ((50, 40, 10), (82, 8, 10))]
    assert float(consistent["effect"].split()[0]) == pytest.approx(spread[0] - spread[1], abs=0.005)
    assert consistent["verdict"] == confused["verdict"] == "undecided"
    (found[1].folder / "test_logits.safetensors").unlink()
    assert list(said(found, CONFUSED)["verdict"]) == ["not run"]
