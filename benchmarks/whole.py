"""Whole runs, from the start of the first process to the end of the last: one alone, then many at once.

    python benchmarks/whole.py --data data --epochs 240 --runs 1        # a run of the paper's length, alone
    python benchmarks/whole.py --data data --epochs 60 --runs 1,8       # runs an hour, alone and packed

The runs are dkd+ikd with slightly different weights of the term, of one seed, compiled, through the pool
that `make reproduce-cifar` uses. They are *warm*: the teacher's logits lie there (noise of their shape),
and so does what was compiled (by runs of three epochs, which are not counted).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from record import machine_words, save

from ikdlib import data as data_sets
from ikdlib import models
from ikdlib.data.loader import Loader
from ikdlib.data.views import Views
from ikdlib.provenance import usable_cores
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec
from ikdlib.studies import pool
from ikdlib.training.checkpoint import digest
from ikdlib.training.job import Job, choose_device
from ikdlib.training.teacher import Teacher, TeacherLogits

WARM_UP_EPOCHS = 3


def jobs(options: argparse.Namespace, folder: Path, count: int, epochs: int) -> list[Job]:
    """So many runs that differ in the weight of the term, with a teacher that knows nothing."""
    images = data_sets.load(options.data_set, options.data)
    teacher_name, student = options.pair.split("/")
    torch.manual_seed(0)
    teacher = models.build(teacher_name, images.num_classes)
    weights = folder / f"{teacher_name}.pth"
    torch.save(teacher.state_dict(), weights)
    recipe = Recipe(precision=options.precision).scaled(epochs)
    made = []
    for number in range(count):
        term = IKDSettings(weight=6.5 + 0.01 * number)
        spec = RunSpec(
            data=options.data_set, data_sha256=images.sha256, student=student, teacher=teacher_name,
            teacher_sha256=digest(teacher.state_dict()), method=MethodSpec(name="dkd", ikd=term),
            recipe=recipe, seed=0,
        )  # fmt: skip
        made.append(Job(
            spec=spec, runs=str(folder / f"{count}-of-{epochs}"), data=options.data, teacher=str(weights),
            slabs=str(folder / "slabs"), device=options.device, compile=options.compile,
        ))  # fmt: skip
    return made


def answer(job: Job, images: data_sets.DataSet) -> None:
    """Lay noise where the teacher's logits of all of a run's epochs are looked for."""
    cpu = torch.device("cpu")
    views = Views(images.padding, *images.train.images.shape[1:3], images.mean, images.std, cpu)
    loader = Loader(images.train, views, job.spec.recipe.batch_size, job.spec.seed, cpu)
    teacher = Teacher(models.build(job.spec.teacher, images.num_classes), job.spec.teacher_sha256,
                      job.spec.recipe.precision, cpu)  # fmt: skip
    logits = TeacherLogits(teacher, images, torch.float16, Path(job.slabs))
    noise = torch.randn(len(images.train), images.num_classes).half()
    for number in range(1, job.spec.recipe.epochs + 1):
        epoch = loader.epoch(number)
        logits.path(epoch).parent.mkdir(parents=True, exist_ok=True)
        logits.store(logits.path(epoch), {"logits": noise}, logits._facts(loader, epoch))


def measure(options: argparse.Namespace, count: int, folder: Path) -> dict[str, Any]:
    """A row: seconds from start to end of so many runs at once, and of an epoch in the middle of a run."""
    pool.run_all(jobs(options, folder, count, WARM_UP_EPOCHS), count, show=False)
    asked = jobs(options, folder, count, options.epochs)
    answer(asked[0], data_sets.load(options.data_set, options.data))
    if (at_once := pool.share_out(count, options.device, count).workers) < count:
        raise SystemExit(f"{count} at once: this machine has memory for {at_once}")
    began = time.perf_counter()
    pool.run_all(asked, count, show=False)
    seconds = time.perf_counter() - began
    finished = [job.run for job in asked]
    epochs = [float(value) for run in finished for value in run.history["seconds"][WARM_UP_EPOCHS:]]
    return {
        "pair": options.pair, "precision": options.precision, "runs_at_once": count, "epochs": options.epochs,
        "seconds": round(seconds, 1), "runs_an_hour": round(3600 * count / seconds, 2),
        "epoch_seconds": round(median(epochs), 3), "epochs_an_hour": round(3600 * count / median(epochs)),
        "compiled": all(run.provenance["compiled"] for run in finished), "data": options.data_set,
    }  # fmt: skip


def chart(table: pd.DataFrame, machine: str) -> plt.Figure:
    """Runs an hour as bars, alone and packed."""
    wide = table.pivot(index="epochs", columns="runs_at_once", values="runs_an_hour")
    axes = wide.plot.bar(figsize=(6, 3.6), rot=0, width=0.7, colormap="cividis", ylabel="runs an hour")
    for bars in axes.containers:
        axes.bar_label(bars, fmt=lambda value: f"{value:.3g}" if value else "", padding=2, fontsize=8)
    axes.set(xlabel="epochs of a run", ylim=(0, 1.15 * wide.max().max()))
    axes.set_title(f"{table['pair'].iloc[0]}, dkd+ikd, {table['precision'].iloc[0]}, {machine}", fontsize=8)
    axes.legend(frameon=False, fontsize=8, title="runs at once", title_fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.tight_layout()
    return axes.figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="resnet32x4/resnet8x4")
    parser.add_argument("--data-set", default="cifar100", choices=data_sets.names())
    parser.add_argument("--data", help="folder of the data set")
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--runs", default="1,8", help="at once")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--compile", default="on", choices=("auto", "on", "off"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    if options.epochs <= WARM_UP_EPOCHS:
        parser.error(f"--epochs: more than {WARM_UP_EPOCHS}, of which the middle is looked at")
    device, rows = choose_device(options.device), []
    for count in map(int, options.runs.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(options, count, Path(folder)))
        print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    table, machine = pd.DataFrame(rows), machine_words(device, usable_cores())
    what = f"whole-{options.epochs}"
    save(table, chart(table, machine), options.results, what, device, machine)


if __name__ == "__main__":
    main()
