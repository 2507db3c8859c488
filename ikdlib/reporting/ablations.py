"""What an ablation's runs say: a curve over one setting, its optimum, and one cell against others.

A cell belongs to a curve where nothing but the curve's setting differs from the tables' own settings. So the
points come from the run folders alone, whichever study or sweep left them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ikdlib.reporting.collect import by_seed
from ikdlib.reporting.statistics import Difference, judged_together, paired_difference
from ikdlib.reporting.tables import NOT_RUN
from ikdlib.runs import Run
from ikdlib.spec import RunSpec
from ikdlib.studies.variants import base_of, variant_of

NO_PLACE = float("nan")

# Setting -> its value in a run, or None where the run has no such setting.
VALUES: dict[str, Callable[[RunSpec], float | None]] = {
    # Without the term there is no T: the base method has no place on the axis, and is a level across it.
    "ikd.temperature": lambda spec: NO_PLACE if spec.method.ikd is None else spec.method.ikd.temperature,
    # Without the term lambda is 0: the base method is a point of the curve.
    "ikd.weight": lambda spec: 0.0 if spec.method.ikd is None else spec.method.ikd.weight,
    "recipe.batch_size": lambda spec: float(spec.recipe.batch_size),
    "temperature": lambda spec: spec.method.settings.get("temperature"),
}
AXES = {
    "ikd.temperature": "temperature T of the IKD term", "ikd.weight": "weight λ of the IKD term",
    "recipe.batch_size": "batch size", "temperature": "temperature of the base method",
}  # fmt: skip
MEASURES = {
    "test": "test top-1 (%)", "held_out": "held-out top-1 (%)",
    "confidence": "probability of the target class (%), test",
}  # fmt: skip
COLUMNS = ("pair", "series", "value", "seed", *MEASURES, "run")


@dataclass(frozen=True)
class Finding:
    """A sentence about runs: the effect it names, and ``supported``, ``contradicted`` or ``undecided``."""

    sentence: str
    effect: Difference
    verdict: str

    def __str__(self) -> str:
        return f"{self.sentence}: {self.verdict}" + (
            self.effect.reason if self.verdict == "undecided" else ""
        )


def points(cells: Iterable[Any], setting: str, primary: str = "last") -> pd.DataFrame:
    """A row a finished run on the curve of ``setting``: `COLUMNS`; measures in %, at the primary epoch.

    A measure that a run did not record (no held-out images, an older version) is NaN. So is the value of a
    base method that has none of this setting; it is there only beside its own ``+ikd``.
    """
    rows = []
    for cell in cells:
        for run in cell.runs:
            if run.status != "finished":
                continue
            variant, value = variant_of(run.spec), VALUES[setting](run.spec)
            if value is None or not set(variant.named) <= {setting}:
                continue
            series = variant.method
            if setting == "ikd.weight" and run.spec.method.ikd is None:
                series += "+ikd"
            measured = dict(zip(MEASURES, _measured(run, primary), strict=True))
            rows.append((cell.pair, series, value, run.spec.seed, *measured.values(), run.spec.run_id))
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    placed = set(zip(found["pair"], found["series"].where(found["value"].notna()), strict=True))
    beside = [
        (pair, f"{name}+ikd") in placed for pair, name in zip(found["pair"], found["series"], strict=True)
    ]
    found = found[found["value"].notna() | pd.Series(beside, index=found.index, dtype=bool)]
    return found.sort_values(["pair", "series", "value", "seed"], ignore_index=True)


def _measured(run: Run, primary: str) -> list[float]:
    history = run.history
    if primary == "last":
        row = history.iloc[-1]
        return [float(row.get(f"{name}", float("nan"))) for name in _HISTORY]
    # Under "best" each split is at its own best epoch, as who reports the best epoch would choose it; the
    # confidence on the test images is that of the epoch that is best on them.
    test, held_out, confidence = (history.get(name) for name in _HISTORY)
    nothing = float("nan")
    return [
        float(test.max()),
        nothing if held_out is None else float(held_out.max()),
        nothing if confidence is None else float(confidence[test.idxmax()]),
    ]


_HISTORY = ("test_top1", "held_out_top1", "test_confidence")


def scores(found: pd.DataFrame, pair: str, series: str, value: float, measure: str) -> dict[int, float]:
    """Seed to measure of one point of a curve."""
    here = found[(found["pair"] == pair) & (found["series"] == series) & (found["value"] == value)]
    here = here[here[measure].notna()]
    return dict(zip(here["seed"].astype(int), here[measure].astype(float), strict=True))


def optimum(
    found: pd.DataFrame, pair: str, series: str, value: float, measure: str, symbol: str
) -> Finding | None:
    """Whether ``value`` is the best of a curve; None where it, or anything to compare it with, was not run.

    Supported: above every other value, each 95 % interval of the paired difference above 0. Contradicted:
    below one of them, after Holm's correction over all. The effect named is against the best other value.
    """
    own = scores(found, pair, series, value, measure)
    curve = found[(found["pair"] == pair) & (found["series"] == series) & found[measure].notna()]
    others = [other for other in sorted(curve["value"].unique()) if other != value]
    against = {other: scores(found, pair, series, other, measure) for other in others}
    differences = {
        other: d for other, values in against.items() if (d := paired_difference(own, values)) is not None
    }
    if not differences:
        return None
    judged = judged_together(differences)
    if len(differences) == len(others) and all(d.verdict == "supported" for d in differences.values()):
        verdict = "supported"
    elif any(d.verdict == "contradicted" for d in judged.values()):
        verdict = "contradicted"
    else:
        verdict = "undecided"
    rival = min(differences, key=lambda other: differences[other].mean)
    effect = differences[rival]
    sentence = (
        f"{pair} {series}: {symbol} = {value:g} minus {symbol} = {rival:g}, the best of the "
        f"{len(differences)} others: {_words(effect)}"
    )
    return Finding(sentence, effect, verdict)


def against(cells: Iterable[Any], questions: Mapping[tuple[str, str], str], primary: str) -> pd.DataFrame:
    """Differences of cells, paired by seed; all of them are judged together.

    ``questions``: two labels, the second to be subtracted from the first, to the question that this answers.
    A row for each pair and question, with columns pair, method, other, name, question, gain, gain_low,
    gain_high, gain_n, p_holm, effect, verdict: ``not run`` where one of the two was not, without numbers.
    """
    by_name = {(cell.pair, cell.method): by_seed(cell.runs, primary) for cell in cells}
    rows, found = [], {}
    for pair in dict.fromkeys(pair for pair, _ in by_name):
        for (method, other), question in questions.items():
            d = paired_difference(by_name.get((pair, method), {}), by_name.get((pair, other), {}))
            if d is not None:
                found[len(rows)] = d
            name = f"{pair}: {method} minus {other}"
            rows.append({"pair": pair, "method": method, "other": other, "name": name, "question": question})
    judged = judged_together(found)
    columns = ["pair", "method", "other", "name", "question", *_columns(None)]
    every = [{**row, **_columns(judged.get(place))} for place, row in enumerate(rows)]
    return pd.DataFrame(every, columns=columns)


def gains(found: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Of a curve with and without the term: its gain at each value; those of one pair and series together."""
    rows = []
    for pair in found["pair"].unique():
        for series in [name for name in found["series"].unique() if base_of(name) != name]:
            values = sorted(found[found["pair"] == pair]["value"].unique())
            both = {
                value: paired_difference(
                    scores(found, pair, series, value, measure),
                    scores(found, pair, base_of(series), value, measure),
                )
                for value in values
            }
            both = {value: d for value, d in both.items() if d is not None}
            for value, d in judged_together(both).items():
                rows.append({"pair": pair, "series": series, "value": value, **_columns(d)})
    return pd.DataFrame(rows, columns=["pair", "series", "value", *_columns(None)])


def _columns(d: Difference | None) -> dict[str, Any]:
    if d is None:
        names = ("gain", "gain_low", "gain_high", "gain_n", "p_holm")
        return {**dict.fromkeys(names), "effect": NOT_RUN, "verdict": NOT_RUN}
    return {
        "gain": d.mean, "gain_low": d.low, "gain_high": d.high, "gain_n": d.n, "p_holm": d.holm,
        "effect": str(d), "verdict": d.verdict,
    }  # fmt: skip


def _words(d: Difference) -> str:
    interval = f" [{d.low:+.2f}, {d.high:+.2f}]" if d.low is not None else ""
    return f"{d.mean:+.2f}{interval} (n={d.n})"
