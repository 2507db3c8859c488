"""A student as sure as it should be: its logits over the temperature that fits best.

That is temperature scaling (Guo et al. 2017, section 4.2), fitted on test images, half for the other half.
Whatever falls where a student is merely less sure of everything, the spread of its answers, say, or its
calibration error, is compared here after each student got the temperature that suits it. What is left of a
difference is another shape of the answers, not another sureness.
"""

from __future__ import annotations

import numpy as np

from ikdlib.reporting.kept import of_target

LOWEST, HIGHEST = 0.02, 50.0
"""The temperatures looked through; a student right everywhere would be best with none."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities at T = 1: float64 [N, C], nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T at which ``logits / T`` have the least negative log likelihood; logits [N, C], labels [N].

    Below 1: the student is less sure than it should be; above 1: surer.
    """
    from scipy.optimize import minimize_scalar

    spread = logits.astype(np.float64)

    def nats(log_t: float) -> float:  # convex in 1/T, so it has one minimum in log T
        return -float(of_target(log_softmax(spread / np.exp(log_t)), labels).mean())

    bounds = np.log([LOWEST, HIGHEST])
    return float(np.exp(minimize_scalar(nats, bounds=bounds, method="bounded").x))


def scaled(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logits [N, C], each over the temperature that fits the other half of the images best.

    So that no image tells its own temperature; the images of each class go to the halves by turns.
    """
    half, out = np.empty(len(labels), dtype=int), np.empty(logits.shape)
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2
    for this in (0, 1):
        other = half != this
        out[~other] = logits[~other] / best_temperature(logits[other], labels[other])
    return out
