"""Means over seeds, paired differences, and what may be concluded from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A paired difference over common seeds, in the unit of its values.

    ``low`` and ``high`` bound the 95 % interval of Student's t over the differences, ``p`` is the two-sided
    probability of one at least as large without an effect; None where fewer than two seeds are common.
    ``correlation`` is Pearson's of the pairs; ``needed`` the number of seeds at which an interval of this
    spread would leave zero out, for an undecided effect.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    correlation: float | None
    needed: int | None
    p: float | None = None
    holm: float | None = None
    """``p`` after Holm's correction, where this is one of several differences that are judged together."""

    @property
    def verdict(self) -> str:
        """``supported`` (interval above 0), ``contradicted`` (below 0) or ``undecided``.

        One of several is undecided too where its corrected ``p`` is not below 0.05.
        """
        if self.low is not None and self.high is not None and (self.holm is None or self.holm < 0.05):
            if self.low > 0:
                return "supported"
            if self.high < 0:
                return "contradicted"
        return "undecided"

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:+.2f} (n={self.n}, no interval from one seed): undecided"
        text = f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] (n={self.n}): {self.verdict}"
        if self.needed:
            return f"{text}, about {self.needed} seeds would tell"
        corrected = self.verdict == "undecided" and self.holm is not None and self.low * self.high > 0
        return text + (f" (Holm's p {self.holm:.3f})" if corrected else "")


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter None for a single value."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def paired_difference(
    treated: Mapping[int, float], base: Mapping[int, float], level: float = 0.95
) -> Difference | None:
    """``treated - base`` over the seeds both have; None where they share none."""
    from scipy import stats

    seeds = sorted(set(treated) & set(base))
    if not seeds:
        return None
    pairs = np.array([(treated[seed], base[seed]) for seed in seeds])
    differences = pairs[:, 0] - pairs[:, 1]
    mean, std = mean_and_std(differences)
    n = len(seeds)
    if std is None:
        return Difference(mean, None, None, n, None, None)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n)
    spread = pairs.std(axis=0)
    correlation = float(np.corrcoef(pairs.T)[0, 1]) if n > 2 and spread.all() else None
    undecided = mean - half <= 0 <= mean + half
    needed = _seeds_needed(mean, std, level) if undecided else None
    p = _two_sided(mean, std / math.sqrt(n), n - 1)
    return Difference(mean, mean - half, mean + half, n, correlation, needed, p)


def pooled_difference(
    strata: Iterable[tuple[Mapping[int, float], Mapping[int, float]]], level: float = 0.95
) -> Difference | None:
    """The mean over several pairs of models of their paired differences; None where no pair has one.

    ``strata``: for each pair of models what was treated and its base, by seed. Each pair weighs the same.
    The interval rests on the spread of the seeds *within* the pairs, taken as one variance for all of them,
    so it speaks of these very pairs; of a single pair it is `paired_difference`'s. ``n`` counts differences.
    """
    from scipy import stats

    found = []
    for treated, base in strata:
        if seeds := sorted(set(treated) & set(base)):
            found.append(np.array([treated[seed] - base[seed] for seed in seeds]))
    if not found:
        return None
    mean = float(np.mean([differences.mean() for differences in found]))
    n, freedom = sum(map(len, found)), sum(len(differences) - 1 for differences in found)
    if freedom == 0:
        return Difference(mean, None, None, n, None, None)
    within = sum(float(((d - d.mean()) ** 2).sum()) for d in found) / freedom
    error = math.sqrt(within * sum(1 / len(d) for d in found)) / len(found)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    undecided = mean - half <= 0 <= mean + half
    # As many seeds for every pair: the error then falls with their root.
    needed = _seeds_needed(mean, math.sqrt(within / len(found)), level, len(found)) if undecided else None
    p = _two_sided(mean, error, freedom)
    return Difference(mean, mean - half, mean + half, n, None, needed, p)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences, judged together: Holm's step-down correction of their ``p`` (Holm 1979).

    Those without a ``p`` (one seed) are left as they are, and do not count.
    """
    tested = sorted((d.p, place) for place, d in enumerate(differences) if d.p is not None)
    result, largest = list(differences), 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        result[place] = replace(differences[place], holm=largest)
    return result


def _two_sided(mean: float, error: float, freedom: int) -> float:
    from scipy import stats

    if error == 0:  # equal differences, to the bit
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / error, freedom))


def _seeds_needed(mean: float, std: float, level: float, pairs: int = 1, most: int = 1000) -> int | None:
    """Seeds (of each of ``pairs`` pairs) at which a spread like this would leave zero out."""
    from scipy import stats

    counts = np.arange(2, most + 1)
    half = stats.t.ppf((1 + level) / 2, pairs * (counts - 1)) * std / np.sqrt(counts)
    enough = counts[half < abs(mean)]
    return int(enough[0]) if len(enough) else None
