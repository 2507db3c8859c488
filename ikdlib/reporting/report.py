"""The pieces of the report that are no table, curve or claim of their own: what notebook 90 is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from ikdlib.errors import IkdError
from ikdlib.reporting import ablations, behaviour, kept
from ikdlib.reporting.collect import TEACHER, Cell, Table, folders, roots
from ikdlib.reporting.tables import NAMED, NOT_RUN, difference_of, is_plain, pooled_and_single
from ikdlib.runs import Run
from ikdlib.studies import protocol
from ikdlib.studies.grids import questions
from ikdlib.studies.profiles import LOGIT_METHODS
from ikdlib.studies.variants import base_of

PAIRS = protocol.SAME_ARCHITECTURE + protocol.DIFFERENT_ARCHITECTURE
WITH_TERM = tuple(name for name in LOGIT_METHODS if name.endswith("+ikd"))


def write(results: Path) -> Path:
    """``report.html`` in a results folder, from what lies there; nothing is trained.

    Raises:
        IkdError: no such folder, or no run in it.
    """
    from ikdlib.reporting.page import write_page
    from ikdlib.studies.notebook import execute_here

    if not any(folders(root) for root in roots(results)):
        raise IkdError(f"results: no run in {results}; `make demo` or `make reproduce-cifar` makes some")
    with TemporaryDirectory() as folder:
        output = Path(folder) / "90_report.ipynb"
        executed = execute_here("90_report", output, {"results": str(results)})
        return write_page(executed, results / "report.html", "IKD, reproduced")


def cells_of(table: Table) -> list[Cell]:
    """The table's cells, but for teachers: nine methods of every pair, a user's own, then changed settings.

    Methods of the nine that were not run are there too, except of a pair that is none of the thirteen and has
    one method alone: it was run for another reason.
    """
    found = {(c.pair, c.method): c for c in table.cells if c.method != TEACHER}
    cells = []
    for pair in dict.fromkeys(pair for pair, _ in found):
        there = [name for name in LOGIT_METHODS if (pair, name) in found]
        names = LOGIT_METHODS if there and (pair in PAIRS or len(there) > 1) else there
        own = [name for of, name in found if of == pair and is_plain(name) and name not in LOGIT_METHODS]
        cells += [found.pop((pair, name), Cell(pair, name, ())) for name in (*names, *own)]
    return cells + list(found.values())


def changed(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of `tables.study_table`, those with changed settings and what they are compared with."""
    others = rows[~rows["method"].map(is_plain).astype(bool)]
    wanted = {
        (row.pair, name) for row in others.itertuples() for name in (base_of(row.method), _plain(row.method))
    }
    beside = [pair_and_method in wanted for pair_and_method in zip(rows["pair"], rows["method"], strict=True)]
    return rows[pd.Series(beside, index=rows.index, dtype=bool) | rows.index.isin(others.index)]


def counted(tables: Iterable[Table]) -> list[Run]:
    """Every run that stands in a table, once."""
    found = {run.spec.run_id: run for table in tables for cell in table.cells for run in cell.runs}
    return [found[run_id] for run_id in sorted(found)]


def headline(tables: Iterable[Table]) -> pd.DataFrame:
    """The gain of the IKD term on each base method of each table, over its pairs; for `curves.forest`.

    Where they are few, each pair follows by itself: their mean hides where they differ. What the term does to
    plain cross-entropy is of another size, and no claim: it stands in the tables.
    """
    rows = []
    for table in tables:
        gains = pooled_and_single(table.cells, table.primary, most=NAMED)
        for row in gains[gains["method"] != "ce"].to_dict("records"):
            over = f"mean of {row['over']}" if row["pairs"] > 1 else row["over"]
            name = f"{row['method']}+ikd minus {row['method']}, {over}\n{table.title}"
            rows.append({"name": name, **row, "reason": difference_of(row).reason})
    columns = ("name", "method", "gain", "gain_low", "gain_high", "gain_n", "verdict", "reason")
    return pd.DataFrame(rows, columns=list(columns))


def headline_words(rows: pd.DataFrame) -> str:
    """The same in a sentence a line, for who reads before they look."""
    if rows.empty:
        return "No pair has finished runs both with and without the IKD term: **not run**."
    lines = []
    for row in rows.itertuples():
        interval = "" if pd.isna(row.gain_low) else f" [{row.gain_low:+.2f}, {row.gain_high:+.2f}]"
        name = row.name.replace("\n", "; ")
        lines.append(
            f"- {name}: **{row.gain:+.2f}**{interval} points, n={row.gain_n}: {row.verdict}{row.reason}"
        )
    return "\n".join(lines)


def overview(found: Iterable[Run]) -> pd.DataFrame:
    """How much was measured: runs by data set, length and precision, and their hours of training."""
    rows = []
    for run in found:
        s = run.spec
        hours = _hours(run) if run.status == "finished" else 0.0
        rows.append((s.data, s.recipe.epochs, s.recipe.precision, s.protocol, run.status, hours))
    columns = ["data", "epochs", "precision", "protocol", "status", "hours"]
    table = pd.DataFrame(rows, columns=columns)
    counted = table.groupby(columns[:-1]).agg(
        runs=("hours", "size"), hours=("hours", lambda hours: hours.sum(min_count=1))
    )
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
    """Each method that has a control: the method, and `ablations.against` of what was run."""
    for method in WITH_TERM:
        asked = questions(method)
        controls = {other for one, other in asked if one == method and ", " in other}
        if any(cell.method in controls for cell in table.cells):
            compared = ablations.against(table.cells, asked, table.primary)
            yield method, compared[compared["gain"].notna()].reset_index(drop=True)


def behaviours(tables: Iterable[Table]) -> pd.DataFrame:
    """What the term changes besides accuracy, for each base whose runs of one seed both kept their logits."""
    rows = []
    for table in (table for table in tables if not table.holdout):  # as the claims on them are judged
        for pair in table.pairs:
            methods = [cell.method for cell in table.cells if cell.pair == pair]
            for method in [name for name in methods if name.endswith("+ikd")]:
                sides = [_predictions(table.runs(pair, name)) for name in (base_of(method), method)]
                for seed in sorted(set(sides[0]) & set(sides[1]))[:1]:
                    measured = behaviour.summary(*(side[seed] for side in sides))
                    where = {"table": table.title, "pair": pair, "method": method, "seed": seed}
                    rows += [{**where, **row} for row in measured.to_dict("records")]
    columns = ("table", "pair", "method", "seed", "measure", "unit", "paper", "base", "+ikd", "difference")
    return pd.DataFrame(rows, columns=list(columns))


def teachers(found: Iterable[Run]) -> pd.DataFrame:
    """The teachers of the finished students: architecture, data, sha256 of the weights, test top-1 (%)."""
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


def _plain(label: str) -> str:
    return label.partition(",")[0]


def _hours(run: Run) -> float:
    try:
        return float(sum(run.provenance["seconds"].values())) / 3600
    except (IkdError, LookupError, TypeError, AttributeError):
        return float("nan")  # not recorded


def _predictions(runs: Iterable[Run]) -> dict[int, kept.Predictions]:
    """Seed to the predictions of each run that kept its logits."""
    found = {}
    for run in runs:
        try:
            found[run.spec.seed] = kept.predictions(run)
        except IkdError:
            continue
    return found
