"""Run folders with numbers made by hand, and cells of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ikdlib.runs import Run
from ikdlib.spec import RunSpec
from ikdlib.studies import protocol as protocols
from ikdlib.studies.variants import Variant

EPOCHS = 3


@dataclass(frozen=True)
class Cell:
    pair: str
    method: str
    runs: tuple[Run, ...]


class Folders:
    """Writes run folders below a root."""

    teacher_top1 = 77.5

    def __init__(self, root: Path):
        self.root = root

    def run(
        self,
        method: str,
        seed: int,
        pair: str = "resnet56/resnet20",
        changes: Mapping[str, Any] | None = None,
        *,
        protocol: str = "paper",
        epochs: int = EPOCHS,
        precision: str = "fp32",
        teacher_sha256: str = "1" * 64,
        **more: Any,
    ) -> Run:
        """The run, not begun, with its protocol's settings for the pair.

        ``changes``: as of `Variant`, ``{"ikd.temperature": 0.5}``; ``more``: other fields of its spec. The
        pair ``-/resnet56`` with the method ce is the training of a teacher.
        """
        teacher, student = pair.split("/")
        own = protocols.method_spec(protocol, teacher, student, method)
        recipe = protocols.recipe(protocol, teacher, student, epochs, precision)
        own, recipe = Variant(method, changes or {}).applied(own, recipe)
        asked = {"teacher": teacher, "teacher_sha256": teacher_sha256} if own.needs_teacher else {}
        values = {"data": "cifar100", "data_sha256": "0" * 64, "protocol": protocol, **asked, **more}
        return Run(self.root, RunSpec(student=student, method=own, seed=seed, recipe=recipe, **values))

    def finished(
        self,
        method: str,
        seed: int,
        top1: float,
        best: float | None = None,
        *,
        recorded: Mapping[str, float] | None = None,
        hours: float | None = None,
        logits: np.ndarray | None = None,
        **more,
    ) -> Run:
        """A finished run: ``top1`` in the last epoch, ``best`` (default one point more) in the second.

        ``recorded``: further columns of its history, the value of the last epoch; one less in the second,
        two more in the first. ``hours`` of training and ``logits`` are kept where they are given.
        """
        run = self.run(method, seed, **more)
        best = top1 + 1 if best is None else best
        run.begin()
        history = [
            {
                "epoch": epoch, "test_top1": value, "test_top5": value + 10, "seconds": 1.5,
                **{name: number + extra for name, number in (recorded or {}).items()},
            }
            for epoch, value, extra in ((1, top1 / 2, 2.0), (2, best, -1.0), (3, top1, 0.0))
        ]  # fmt: skip
        run.write_history(history)
        if hours is not None:
            provenance = {"seconds": {"training": hours * 3000, "evaluation": hours * 600}}
            (run.folder / "provenance.json").write_text(json.dumps(provenance))
        if logits is not None:
            save_file({"logits": logits.astype(np.float16)}, run.folder / "test_logits.safetensors")
        run.finish(
            {
                "status": "finished", "epochs": EPOCHS,
                "last": {"epoch": 3, "top1": top1, "top5": top1 + 10},
                "best": {"epoch": 2, "top1": best, "top5": best + 10},
                "teacher": {"top1": self.teacher_top1, "top5": 95.0} if run.spec.teacher else None,
            }
        )  # fmt: skip
        return run

    def diverged(self, method: str, seed: int, **more) -> Run:
        run = self.run(method, seed, **more)
        run.begin()
        run.write_history([])
        run.finish({"status": "diverged", "diverged": {"epoch": 1, "step": 4}, "epochs": 0, "teacher": None})
        return run

    def unfinished(self, method: str, seed: int, **more) -> Run:
        run = self.run(method, seed, **more)
        run.begin()
        run.write_history([{"epoch": 1, "test_top1": 99.0, "test_top5": 100.0, "seconds": 1.5}])
        run.checkpoint.write_bytes(b"half")
        return run

    def changed(self, method: str, changes: Mapping[str, Any], scores: Mapping[int, float], **more) -> Cell:
        """A cell of finished runs, seed to ``top1``, under the label of its `Variant`."""
        made = [self.finished(method, s, value, changes=changes, **more) for s, value in scores.items()]
        pair = more.get("pair", "resnet56/resnet20")
        return Cell(pair, Variant(method, changes).label, tuple(made))

    def cell(self, method: str, *runs: Run, pair: str = "resnet56/resnet20") -> Cell:
        return Cell(pair, method, runs)


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path / "runs")
