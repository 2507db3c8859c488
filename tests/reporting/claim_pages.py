"""The claims page of hand-made runs, for the tests of the claims."""

from __future__ import annotations

import pandas as pd

from ikdlib.reporting import claims, collect

PAIR, OTHER = "resnet56/resnet20", "vgg13/vgg8"
T, WEIGHT, BATCH, KD_T = "ikd.temperature", "ikd.weight", "recipe.batch_size", "temperature"
GLYPHS = {"data": "glyphs100", "data_sha256": "5" * 64}
KD = {1: 70.1, 2: 70.4, 3: 69.9}
KD_IKD = {1: 70.9, 2: 71.1, 3: 70.8}
ON_CIFAR = "Adding the IKD term raises top-1 accuracy over KD on CIFAR-100."
CONSISTENT = "Predictions within a class become more consistent."
CONFUSED = "Similar samples are less confused."
LOWERS = "A large KD temperature lowers the confidence of the target category."
MENDS = "The term mends the confidence that a large KD temperature takes."
IMBALANCE = "Distillation within a batch suffers from the label imbalance of a random batch."
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


def words(low, mean, high, n) -> str:
    """An effect as the page writes it."""
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] (n={n})"
