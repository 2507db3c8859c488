"""Child processes of this machine, several at once, behind the ``concurrent.futures`` interface."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ikdlib import data, status
from ikdlib.data.cache import default_folder
from ikdlib.errors import WARNING, IkdError
from ikdlib.provenance import usable_cores
from ikdlib.studies import children, memory, throughput
from ikdlib.studies.children import Child
from ikdlib.studies.gpu_server import GpuServer
from ikdlib.studies.variants import variant_of
from ikdlib.training.job import Job, choose_device

MEASURED_FROM_STEPS = {"cpu": 20_000, "cuda": 500_000}
"""Training steps of all runs together from which on a trial pays: 25 epochs of CIFAR for half a minute's on a
CPU, 640 for two minutes' on a GPU."""


@dataclass(frozen=True)
class Slots:
    """How this machine is shared out.

    Attributes:
        workers: children at once.
        threads: of each child on the CPU.
        share: the part of a GPU's memory that is each child's.
        gpus: names of the GPUs, where there are several to go round.
        packed: children that share one GPU; 0 where none do.
    """

    workers: int
    threads: int = 1
    share: float = 1.0
    gpus: tuple[str, ...] = ()
    packed: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What tells a child its part."""
        return {"OMP_NUM_THREADS": str(self.threads), status.GPU_SHARE: str(self.share)}


class LocalPool(Executor):
    """``submit(children.run, child)`` runs a child; so many at once, in the order they were submitted.

    A child dies with this process (it saves first); `stop` asks the running ones to save and starts no more.
    """

    ahead = 0

    def __init__(self, slots: Slots):
        self.slots, self.owner = slots.workers, uuid4().hex
        self._server = GpuServer(slots.packed) if slots.packed else None
        self.shares_gpu = self._server.environment if self._server else {}
        self.environment, self.code = slots.environment | self.shares_gpu, ""
        children.gpus = slots.gpus
        self._threads = ThreadPoolExecutor(slots.workers)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        return self._threads.submit(function, *arguments, **named)

    def fewer(self) -> None:
        """Half as many at once from now on: together they wanted more of a GPU's memory than there is."""
        self.slots = max(1, self.slots // 2)
        self.environment[status.GPU_SHARE] = str(min(1.0, 2 * float(self.environment[status.GPU_SHARE])))
        if self._server:
            self._server.serve(self._server.runs // 2)
            self.environment |= self.shares_gpu

    def stop(self) -> None:
        """Ask all children to save and end; start no more; return when they have ended."""
        children.stop(self.owner)
        self.shutdown(cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        if wait and self._server:
            self._server.close()


def share_out(wanted: int, device_name: str, count: int) -> Slots:
    """The machine for ``count`` children, ``wanted`` at once (0: one a core or a GPU), as memory allows."""
    device = choose_device(device_name)
    gpus = _gpus() if device.type == "cuda" else ()
    cores = usable_cores()
    workers = min(wanted or len(gpus) or cores, count)
    if workers > 1:
        workers = memory.fitting(workers, device, len(gpus) or 1)
    each = -(-workers // (len(gpus) or 1))
    packed = each if device.type == "cuda" and workers > len(gpus) else 0
    share = memory.gpu_share(each, device)
    return Slots(workers, max(1, cores // workers), share, gpus if len(gpus) > 1 else (), packed)


def _gpus() -> tuple[str, ...]:
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(visible or map(str, range(torch.cuda.device_count())))


def run_all(
    jobs: Iterable[Job], workers: int = 0, show: bool = True, ended: Callable[[Job], None] = lambda job: None
) -> dict[str, int]:
    """Run the jobs that are not finished, a child each; returns the exit status of each that was started.

    Args:
        jobs: in the order in which they should start.
        workers: runs at once; 0 chooses (`default_workers`). Fewer start where memory allows no more.
        show: a progress bar (quiet inside an executed notebook).
        ended: called with each run that was started, as soon as it has ended, however it did.

    Raises:
        IkdError: a run failed; the message names its log. The others are finished first.
    """
    pending = [job for job in jobs if not job.run.over]
    if not pending:
        return {}
    slots = share_out(workers or default_workers(pending), pending[0].device, len(pending))
    pending = [job.updated(threads=job.threads or slots.threads, share=slots.share) for job in pending]
    pool = LocalPool(slots)
    logs = [job.run.folder / "log.txt" for job in pending]
    said = {log: _size(log) for log in logs}  # by earlier attempts
    futures: dict[str, Future] = {}
    try:
        for job in pending:
            futures[job.spec.run_id] = pool.submit(children.run, _child(job, pool))
        _watch(pending, futures, said, show, ended)
    except BaseException:  # none goes on unwatched, whatever it was
        pool.stop()
        raise
    pool.shutdown()
    outcomes = {run_id: future.result() for run_id, future in futures.items()}
    failed = [run_id for run_id, (code, _) in outcomes.items() if code not in (0, children.DIVERGED)]
    if failed:
        log = next(job.run.folder / "log.txt" for job in pending if job.spec.run_id == failed[0])
        reason = children.reason(*outcomes[failed[0]])
        raise IkdError(f"{len(failed)} of {len(outcomes)} runs failed; {reason} (log: {log})")
    return {run_id: code for run_id, (code, _) in outcomes.items()}


def _child(job: Job, pool: LocalPool) -> Child:
    arguments = ("ikdlib", "train", "--job", "-")
    return Child(arguments, job.model_dump_json(), job.run.folder / "log.txt", pool.owner, pool.shares_gpu)


def default_workers(jobs: list[Job]) -> int:
    """The number at once that gives most runs an hour: measured where there are hours to do.

    For less work than `MEASURED_FROM_STEPS` the trial would cost more than it saves: one run a core on a
    CPU (one thread a run wastes less than sharing one run's small layers), one on a GPU.
    """
    spec, device = jobs[0].spec, choose_device(jobs[0].device)
    gpus = len(_gpus()) if device.type == "cuda" else 1
    classes, height, width, images = data.shape(spec.data)
    epochs = sum(job.spec.recipe.epochs for job in jobs)
    if len(jobs) > gpus and epochs * images / spec.recipe.batch_size >= MEASURED_FROM_STEPS[device.type]:
        kept = default_folder() / "jobs.json"
        return gpus * throughput.choose(spec, (classes, height, width), images, jobs[0].device, kept)
    return min(len(jobs), usable_cores() if device.type == "cpu" else gpus)


def _watch(
    jobs: list[Job],
    futures: dict[str, Future],
    said: dict[Path, int],
    show: bool,
    ended: Callable[[Job], None],
) -> None:
    from tqdm.auto import tqdm

    total = sum(job.spec.recipe.epochs for job in jobs)
    heard: list[str] = []
    left = list(jobs)
    bar = tqdm(total=total, unit="epoch", disable=not show or status.FILE in os.environ, mininterval=1.0)
    with bar:
        while True:
            gone = [job for job in left if futures[job.spec.run_id].done()]
            left = [job for job in left if job not in gone]
            bar.n = round(sum(_epochs_done(job) for job in jobs), 2)
            running = [line for job in jobs if (line := _line(job, futures))]
            bar.set_postfix_str("; ".join(running), refresh=False)
            bar.refresh()
            for warning in _new_warnings(said):
                if warning not in heard:  # of five runs with one bad teacher, one speaks
                    heard.append(warning)
                    bar.write(WARNING + warning, file=sys.stderr)
                    status.tell(warning=warning)
            for job in gone:
                bar.clear()  # what it may print stands on a line of its own
                ended(job)
            if not left:
                return
            time.sleep(0.5)


def _new_warnings(read: dict[Path, int]) -> Iterator[str]:
    """Warnings in the logs beyond what was read of each before; ``read`` moves on, line by line."""
    for log, start in read.items():
        try:
            with open(log, "rb") as file:
                file.seek(start)
                text = file.read()
        except OSError:  # not there yet, or another user's
            continue
        whole = text[: text.rfind(b"\n") + 1]
        read[log] = start + len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if line.startswith(WARNING):
                yield line.removeprefix(WARNING)


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def _epochs_done(job: Job) -> float:
    if job.run.over:
        return job.spec.recipe.epochs
    progress = job.run.progress
    return 0.0 if not progress else progress["epoch"] - 1 + progress["step"] / progress["steps"]


def _line(job: Job, futures: dict[str, Future]) -> str:
    progress = job.run.progress
    if not futures[job.spec.run_id].running() or not progress:  # one that waits may have begun yesterday
        return ""
    accuracy = f" {progress['test_top1']:.1f}%" if progress["test_top1"] is not None else ""
    name = variant_of(job.spec).label if job.spec.teacher else job.spec.method
    return f"{name} s{job.spec.seed} {progress['epoch']}/{progress['epochs']}{accuracy}"
