"""A data set, a teacher and trainers so small that a training takes a part of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ikdlib.data import DataSet, ImageSet
from ikdlib.methods.controls import TARGETS
from ikdlib.runs import Run
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec
from ikdlib.training import checkpoint
from ikdlib.training.trainer import Interrupted, Trainer, student_weights

CLASSES = 10


def pictures(count: int, seed: int) -> ImageSet:
    """Noise on a coarse pattern that each class has for itself."""
    draw = torch.Generator().manual_seed(7)
    pattern = torch.randint(0, 156, (CLASSES, 2, 2, 3), generator=draw).repeat_interleave(4, 1)
    noise = torch.randint(0, 100, (count, 8, 8, 3), generator=draw.manual_seed(seed))
    targets = torch.arange(count) % CLASSES
    return ImageSet((pattern.repeat_interleave(4, 2)[targets] + noise).to(torch.uint8), targets)


class Tiny:
    """150 pictures, 8 pixels wide, in 10 classes: 3 steps an epoch; resnet8 teaches resnet8."""

    epochs = 3

    def __init__(self) -> None:
        self.data = DataSet(
            name="cifar100", classes=tuple("abcdefghij"), train=pictures(150, 0), test=pictures(50, 1),
            held_out=None, sha256="0" * 64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25),
        )  # fmt: skip
        self.teacher_sha256 = checkpoint.digest(self.teacher().state_dict())

    def teacher(self):
        model = student_weights("resnet8", CLASSES, 99)
        with torch.no_grad():
            model.fc.weight *= 4  # an opinion of its own, though it never learnt anything
        return model

    def spec(self, method: str = "dkd+ikd", epochs: int | None = None, **changes: Any) -> RunSpec:
        """``kd``, ``kd+ikd``, or with a control of the term: ``kd+ikd:one_hot``, ``kd+ikd:running``."""
        name, _, ikd = method.partition("+")
        word = ikd.partition(":")[2]
        control = {"target" if word in TARGETS else "source": word} if word else {}
        method_spec = MethodSpec(name=name, ikd=IKDSettings(**control) if ikd else None)
        values = {
            "data": "cifar100", "data_sha256": "0" * 64, "student": "resnet8",
            "method": method_spec, "recipe": Recipe().scaled(epochs or self.epochs),
            "seed": 1, "deterministic": True,
        }  # fmt: skip
        if method_spec.needs_teacher:
            values.update(teacher="resnet8", teacher_sha256=self.teacher_sha256)
        return RunSpec(**{**values, **changes})

    def trainer(self, root: Path, spec: RunSpec, slabs: Path | None = None, **more: Any) -> Trainer:
        teacher = None if spec.teacher is None else self.teacher()
        run = Run(root, spec)
        run.begin()
        data, device = more.pop("data", self.data), more.pop("device", torch.device("cpu"))
        return Trainer(run, data, teacher, device, slabs, **more)

    def train(self, root: Path, spec: RunSpec, slabs: Path | None = None, **more: Any) -> Trainer:
        """A trainer that has trained to the end."""
        trainer = self.trainer(root, spec, slabs, **more)
        trainer.train()
        return trainer

    def train_until(self, root: Path, spec: RunSpec, epoch: int, step: int, **more: Any) -> Trainer:
        """A trainer that was stopped after ``step`` steps of an epoch, with its checkpoint written."""
        trainer = self.trainer(root, spec, **more)
        return self.interrupt(trainer, lambda: (trainer.epoch, trainer.step) == (epoch, step))

    def interrupt(self, trainer: Trainer, stop: Callable[[], bool]) -> Trainer:
        trainer.stop = stop
        with pytest.raises(Interrupted):
            trainer.train()
        assert trainer.run.status == "unfinished"
        return trainer

    def outcome(self, run: Run) -> tuple[str, str]:
        """All that a run says of itself except how long it took: equal means equal to the bit."""
        history = run.history.drop(columns="seconds").sort_index(axis=1)
        result = {name: run.result[name] for name in ("status", "weights_sha256", "last", "best", "teacher")}
        return str(result), str(history.to_dict("records"))


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()
