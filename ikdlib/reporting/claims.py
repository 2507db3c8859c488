"""The paper's claims, each beside what the runs here say of it.

The list is all that is known of the paper's claims to this project; its result tables are not. A claim is
judged in each table (data set, length, precision, protocol) by itself, because numbers of different tables
are not averaged. An effect is written so that above zero is what the paper claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from ikdlib.errors import IkdError
from ikdlib.reporting import ablations, behaviour
from ikdlib.reporting.ablations import Finding
from ikdlib.reporting.collect import Table
from ikdlib.reporting.statistics import Difference, paired_difference
from ikdlib.reporting.tables import NOT_RUN, pooled
from ikdlib.runs import Run

DATA_SETS = {"cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet", "imagenet": "ImageNet-1K"}
METHODS = {"kd": "KD", "dkd": "DKD", "nkd": "NKD", "wttm": "WTTM"}


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and what measures it in a table."""

    number: str
    sentence: str
    judge: Callable[[Table], Iterable[Finding]]


def raises_accuracy(data: str, base: str) -> Callable[[Table], Iterator[Finding]]:
    """Claim 1: the gain over the base method, pooled over the table's pairs."""

    def judge(table: Table) -> Iterator[Finding]:
        if table.data != data:
            return
        for row in pooled(table.cells, table.primary).itertuples():
            if row.method == base:
                none = pd.isna(row.gain_low)
                d = Difference(
                    row.gain, None if none else row.gain_low, None if none else row.gain_high, row.gain_n,
                    None, None if pd.isna(row.seeds_needed) else int(row.seeds_needed),
                )  # fmt: skip
                pairs = f"{row.pairs} pair" + "s" * (row.pairs > 1)
                yield Finding(f"{pairs}, top-1 points", d, d.verdict)

    return judge


def best_value(setting: str, symbol: str, series: str, value: float) -> Callable[[Table], Iterator[Finding]]:
    """Claim 2: a setting's value against all others, on held-out images where a table has them."""

    def judge(table: Table) -> Iterator[Finding]:
        found = ablations.points(table.cells, setting, table.primary)
        measure = "held_out" if table.holdout else "test"
        for pair in table.pairs:
            if found[(found["pair"] == pair) & (found["series"] == series)]["value"].nunique() < 3:
                continue  # the tables' own cells, with and without the term, are no curve
            finding = ablations.optimum(found, pair, series, value, measure, symbol)
            if finding is not None:
                yield Finding(
                    f"{finding.sentence}, {measure.replace('_', '-')} top-1", finding.effect, finding.verdict
                )

    return judge


def from_logits(
    measure: Callable[[Run], float], unit: str, lower: bool = False
) -> Callable[[Table], Iterator[Finding]]:
    """Claim 3: something computed from the kept test logits of a base method and its ``+ikd``."""

    def judge(table: Table) -> Iterator[Finding]:
        for pair in table.pairs:
            for base in METHODS:
                plain, treated = (_measured(table.runs(pair, m), measure) for m in (base, f"{base}+ikd"))
                d = paired_difference(plain, treated) if lower else paired_difference(treated, plain)
                if d is not None:
                    order = f"{base} minus {base}+ikd" if lower else f"{base}+ikd minus {base}"
                    yield Finding(f"{pair}, {order}, {unit}", d, d.verdict)

    return judge


def either(*judges: Callable[[Table], Iterable[Finding]]) -> Callable[[Table], Iterator[Finding]]:
    """Several readings of one claim, each judged by itself."""

    def judge(table: Table) -> Iterator[Finding]:
        for one in judges:
            yield from one(table)

    return judge


def temperature_lowers_confidence(table: Table) -> Iterator[Finding]:
    """Claim 3: the probability of the target class at the lowest KD temperature minus at the highest."""
    found = ablations.points(table.cells, "temperature", table.primary)
    for pair, series, values in _curves(found, "confidence", with_term=False):
        low, high = (ablations.scores(found, pair, series, v, "confidence") for v in (values[0], values[-1]))
        if (d := paired_difference(low, high)) is not None:
            yield Finding(
                f"{pair}, {series} at T = {values[0]:g} minus T = {values[-1]:g}, points of probability",
                d, d.verdict,
            )  # fmt: skip


def term_mends_confidence(table: Table) -> Iterator[Finding]:
    """Claim 3: the term's gain of target-class probability at the highest KD temperature."""
    found = ablations.points(table.cells, "temperature", table.primary)
    for pair, series, values in _curves(found, "confidence", with_term=True):
        base = series.removesuffix("+ikd")
        sides = (ablations.scores(found, pair, s, values[-1], "confidence") for s in (series, base))
        if (d := paired_difference(*sides)) is not None:
            words = f"{pair}, {series} minus {base} at T = {values[-1]:g}, points of probability"
            yield Finding(words, d, d.verdict)


def depends_on_batch_size(table: Table) -> Iterator[Finding]:
    """Claim 4: the range of accuracy over the batch sizes, base method minus ``+ikd``.

    Which size suits within-batch distillation is not said; so the claim is read as: the base method's
    accuracy depends on the batch size more than that of its ``+ikd`` does.
    """
    found = ablations.points(table.cells, "recipe.batch_size", table.primary)
    for pair, series, values in _curves(found, "test", with_term=True):
        base = series.removesuffix("+ikd")
        values = [v for v in values if ablations.scores(found, pair, base, v, "test")]
        if len(values) < 2:
            continue
        plain, treated = (_spread(found, pair, s, values) for s in (base, series))
        if (d := paired_difference(plain, treated)) is not None:
            words = f"{pair}, range over batches {values[0]:g} to {values[-1]:g}, {base} minus {series}"
            yield Finding(f"{words}, top-1 points", d, d.verdict)


def known_claims() -> list[Claim]:
    """Every claim of the paper that is known here, in its order."""
    claims = [
        Claim(
            "1",
            f"Adding the IKD term raises top-1 accuracy over {name} on {title}.",
            raises_accuracy(data, base),
        )
        for data, title in DATA_SETS.items()
        for base, name in METHODS.items()
    ]
    return claims + [
        Claim("2", "T = 1.0 suits the term best.", best_value("ikd.temperature", "T", "dkd+ikd", 1.0)),
        Claim("2", "λ = 6.5 suits DKD+IKD best.", best_value("ikd.weight", "λ", "dkd+ikd", 6.5)),
        Claim("2", "λ = 6.0 suits NKD+IKD best.", best_value("ikd.weight", "λ", "nkd+ikd", 6.0)),
        Claim("3", "Predictions within a class become more consistent.",
              either(  # two readings: softmax outputs spread less already where a student is less sure
                  from_logits(behaviour.spread_of_run, "spread of softmax outputs within a class (%)", True),
                  from_logits(behaviour.logit_spread_of_run, "variance of logits within classes (%)", True))),
        Claim("3", "Similar samples are less confused.",
              from_logits(behaviour.confusion_of_run, "% of test images taken for others of their group",
                          lower=True)),
        Claim("3", "A large KD temperature lowers the confidence of the target category.",
              temperature_lowers_confidence),
        Claim("3", "The term mends the confidence that a large KD temperature takes.", term_mends_confidence),
        Claim("4", "Distillation within a batch suffers from its size; class means over an epoch do not.",
              depends_on_batch_size),
    ]  # fmt: skip


def page(tables: Iterable[Table], numbers: Iterable[str] = ("1", "2", "3", "4")) -> pd.DataFrame:
    """The claims of some numbers, a row a finding: claim, sentence, verdict, effect, measured, table, n.

    ``effect``: the difference, with its interval where there is one; ``measured``: what was subtracted.
    A claim that no run speaks to has one row, with the verdict ``not run``.
    """
    tables, rows, asked = list(tables), [], set(numbers)
    for claim in [claim for claim in known_claims() if claim.number in asked]:
        said = {"claim": claim.number, "sentence": claim.sentence}
        found = [(table, finding) for table in tables for finding in claim.judge(table)]
        for table, finding in found:
            rows.append({
                **said, "verdict": finding.verdict, "effect": str(finding.effect).rpartition(": ")[0],
                "measured": finding.sentence, "table": table.title, "n": finding.effect.n,
                "seeds_needed": finding.effect.needed if finding.verdict == "undecided" else None,
            })  # fmt: skip
        if not found:
            nothing = {"effect": "", "measured": "", "table": "", "n": 0, "seeds_needed": None}
            rows.append({**said, "verdict": NOT_RUN, **nothing})
    return pd.DataFrame(rows)


def readable(page: pd.DataFrame) -> str:
    """The page as Markdown: each sentence once, below it what was measured and its verdict."""
    lines = []
    for (number, sentence), rows in page.groupby(["claim", "sentence"], sort=False):
        if (rows["verdict"] == NOT_RUN).all():
            lines.append(f"- **{number}. {sentence}** *{NOT_RUN}*")
            continue
        lines.append(f"- **{number}. {sentence}**")
        for row in rows.itertuples():
            needed = "" if pd.isna(row.seeds_needed) else f", about {row.seeds_needed:.0f} seeds would tell"
            lines.append(f"    - **{row.verdict}**{needed}: {row.effect}; {row.measured}; {row.table}")
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


def _curves(found: pd.DataFrame, measure: str, with_term: bool) -> Iterator[tuple[str, str, list[float]]]:
    """Pair, series and rising values of each curve of two points or more."""
    there = found[found[measure].notna()]
    for (pair, series), part in there.groupby(["pair", "series"]):
        values = sorted(part["value"].unique())
        if len(values) > 1 and str(series).endswith("+ikd") == with_term:
            yield str(pair), str(series), values


def _spread(found: pd.DataFrame, pair: str, series: str, values: list[float]) -> Mapping[int, float]:
    by_value = [ablations.scores(found, pair, series, value, "test") for value in values]
    seeds = set.intersection(*map(set, by_value)) if by_value else set()
    return {seed: max(s[seed] for s in by_value) - min(s[seed] for s in by_value) for seed in seeds}
