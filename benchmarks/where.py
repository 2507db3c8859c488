"""Where a training step's time goes: its parts by the clock, and the kernels that torch's profiler names.

The parts are timed around the very functions of the trainer's step, eager on a CPU (whose calls return when
they are done). On a GPU a graph starts everything at once: there only the kernels tell.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from compare import PAIRS
from growth import spec
from record import machine_words, save

from ikdlib.studies.throughput import synthetic_step
from ikdlib.training import step as training_step
from ikdlib.training.evaluate import settle
from ikdlib.training.job import choose_device

PARTS = ("augmentation", "student forward", "losses", "backward", "SGD", "the rest")
MOST = {"cpu": 12, "cuda": 100}  # a GPU's step has many kernels, each of them short
OTHER, NOT_LISTED = "other kernels of the table", "not listed (each takes less)"
# What a GPU's kernels do, in the picture, to a pattern of their names (cuDNN's, inductor's, torch's).
# The first that fits counts: the compiler's kernels are named after all that they fuse.
GROUPS = {
    "fused by the compiler (triton)": "^triton_", "convolution, forward": "fprop",
    "convolution, data gradient": "dgrad", "convolution, weight gradient": "wgrad",
    "convolution, the name does not say which": "conv", "optimiser": "Sgd", OTHER: "",
}  # fmt: skip


class Clock:
    """Sums the time spent inside the functions it was put around."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)

    def around(self, owner: Any, name: str, part: str) -> None:
        inner: Callable = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self.spent[part] += time.perf_counter() - began

        setattr(owner, name, timed)


def parts(student: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    """Median milliseconds of each part of a step on the CPU."""
    clock, made = Clock(), []
    build = training_step.TrainStep.__init__

    def watched(self, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        clock.around(self.views, "apply", "augmentation")
        clock.around(self, "forward", "student forward")
        clock.around(self.method, "forward", "losses")
        clock.around(self.optimizer, "step", "SGD")
        made.append(self)

    backward = torch.Tensor.backward
    training_step.TrainStep.__init__ = watched
    clock.around(torch.Tensor, "backward", "backward")
    try:
        step = synthetic_step(spec(student, precision=precision), 100, 32, 32, torch.device("cpu"))
        seen = []
        for number in range(rounds + 5):
            clock.spent = dict.fromkeys(PARTS, 0.0)
            began = time.perf_counter()
            step()
            whole = time.perf_counter() - began
            clock.spent["the rest"] = whole - sum(clock.spent.values())
            if number >= 5:
                seen.append({**clock.spent, "whole": whole})
    finally:
        training_step.TrainStep.__init__ = build
        torch.Tensor.backward = backward
    whole = median(one["whole"] for one in seen)
    rows = []
    for part in PARTS:
        seconds = median(one[part] for one in seen)
        rows.append({
            "student": student, "kind": "part", "name": part, "ms": round(1000 * seconds, 3),
            "percent": round(100 * seconds / whole, 2),
        })  # fmt: skip
    return rows


def kernels(student: str, precision: str, device: torch.device) -> list[dict[str, Any]]:
    """The operators (CPU) or kernels (GPU) that take most of a step, milliseconds a step."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    given = spec(student, precision=precision)
    step = synthetic_step(given, 100, 32, 32, device, compile=device.type == "cuda")
    for _ in range(6):
        step()
    settle(device)
    steps = 4 if device.type == "cpu" else 50
    activity = ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA
    began = time.perf_counter()  # without the profiler, whose start and end take longer than the steps
    for _ in range(steps):
        step()
    settle(device)
    wall = time.perf_counter() - began
    with profile(activities=[activity], acc_events=True) as watched:
        for _ in range(steps):
            step()
        settle(device)

    def own(event: Any) -> float:
        return event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total

    kind = DeviceType.CPU if device.type == "cpu" else DeviceType.CUDA
    events = [event for event in watched.key_averages() if event.device_type == kind]
    events.sort(key=own, reverse=True)
    total = sum(map(own, events))
    rows = []
    if device.type == "cuda":
        started = round(sum(event.count for event in events) / steps)
        ran = [event.time_range for event in watched.events() if event.device_type == DeviceType.CUDA]
        busy = covered([(one.start, one.end) for one in ran])
        for kind, name, spent in (
            ("kernels", f"{started} a step, side by side", total), ("device busy", "one runs or more", busy)
        ):  # fmt: skip
            rows.append({
                "student": student, "kind": kind, "name": name, "ms": round(spent / steps / 1000, 3),
                "percent": round(spent / wall / 1e4, 2),
            })  # fmt: skip
    for event in events[: MOST[device.type]]:
        rows.append({
            "student": student, "kind": "kernel", "name": event.key,
            "ms": round(own(event) / steps / 1000, 3), "percent": round(100 * own(event) / total, 2),
        })  # fmt: skip
    return rows


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of what intervals cover together: each moment counts once, however many lie over it."""
    length, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        length += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return length


def group(name: str) -> str:
    """What a GPU's kernel does, as its name tells it: one of `GROUPS`."""
    return next((words for words, pattern in GROUPS.items() if pattern and re.search(pattern, name)), OTHER)


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Per cent by student and part; every row adds up to 100.

    On a CPU the parts, whose medians do not quite add up to the whole's, over their sum. On a GPU the kernels
    of the table by `group`, and what its few kernels leave of all kernels' time.
    """
    on_cpu = (table["kind"] == "part").any()
    rows = table[table["kind"] == ("part" if on_cpu else "kernel")]
    names = rows["name"] if on_cpu else rows["name"].map(group)
    wide = rows.assign(part=names).pivot_table(
        index="student", columns="part", values="percent", aggfunc="sum", sort=False, fill_value=0.0
    )
    if on_cpu:
        return 100 * wide.div(wide.sum(axis=1), axis=0)
    wide = wide[[words for words in GROUPS if words in wide]]
    return wide.assign(**{NOT_LISTED: 100 - wide.sum(axis=1)})


def chart(table: pd.DataFrame, machine: str) -> plt.Figure:
    """A bar for each student, its parts end to end; the CSV keeps every kernel by its own name."""
    wide = shares(table)[::-1]
    colours = list(plt.get_cmap("cividis")(np.linspace(0, 1, max(len(PARTS), wide.shape[1] - 1))))
    colours = ["#DDDDDD" if name == NOT_LISTED else colours.pop(0) for name in wide]
    height = 1.4 + 0.45 * max(len(wide), 3)
    axes = wide.plot.barh(stacked=True, figsize=(9, height), width=0.7, color=colours, ylabel="")
    # Tables of before the second stream call the first of these rows the other name.
    times = (
        table[table["kind"].isin(("kernels", "device busy"))]
        .groupby("student", sort=False)["percent"]
        .first()
    )
    words = ", ".join(f"{value:.0f} % of {student}'s" for student, value in times.items())
    label = f"per cent of all kernels' time (side by side; {words} step)"
    axes.set_xlabel(label if words else "per cent of a training step (medians of the parts, scaled to 100)")
    axes.set(xlim=(0, 100))
    axes.set_title(f"dkd+ikd, batch 64, {machine}", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.tight_layout()
    return axes.figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default=PAIRS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", help="fp32 or bf16; if left out fp32, on a GPU bf16")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, rows = choose_device(options.device), []
    precision = options.precision or ("bf16" if device.type == "cuda" else "fp32")
    for pair in options.pairs.split(","):
        student = pair.split("/")[1]
        rows += parts(student, precision, options.rounds) if device.type == "cpu" else []
        rows += kernels(student, precision, device)
        print(pd.DataFrame(rows)[lambda t, s=student: t["student"] == s].to_string(index=False), flush=True)
    table, machine = pd.DataFrame(rows).assign(precision=precision), machine_words(device, options.threads)
    save(table, chart(table, f"{precision}, {machine}"), options.results, "where", device, machine)


if __name__ == "__main__":
    main()
