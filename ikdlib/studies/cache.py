"""The teacher's logits on disk: made ahead, listed with what they cost, thrown away.

They are a cache: a run that misses a slab computes it. One that finds it ends with the same bits, where both
were computed by the same code (compiled or not differs by rounding, before the slab is rounded to fp16).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from ikdlib.data.loader import Loader
from ikdlib.data.views import Views
from ikdlib.studies.study import Study
from ikdlib.training.compiled import pays
from ikdlib.training.job import Job, choose_device, load_teacher
from ikdlib.training.step import set_switches
from ikdlib.training.teacher import Teacher, TeacherLogits


def folder(results: Path) -> Path:
    """Where all teachers' logits of a results folder lie."""
    return results / "cache" / "teacher_logits"


def needed(study: Study) -> list[Job]:
    """One job for each (teacher, precision, seed) whose logits the study's runs ask for."""
    jobs = {}
    for job in study.student_jobs():
        spec = job.spec
        if spec.teacher is not None:
            jobs.setdefault((spec.teacher_sha256, spec.recipe.precision, spec.seed), job)
    return list(jobs.values())


class Slabs:
    """The teacher's logits that one of `needed` asks for, epoch by epoch."""

    def __init__(self, study: Study, job: Job):
        self.spec, device = job.spec, choose_device(job.device)
        spec = self.spec
        set_switches(spec.deterministic)
        model = load_teacher(spec, Path(job.teacher), study.data.num_classes)
        height, width = study.data.train.images.shape[1:3]
        views = Views(study.data.padding, height, width, study.data.mean, study.data.std, device)
        self.loader = Loader(study.data.train, views, spec.recipe.batch_size, spec.seed, device)
        self.teacher = Teacher(model, spec.teacher_sha256, spec.recipe.precision, device)
        dtype = torch.float32 if spec.deterministic else torch.float16
        self.logits = TeacherLogits(self.teacher, study.data, dtype, Path(job.slabs))
        self.epochs = range(1, spec.recipe.epochs + 1)
        self.mib_each = len(study.data.train) * study.data.num_classes * dtype.itemsize / 2**20

    def missing(self) -> list[int]:
        """Epochs without a slab."""
        return [n for n in self.epochs if not self.logits.path(self.loader.epoch(n)).exists()]

    def make(self) -> Iterator[tuple[int, float]]:
        """Compute what is missing or damaged: (epoch, seconds it took), one by one.

        Commands for the same logits share the work, each started as often as there are cores to spare.
        """
        batches = len(self.missing()) * len(self.loader.images) / self.teacher.batch_size
        on_cpu = self.teacher.device.type == "cpu"
        long = pays("auto", self.spec.deterministic, int(batches), self.teacher.device)
        self.teacher.compiles = on_cpu and long
        began, epochs = time.perf_counter(), iter(self.epochs)
        while (number := self.logits.ahead(self.loader, epochs)) is not None:
            yield number, time.perf_counter() - began
            began = time.perf_counter()
        if self.logits.folder is None:  # nothing can be kept: that was said, and computing them is no use
            return
        for number in self.epochs:  # damaged ones, and those that another process is computing
            began, before = time.perf_counter(), self.logits.computed
            self.logits.slab(self.loader, self.loader.epoch(number))
            if self.logits.computed > before:
                yield number, time.perf_counter() - began


def listing(root: Path) -> pd.DataFrame:
    """A row for each teacher, data and precision: slabs, MiB, and days since the last was written."""
    rows = []
    for path in sorted(root.glob("*/*/*.safetensors")):
        if path.name == "accuracy.safetensors":
            continue
        teacher, data = path.parts[-3:-1]
        state = path.stat()
        rows.append({
            "teacher": teacher, "data": data, "precision": path.stem.partition("-")[2], "slabs": 1,
            "MiB": state.st_size / 2**20, "days": (time.time() - state.st_mtime) / 86400,
            "damaged": not _opens(path),
        })  # fmt: skip
    if not rows:
        return pd.DataFrame(columns=["teacher", "data", "precision", "slabs", "MiB", "days", "damaged"])
    groups = pd.DataFrame(rows).groupby(["teacher", "data", "precision"], as_index=False)
    return groups.agg({"slabs": "sum", "MiB": "sum", "days": "min", "damaged": "sum"})


def prune(root: Path, teacher: str = "", days: float = 0.0) -> tuple[int, float]:
    """Delete slabs of teachers whose sha256 begins with ``teacher``, not written for ``days`` days.

    Returns how many, and how many MiB that freed. A run that is about to read one computes it again.
    """
    count, freed = 0, 0.0
    for path in sorted(root.glob("*/*/*.safetensors")):
        state = path.stat()
        old = time.time() - state.st_mtime >= days * 86400
        if path.parts[-3].startswith(teacher) and old and path.name != "accuracy.safetensors":
            path.unlink()
            count, freed = count + 1, freed + state.st_size / 2**20
    return count, freed


def _opens(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return "logits" in file.keys()  # noqa: SIM118 (it is no dictionary)
    except (OSError, SafetensorError):
        return False
