"""How a benchmark is written down: a CSV and a picture, with the machine and the commit in every row.

Files are named by the machine's kind, so a second machine's numbers lie beside the first's.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from ikdlib import provenance
from ikdlib.reporting.figures import write


def machine_words(device: torch.device, threads: int) -> str:
    """Processor or GPU, threads, torch: what a number depends on before all else."""
    return f"{_kind(device)}, {_cores(device)} cores, {threads} threads, torch {torch.__version__}"


def file_name(what: str, device: torch.device) -> str:
    """``step-cpu-intel-xeon-2``: what was measured, on which kind of processor, of how many cores."""
    kind = re.sub(r"\(\w+\)|\b(CPU|Processor)\b|@.*", " ", _kind(device), flags=re.IGNORECASE)
    words = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")
    return f"{what}-{device.type}-{words}" + (f"-{_cores(device)}" if device.type == "cpu" else "")


def earlier(table: pd.DataFrame, results: Path, what: str, device: torch.device, by: str) -> pd.DataFrame:
    """The rows that lie in the file for other values of ``by`` than the table's, each with its own commit."""
    path = results / "benchmarks" / f"{file_name(what, device)}.csv"
    if not path.exists():
        return table.iloc[:0]
    found = pd.read_csv(path, keep_default_na=False)  # what is empty there is an empty word
    return found[~found[by].isin(table[by])]


def save(
    table: pd.DataFrame, figure: plt.Figure, results: Path, what: str, device: torch.device, machine: str
) -> None:
    """``<results>/benchmarks/<file_name>`` as CSV, PNG and SVG; says where.

    A row that names a machine and a commit keeps them.
    """
    git = provenance.git_state()
    for column, value in {"machine": machine, "commit": git["commit"], "clean": git["clean"]}.items():
        brought = table[column] if column in table else pd.Series(index=table.index, dtype=object)
        table = table.assign(**{column: brought.where(brought.notna(), value)})
    path = results / "benchmarks" / file_name(what, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(figure, path, table)
    print(f"{path}.csv, .png")


def _kind(device: torch.device) -> str:
    machine = provenance.machine(device)
    return machine.get("gpu", machine["processor"])


def _cores(device: torch.device) -> int:
    return provenance.machine(device)["cores"]
