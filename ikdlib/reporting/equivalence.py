"""What paired runs in two precisions say: seed by seed, the interval, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ikdlib import files
from ikdlib.reporting.statistics import paired_difference
from ikdlib.runs import Run


def table(fp32: Iterable[Run], bf16: Iterable[Run]) -> pd.DataFrame:
    """A row a seed that both have finished: top-1 (%) of the last epoch, difference, run folders."""
    one, other = ({run.spec.seed: run for run in runs if run.status == "finished"} for runs in (fp32, bf16))
    rows = []
    for seed in sorted(set(one) & set(other)):
        exact, rounded = (runs[seed].result["last"]["top1"] for runs in (one, other))
        rows.append({
            "seed": seed, "fp32": exact, "bf16": rounded, "difference": rounded - exact,
            "runs": f"{one[seed].spec.run_id} {other[seed].spec.run_id}",
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["seed", "fp32", "bf16", "difference", "runs"])


def verdict(rows: pd.DataFrame, planned: int, margin: float) -> str:
    """One sentence: ``equivalent``, ``not equivalent`` or, short of the planned number of pairs, neither.

    Equivalent is: the 90 % interval of the mean paired difference lies within the margin (points).
    """
    by_seed = rows.set_index("seed")
    found = paired_difference(by_seed["bf16"].to_dict(), by_seed["fp32"].to_dict(), level=0.90)
    if found is None or found.low is None:
        return f"{len(rows)} of {planned} pairs finished: no verdict yet"
    words = (
        f"bf16 minus fp32: {found.mean:+.2f} points, 90 % interval [{found.low:+.2f}, {found.high:+.2f}] "
        f"({found.n} of {planned} pairs)"
    )
    if found.n < planned:
        return f"{words}: no verdict before all {planned} are there"
    inside = -margin < found.low and found.high < margin
    return f"{words}: {'equivalent' if inside else 'not equivalent'} within +-{margin} points"


def write(rows: pd.DataFrame, sentence: str, what: str, path: Path) -> None:
    """``<path>.csv`` and ``<path>.md``, made from the run folders alone; ``what`` says what was trained."""
    files.write_text(path.with_suffix(".csv"), rows.to_csv(index=False))
    shown = rows.drop(columns="runs").to_markdown(index=False, floatfmt=("g", ".2f", ".2f", "+.2f"))
    files.write_text(path.with_suffix(".md"), f"{sentence}.\n\n{what}.\n\n{shown}\n")
