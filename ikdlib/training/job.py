"""One run as one job: where its inputs lie, and how it starts, stops and reports.

A job is what a pool hands to a child process and what ``python -m ikdlib train`` executes. It says
where things are on this machine; what the run *is* stands in its spec alone.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import Field

from ikdlib import data, models, provenance, status
from ikdlib.errors import WARNING, IkdError
from ikdlib.methods import fingerprint
from ikdlib.parent import PARENT, end_with_parent
from ikdlib.runs import Run
from ikdlib.spec import RunSpec, Settings, setting
from ikdlib.training import checkpoint
from ikdlib.training.trainer import Interrupted, Trainer


class Job(Settings):
    """A spec, and where its inputs and outputs lie on this machine."""

    spec: RunSpec
    runs: str = Field(description="folder of run folders")
    data: str | None = setting(None, description="folder of the data set")
    teacher: str | None = setting(None, description="file of the teacher's weights")
    slabs: str | None = setting(None, description="folder of teacher logits")
    device: Literal["auto", "cpu", "cuda"] = setting("auto")
    threads: int | None = setting(None, ge=1)
    share: float = setting(1.0, gt=0, le=1, description="of the GPU's memory, where several runs share one")
    keep_logits: bool = setting(False)
    compile: Literal["auto", "on", "off"] = setting("auto", description="torch.compile")

    @property
    def run(self) -> Run:
        return Run(Path(self.runs), self.spec)


class Stop:
    """Notes SIGINT and SIGTERM instead of dying of them.

    Args:
        orphan_stops: it also ends when the parent process does.
        may_die: a stop may end the process at once, while there is nothing to lose.
    """

    def __init__(self, orphan_stops: bool = False, may_die: bool = True):
        self.signal: int | None = None
        self._at_once, self._may_die = False, may_die
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)
        if orphan_stops:
            # It may be gone before this process has come so far: who it was, it left in the environment.
            parent = int(os.environ.pop(PARENT, os.getppid()))
            end_with_parent(parent, lambda: self._note(signal.SIGTERM, None))

    def __call__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """While this lasts (a compiler is at work, and heeds nobody) a stop ends the process at once."""
        self._at_once = self._may_die
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if self._at_once:
            os._exit(128 + number)


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU if there is one; ``cuda`` without one is an `IkdError`."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise IkdError("device: cuda was asked for, but torch finds no CUDA GPU here; use DEVICE=cpu or auto")
    # With its number, as tensors there say it: "cuda" and "cuda:0" are not equal.
    return torch.device("cuda:0" if available and name != "cpu" else "cpu")


def load_teacher(spec: RunSpec, path: Path, num_classes: int) -> models.CifarModel:
    """The teacher a spec names; refused when the file holds other weights than the spec says."""
    model = models.load_weights(models.build(spec.teacher, num_classes), path)
    found = checkpoint.digest(model.state_dict())
    if found != spec.teacher_sha256:
        raise IkdError(f"{path}: weights {found[:12]}..., but the spec names {spec.teacher_sha256[:12]}...")
    return model


def execute(job: Job, stop: Stop | None = None, say=print) -> int:
    """Train a job's run unless it is finished; returns the exit status of a process that did only this.

    0 finished (now or before), 3 diverged, 130 or 143 stopped by SIGINT or SIGTERM with its state saved.

    Raises:
        IkdError: whatever a user can mend.
    """
    stop, run, threads = stop or Stop(), job.run, torch.get_num_threads()
    device = choose_device(job.device)
    provenance.started()  # before anything is waited for
    lock = run.lock(say=say, stop=stop)
    if lock is None:
        say(f"{job.spec.run_id}: stopped while another process was at it")
        return 128 + (stop.signal or signal.SIGTERM)
    try:
        if run.over:
            why = ", with other code of its method" if fingerprint.changed(run) else ""
            again = f"; delete {run.folder} to run it again" if why or run.status == "diverged" else ""
            say(f"{job.spec.run_id}: {run.status} before{why}{again}")
            return 0 if run.status == "finished" else 3
        return _train(job, device, stop, say)
    finally:
        lock.release()
        gc.collect()  # a compiled step and its code name each other: its tensors go now, not some time
        torch.set_num_threads(threads)  # the next run of this process has its own


def _train(job: Job, device: torch.device, stop: Stop, say: Callable[[str], None]) -> int:
    run, spec = job.run, job.spec
    if job.threads:
        torch.set_num_threads(job.threads)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(job.share)
    images = data.load(spec.data, job.data, holdout=spec.holdout)
    if images.sha256 != spec.data_sha256:
        raise IkdError(
            f"{job.data or spec.data}: data {images.sha256[:12]}..., but the spec names "
            f"{spec.data_sha256[:12]}...; give the folder the spec was made from"
        )
    teacher = None
    if spec.teacher is not None:
        if job.teacher is None:
            raise IkdError(f"{spec.run_id}: no file of the teacher's weights was given")
        teacher = load_teacher(spec, Path(job.teacher), images.num_classes)
    run.begin()
    status.tell(run=run.folder)
    say(spec.describe())
    slabs = None if job.slabs is None else Path(job.slabs)
    trainer = Trainer(run, images, teacher, device, slabs, stop, job.keep_logits, job.compile)
    given = torch.get_num_threads()
    if stop():  # before the compiler, which heeds nobody
        say(f"{spec.run_id}: stopped before its first step; the same command goes on from there")
        return 128 + (stop.signal or signal.SIGTERM)
    with stop.nothing_to_lose():
        trainer.prepare()
    if (kept := torch.get_num_threads()) != given:
        say(f"{spec.run_id}: goes on with the number of threads it began with, {kept} instead of {given}")
    try:
        result = trainer.train()
    except Interrupted:
        say(f"{spec.run_id}: stopped at epoch {trainer.epoch}, step {trainer.step}, and saved; "
            "the same command goes on from there")  # fmt: skip
        return 128 + (stop.signal or signal.SIGTERM)
    if result["status"] == "diverged":
        say(f"{spec.run_id}: diverged in epoch {result['diverged']['epoch']} (no numbers any more: "
            f"{result['diverged']['no_number']}); {_after(run)}")  # fmt: skip
        return 3
    say(f"{spec.run_id}: top-1 {result['last']['top1']:.2f} % in the last epoch, "
        f"{result['best']['top1']:.2f} % in the best ({result['best']['epoch']})")  # fmt: skip
    return 0


def _after(run: Run) -> str:
    stays = "its last good checkpoint stays" if run.checkpoint.exists() else "nothing had been saved"
    return f"{stays}; delete {run.folder} to run it again"


def train_here(job: Job) -> None:
    """Train a job's run in this very process, as a notebook's kernel does, unless it is finished.

    Whatever interrupts the kernel lets the run save first. Where a pool started the kernel, its share of a
    GPU holds, and warnings reach the pool's user.

    Raises:
        KeyboardInterrupt: it was stopped, and saved.
        IkdError: the run diverged, or whatever else a user can mend.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    shown = warnings.showwarning

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        status.tell(warning=str(message))
        print(f"{WARNING}{message}", file=sys.stderr)

    warnings.showwarning = show
    try:
        share = float(os.environ.get(status.GPU_SHARE, job.share))
        code = execute(job.updated(share=share), Stop(may_die=False))
    finally:
        warnings.showwarning = shown
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == 3:
        raise IkdError(f"{job.spec.run_id}: diverged; {_after(job.run)}")
    if code:
        raise KeyboardInterrupt
