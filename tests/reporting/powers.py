"""The power of a t test from its definition, without the noncentral t distribution."""

from __future__ import annotations

import numpy as np
from scipy import integrate, stats


def power(mean: float, error: float, freedom: int, level: float = 0.95) -> float:
    """How often an interval leaves zero out on the side of ``mean``, whose standard error is ``error``.

    Given the spread s that an experiment happens to see (s / sigma is a chi variable over the root of its
    degrees of freedom), it does where a normal variable around mean / error exceeds the limit times s.
    """
    limit = stats.t.isf((1 - level) / 2, freedom)

    def finds(chi: float) -> float:
        return stats.norm.sf(limit * chi / np.sqrt(freedom) - abs(mean) / error) * stats.chi.pdf(chi, freedom)

    middle, reach = np.sqrt(freedom), 8.0
    return integrate.quad(finds, max(0.0, middle - reach), middle + reach, points=[middle], limit=200)[0]
