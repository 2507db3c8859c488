"""What the IKD term and its controls pull towards, in numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from ikdlib.methods.controls import TARGETS


def summary(means: np.ndarray, temperature: float = 1.0) -> pd.DataFrame:
    """A row a target, averaged over the classes. ``means``: class means, logits [C, C].

    Columns: the probability of the class itself, the entropy (nats) of its row, and the largest probability
    of another class.
    """
    rows = {}
    logits = torch.from_numpy(np.asarray(means)).double()
    for name, target in TARGETS.items():
        probability = (target(logits, temperature).double() / temperature).softmax(1)
        entropy = -torch.special.xlogy(probability, probability).sum(1)
        others = probability.clone().fill_diagonal_(0)
        rows[name.replace("_", " ")] = {
            "probability of the class": float(probability.diagonal().mean()),
            "entropy (nats)": float(entropy.mean()),
            "largest other probability": float(others.amax(1).mean()),
        }
    return pd.DataFrame(rows).T.rename_axis("target")
