"""The pieces of the report that are no table, curve or claim of their own: what notebook 90 is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ikdlib.errors import IkdError
from ikdlib.reporting import ablations, behaviour, kept
from ikdlib.reporting.collect import TEACHER, Cell, Table
from ikdlib.reporting.tables import NOT_RUN, pooled
from ikdlib.runs import Run
from ikdlib.studies import protocol
from ikdlib.studies.controls import questions
from ikdlib.studies.variants import base_of

PAIRS = protocol.SAME_ARCHITECTURE + protocol.DIFFERENT_ARCHITECTURE
METHODS = ("ce", "kd", "kd+ikd", "dkd", "dkd+ikd", "nkd", "nkd+ikd", "wttm", "wttm+ikd")


def main_cells(table: Table) -> list[Cell]:
    """The paper's own table: the nine methods of every pair that has a run of one.

    Those without a run are there too, except of a pair that is not the paper's and has one method alone: it
    was run for another reason.
    """
    plain = {(c.pair, c.method): c for c in table.cells if c.method in METHODS}
    cells = []
    for pair in dict.fromkeys(pair for pair, _ in plain):
        there = [name for name in METHODS if (pair, name) in plain]
        complete = pair in PAIRS or len(there) > 1
        cells += [plain.get((pair, name), Cell(pair, name, ())) for name in (METHODS if complete else there)]
    return cells


def variant_cells(table: Table) -> list[Cell]:
    """Cells with changed settings, each method of them behind what it is compared with."""
    changed = [c for c in table.cells if c.method not in METHODS and c.method != TEACHER]
    wanted = {(c.pair, name) for c in changed for name in (base_of(c.method), c.method.split(",")[0])}
    others = [c for c in table.cells if (c.pair, c.method) in wanted and c not in changed]
    return sorted(others + changed, key=lambda c: table.cells.index(c))


def headline(tables: Iterable[Table]) -> pd.DataFrame:
    """The gain of the IKD term on each base method of each table, over its pairs; for `curves.forest`."""
    rows = []
    for table in tables:
        for row in pooled(table.cells, table.primary).to_dict("records"):
            pairs = "1 pair" if row["pairs"] == 1 else f"{row['pairs']} pairs"
            rows.append({"name": f"{row['method']}+ikd minus {row['method']}, {pairs}\n{table.title}", **row})
    columns = ("name", "method", "gain", "gain_low", "gain_high", "gain_n", "verdict")
    return pd.DataFrame(rows, columns=list(columns))


def headline_words(rows: pd.DataFrame) -> str:
    """The same in a sentence a line, for who reads before they look."""
    if rows.empty:
        return "No pair has finished runs both with and without the IKD term: **not run**."
    lines = []
    for row in rows.itertuples():
        interval = "" if pd.isna(row.gain_low) else f" [{row.gain_low:+.2f}, {row.gain_high:+.2f}]"
        name = row.name.replace("\n", "; ")
        lines.append(f"- {name}: **{row.gain:+.2f}**{interval} points, n={row.gain_n}: {row.verdict}")
    return "\n".join(lines)


def overview(found: Iterable[Run]) -> pd.DataFrame:
    """How much was measured: runs by data set, length and precision, and their hours of training."""
    rows = []
    for run in found:
        s = run.spec
        hours = sum(run.provenance["seconds"].values()) / 3600 if run.status == "finished" else 0.0
        rows.append((s.data, s.recipe.epochs, s.recipe.precision, s.protocol, run.status, hours))
    columns = ["data", "epochs", "precision", "protocol", "status", "hours"]
    table = pd.DataFrame(rows, columns=columns)
    counted = table.groupby(columns[:-1]).agg(runs=("hours", "size"), hours=("hours", "sum"))
    return counted.reset_index().round({"hours": 1})


def curves_of(table: Table) -> Iterator[tuple[str, pd.DataFrame, list[str]]]:
    """Each setting of which the table has a curve (three values, or two with and without the term).

    Yields the setting, its points of the pairs that have a curve, and the measures that were recorded.
    """
    for setting in ablations.AXES:
        found = ablations.points(table.cells, setting, table.primary)
        least = 2 if setting in ("recipe.batch_size", "temperature") else 3
        counts = found.groupby(["pair", "series"])["value"].nunique()
        series = [key for key, count in counts.items() if count >= least]
        series += [(pair, base_of(name)) for pair, name in series]
        kept = found[[key in series for key in zip(found["pair"], found["series"], strict=True)]]
        if len(kept):
            first = ("held_out", "test") if setting.startswith("ikd.") else ("test", "confidence")
            yield setting, kept.reset_index(drop=True), [name for name in first if kept[name].notna().any()]


def controls_of(table: Table) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each method that has a control: the method, and `ablations.against` of what was run beside it."""
    for method in ("kd+ikd", "dkd+ikd", "nkd+ikd", "wttm+ikd"):
        asked = questions(method)
        controls = [label for label in asked if label.startswith(f"{method}, ")]
        if any(cell.method in controls for cell in table.cells):
            compared = ablations.against(table.cells, method, asked, table.primary)
            yield method, compared[compared["gain"].notna()].reset_index(drop=True)


def behaviours(tables: Iterable[Table]) -> pd.DataFrame:
    """What the term changes besides accuracy, for each base whose runs of one seed both kept their logits."""
    rows = []
    for table in tables:
        for pair in table.pairs:
            for method in ("kd+ikd", "dkd+ikd", "nkd+ikd", "wttm+ikd"):
                sides = [_with_logits(table.runs(pair, name)) for name in (base_of(method), method)]
                for seed in sorted(set(sides[0]) & set(sides[1]))[:1]:
                    base, treated = (kept.predictions(side[seed]) for side in sides)
                    measured = behaviour.summary(base, treated)
                    where = {"table": table.title, "pair": pair, "method": method, "seed": seed}
                    rows += [{**where, **row} for row in measured.to_dict("records")]
    return pd.DataFrame(rows)


def teachers(found: Iterable[Run]) -> pd.DataFrame:
    """The teachers: architecture, sha256 of the weights, test top-1 (%), and whose they are."""
    rows: dict[str, dict[str, Any]] = {}
    for run in found:
        if run.status == "finished" and run.spec.teacher:
            digest = run.spec.teacher_sha256[:12]
            row = rows.setdefault(digest, {
                "teacher": run.spec.teacher, "data": run.spec.data, "sha256": f"{digest}...",
                "test top-1 (%)": run.result["teacher"]["top1"], "students": 0,
            })  # fmt: skip
            row["students"] += 1
    columns = ["teacher", "data", "sha256", "test top-1 (%)", "students"]
    return pd.DataFrame(rows.values(), columns=columns)


def links(found: Iterable[Run], results: Path) -> dict[str, str]:
    """Run id to the way from the report's folder to the folder of its runs."""
    return {run.spec.run_id: run.root.relative_to(results).as_posix() for run in found}


def nothing(frame: pd.DataFrame) -> str:
    """Markdown of a table, or ``not run`` where it has no row."""
    if frame.empty:
        return f"*{NOT_RUN}*"
    return str(frame.to_markdown(index=False, disable_numparse=True))


def _with_logits(runs: Iterable[Run]) -> dict[int, Run]:
    found = {}
    for run in runs:
        try:
            kept.kept_logits(run)
        except IkdError:
            continue
        found[run.spec.seed] = run
    return found
