"""Means over seeds, paired differences, and what may be concluded from them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")

POWER = 0.8
"""The share of experiments that should find an effect of the size that was seen."""


FAR = 10
"""A number of seeds that would tell is named up to so many times those there are."""


@dataclass(frozen=True)
class Difference:
    """A paired difference over common seeds, in the unit of its values.

    ``low`` and ``high`` bound the 95 % interval of Student's t over the differences, ``p`` is the two-sided
    probability of one at least as large without an effect; None where fewer than two seeds are common.
    ``correlation`` is Pearson's of the pairs. ``needed`` is the number of seeds (of each pair of models) at
    which four experiments of five would leave zero out, were an undecided effect as large as it looks; None
    where fewer than three seeds tell of its spread.
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
    pairs: int = 1
    """The pairs of models it is the mean of."""
    objection: str = ""
    """Why no one sentence holds for all these pairs, whatever their mean: empty where one may."""

    @property
    def verdict(self) -> str:
        """``supported`` (interval above 0), ``contradicted`` (below 0) or ``undecided``.

        One of several is undecided too where its corrected ``p`` is not below 0.05; so is a mean over pairs
        that there is an ``objection`` to.
        """
        certain = not self.objection and (self.holm is None or self.holm < 0.05)
        if certain and self.low is not None and self.high is not None:
            if self.low > 0:
                return "supported"
            if self.high < 0:
                return "contradicted"
        return "undecided"

    @property
    def reason(self) -> str:
        """Why an interval is undecided, or what would tell: words to follow the verdict; may be empty."""
        if self.low is None or self.high is None or self.verdict != "undecided":
            return ""
        if self.objection:
            return f" ({self.objection})"
        if self.needed:
            most = FAR * self.n // self.pairs
            count = f"about {self.needed}" if self.needed <= most else f"more than {most}"
            return f", {count} seeds{' a pair' if self.pairs > 1 else ''} would tell"
        return f" (Holm's p {self.holm:.3f})" if self.holm is not None and self.low * self.high > 0 else ""

    @property
    def size(self) -> str:
        """The difference, its interval and n."""
        if self.low is None and self.pairs > 1:
            return f"{self.mean:+.2f} ({self.pairs} pairs, one seed of each: no interval)"
        if self.low is None:
            return f"{self.mean:+.2f} (n={self.n}, no interval from one seed)"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] (n={self.n})"

    def __str__(self) -> str:
        return f"{self.size}: {self.verdict}{self.reason}"


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
    needed = _seeds_needed(mean, std, level) if undecided and n > 2 else None
    p = _two_sided(mean, std / math.sqrt(n), n - 1)
    return Difference(mean, mean - half, mean + half, n, correlation, needed, p)


def pooled_difference(
    strata: Iterable[tuple[Mapping[int, float], Mapping[int, float]]], level: float = 0.95
) -> Difference | None:
    """The mean over several pairs of models of their paired differences; None where no pair has one.

    ``strata``: for each pair of models what was treated and its base, by seed. Each pair weighs the same.
    The interval rests on the spread of the seeds *within* the pairs, taken as one variance for all of them,
    so it speaks of these very pairs; of a single pair it is `paired_difference`'s. ``n`` counts differences.
    Two things are said as an ``objection``, both with that one variance:

    - the pairs disagree: one's own mean lies on the other side of zero, its ``p`` below ``1 - level`` (after
      Holm's correction over the pairs);
    - one pair carries it: the pairs differ by more than chance (the F test of a one-way analysis of variance,
      p below ``1 - level``), and without one of them the mean's interval holds zero.
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
        return Difference(mean, None, None, n, None, None, pairs=len(found))
    within = sum(float(((d - d.mean()) ** 2).sum()) for d in found) / freedom
    error = math.sqrt(within * sum(1 / len(d) for d in found)) / len(found)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    undecided = mean - half <= 0 <= mean + half
    # As many seeds for every pair: the error then falls with their root.
    spread = math.sqrt(within / len(found))
    needed = _seeds_needed(mean, spread, level, len(found)) if undecided and freedom > 1 else None
    p = _two_sided(mean, error, freedom)
    objection = _objection(found, within, freedom, level, undecided)
    return Difference(
        mean, mean - half, mean + half, n, None, needed, p, pairs=len(found), objection=objection
    )


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences, judged together: Holm's step-down correction of their ``p`` (Holm 1979).

    Those without a ``p`` (one seed) are left as they are, and do not count.
    """
    tested = {place: d.p for place, d in enumerate(differences) if d.p is not None}
    result = list(differences)
    for place, p in zip(tested, holm(list(tested.values())), strict=True):
        result[place] = replace(differences[place], holm=p)
    return result


def judged_together(found: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """`corrected` of differences that have names."""
    return dict(zip(found, corrected(list(found.values())), strict=True))


def holm(ps: Sequence[float]) -> list[float]:
    """Probabilities after Holm's step-down correction, in their order."""
    result, largest = list(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, ps[place] * (len(ps) - rank)))
        result[place] = largest
    return result


def _two_sided(mean: float, error: float, freedom: int) -> float:
    from scipy import stats

    if error == 0:  # equal differences, to the bit
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / error, freedom))


def _objection(
    found: Sequence[np.ndarray], within: float, freedom: int, level: float, undecided: bool
) -> str:
    """Why the mean over these pairs does not speak for each of them (`pooled_difference`); may be empty."""
    from scipy import stats

    if len(found) < 2:
        return ""
    means = np.array([d.mean() for d in found])
    variances = np.array([within / len(d) for d in found])
    side = np.sign(means.mean())
    own = holm([_two_sided(m, math.sqrt(v), freedom) for m, v in zip(means, variances, strict=True)])
    if any(m * side < 0 and p < 1 - level for m, p in zip(means, own, strict=True)):
        return "the pairs disagree"
    # Sums of all pairs but one: to divide them by the number of pairs would change neither side.
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variances.sum() - variances)
    gone = (side * (means.sum() - means) <= half).any()
    if not undecided and gone and _differ(found, within, freedom) < 1 - level:
        return "one pair carries it"
    return ""


def _differ(found: Sequence[np.ndarray], within: float, freedom: int) -> float:
    """p of the F test that several groups have one mean; ``within`` is their common variance."""
    from scipy import stats

    whole = np.concatenate(found).mean()
    between = sum(len(d) * float((d.mean() - whole) ** 2) for d in found) / (len(found) - 1)
    if within == 0:  # equal differences in each pair, to the bit
        return 0.0 if between else 1.0
    return float(stats.f.sf(between / within, len(found) - 1, freedom))


def _seeds_needed(mean: float, std: float, level: float, pairs: int = 1, most: int = 1000) -> int | None:
    """The least number of seeds (of each of ``pairs`` pairs) with a power of `POWER` for such an effect."""
    from scipy import stats

    if std == 0:
        return None

    def enough(count: int) -> bool:
        freedom = pairs * (count - 1)
        limit = stats.t.ppf((1 + level) / 2, freedom)
        return bool(stats.nct.sf(limit, freedom, abs(mean) / std * math.sqrt(count)) >= POWER)

    counts = range(2, most + 1)
    place = bisect.bisect_left(counts, True, key=enough)
    return counts[place] if place < len(counts) else None
