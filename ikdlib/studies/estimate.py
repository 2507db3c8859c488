"""How long a run will take: from finished runs like it, else from a few timed steps here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ikdlib import models, provenance, runs
from ikdlib.data import DataSet
from ikdlib.data.views import count as count_of_views
from ikdlib.errors import IkdError
from ikdlib.spec import RunSpec
from ikdlib.studies.throughput import synthetic_step
from ikdlib.training.evaluate import autocast, settle
from ikdlib.training.graphs import WARM_UP as GRAPH_WARM_UP
from ikdlib.training.job import Job, choose_device
from ikdlib.training.teacher import Teacher

WARM_UP, TIMED = GRAPH_WARM_UP + 1, 4


@dataclass(frozen=True)
class Estimate:
    seconds: float
    basis: str


def seconds_of(job: Job, data: DataSet, measured: dict[str, Estimate]) -> Estimate:
    """Seconds of what is left of a run.

    ``measured`` remembers what was timed, for the jobs that follow: the steps of runs alike, and the
    teacher's logits, which the first run of a (teacher, seed) computes and the others read.
    """
    spec = job.spec
    done = len(job.run.history) if (job.run.folder / "history.csv").exists() else 0
    left = spec.recipe.epochs - done
    seconds, words = 0.0, ""
    views = 0 if done else _surveyed_views(job, data)
    survey = f"{spec.teacher_sha256} {spec.recipe.precision} {views} views"
    if views and survey not in measured:
        measured[survey] = Estimate(views * seconds_of_slab(job, data), "from timed steps")
        seconds, words = (
            measured[survey].seconds,
            f", with the teacher's answers to {views} views of each image",
        )
    per_epoch = _from_finished(job)
    if per_epoch is not None:
        return Estimate(seconds + left * per_epoch, "from finished runs" + words)
    steps = f"{spec.student} {spec.recipe.precision} {spec.recipe.batch_size}"
    if steps not in measured:
        measured[steps] = Estimate(_timed_epoch(job, data), "from timed steps")
    seconds += left * measured[steps].seconds
    logits = f"{spec.teacher_sha256} {spec.recipe.precision} {spec.seed}"
    if spec.teacher is not None and logits not in measured:
        measured[logits] = Estimate(seconds_of_slab(job, data), "from timed steps")
        seconds += left * measured[logits].seconds
        words = f", with the teacher's logits{words}"
    return Estimate(seconds, measured[steps].basis + words)


def _surveyed_views(job: Job, data: DataSet) -> int:
    """Views of each image that the teacher is asked for before the first epoch (`training.survey`).

    What another run left of them is not looked for.
    """
    source = "views" if job.spec.method.ikd is None else job.spec.method.ikd.source
    return {"clean": 1, "all_views": count_of_views(data.padding)}.get(source, 0)


def _from_finished(job: Job) -> float | None:
    """Seconds an epoch of runs with the same student, batch and precision, on a machine like this one."""
    alike, here = [], provenance.machine(choose_device(job.device))
    for path in sorted(job.run.root.glob("*/result.json")):
        try:
            run = runs.read(path.parent)
            there = run.provenance.get("machine", {})
            if run.status != "finished" or not _works_alike(run.spec, job.spec):
                continue
            if all(there.get(name) == here.get(name) for name in ("device", "processor", "gpu")):
                alike.append(run.history["seconds"].median())
        except IkdError:  # a table leaves it out and names it; here it is one measurement less
            continue
    return sorted(alike)[len(alike) // 2] if alike else None


def _works_alike(one: RunSpec, other: RunSpec) -> bool:
    same = (one.student, one.teacher) == (other.student, other.teacher)
    recipes = one.recipe, other.recipe
    return same and len({(recipe.batch_size, recipe.precision) for recipe in recipes}) == 1


def _timed_epoch(job: Job, data: DataSet) -> float:
    """A few training steps on noise, times the steps of an epoch; and its evaluation.

    The steps are as they stand: a long run, which compiles them, takes less.
    """
    device, spec = choose_device(job.device), job.spec
    height, width = data.train.images.shape[1:3]
    per_step = _timed(synthetic_step(spec, data.num_classes, height, width, device), device)
    steps = -(-len(data.train) // spec.recipe.batch_size)
    evaluation = per_step / 3 * len(data.test) / spec.recipe.batch_size
    return per_step * steps + evaluation


def seconds_of_slab(job: Job, data: DataSet) -> float:
    """A few passes of the teacher's architecture, times the images of an epoch."""
    device, spec = choose_device(job.device), job.spec
    model = models.build(spec.teacher, data.num_classes).eval()
    teacher = Teacher(model, spec.teacher_sha256, spec.recipe.precision, device)
    images = _images(teacher.batch_size, data, device)

    def ask() -> None:
        with torch.inference_mode(), autocast(device, spec.recipe.precision):
            teacher.answer(images)

    return _timed(ask, device) * len(data.train) / teacher.batch_size


def _images(count: int, data: DataSet, device: torch.device) -> torch.Tensor:
    height, width = data.train.images.shape[1:3]
    images = torch.randn(count, 3, height, width, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, on one thread of a CPU as the pool gives it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(WARM_UP):
            work()
        settle(device)
        began = time.perf_counter()
        for _ in range(TIMED):
            work()
        settle(device)
        return (time.perf_counter() - began) / TIMED
    finally:
        torch.set_num_threads(threads)
