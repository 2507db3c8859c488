"""How a benchmark is written down: a CSV and a picture, with the machine and the commit in every row."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from ikdlib import provenance
from ikdlib.reporting.figures import write


def machine_words(device: torch.device, threads: int) -> str:
    """Processor or GPU, threads, torch: what a number depends on before all else."""
    machine = provenance.machine(device)
    kind = machine.get("gpu", machine["processor"])
    return f"{kind}, {machine['cores']} cores, {threads} threads, torch {torch.__version__}"


def save(table: pd.DataFrame, figure: plt.Figure, results: Path, name: str, machine: str) -> None:
    """``<results>/benchmarks/<name>`` as CSV, PNG and SVG; says where."""
    git = provenance.git_state()
    table = table.assign(machine=machine, commit=git["commit"], clean=git["clean"])
    path = results / "benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(figure, path, table)
    print(f"{path}.csv, .png")
