"""How cost grows: images a second with runs at once, batch size and classes; memory; the IKD term's share.

Each point is a trial of `ikdlib.studies.throughput`: so many processes take training steps of resnet20 with
DKD and the IKD term on noise, side by side. The term's share is measured apart, alternately with a whole step
in one process: its forward and backward pass on logits [64, C], over the step's time. On a GPU, where a step
is one graph, it is what a step with the term takes longer than one without.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
import torch
from record import machine_words, save

from ikdlib.methods import IKD
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec
from ikdlib.studies.throughput import Trial, measure, synthetic_step
from ikdlib.training.evaluate import settle
from ikdlib.training.job import choose_device

JOBS, BATCHES, CLASSES = (1, 2, 4, 8), (16, 32, 64, 128, 256), (100, 200, 1000)


def spec(student: str, batch_size: int = 64, term: bool = True, precision: str = "fp32") -> RunSpec:
    return RunSpec(
        data="cifar100", data_sha256="0" * 64, student=student, teacher="resnet56", teacher_sha256="0" * 64,
        method=MethodSpec(name="dkd", ikd=IKDSettings() if term else None),
        recipe=Recipe(batch_size=batch_size, precision=precision), seed=0,
    )  # fmt: skip


def term_share(student: str, classes: int, device: torch.device, rounds: int = 15) -> float:
    """Per cent of a training step that the IKD term takes, forward and backward."""
    on_gpu = device.type == "cuda"
    step = synthetic_step(spec(student), classes, 32, 32, device, compile=on_gpu)
    if on_gpu:
        without = synthetic_step(spec(student, term=False), classes, 32, 32, device, compile=True)
        seconds = _alternately({"step": step, "without": without}, device, rounds, steps=100)
        return 100 * (1 - seconds["without"] / seconds["step"])
    term = IKD(classes).to(device)
    target = (torch.arange(64) % classes).to(device)
    term.observe(torch.randn(classes, classes, device=device), torch.arange(classes, device=device))
    term.finish()
    logits = torch.randn(64, classes, device=device, requires_grad=True)
    works = {"step": step, "term": lambda: term(logits, target).backward()}
    seconds = _alternately(works, device, rounds, steps=1)
    return 100 * seconds["term"] / seconds["step"]


def _alternately(
    works: dict[str, Callable[[], None]], device: torch.device, rounds: int, steps: int
) -> dict[str, float]:
    """Median seconds of so many calls of each, five rounds of warm-up apart."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 5):
        for name, work in works.items():
            settle(device)
            began = time.perf_counter()
            for _ in range(steps):
                work()
            settle(device)
            if number >= 5:
                seconds[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in seconds.items()}


def chart(table: pd.DataFrame, machine: str) -> plt.Figure:
    """Three panels: what grows, and how many images a second it leaves."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    for axis, varied in zip(axes, ("runs at once", "batch size", "classes"), strict=True):
        rows = table[table["varied"] == varied]
        axis.plot(rows["value"].astype(str), rows["images_per_second"], marker="o", color="#0072B2")
        most = rows["images_per_second"].max()
        notes = {"runs at once": " (and their memory)", "classes": " (and the IKD term's share of a step)"}
        axis.set(
            xlabel=varied + notes.get(varied, ""), ylim=(0, 1.2 * most), ylabel="training images a second"
        )
        axis.margins(x=0.15)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        for _, row in rows.iterrows():
            words = {
                "runs at once": f"{row['mib_together'] / 1024:.1f} GiB",
                "classes": f"{row['term_percent']:.2f} %",
            }
            axis.annotate(
                words.get(varied, ""), (str(row["value"]), row["images_per_second"]),
                xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8,
            )  # fmt: skip
    figure.suptitle(f"{table['student'].iloc[0]}, dkd+ikd, fp32, {machine}", fontsize=10)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    device, cores = choose_device(options.device), os.cpu_count() or 1
    points = [("runs at once", n, n, 64, 100) for n in JOBS]
    points += [("batch size", n, 1, n, 100) for n in BATCHES]
    points += [("classes", n, 1, 64, n) for n in CLASSES]
    found: dict[tuple[str, int], list[dict[str, float]]] = {(varied, n): [] for varied, n, *_ in points}
    for _ in range(options.repeats):  # round after round, so that the machine's drift meets all alike
        for varied, value, count, batch_size, classes in points:
            trial = Trial(
                spec=spec(options.student, batch_size), classes=classes, height=32, width=32,
                device=device.type, threads=max(1, cores // count), seconds=options.seconds,
            )  # fmt: skip
            found[varied, value].append(measure(trial, count))
    rows = []
    for varied, value, count, _, classes in points:
        tried = found[varied, value]
        rows.append({
            "student": options.student, "varied": varied, "value": value,
            "images_per_second": median(one["images_per_second"] for one in tried),
            "mib_each": round(max(one["mib"] for one in tried)),
            "mib_together": round(count * max(one["mib"] for one in tried)),
            "gpu_mib_each": round(max(one["gpu_mib"] for one in tried)),
            "term_percent": round(term_share(options.student, classes, device), 3)
            if varied == "classes" else None,
            "rounds": len(tried),
        })  # fmt: skip
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    table, machine = pd.DataFrame(rows), machine_words(device, cores)
    save(table, chart(table, machine), options.results, "growth", device, machine)


if __name__ == "__main__":
    main()
