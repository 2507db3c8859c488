"""A study's cells as a table: mean +- std (n) over seeds, beside what was published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from ikdlib import files
from ikdlib.reporting.collect import by_seed
from ikdlib.reporting.statistics import (
    Difference,
    corrected,
    mean_and_std,
    paired_difference,
    pooled_difference,
)
from ikdlib.runs import Run
from ikdlib.studies.variants import base_of

NOT_RUN = "not run"


def cell_row(pair: str, method: str, runs: Iterable[Run]) -> dict[str, Any]:
    """One row: last and best test top-1 (%), over the finished trials of one spec.

    A trial that is half-finished or diverged is counted, and is no number.
    """
    runs = list(runs)
    states = [run.status for run in runs]
    finished = [run for run, state in zip(runs, states, strict=True) if state == "finished"]
    row: dict[str, Any] = {"pair": pair, "method": method, "n": len(finished)}
    row["unfinished"] = sum(state in ("missing", "unfinished") for state in states)
    row["diverged"] = states.count("diverged")
    for which in ("last", "best"):
        values = [run.result[which]["top1"] for run in finished]
        row[f"{which}_top1"], row[f"{which}_std"] = mean_and_std(values) if values else (None, None)
    values = [run.result["last"]["top5"] for run in finished]
    row["last_top5"] = mean_and_std(values)[0] if values else None
    teachers = [run.result["teacher"]["top1"] for run in finished if run.result["teacher"]]
    row["teacher_top1"] = teachers[0] if teachers else None
    row["runs"] = " ".join(run.spec.run_id for run in finished)
    return row


def gain(treated: Iterable[Run], base: Iterable[Run], which: str) -> Difference | None:
    """``+ikd`` minus its base, paired by seed; ``which`` epoch is ``last`` or ``best``."""
    return paired_difference(by_seed(treated, which), by_seed(base, which))


def study_table(cells: Iterable[Any], published: pd.DataFrame, primary: str) -> pd.DataFrame:
    """All cells of a study, a row each, with the published number and the gain of the IKD term.

    The gains of single cells are judged together (`statistics.corrected`).

    Args:
        cells: objects with ``pair``, ``method`` and ``runs``.
        published: columns teacher, student, method, top1, convention, teacher_top1, source.
        primary: ``last`` or ``best``, the epoch gains are measured at.
    """
    cells = list(cells)
    by_name = {(cell.pair, cell.method): cell.runs for cell in cells}
    rows, found = [], {}
    for place, cell in enumerate(cells):
        row = cell_row(cell.pair, cell.method, cell.runs)
        row.update(_published(published, cell.pair, cell.method))
        if row["convention"] in ("last", "best") and row["n"]:
            row["minus_published"] = row[f"{row['convention']}_top1"] - row["published"]
        base = by_name.get((cell.pair, base_of(cell.method)))
        if base_of(cell.method) != cell.method and base is not None:
            if (difference := gain(cell.runs, base, primary)) is not None:
                found[place] = difference
        rows.append(row)
    for place, difference in zip(found, corrected(list(found.values())), strict=True):
        rows[place].update(
            gain=difference.mean, gain_low=difference.low, gain_high=difference.high, gain_n=difference.n,
            p=difference.p, p_holm=difference.holm, verdict=difference.verdict,
            seeds_needed=difference.needed, correlation=difference.correlation,
        )  # fmt: skip
    return pd.DataFrame(rows)


def pooled(cells: Iterable[Any], primary: str) -> pd.DataFrame:
    """The gain of the IKD term on each base method, over all pairs that have both: a row a base method.

    Columns: method, pairs, n, gain, gain_low, gain_high, p, verdict, seeds_needed.
    """
    cells = list(cells)
    scores = {(cell.pair, cell.method): by_seed(cell.runs, primary) for cell in cells}
    rows = []
    methods = dict.fromkeys(cell.method for cell in cells)
    for base in [name for name in methods if f"{name}+ikd" in methods]:
        both = [
            (scores[pair, f"{base}+ikd"], scores[pair, base])
            for pair in dict.fromkeys(cell.pair for cell in cells)
            if (pair, f"{base}+ikd") in scores and (pair, base) in scores
        ]
        both = [(treated, plain) for treated, plain in both if set(treated) & set(plain)]
        if (found := pooled_difference(both)) is not None:
            rows.append({
                "method": base, "pairs": len(both), "gain_n": found.n, "gain": found.mean,
                "gain_low": found.low, "gain_high": found.high, "p": found.p, "verdict": found.verdict,
                "seeds_needed": found.needed,
            })  # fmt: skip
    names = ("method", "pairs", "gain_n", "gain", "gain_low", "gain_high", "p", "verdict", "seeds_needed")
    return pd.DataFrame(rows, columns=list(names))


def readable(table: pd.DataFrame, primary: str, folders: str | Mapping[str, str] = "") -> pd.DataFrame:
    """The table as people read it: text cells, one decimal more than the noise deserves.

    ``folders``: the way from the table to the run folders, like ``../runs`` (or run id to such a way): each
    cell then links its runs by their seeds.
    """
    other = "best" if primary == "last" else "last"
    shown = pd.DataFrame(
        {
            "pair": table["pair"],
            "method": table["method"],
            f"top-1 % ({primary} epoch)": [_number(row, primary) for _, row in table.iterrows()],
            f"({other} epoch)": [_number(row, other) for _, row in table.iterrows()],
            "+ikd minus base": [_gain(row) for _, row in table.iterrows()],
        }
    )
    if table["published"].notna().any():
        shown["published"] = [
            f"{row.published:.2f} ({row.convention})" if pd.notna(row.published) else ""
            for row in table.itertuples()
        ]
        shown["ours minus published"] = [
            f"{value:+.2f}" if pd.notna(value) else ""
            for value in table.get("minus_published", [None] * len(table))
        ]
    if folders:
        shown["runs"] = [" ".join(_link(run_id, folders) for run_id in ids.split()) for ids in table["runs"]]
    return shown


def markdown(shown: pd.DataFrame, caption: str) -> str:
    """A Markdown table with its caption above it."""
    return f"{caption}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n"


def write(table: pd.DataFrame, primary: str, caption: str, path: Path) -> str:
    """Write ``path.csv`` (full precision) and ``path.md``; returns the Markdown."""
    text = markdown(readable(table, primary, "../runs"), caption)
    files.write_text(path.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    files.write_text(path.with_suffix(".md"), text)
    return text


def verdicts(table: pd.DataFrame, over_pairs: pd.DataFrame | None = None) -> list[str]:
    """A sentence for each gain of the IKD term, pooled ones first; or one that says there is none."""
    if "gain" not in table or table["gain"].isna().all():
        return ["not run: no pair has finished runs both with and without the IKD term"]
    rows = [] if over_pairs is None else [row for _, row in over_pairs.iterrows() if row.pairs > 1]
    lines = [f"over {row.pairs} pairs: {row.method}+ikd minus {row.method}: {_gain(row)}" for row in rows]
    return lines + [
        f"{row['pair']}: {row['method']} minus {base_of(row['method'])}: {_gain(row)}"
        for _, row in table.iterrows()
        if pd.notna(row["gain"])
    ]


def _link(run_id: str, folders: str | Mapping[str, str]) -> str:
    folder = folders if isinstance(folders, str) else folders[run_id]
    seed = run_id.rpartition("-seed")[2].partition("-")[0]
    return f"[seed {seed}]({folder}/{quote(run_id)}/)"


def _published(published: pd.DataFrame, pair: str, method: str) -> dict[str, Any]:
    teacher, _, student = pair.partition("/")
    rows = published[
        (published.teacher == teacher) & (published.student == student) & (published.method == method)
    ]
    if rows.empty:
        return {"published": None, "convention": None, "published_teacher_top1": None, "source": None}
    row = rows.iloc[0]
    return {
        "published": row.top1, "convention": row.convention,
        "published_teacher_top1": row.teacher_top1, "source": row.source,
    }  # fmt: skip


def _number(row: pd.Series, which: str) -> str:
    notes = [f"{row.diverged} diverged"] if row.diverged else []
    if not row.n:
        return ", ".join(notes) or NOT_RUN
    spread = f" ± {row[f'{which}_std']:.2f}" if pd.notna(row[f"{which}_std"]) else ""
    notes.insert(0, f"n={row.n}")
    if row.unfinished:
        notes.append(f"{row.unfinished} to come")
    return f"{row[f'{which}_top1']:.2f}{spread} ({', '.join(notes)})"


def _gain(row: pd.Series) -> str:
    if "gain" not in row or pd.isna(row.gain):
        return ""
    value = {name: None if pd.isna(row.get(name)) else row[name] for name in (*_OPTIONAL, "seeds_needed")}
    needed = None if value["seeds_needed"] is None else int(value.pop("seeds_needed"))
    low, high, p, holm = (value[name] for name in _OPTIONAL)
    return str(Difference(row.gain, low, high, int(row.gain_n), None, needed, p, holm))


_OPTIONAL = ("gain_low", "gain_high", "p", "p_holm")
