"""The cells of a notebook's sweep in one table, and each outcome drawn against each swept parameter."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from ikdlib import files
from ikdlib.reporting.statistics import mean_and_std
from ikdlib.reporting.sweep_cells import Sweep, read, results_of, text_of
from ikdlib.reporting.sweep_figures import caption, figure

OUTCOMES = 4
"""Outcomes that are drawn."""


def write(folder: Path) -> list[Path]:
    """Write table.md, table.csv, ``figures/<outcome>-by-<parameter>.png`` and ``.pdf``; returns the paths."""
    sweep, written = read(folder), [folder / "table.md", folder / "table.csv"]
    pages = [markdown(sweep)]
    for outcome, parameter in product(sweep.outcomes[:OUTCOMES], sweep.others("") or sweep.swept):
        wanted = "-by-".join(
            re.sub(r"[^\w.+-]+", "-", name).rstrip("-")[:60] for name in (outcome, parameter)
        )
        path = folder / "figures" / f"{wanted}.png"
        if path in written:  # "top 1" beside "top-1"
            path = path.with_name(f"{wanted}-{len(written)}.png")
        picture = figure(sweep, outcome, parameter)
        for kind, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            content = io.BytesIO()
            picture.savefig(content, format=kind[1:], dpi=150, metadata=metadata)
            files.write_bytes(path.with_suffix(kind), content.getvalue())
            written.append(path.with_suffix(kind))
        pages.append(f"![{_escaped(f'{outcome} by {parameter}')}](figures/{path.name})\n")
        pages.append(f"{_escaped(caption(sweep, outcome, parameter))} [PDF](figures/{path.stem}.pdf)\n")
    files.write_text(folder / "table.csv", sweep.frame.to_csv(index=False, lineterminator="\n"))
    files.write_text(folder / "table.md", "\n".join(pages))  # last: it names the others
    return written


def markdown(sweep: Sweep) -> str:
    """Heading, counts, fixed parameters and the table, a row a combination of the swept parameters."""
    count = Counter(sweep.frame["status"])
    told = f"{count['finished']} finished, {count['failed']} failed, {count['not run']} not run"
    told += f", {count['stopped']} stopped" if count["stopped"] else ""
    cells = f"{len(sweep.frame)} cell{'s' * (len(sweep.frame) != 1)}"
    parts = [f"# Sweep of {_escaped(sweep.notebook)}", f"{cells}: {told}."]
    if sweep.fixed:
        parts.append(f"Fixed: {_escaped(', '.join(sweep.fixed))}.")
    if not count["finished"]:
        parts.append("No cell has finished, so there is no outcome to show yet.")
    elif not sweep.outcomes:
        parts.append(
            "The notebook gives no outcome: tag its last cell `outcome`, its value a number or a dict of "
            "numbers, and run the sweep again. Each number is then a column here, and drawn."
        )
    elif "seed" in sweep.swept:
        parts.append("Outcomes: mean ± sample standard deviation over seeds (n: how many seeds).")
    if len(sweep.outcomes) > OUTCOMES:
        parts.append(f"Drawn: the first {OUTCOMES} of {len(sweep.outcomes)} outcomes.")

    if alike := len(sweep.frame) - len(sweep.groups(sweep.swept)):
        # Two paths may have one last name, and a sheet keeps no more of them.
        parts.append(
            f"Cells that look like another one here: {alike}. Their mean is shown; table.csv has each."
        )
    keys, seeds = sweep.others(""), "seed" in sweep.swept
    groups = sweep.groups(keys)
    columns = {key: [texts[place] for texts in groups] for place, key in enumerate(keys)}
    for name in [*sweep.outcomes, "seconds"]:
        found = [results_of(rows, name) for rows in groups.values()]
        columns[name] = _numbers(found, seeds and name != "seconds")
    columns["status"] = [_status(rows, seeds) for rows in groups.values()]
    lines = [columns, ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    return "\n\n".join([*parts, table]) + "\n"


def _numbers(found: list[list[float]], seeds: bool) -> list[str]:
    """Means as text: four digits, or as many as it takes for two digits of the spread."""
    flat = [float(value) for values in found for value in values] or [0.0]
    stats = [(*mean_and_std(values), len(values)) if values else None for values in found]
    largest = max(map(abs, flat)) or 1.0
    stds = sorted(one[1] for one in stats if one and one[1])
    noise = stds[len(stds) // 2] if stds else (max(flat) - min(flat)) / 10
    noise = noise if noise > 1e-9 * largest else largest  # equal but for rounding
    digits = max(0, 3 - math.floor(math.log10(largest)), 1 - math.floor(math.log10(noise)))
    if not stds and all(value.is_integer() for value in flat):
        digits = 0
    number = f"{{:.{digits}f}}" if digits < 9 else "{:.3e}"
    words = [number.format(one[0]) if one else "" for one in stats]
    if not seeds:
        return words
    bars = ["" if one is None or one[1] is None else f" ± {number.format(one[1])}" for one in stats]
    return [f"{w}{bar} (n={one[2]})" if one else "" for w, bar, one in zip(words, bars, stats, strict=True)]


def _status(rows: list[dict[str, Any]], seeds: bool) -> str:
    """`finished`, or what became of the cells that did not: how many of how many seeds, and why."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "finished":
            reason = f": {row['error'][:160]}" if row["error"] else ""
            told.setdefault(row["status"] + reason, []).append(text_of(row["seed"]) if seeds else "")
    lacking = sum(map(len, told.values()))
    if not told or len(told) == 1 and lacking == len(rows):
        return "".join(told) or "finished"
    shown = (f"{what} (seed {', '.join(who[:6])}{', ...' * (len(who) > 6)})" for what, who in told.items())
    return f"{lacking} of {len(rows)} missing: {'; '.join(shown)}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*<`$])", r"\\\1", " ".join(text.split()))
