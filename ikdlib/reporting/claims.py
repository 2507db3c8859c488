"""The paper's claims, each beside what the runs here say of it.

The list is all that is known of the paper's claims to this project; its result tables are not. A claim is
judged in each table (data set, length, precision, protocol) by itself, because numbers of different tables
are not averaged. An effect is written so that above zero is what the paper claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from ikdlib.data import names
from ikdlib.errors import IkdError
from ikdlib.reporting import ablations, behaviour
from ikdlib.reporting.ablations import Finding
from ikdlib.reporting.collect import Table
from ikdlib.reporting.statistics import judged_together, paired_difference, pooled_difference
from ikdlib.reporting.tables import NOT_RUN, difference_of, pooled_and_single
from ikdlib.runs import Run
from ikdlib.studies.grids import BEST, TEMPERATURES, WEIGHTS

DATA_SETS = {"cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet", "imagenet": "ImageNet-1K"}
DEMO = ("glyphs100",)
NOT_STUDIED = "not studied"
LARGE = 4.0  # KD's and DKD's own T: what a "large" one is, the paper's claim as known here does not say
METHODS = {"kd": "KD", "dkd": "DKD", "nkd": "NKD", "wttm": "WTTM"}


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and what measures it in a table."""

    number: str
    sentence: str
    judge: Callable[[Table], Iterable[Finding]]


def raises_accuracy(data: str, base: str) -> Callable[[Table], Iterator[Finding]]:
    """Claim 1: the gain over the base method, over the table's pairs (`tables.pooled`), then of each."""

    def judge(table: Table) -> Iterator[Finding]:
        if table.data != data and not (data == "cifar100" and table.data in DEMO):
            return
        rows = pooled_and_single(table.cells, table.primary)
        for row in rows[rows["method"] == base].to_dict("records"):
            yield Finding(f"{row['over']}, top-1 points", difference_of(row), row["verdict"])

    return judge


def best_value(
    setting: str, symbol: str, method: str, grid: Sequence[float]
) -> Callable[[Table], Iterator[Finding]]:
    """Claim 2: the paper's value against all others, on images held apart: a test set chooses nothing.

    Supported only where every value of our grid was run beside it.
    """
    value = BEST[setting][method]

    def judge(table: Table) -> Iterator[Finding]:
        if not table.holdout:
            return
        found = ablations.points(table.cells, setting, table.primary)
        for pair in table.pairs:
            curve = found[(found["pair"] == pair) & (found["series"] == method) & found["held_out"].notna()]
            if curve["value"].nunique() < 3:
                continue  # the tables' own cells, with and without the term, are no curve
            finding = ablations.optimum(found, pair, method, value, "held_out", symbol)
            if finding is not None:
                missing = sorted(set(grid) - set(curve["value"]))
                note = f", without {', '.join(f'{v:g}' for v in missing)}" if missing else ""
                verdict = finding.verdict if finding.verdict == "contradicted" or not missing else "undecided"
                yield Finding(f"{finding.sentence}{note}, held-out top-1", finding.effect, verdict)

    return judge


def from_logits(
    measure: Callable[[Run], float], unit: str, sign: int = 1
) -> Callable[[Table], Iterator[Finding]]:
    """Claim 3: something computed from kept test logits, ``+ikd`` minus its base (``sign`` -1: the reverse).

    Over the pairs of a base method. The base methods of one pair are judged together, and those of several.
    """

    def judge(table: Table) -> Iterator[Finding]:
        if table.holdout:  # a hyper-parameter's study: fewer images, and not every point keeps its logits
            return
        single, several = {}, {}
        for base in METHODS:
            both = {}
            for pair in table.pairs:
                sides = [_measured(table.runs(pair, m), measure) for m in (f"{base}+ikd", base)]
                if set(sides[0]) & set(sides[1]):
                    both[pair] = tuple(sides[::sign])
            order = f"{base}+ikd minus {base}" if sign > 0 else f"{base} minus {base}+ikd"
            if len(both) == 1:
                (pair,) = both
                single[f"{pair}, {order}, {unit}"] = paired_difference(*both[pair])
            elif both:
                several[f"{len(both)} pairs, {order}, {unit}"] = pooled_difference(both.values())
        judged = {}
        for family in (several, single):
            judged |= judged_together(family)
        for words, d in judged.items():
            # A study keeps the logits of its lowest seed alone: more seeds will not tell more of this.
            by_design = " (of one seed, by design)" if d.n == d.pairs else ""
            yield Finding(words + by_design, d, d.verdict)

    return judge


def either(*judges: Callable[[Table], Iterable[Finding]]) -> Callable[[Table], Iterator[Finding]]:
    """Several readings of one claim, each judged by itself."""

    def judge(table: Table) -> Iterator[Finding]:
        for one in judges:
            yield from one(table)

    return judge


def temperature_lowers_confidence(table: Table) -> Iterator[Finding]:
    """Claim 3: the probability of the target class at KD's T = 1 minus at the largest T from 4 on."""
    found = {}
    for pair, base, high, at in _temperatures(table):
        if (d := paired_difference(at(base, 1.0), at(base, high))) is not None:
            found[f"{pair}, {base} at T = 1 minus T = {high:g}, points of probability"] = d
    for words, d in judged_together(found).items():
        yield Finding(words, d, d.verdict)


def term_mends_confidence(table: Table) -> Iterator[Finding]:
    """Claim 3: what the term adds to that probability at the large T, and how much more than at T = 1.

    The second alone would be above zero, too, where the term takes confidence at either, and less at the
    large T; so it is supported only where the first is.
    """
    first, more = {}, {}
    for pair, base, high, at in _temperatures(table):
        gained = {value: (at(f"{base}+ikd", value), at(base, value)) for value in (high, 1.0)}
        if (d := paired_difference(*gained[high])) is not None:
            words = f"{pair}, {base}+ikd minus {base} at T = {high:g}"
            first[words] = d
            if (beyond := paired_difference(*(_minus(*sides) for sides in gained.values()))) is not None:
                more[words] = beyond
    beyond_of = judged_together(more)
    for words, d in judged_together(first).items():
        alone = "" if words in more else " (at T = 1 it was not run)"
        yield Finding(f"{words}, points of probability{alone}", d, d.verdict)
        if words in more:
            beyond, told = beyond_of[words], f"{words}, minus the same at T = 1, points of probability"
            if beyond.verdict == "supported" != d.verdict:
                yield Finding(f"{told} (but the first is not surely above zero)", beyond, "undecided")
            else:
                yield Finding(told, beyond, beyond.verdict)


def not_studied(table: Table) -> Iterator[Finding]:
    """No run can speak to it: a data set that `ikdlib.data` does not have, or claim 4.

    Claim 4: no method here compares the images of a batch with one another.
    How the term's gain goes with the batch size (notebook 33) is another question: KD, DKD, NKD and WTTM are
    means over single images, whose target is the same in every batch.
    """
    return iter(())


def known_claims() -> list[Claim]:
    """Every claim of the paper that is known here, in its order."""
    claims = [
        Claim(
            "1",
            f"Adding the IKD term raises top-1 accuracy over {name} on {title}.",
            raises_accuracy(data, base) if data in names() else not_studied,
        )
        for data, title in DATA_SETS.items()
        for base, name in METHODS.items()
    ]
    return claims + [
        Claim("2", "T = 1.0 suits the term best.",
              best_value("ikd.temperature", "T", "dkd+ikd", TEMPERATURES)),
        Claim("2", "λ = 6.5 suits DKD+IKD best.", best_value("ikd.weight", "λ", "dkd+ikd", WEIGHTS)),
        Claim("2", "λ = 6.0 suits NKD+IKD best.", best_value("ikd.weight", "λ", "nkd+ikd", WEIGHTS)),
        Claim("3", "Predictions within a class become more consistent.",
              either(  # the first falls already where a student is less sure; the others do not
                  from_logits(behaviour.spread_of_run, "spread of softmax outputs within a class (%)", -1),
                  from_logits(behaviour.scaled_spread_of_run, "spread at the best temperature (%)", -1),
                  from_logits(behaviour.logit_spread_of_run, "variance of logits within classes (%)", -1))),
        Claim("3", "Similar samples are less confused.",
              either(  # the first falls already where accuracy rises; the second does not
                  from_logits(behaviour.confusion_of_run, "% of images taken for others of their group", -1),
                  from_logits(behaviour.confused_errors_of_run, "% of errors that stay in the group", -1))),
        Claim("3", "A large KD temperature lowers the confidence of the target category.",
              temperature_lowers_confidence),
        Claim("3", "The term mends the confidence that a large KD temperature takes.", term_mends_confidence),
        Claim("4", "Distillation within a batch suffers from the label imbalance of a random batch.",
              not_studied),
        Claim("4", "Distillation within a batch suffers from its size; class means over an epoch do not.",
              not_studied),
    ]  # fmt: skip


def page(tables: Iterable[Table], numbers: Iterable[str] = ("1", "2", "3", "4")) -> pd.DataFrame:
    """The claims of some numbers, a row a finding.

    Columns: claim, sentence, verdict; ``reason``, why it is undecided, or what would tell; ``effect``, the
    difference, with its interval where there is one; ``measured``, what was subtracted; table, n and
    seeds_needed.
    A claim that no run speaks to has one row, with the verdict ``not run``, or ``not studied`` where no run
    could. Drawn characters decide nothing about the paper: what was measured on them is ``demo``.
    """
    tables, rows, asked = list(tables), [], set(numbers)
    for claim in [claim for claim in known_claims() if claim.number in asked]:
        said = {"claim": claim.number, "sentence": claim.sentence}
        found = [(table, finding) for table in tables for finding in claim.judge(table)]
        for table, finding in found:
            verdict = "demo" if table.data in DEMO else finding.verdict
            rows.append({
                **said, "verdict": verdict,
                "reason": finding.effect.reason if verdict == "undecided" else "",
                "effect": finding.effect.size,
                "measured": finding.sentence, "table": table.title, "n": finding.effect.n,
                "seeds_needed": finding.effect.needed if verdict == "undecided" else None,
            })  # fmt: skip
        if not found:
            nothing = {"reason": "", "effect": "", "measured": "", "table": "", "n": 0, "seeds_needed": None}
            verdict = NOT_STUDIED if claim.judge is not_studied else NOT_RUN
            rows.append({**said, "verdict": verdict, **nothing})
    return pd.DataFrame(rows)


def readable(page: pd.DataFrame) -> str:
    """The page as Markdown: each sentence once, below it what was measured and its verdict."""
    lines = []
    for (number, sentence), rows in page.groupby(["claim", "sentence"], sort=False):
        if (rows["n"] == 0).all():
            lines.append(f"- **{number}. {sentence}** *{rows['verdict'].iloc[0]}*")
            continue
        lines.append(f"- **{number}. {sentence}**")
        for row in rows.itertuples():
            lines.append(f"    - **{row.verdict}**{row.reason}: {row.effect}; {row.measured}; {row.table}")
    return "\n".join(lines)


def _measured(runs: Iterable[Run], measure: Callable[[Run], float]) -> dict[int, float]:
    """Seed to measure, over the runs that kept their logits."""
    found = {}
    for run in runs:
        if run.status == "finished" and (run.folder / "test_logits.safetensors").exists():
            try:
                found[run.spec.seed] = measure(run)
            except IkdError:  # no groups for this data set: nothing to measure
                continue
    return found


def _temperatures(table: Table) -> Iterator[tuple[str, str, float, Callable[..., Mapping[int, float]]]]:
    """Pair, base method, its largest T from `LARGE` on, and seed to confidence by (series, T)."""
    found = ablations.points(table.cells, "temperature", table.primary)
    for pair in table.pairs:
        for base in METHODS:
            at = partial(_scores, found, pair, "confidence")
            if high := [v for v in sorted(found["value"].unique()) if v >= LARGE and at(base, v)]:
                yield pair, base, high[-1], at


def _scores(found: pd.DataFrame, pair: str, measure: str, series: str, value: float) -> Mapping[int, float]:
    return ablations.scores(found, pair, series, value, measure)


def _minus(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    return {seed: one[seed] - other[seed] for seed in set(one) & set(other)}
