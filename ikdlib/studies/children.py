"""A program in a process of its own, that a pool starts, waits for, and can ask to stop.

This module runs where the work is: in the command's own process, or in a Dask worker on another machine.
So it needs nothing but the package, and what it is given and gives back can be pickled.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ikdlib.parent import PARENT

# glibc gives large blocks back to the kernel after each step and asks for them again; keeping them
# saves a tenth of a step of a small network on a CPU. Measured with resnet20, batch 64.
ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": "67108864",
    # Threads that wait for one another spin for a moment, then sleep: sleeping at once is slow to wake, and
    # spinning on (GNU OpenMP's default) takes the core from whoever is waited for. One resnet20 step (bf16,
    # batch 64, two threads; medians of four rounds), idle cores / both busy with another program: asleep at
    # once (OMP_WAIT_POLICY=PASSIVE) 53 / 771 ms, the default 39 / 149, this 36 / 86; one thread 64 / 95.
    "GOMP_SPINCOUNT": "20000",
}

FINISHED, FAILED, DIVERGED = 0, 2, 3
ELSEWHERE = 75
"""Exit status of a child that found another process at its work (EX_TEMPFAIL)."""
NO_GPU_MEMORY, DISK_FULL = 76, 74
FULL = (errno.ENOSPC, errno.EDQUOT)
"""A full disk, or a full quota, as it mostly is on a cluster."""
KERNEL_DIED = 70
"""As a rule it was killed for want of memory: a kernel is larger than the process that watches it."""
LOST = 71
"""Workers of a cluster died with the cell."""
STOPPED = (130, 143)
"""Stopped by SIGINT or SIGTERM, and saved."""


@dataclass(frozen=True)
class Child:
    """What to run: ``python -m *arguments``, with a text on its standard input.

    Attributes:
        owner: names the pool; `stop` ends all children of one.
        log: file that what it prints is added to.
        environment: on top of the process's own.
    """

    arguments: tuple[str, ...]
    text: str
    log: Path
    owner: str
    environment: dict[str, str] = field(default_factory=dict)


_guard = threading.Lock()
_running: dict[str, set[subprocess.Popen]] = defaultdict(set)
_stopped: set[str] = set()
_on_gpu: Counter[str] = Counter()
gpus: tuple[str, ...] = ()
"""This process's GPUs, where there are several to go round: a child gets the one with fewest children."""


def run(child: Child) -> tuple[int, str]:
    """Run a child to its end; returns its exit status (-n: killed by signal n) and its last words.

    It is a session of its own: a terminal's Ctrl-C does not reach it, its pool tells it by `stop`.
    """
    environment = {**ENVIRONMENT, **os.environ, **child.environment, PARENT: str(os.getpid())}
    try:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        log = open(child.log, "ab")  # noqa: SIM115
    except OSError as error:
        return DISK_FULL if error.errno in FULL else FAILED, f"{child.log}: {error.strerror}"
    with log:
        with _guard:
            if child.owner in _stopped:
                return STOPPED[0], ""
            if gpu := min(gpus, key=_on_gpu.__getitem__, default=""):
                environment["CUDA_VISIBLE_DEVICES"] = gpu
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", *child.arguments],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:  # as many processes, or as much memory, as is allowed
                return FAILED, f"the child could not be started ({error.strerror})"
            _running[child.owner].add(process)
            _on_gpu[gpu] += 1
        stay_nice(process.pid)
        try:
            process.communicate(child.text.encode())
        finally:
            with _guard:
                _running[child.owner].discard(process)
                _on_gpu[gpu] -= 1
    return process.returncode, last_words(child.log)


def stop(owner: str) -> None:
    """Ask all running children of a pool to save and end, and start no more of it in this process."""
    with _guard:
        _stopped.add(owner)
        for process in _running[owner]:
            process.send_signal(signal.SIGINT)


def stay_nice(pid: int | str = "self") -> None:
    """Pass this process's niceness on to a session of its own, such as every child is.

    Linux shares the processor out among sessions first (autogroup), so in one of its own a process that was
    made nice counts as any other.
    """
    try:
        if nice := os.nice(0):
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))
    except OSError:
        pass  # another system, or the child is gone


def last_words(log: Path) -> str:
    """The last line of a log, or nothing."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""


def reason(status: int, words: str) -> str:
    """Why a child failed: the signal that killed it, else its last words."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (out of memory, as a rule)" if name == "SIGKILL" else "")
    return words or "it printed nothing"
