"""ikdlib's own trainer on the same images, a round an epoch; `compare.py` starts this program and says when.

The trainer itself says how long it trained and how long the teacher answered. Reading a slab that lies there
takes milliseconds an epoch, so *warm* is the training alone and *cold* both. Compiling, which a run long
enough does once, is not counted.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from protocol import MEAN, STD, noise, serve

from ikdlib import models
from ikdlib.data import DataSet, ImageSet
from ikdlib.runs import Run
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec
from ikdlib.training.checkpoint import digest
from ikdlib.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (
        ("pair", str),
        ("images", int),
        ("classes", int),
        ("threads", int),
        ("precision", str),
    ):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", default="on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = tuple(f"class {number:04}" for number in range(options.classes))
    data = DataSet(
        name="cifar100", classes=names, train=ImageSet(*noise(options.images, options.classes)),
        test=ImageSet(*noise(64, options.classes)), held_out=None, sha256="0" * 64,
        mean=MEAN, std=STD, padding=4,
    )  # fmt: skip
    teacher_name, student_name = options.pair.split("/")
    teacher = models.build(teacher_name, options.classes)
    spec = RunSpec(
        data="cifar100", data_sha256=data.sha256, student=student_name, teacher=teacher_name,
        teacher_sha256=digest(teacher.state_dict()), method=MethodSpec(name="dkd", ikd=IKDSettings()),
        recipe=Recipe(precision=options.precision), seed=0,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), spec)
        run.begin()
        trainer = Trainer(run, data, teacher, torch.device(options.device), compile=options.compile)
        trainer.prepare()  # a run compiles once in its life, a GPU's in epoch 2: not part of a step
        trainer._saved = trainer._told = time.monotonic()

        def epoch() -> dict[str, float]:
            before = dict(trainer.seconds)
            trainer._train_epoch()
            spent = {name: value - before[name] for name, value in trainer.seconds.items()}
            graphs = getattr(trainer._do_step, "captured", 0)
            return {"seconds": spent["training"], "teacher": spent["teacher"], "graphs": graphs}

        serve(epoch)


if __name__ == "__main__":
    main()
