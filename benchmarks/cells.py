"""What a cell of a sweep costs beyond its notebook's own work, how fast a large grid is planned, and whether
many cells leave anything behind.

    python benchmarks/cells.py --results results

A *bare* process imports torch and torchvision and ends; a *cell* executes a notebook that does the same,
with papermill and a kernel. Both alternate. Memory is the proportional set size, so that what processes share
is counted once, at its peak (looked at every 20 ms).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import torch
from record import machine_words, save

from ikdlib import files
from ikdlib.studies import children, grid
from ikdlib.studies.sweep import Sweep

IMPORT = "import torch, torchvision"
MARK = "BENCHMARK_CELLS"
A_CELL = "a cell: "
NAMES = ("bare process:\nimports torch", "cell: a notebook\nthat imports it")


def notebook(path: Path, code: str) -> Path:
    """A notebook with a parameter and one more cell."""
    cells = [nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(code))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass  # it ended
    return found


def mib(pids: list[int]) -> float:
    """Proportional set size of processes, in MiB."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measured(command: list[str], text: str = "") -> tuple[float, float]:
    """Seconds from start to end, and MiB at the peak, of a command and all that it starts."""
    environment = {**os.environ, **children.ENVIRONMENT, children.PARENT: str(os.getpid())}
    began, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    process.stdin.write(text.encode())
    process.stdin.close()
    while process.poll() is None:
        peak = max(peak, mib(family(process.pid)))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return seconds, peak


def overhead(folder: Path, rounds: int) -> list[dict]:
    """A bare process and a cell, alternately."""
    source = notebook(folder / "imports.ipynb", IMPORT)
    pieces = Sweep(source, grid.of_options([f"seed=0..{rounds}"], source), folder).pieces()
    bare, cells = [], []
    for number, piece in enumerate(pieces):  # the first of each fills the caches, and is not counted
        task = piece.task.updated(notebook=str(source)).model_dump_json()
        for found, command, text in (
            (bare, [sys.executable, "-c", IMPORT], ""),
            (cells, [sys.executable, "-m", "ikdlib.studies.cell"], task),
        ):
            one = measured(command, text)
            if number:
                found.append(one)
    rows = []
    for name, place in (("seconds", 0), ("MiB at the peak", 1)):
        both = [statistics.median(one[place] for one in side) for side in (bare, cells)]
        least = min(c[place] - b[place] for b, c in zip(bare, cells, strict=True))
        most = max(c[place] - b[place] for b, c in zip(bare, cells, strict=True))
        rows.append(
            {"measured": A_CELL + name, "bare": both[0], "with": both[1], "beyond": both[1] - both[0],
             "beyond_least": least, "beyond_most": most, "rounds": rounds}
        )  # fmt: skip
    return rows


def planning(folder: Path, count: int, done: int, rounds: int) -> dict:
    """The command on a grid of ``count`` cells, ``done`` of them finished, until it knows what to do."""
    source = notebook(folder / "many.ipynb", "seed")
    sweep = Sweep(source, grid.of_options([f"seed=1..{count}"], source), folder)
    for piece in sweep.pieces()[:done]:
        record = {"notebook_sha256": sweep.digest, "status": "finished", "id": piece.task.id}
        files.write_json(piece.task.output.with_suffix(".json"), record)
    command = [sys.executable, "-m", "ikdlib", "sweep", "--notebook", str(source), "--results", str(folder)]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        asked = [*command, "-p", f"seed=1..{count}", "--dry"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
        assert f"{count} cells, {done} of them finished" in said
    name = f"planning {count} cells, {done} of them finished: seconds"
    return {"measured": name, "with": statistics.median(seconds), "rounds": rounds}


def many(folder: Path, count: int) -> list[dict]:
    """No-op cells to the end: the driver's memory on the way, and what is left running."""
    source = notebook(folder / "nothing.ipynb", "seed")
    command = [sys.executable, "-m", "ikdlib", "sweep", "--notebook", str(source), "--results", str(folder)]
    began = time.perf_counter()
    environment = {**os.environ, MARK: str(folder)}  # inherited by all that the driver starts
    command += ["-p", f"seed=1..{count}"]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    seen: dict[int, float] = {}
    while driver.poll() is None:
        ended = len(list((folder / "sweeps" / "nothing" / "cells").glob("*.json")))
        seen.setdefault(ended, mib([driver.pid]))
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    time.sleep(5)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if belongs(path, folder)]
    at = lambda part: seen[max(n for n in seen if n <= part * count)]  # noqa: E731
    return [
        {"measured": f"{count} no-op cells: seconds each, two at once", "with": seconds / count},
        {"measured": f"{count} no-op cells: MiB of the driver at a tenth", "with": at(0.1)},
        {"measured": f"{count} no-op cells: MiB of the driver at nine tenths", "with": at(0.9)},
        {"measured": f"{count} no-op cells: processes left", "with": len(left)},
    ]


def belongs(cmdline: Path, folder: Path) -> bool:
    """Whether a process, a cell or a kernel, comes from the sweep in ``folder``."""
    try:
        return f"{MARK}={folder}" in (cmdline.parent / "environ").read_text(errors="replace").split("\0")
    except OSError:
        return False


def chart(table: pd.DataFrame, machine: str) -> plt.Figure:
    """Seconds and memory of a bare process and of a cell, from the table's rows of these names."""
    rows = table[table["measured"].str.startswith(A_CELL)]
    figure, axes = plt.subplots(1, len(rows), figsize=(7.5, 3.6), layout="constrained")
    for axis, (_, row) in zip(axes, rows.iterrows(), strict=True):
        bars = axis.bar(NAMES, [row["bare"], row["with"]], color=["0.6", "#0072B2"])
        axis.bar_label(bars, fmt=lambda value: f"{value:.3g}", padding=2)
        axis.set(ylabel=row["measured"].removeprefix(A_CELL))
        axis.spines[["top", "right"]].set_visible(False)
    rounds = f"median of {rows['rounds'].iloc[0]:g}"
    figure.suptitle(
        f"A cell of a sweep beside a process that imports the same, {rounds}\n{machine}", fontsize=9
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default="results", type=Path)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--count", default=200, type=int, help="no-op cells")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = overhead(folder, options.rounds)
        rows.append(planning(folder, 1000, 990, options.rounds))
        rows += many(folder, options.count)
    table = pd.DataFrame(rows).round(2)
    print(table.to_string(index=False))
    cpu = torch.device("cpu")
    machine = machine_words(cpu, torch.get_num_threads())
    save(table, chart(table, machine), options.results, "cells", cpu, machine)


if __name__ == "__main__":
    main()
