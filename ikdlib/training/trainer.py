"""The one training loop: teachers and students, every method, CPU and GPU.

    survey         before epoch 1, where a method asks for one: the teacher's class sums (survey.py)
    order, views   drawn from the seed for the whole epoch, before its first step
    slab           the teacher's logits for exactly these views, looked up or computed
    step           student -> method's parts -> loss -> SGD; sums stay on the device
    epoch's end    class means (epoch 1), evaluation, a row of history

A run can be stopped at any step and goes on from there to the same bits: what is not in the
checkpoint follows from the spec.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ikdlib import files, methods, provenance
from ikdlib.data import DataSet
from ikdlib.data.loader import Epoch, Loader, Stored
from ikdlib.data.views import Views
from ikdlib.errors import IkdError
from ikdlib.methods import fingerprint
from ikdlib.models import CifarModel
from ikdlib.runs import FORMAT_VERSION, Run, check_format
from ikdlib.training import checkpoint, survey
from ikdlib.training.compiled import pays
from ikdlib.training.evaluate import evaluate, settle, summary
from ikdlib.training.graphs import GraphedStep
from ikdlib.training.schedule import learning_rate, progress_of
from ikdlib.training.step import Inputs, TrainStep, below, set_switches, student_weights
from ikdlib.training.teacher import Teacher, TeacherLogits

CHECKPOINT_SECONDS = 30.0
PROGRESS_SECONDS = 1.0


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class Diverged(Exception):
    """The loss, or a weight, is no longer a number."""


class Trainer:
    """Trains one spec into one run folder.

    Args:
        run: spec and folder; the caller holds its lock.
        data: the spec's data set, already with its held-out images.
        teacher: the trained teacher model, or None where the method asks none.
        device: where to train.
        slabs: folder for the teacher's logits, shared by all runs; None computes them each time.
        stop: asked at every step; True makes the run save and raise `Interrupted`.
        keep_logits: leave the last epoch's test logits in the folder (a study asks it of one run a cell).
        compile: torch.compile; ``auto`` where it pays for itself, never in deterministic mode.
    """

    def __init__(
        self,
        run: Run,
        data: DataSet,
        teacher: CifarModel | None,
        device: torch.device,
        slabs: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
        keep_logits: bool = False,
        compile: Literal["auto", "on", "off"] = "auto",
    ):
        self.run, self.spec, self.data, self.device = run, run.spec, data, device
        self.stop, self.keep_logits, self.compile, recipe = stop, keep_logits, compile, run.spec.recipe
        set_switches(self.spec.deterministic)
        views = Views(data.padding, *data.train.images.shape[1:3], data.mean, data.std, device)
        self.loader = Loader(data.train, views, recipe.batch_size, self.spec.seed, device)
        self.student = student_weights(self.spec.student, data.num_classes, self.spec.seed)
        self.student.to(device, memory_format=torch.channels_last)
        method = methods.build(self.spec.method, data.num_classes).to(device)
        self.train_step = TrainStep(self.student, method, recipe, views, device)
        graphed = device.type == "cuda" and not self.spec.deterministic
        self._do_step: TrainStep | GraphedStep = GraphedStep(self.train_step) if graphed else self.train_step
        self.teacher_logits = None
        if teacher is not None:
            frozen = Teacher(teacher, self.spec.teacher_sha256, recipe.precision, device)
            dtype = torch.float32 if self.spec.deterministic else torch.float16
            self.teacher_logits = TeacherLogits(frozen, data, dtype, slabs)
        self.epoch, self.step, self._prepared, self._to_compile = 1, 0, False, False
        self.history: list[dict[str, Any]] = []
        self.test_logits: Tensor | None = None
        self.seconds = dict.fromkeys(("training", "teacher", "evaluation", "compiling"), 0.0)
        self.origin = provenance.Origin(device, fingerprint.of(self.spec.method))
        self._resumed_sums: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Take up the checkpoint, if there is one, and compile for a CPU; `train` does it if need be.

        Until this returns there is nothing to save that is not on disk already.
        """
        self._prepared = True
        if self.run.checkpoint.exists():
            self._restore()
        # On a CPU all steps, not those left: a run resumed late goes on with the same code, to the bit.
        left = self.spec.recipe.epochs - (0 if self.device.type == "cpu" else self.epoch - 1)
        self._to_compile = pays(self.compile, self.spec.deterministic, left * self.loader.steps, self.device)
        if self._to_compile and self.device.type == "cpu":
            self._to_compile = False
            self.train_step.compile_student()
            if self.teacher_logits is not None:
                self.teacher_logits.teacher.compiles = True

    def train(self) -> dict[str, Any]:
        """Train to the end, or to a stop; returns the content of ``result.json``.

        Raises `Interrupted` after a stop was asked for and the checkpoint is written, and `IkdError`
        where a checkpoint does not fit.
        """
        if not self._prepared:
            self.prepare()
        self._saved = self._told = time.monotonic()
        self.teacher_accuracy = self.teacher_logits.accuracy(self.loader) if self.teacher_logits else None
        try:
            while self.epoch <= self.spec.recipe.epochs:
                self._train_epoch()
        except Diverged as error:
            return self._finish("diverged", str(error))
        return self._finish("finished")

    def _train_epoch(self) -> None:
        began = time.monotonic()
        rate = learning_rate(self.spec.recipe, self.epoch)
        order = self.loader.epoch(self.epoch)
        progress = progress_of(self.spec.recipe, self.epoch, self.loader.steps).to(self.device)
        self.train_step.begin_epoch(self.epoch, rate, self._resumed_sums)
        self._resumed_sums = {}
        slab = self._ask_teacher(order)  # after the sums are back: a stop meanwhile saves them
        settle(self.device)
        self._clock = time.monotonic()
        self.seconds["teacher"] += self._clock - began
        for stored in self.loader.stored(order, start=self.step):
            self._train_step(stored, progress[self.step], slab)
            self.step += 1
            self._between_steps()
        self._check_numbers()
        self._account("training")
        self.train_step.method.end_epoch(self.epoch)
        self.history.append(self._row(rate, len(order), began))
        self.epoch, self.step, self.train_step.sums = self.epoch + 1, 0, {}
        self.run.write_history(self.history)
        self._between_steps()
        self._tell()

    def _train_step(self, stored: Stored, progress: Tensor, slab: Tensor | None) -> None:
        own = (stored.pixels, stored.target, stored.index, stored.views)
        inputs = Inputs(*own, progress, None if slab is None else slab[stored.rows])
        if self._to_compile and self.epoch > 1 and len(stored.target) == self.loader.batch_size:
            self._to_compile = False  # for the phase that epoch 2 begins
            self._save()  # a compiler heeds nobody, so a stop may end the process meanwhile
            self._between_answers()
            with getattr(self.stop, "nothing_to_lose", nullcontext)():
                self._do_step.compile(inputs)
            self._account("compiling")
        self._do_step(inputs)

    def _ask_teacher(self, order: Epoch) -> Tensor | None:
        """Logits of the epoch's views; before the first step of all, the survey a method may want."""
        if self.teacher_logits is None:
            return None
        method = self.train_step.method
        if method.survey is not None and (self.epoch, self.step) == (1, 0):
            found = survey.take(self.teacher_logits, self.loader, method.survey, self._between_answers)
            method.take_survey(found.sums, found.counts)
        return self.teacher_logits.slab(self.loader, order, self._between_answers, self.spec.recipe.epochs)

    def _between_answers(self) -> None:
        if self.stop():
            self._save()
            raise Interrupted

    def _between_steps(self) -> None:
        """Look at the clock: stop, save or tell, each only when it is due, so the device is left alone."""
        now, stopped = time.monotonic(), self.stop()
        if stopped or now - self._saved >= CHECKPOINT_SECONDS:
            self._check_numbers()
            self._account("training")
            self._save()
        if stopped:
            raise Interrupted
        if now - self._told >= PROGRESS_SECONDS:
            self._tell()

    def _account(self, what: str) -> None:
        before, self._clock = self._clock, time.monotonic()
        self.seconds[what] += self._clock - before

    def _check_numbers(self) -> None:
        self._do_step.join()
        # The last step's loss is that of the weights before it, so they are looked at too.
        found = {name: total.isfinite() for name, total in self.train_step.sums.items()}
        weights = [weight.isfinite().all() for weight in self.train_step.parameters()]
        found["weights"] = torch.stack(weights).all()
        if not torch.stack(list(found.values())).all():
            raise Diverged(", ".join(name for name, whole in found.items() if not whole))

    def _row(self, rate: float, count: int, began: float) -> dict[str, Any]:
        means = {name: float(total) / count for name, total in self.train_step.sums.items()}
        row = {"epoch": self.epoch, "learning_rate": rate, "train_top1": 100 * means.pop("hits")}
        row |= {"train_loss": means.pop("loss"), **{f"part_{name}": value for name, value in means.items()}}
        usual = (self.device.type, self.spec.recipe.precision) == ("cuda", "bf16")
        rounded = usual and self.epoch < self.spec.recipe.epochs  # the last epoch's weights stay
        scores, self.test_logits = evaluate(self.student, self.loader, self.data.test, rounded)
        row.update({f"test_{name}": value for name, value in scores.items()})
        if self.data.held_out is not None:
            scores, _ = evaluate(self.student, self.loader, self.data.held_out, rounded)
            row.update({f"held_out_{name}": value for name, value in scores.items()})
        self._account("evaluation")
        row["seconds"] = round(time.monotonic() - began, 3)
        return row

    def _tell(self) -> None:
        self._told = time.monotonic()
        last = self.history[-1] if self.history else {}
        files.write_json(self.run.folder / "progress.json", {
            "pid": os.getpid(), "epoch": self.epoch, "epochs": self.spec.recipe.epochs,
            "seconds": round(self.seconds["training"] + self._told - self._clock, 1), "step": self.step,
            "steps": self.loader.steps, **{name: last.get(name) for name in ("train_loss", "test_top1")},
        })  # fmt: skip

    # What a checkpoint holds

    def _save(self) -> None:
        self._do_step.join()
        facts = {
            "format_version": FORMAT_VERSION, "run_id": self.spec.run_id,
            "epoch": self.epoch, "step": self.step, "history": self.history, "seconds": self.seconds,
            "sums": list(self.train_step.sums), **self.origin.facts,
            "slabs": self.teacher_logits and self.teacher_logits.tally,
        }  # fmt: skip
        checkpoint.write(self.run.checkpoint, self.train_step.state(), facts)
        self._saved = time.monotonic()

    def _restore(self) -> None:
        tensors, facts = checkpoint.read(self.run.checkpoint)
        check_format(self.run.checkpoint, facts["format_version"])
        if facts["run_id"] != self.spec.run_id:
            raise IkdError(f"{self.run.checkpoint}: belongs to run {facts['run_id']}; move it away")
        self.train_step.load_state(tensors)
        sums = below(tensors, "sums")
        self._resumed_sums = {name: sums[name] for name in facts["sums"]}
        self.epoch, self.step = facts["epoch"], facts["step"]
        self.history, self.seconds = facts["history"], self.seconds | facts["seconds"]
        if slabs := facts.get("slabs"):
            self.teacher_logits.computed, self.teacher_logits.found = slabs["computed"], slabs["found"]
        self.origin.resume(facts, self.epoch, self.step)

    # What a finished run leaves

    def _finish(self, status: str, lost: str = "") -> dict[str, Any]:
        weights = {k: v.detach().cpu().contiguous() for k, v in self.student.state_dict().items()}
        result: dict[str, Any] = {"status": status}
        if status == "finished":
            files.write_bytes(self.run.weights, save(weights))
            if self.keep_logits:
                if self.test_logits is None:  # resumed after its last epoch
                    _, self.test_logits = evaluate(self.student, self.loader, self.data.test)
                half = self.test_logits.half().cpu().contiguous()
                files.write_bytes(self.run.folder / "test_logits.safetensors", save({"logits": half}))
            result["weights_sha256"] = checkpoint.digest(weights)
        else:
            result["diverged"] = {"epoch": self.epoch, "step": self.step, "no_number": lost}
        if self.history:
            result["last"] = summary(self.history[-1])
            result["best"] = summary(max(self.history, key=lambda row: row["test_top1"]))
        result |= {"epochs": len(self.history), "teacher": self.teacher_accuracy}
        self.run.write_history(self.history)
        files.write_json(self.run.folder / "provenance.json", self._provenance())
        self.run.finish(result)
        if status == "finished":
            self.run.checkpoint.unlink(missing_ok=True)
        return self.run.result

    def _provenance(self) -> dict[str, Any]:
        images = len(self.history) * len(self.data.train)
        return {
            "format_version": FORMAT_VERSION,
            **self.origin.process,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "images_per_second": round(images / max(self.seconds["training"], 1e-9), 1),
            **self.train_step.made_of,
            "graphs": isinstance(self._do_step, GraphedStep) and self._do_step.captured > 0,
            "slabs": self.teacher_logits and self.teacher_logits.tally,
            "resumed_at": self.origin.resumed_at,
        }
