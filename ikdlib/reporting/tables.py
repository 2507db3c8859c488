"""A study's cells as a table: mean +- std (n) over seeds, beside what was published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from ikdlib import files
from ikdlib.reporting.collect import by_seed
from ikdlib.reporting.statistics import (
    Difference,
    judged_together,
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

    The gains of single cells are judged together (`statistics.corrected`): those of the methods as they are,
    and those with changed settings.

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
    for place, difference in _judged(found, [cell.method for cell in cells]).items():
        rows[place].update(
            gain=difference.mean, gain_low=difference.low, gain_high=difference.high, gain_n=difference.n,
            p=difference.p, p_holm=difference.holm, verdict=difference.verdict,
            seeds_needed=difference.needed, correlation=difference.correlation,
        )  # fmt: skip
    # Of no cell too, whoever reads the table finds its columns.
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*cell_row("", "", []), "published"])


def is_plain(label: str) -> bool:
    """Whether a cell's label is that of a method with the settings of its protocol."""
    return "," not in label


def _judged(found: Mapping[int, Difference], labels: Sequence[str]) -> dict[int, Difference]:
    """Gains by their place, each corrected within its family; ``labels`` of the cells by their place."""
    judged: dict[int, Difference] = {}
    for plain in (True, False):
        family = {place: d for place, d in found.items() if is_plain(labels[place]) == plain}
        judged |= judged_together(family)
    return judged


def pooled(cells: Iterable[Any], primary: str) -> pd.DataFrame:
    """The gain of the IKD term on each base method, over the pairs that have both: a row a base method.

    Where some pairs have two seeds or more, those of one seed stay out: nothing tells how uncertain they are.
    Of one pair it is that cell's own gain, judged among the table's other cells: a table says the same of it;
    the rows of several pairs are judged together. Pairs count as independent; `ce` is one run for all pairs
    of its student, so it is not pooled.
    Columns: method, pairs, over (their names, or how many there are), gain_n, gain, gain_low, gain_high,
    p, p_holm, verdict, seeds_needed, objection.
    """
    single, scores = _single(cells, primary)
    pairs_of = {}
    for base in dict.fromkeys(base for base, _ in single):
        own = {pair: d.n for (name, pair), d in single.items() if name == base}
        pairs_of[base] = tuple(pair for pair, n in own.items() if n > 1) or tuple(own)
    several = judged_together({
        base: pooled_difference([(scores[pair, f"{base}+ikd"], scores[pair, base]) for pair in pairs])
        for base, pairs in pairs_of.items() if len(pairs) > 1 and base != "ce"
    })  # fmt: skip
    one = {base: single[base, pairs[0]] for base, pairs in pairs_of.items() if len(pairs) == 1}
    found = one | several
    rows = [_row(base, pairs, found[base]) for base, pairs in pairs_of.items() if base in found]
    return pd.DataFrame(rows, columns=list(POOLED))


def pooled_and_single(cells: Iterable[Any], primary: str, most: int | None = None) -> pd.DataFrame:
    """Each row of `pooled`, then those of its pairs where there are several, but not more than ``most``."""
    cells = list(cells)
    single, rows = by_pair(cells, primary).to_dict("records"), []
    for row in pooled(cells, primary).to_dict("records"):
        own = [one for one in single if one["method"] == row["method"]]
        rows += [row, *own] if 1 < len(own) <= (most or len(own)) else [row]
    return pd.DataFrame(rows, columns=list(POOLED))


def by_pair(cells: Iterable[Any], primary: str) -> pd.DataFrame:
    """The gain on each base method and pair, a row each, judged together; columns as `pooled`."""
    single, _ = _single(cells, primary)
    return pd.DataFrame([_row(base, (pair,), d) for (base, pair), d in single.items()], columns=list(POOLED))


NAMED = 3
"""So many pairs are named one by one; more are counted."""

POOLED = (
    "method", "pairs", "over", "gain_n", "gain", "gain_low", "gain_high", "p", "p_holm", "verdict",
    "seeds_needed", "objection",
)  # fmt: skip


def _single(
    cells: Iterable[Any], primary: str
) -> tuple[dict[tuple[str, str], Difference], dict[tuple[str, str], Mapping[int, float]]]:
    """Gains by (base, pair), judged together, of the methods as they are; scores by (pair, method)."""
    plain = [cell for cell in cells if "," not in cell.method]
    scores = {(cell.pair, cell.method): by_seed(cell.runs, primary) for cell in plain}
    found = {}
    for base in dict.fromkeys(cell.method for cell in plain):
        for pair in dict.fromkeys(cell.pair for cell in plain):
            sides = scores.get((pair, f"{base}+ikd"), {}), scores.get((pair, base), {})
            if (difference := paired_difference(*sides)) is not None:
                found[base, pair] = difference
    return judged_together(found), scores


def _row(base: str, pairs: Sequence[str], found: Difference) -> dict[str, Any]:
    return {
        "method": base, "pairs": len(pairs),
        "over": ", ".join(pairs) if len(pairs) <= NAMED else f"{len(pairs)} pairs",
        "gain_n": found.n, "gain": found.mean, "gain_low": found.low, "gain_high": found.high,
        "p": found.p, "p_holm": found.holm, "verdict": found.verdict, "seeds_needed": found.needed,
        "objection": found.objection,
    }  # fmt: skip


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
            f"{row.published:.2f} ({row.convention}; teacher {row.published_teacher_top1:.2f}; {row.source})"
            if pd.notna(row.published)
            else ""
            for row in table.itertuples()
        ]
        shown["ours minus published"] = [
            f"{row.minus_published:+.2f}{_other_teacher(row)}" if pd.notna(row.minus_published) else ""
            for _, row in table.assign(minus_published=table.get("minus_published")).iterrows()
        ]
    if folders:
        shown["seeds"] = [" ".join(_link(run_id, folders) for run_id in ids.split()) for ids in table["runs"]]
    return shown


def markdown(shown: pd.DataFrame, caption: str) -> str:
    """A Markdown table with its caption above it."""
    return f"{caption}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n"


def write(table: pd.DataFrame, primary: str, caption: str, path: Path) -> str:
    """Write ``path.csv`` (full precision) and ``path.md``, teachers in its caption; returns the Markdown."""
    text = markdown(readable(table, primary, "../runs"), caption + _teachers(table))
    files.write_text(path.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    files.write_text(path.with_suffix(".md"), text)
    return text


def _teachers(table: pd.DataFrame) -> str:
    """Each teacher's own top-1: what a student's is to be held against. Empty where no run names it."""
    known = table[["pair", "teacher_top1"]].dropna().drop_duplicates()
    told = [f"{pair.partition('/')[0]} {top1:.2f} %" for pair, top1 in known.itertuples(index=False)]
    return f" Top-1 of the teacher: {', '.join(dict.fromkeys(told))}." if told else ""


def verdicts(table: pd.DataFrame, over_pairs: pd.DataFrame | None = None) -> list[str]:
    """A sentence for each gain of the IKD term, pooled ones first; or one that says there is none."""
    if "gain" not in table or table["gain"].isna().all():
        return ["not run: no pair has finished runs both with and without the IKD term"]
    rows = [] if over_pairs is None else [row for _, row in over_pairs.iterrows() if row.pairs > 1]
    lines = [f"over {row.over}: {row.method}+ikd minus {row.method}: {_gain(row)}" for row in rows]
    return lines + [
        f"{row['pair']}: {row['method']} minus {base_of(row['method'])}: {_gain(row)}"
        for _, row in table.iterrows()
        if pd.notna(row["gain"])
    ]


def _link(run_id: str, folders: str | Mapping[str, str]) -> str:
    folder = folders if isinstance(folders, str) else folders[run_id]
    seed = run_id.rpartition("-seed")[2].partition("-")[0]
    return f"[{seed}]({folder}/{quote(run_id)}/)"


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


def _other_teacher(row: pd.Series) -> str:
    """How much better our teacher is than the published one: where it is another, its part of the number."""
    better = row.teacher_top1 - row.published_teacher_top1 if pd.notna(row.teacher_top1) else 0.0
    return f" (our teacher {better:+.2f})" if abs(better) >= 0.05 else ""


def _number(row: pd.Series, which: str) -> str:
    notes = [f"{row.diverged} diverged"] if row.diverged else []
    if not row.n:
        return ", ".join(notes) or NOT_RUN
    spread = f" ± {row[f'{which}_std']:.2f}" if pd.notna(row[f"{which}_std"]) else ""
    notes.insert(0, f"n={row.n}")
    if row.unfinished:
        notes.append(f"{row.unfinished} to come")
    return f"{row[f'{which}_top1']:.2f}{spread} ({', '.join(notes)})"


def difference_of(row: Mapping[str, Any] | pd.Series) -> Difference:
    """The `Difference` that a row of `study_table` or `pooled` was made from (but for its correlation)."""
    names = ("gain_low", "gain_high", "p", "p_holm", "seeds_needed")
    low, high, p, holm, needed = (None if pd.isna(row.get(name)) else row[name] for name in names)
    needed = None if needed is None else int(needed)
    pairs, objection = int(row.get("pairs", 1)), row.get("objection", "")
    return Difference(row["gain"], low, high, int(row["gain_n"]), None, needed, p, holm, pairs, objection)


def _gain(row: pd.Series) -> str:
    return "" if "gain" not in row or pd.isna(row.gain) else str(difference_of(row))
