"""Runs in child processes of this machine, several at once, behind the ``concurrent.futures`` interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ikdlib import data, files
from ikdlib.data.cache import default_folder
from ikdlib.errors import WARNING, IkdError
from ikdlib.studies import memory, throughput
from ikdlib.studies.variants import variant_of
from ikdlib.training.job import Job, choose_device

# glibc gives large blocks back to the kernel after each step and asks for them again; keeping them
# saves a tenth of a step of a small network on a CPU. Measured with resnet20, batch 64.
CHILD_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": "67108864",
    # Threads that wait for one another spin for a moment, then sleep: sleeping at once is slow to wake, and
    # spinning on (GNU OpenMP's default) takes the core from whoever is waited for. One resnet20 step (bf16,
    # batch 64, two threads; medians of four rounds), idle cores / both busy with another program: asleep at
    # once (OMP_WAIT_POLICY=PASSIVE) 53 / 771 ms, the default 39 / 149, this 36 / 86; one thread 64 / 95.
    "GOMP_SPINCOUNT": "20000",
}
MEASURED_FROM_STEPS = 20_000
"""Training steps of all runs together from which on a trial of half a minute pays: 25 epochs of CIFAR."""

STATUS_FILE = "IKDLIB_STATUS_FILE"
"""Environment: where a pool inside a notebook writes how far it is, for the command that started it."""


class LocalPool(Executor):
    """``submit(job)`` runs ``python -m ikdlib train`` in a child; the future gives its exit status.

    A child dies with this process (it saves first), and Ctrl-C reaches the children: running ones save,
    the rest is not started.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers)
        self._children: set[subprocess.Popen] = set()
        self._guard = threading.Lock()
        self._stopping = False

    def submit(self, job: Job) -> Future:  # type: ignore[override]
        return self._threads.submit(self._run, job)

    def stop(self) -> None:
        """Ask all children to save and end; start no more."""
        with self._guard:
            self._stopping = True
            for child in self._children:
                child.send_signal(signal.SIGINT)
        self._threads.shutdown(cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, job: Job) -> int:
        folder = job.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**CHILD_ENVIRONMENT, **os.environ}
        command = [sys.executable, "-m", "ikdlib", "train", "--job", "-"]
        with open(folder / "log.txt", "ab") as log:
            with self._guard:
                if self._stopping:
                    return 130
                child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
                )
                self._children.add(child)
            try:
                child.communicate(job.model_dump_json().encode())
            finally:
                with self._guard:
                    self._children.discard(child)
        return child.returncode


def run_all(jobs: Iterable[Job], workers: int = 0, show: bool = True) -> dict[str, int]:
    """Run the jobs that are not finished; returns the exit status of each run that was started.

    Args:
        jobs: in the order in which they should start.
        workers: runs at once; 0 chooses (`default_workers`). Fewer start where memory allows no more.
        show: a progress bar (quiet inside an executed notebook).

    Raises:
        IkdError: a run failed; the message names its log. The others are finished first.
    """
    pending = [job for job in jobs if job.run.status not in ("finished", "diverged")]
    if not pending:
        return {}
    workers = min(workers or default_workers(pending), len(pending))
    device = choose_device(pending[0].device)
    if workers > 1:
        workers = memory.fitting(workers, device)
    threads, share = max(1, (os.cpu_count() or 1) // workers), memory.gpu_share(workers, device)
    pending = [job.updated(threads=job.threads or threads, share=share) for job in pending]
    pool = LocalPool(workers)
    logs = [job.run.folder / "log.txt" for job in pending]
    said = {log: log.stat().st_size if log.exists() else 0 for log in logs}  # by earlier attempts
    futures = {job.spec.run_id: pool.submit(job) for job in pending}
    try:
        _watch(pending, futures, said, show)
    except KeyboardInterrupt:
        pool.stop()
        raise
    pool.shutdown()
    status = {run_id: future.result() for run_id, future in futures.items()}
    failed = [run_id for run_id, code in status.items() if code not in (0, 3)]
    if failed:
        by_id = {job.spec.run_id: job for job in pending}
        log = by_id[failed[0]].run.folder / "log.txt"
        reason = _reason(status[failed[0]], log)
        raise IkdError(f"{len(failed)} of {len(status)} runs failed; {reason} (log: {log})")
    return status


def default_workers(jobs: list[Job]) -> int:
    """The number at once that gives most runs an hour: measured where there are hours to do.

    For less work than `MEASURED_FROM_STEPS` the trial would cost more than it saves: one run a core on a
    CPU (one thread a run wastes less than sharing one run's small layers), one on a GPU.
    """
    spec, device = jobs[0].spec, choose_device(jobs[0].device)
    classes, height, width, images = data.shape(spec.data)
    epochs = sum(job.spec.recipe.epochs for job in jobs)
    if len(jobs) > 1 and epochs * images / spec.recipe.batch_size >= MEASURED_FROM_STEPS:
        kept = default_folder() / "jobs.json"
        return throughput.choose(spec, (classes, height, width), jobs[0].device, kept)
    return min(len(jobs), os.cpu_count() or 1) if device.type == "cpu" else 1


def _watch(jobs: list[Job], futures: dict[str, Future], said: dict[Path, int], show: bool) -> None:
    from tqdm.auto import tqdm

    total = sum(job.spec.recipe.epochs for job in jobs)
    heard: list[str] = []
    bar = tqdm(total=total, unit="epoch", disable=not show or STATUS_FILE in os.environ, mininterval=1.0)
    with bar:
        while True:
            over = all(future.done() for future in futures.values())
            done = sum(_epochs_done(job) for job in jobs)
            bar.n = round(done, 2)
            running = [line for job in jobs if (line := _line(job, futures))]
            bar.set_postfix_str("; ".join(running), refresh=False)
            bar.refresh()
            for warning in _new_warnings(said):
                if warning not in heard:  # of five runs with one bad teacher, one speaks
                    heard.append(warning)
                    bar.write(WARNING + warning, file=sys.stderr)
            _publish({"done": done, "total": total, "running": running, "warnings": heard})
            if over:
                return
            time.sleep(0.5)


def _publish(state: dict[str, Any]) -> None:
    if path := os.environ.get(STATUS_FILE):
        files.write_text(Path(path), json.dumps(state))


def _new_warnings(read: dict[Path, int]) -> Iterator[str]:
    """Warnings in the logs beyond what was read of each before; ``read`` moves on, line by line."""
    for log, start in read.items():
        if not log.exists():
            continue
        with open(log, "rb") as file:
            file.seek(start)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        read[log] = start + len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if line.startswith(WARNING):
                yield line.removeprefix(WARNING)


def _epochs_done(job: Job) -> float:
    if job.run.status in ("finished", "diverged"):
        return job.spec.recipe.epochs
    progress = job.run.progress
    return 0.0 if not progress else progress["epoch"] - 1 + progress["step"] / progress["steps"]


def _line(job: Job, futures: dict[str, Future]) -> str:
    progress = job.run.progress
    if futures[job.spec.run_id].done() or not progress:
        return ""
    accuracy = f" {progress['test_top1']:.1f}%" if progress["test_top1"] is not None else ""
    name = variant_of(job.spec).label if job.spec.teacher else job.spec.method
    return f"{name} s{job.spec.seed} {progress['epoch']}/{progress['epochs']}{accuracy}"


def _reason(code: int, log: Path) -> str:
    """Why a child failed: the signal that killed it, else the last line of its log."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory, as a rule)" if name == "SIGKILL" else "")
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it printed nothing"
