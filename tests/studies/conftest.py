"""Studies over 150 pictures of noise, 8 pixels wide, in 10 classes, so that a training takes a moment."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from ikdlib import models
from ikdlib.data import DataSet, ImageSet
from ikdlib.data.base import hold_out
from ikdlib.studies.study import Study, StudySettings
from ikdlib.training.job import Job, execute

CLASSES = 10


def noise(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % CLASSES)


class Studies:
    """Makes studies below one results folder, and trains their jobs in this process."""

    def __init__(self, root: Path):
        self.root = root
        self.results = root / "results"

    def settings(self, **changes: Any) -> StudySettings:
        values = {"profile": "demo", "pairs": "resnet14/resnet8", "epochs": 1, "device": "cpu"}
        return StudySettings(**{**values, "results": str(self.results), **changes})

    def study(self, **changes: Any) -> Study:
        return Study(self.settings(**changes))

    def teachers(self, *names: str, classes: int = CLASSES) -> str:
        """A folder of untrained teachers; returns its name."""
        folder = self.root / "teachers"
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            torch.manual_seed(number)
            torch.save(models.build(name, classes).state_dict(), folder / f"{name}.pth")
        return str(folder)

    def train(self, job: Job) -> int:
        return execute(job.updated(threads=1), stop=Never(), say=lambda text: None)


class Never:
    """A `Stop` that nobody asks for, and that leaves this process's signals alone."""

    signal = None
    nothing_to_lose = staticmethod(contextlib.nullcontext)

    def __call__(self):
        return False


@pytest.fixture
def studies(tmp_path, monkeypatch) -> Studies:
    def load(name, root=None, cache=None, holdout=0) -> DataSet:
        train, held_out = hold_out(noise(150, 0), tuple("abcdefghij"), holdout)
        return DataSet(
            name=name, classes=tuple("abcdefghij"), train=train, test=noise(50, 1),
            held_out=held_out, sha256="0" * 64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25),
        )  # fmt: skip

    monkeypatch.setattr("ikdlib.data.load", load)
    before = torch.get_num_threads()
    yield Studies(tmp_path)
    torch.set_num_threads(before)
