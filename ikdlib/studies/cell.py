"""One cell of a sweep: one execution of a notebook, in a process of its own.

``python -m ikdlib.studies.cell`` reads a `Task` from its standard input. It leaves the executed notebook
and then, last, a record: a cell without a record is not done. Nothing here imports torch: the kernel does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import ikdlib
from ikdlib import files, status
from ikdlib.errors import IkdError
from ikdlib.parent import end_with_parent
from ikdlib.spec import Settings
from ikdlib.studies import children, copies, kernel, notebook

FORMAT_VERSION = 1
NO_GPU_MEMORY = re.compile("CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDA out of memory")
"""What does not come as torch's OutOfMemoryError: a context, a graph or a library that found no room."""
PATIENCE = 40.0
"""Seconds for a notebook that was asked to stop, then its kernel is ended: a compiler heeds nobody."""


class Task(Settings):
    """What a cell's process is told.

    Attributes:
        notebook: the source, in the shared results folder.
        digest: of the code in it; a record made by other code is none. "": what is done, the caller knows.
        cwd: folder in which the notebook runs: the command's.
        code: `code_digest` of the package that planned the cell; "" where it runs on the same machine.
    """

    id: str
    folder: str
    notebook: str
    digest: str
    parameters: dict[str, Any]
    cwd: str = ""
    code: str = ""
    attempt: int = 1

    @property
    def output(self) -> Path:
        return Path(self.folder) / "cells" / f"{self.id}.ipynb"

    @property
    def failed(self) -> Path:
        return Path(self.folder) / "failed" / f"{self.id}.ipynb"

    @property
    def log(self) -> Path:
        return self.output.with_suffix(".log")

    @property
    def status_file(self) -> Path:
        return self.output.with_suffix(".status.json")

    def record(self) -> dict[str, Any] | None:
        """What the last execution of this very notebook left, or None."""
        try:
            found = json.loads(self.output.with_suffix(".json").read_text())
            return found if found["notebook_sha256"] == self.digest and found["status"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_record(self, error: str | None, seconds: float, outcome: dict[str, Any]) -> None:
        """Write how the cell ended: well, or with an error of one line."""
        record = {
            "format_version": FORMAT_VERSION, "id": self.id, "parameters": copies.shown(self.parameters),
            "notebook_sha256": self.digest, "status": "failed" if error else "finished",
            "seconds": round(seconds, 2), "attempts": self.attempt, "outcome": outcome, "error": error,
            "ikdlib": ikdlib.__version__, "warnings": status.read(self.status_file)["warnings"],
        }  # fmt: skip
        files.write_json(self.output.with_suffix(".json"), record)

    def tidy(self) -> None:
        """Remove what a process that was killed had half done; nobody else is at it."""
        half_done = [
            path for place in (self.output, self.failed) for path in place.parent.glob(f".{self.id}.*")
        ]
        for path in (*half_done, self.status_file):
            path.unlink(missing_ok=True)

    @property
    def taken(self) -> bool:
        """Whether another process is at it now."""
        try:
            self.lock.acquire(timeout=0)
            self.lock.release()
            return False
        except Timeout:
            return True

    @property
    def lock(self) -> FileLock:
        """Held while the cell is executed; the system lets go of it when the process is gone."""
        return FileLock(self.output.with_suffix(".lock"), is_singleton=True)

    @property
    def finished(self) -> bool:
        return bool(self.digest) and (self.record() or {}).get("status") == "finished"


@cache
def code_digest() -> str:
    """Of the package's own files: two checkouts with one version number may differ."""
    digest = hashlib.sha256()
    root = Path(ikdlib.__file__).parent
    for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*.csv")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def execute(task: Task) -> int:
    """Run a task unless it is done; returns the exit status: one of `children`'s."""
    task.output.parent.mkdir(parents=True, exist_ok=True)
    lock = task.lock
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return children.ELSEWHERE
    try:
        return children.FINISHED if task.finished else _execute(task)
    finally:
        task.status_file.unlink(missing_ok=True)
        lock.release()


def _execute(task: Task) -> int:
    if task.code and task.code != code_digest():
        words = f"ikdlib {ikdlib.__version__} here is other code than where the sweep was started"
        raise IkdError(f"{words}; update one of them")
    stopped = threading.Event()
    _stop_on_signals(stopped)
    task.tidy()
    for old in (task.output.with_suffix(".json"), task.failed):
        old.unlink(missing_ok=True)  # a record, and a traceback, are of the last execution
    if task.digest and notebook.digest_of(Path(task.notebook)) != task.digest:
        raise IkdError(f"{Path(task.notebook).name}: the copy in the results folder was edited; start again")
    if Path(task.cwd or ".").is_dir():
        os.chdir(task.cwd or ".")
    else:
        raise IkdError(f"{task.cwd}: the folder the command was started in does not exist here")
    os.environ[status.FILE] = str(task.status_file.resolve())
    began, outcome, failure = time.monotonic(), {}, None
    try:
        outcome = _outcome(task, stopped)
    except (KeyboardInterrupt, Exception) as error:
        if stopped.is_set():
            if isinstance(error, notebook.Failure):
                task.failed.unlink(missing_ok=True)  # it did not fail
            return children.STOPPED[0]
        if not isinstance(error, notebook.Failure):
            raise
        failure = error
    error = None if failure is None else _explained(failure)
    task.write_record(error, time.monotonic() - began, outcome)
    if failure is None:
        return children.FINISHED
    print(error, file=sys.stderr)
    if any(os.strerror(number) in failure.text for number in children.FULL):
        return children.DISK_FULL
    if failure.kind == "OutOfMemoryError" or NO_GPU_MEMORY.search(failure.text):
        return children.NO_GPU_MEMORY
    return children.KERNEL_DIED if failure.kind == "DeadKernelError" else children.FAILED


def _outcome(task: Task, stopped: threading.Event) -> dict[str, float | None]:
    """Execute the notebook, and read what it showed; that it cannot be read is a failure like any other."""
    source = Path(task.notebook)
    copy = notebook.execute(source, task.output, task.failed, task.parameters, stopped.is_set)
    try:
        return copies.outcome_of(copy)
    except IkdError as error:
        task.failed.parent.mkdir(exist_ok=True)
        os.replace(task.output, task.failed)
        raise notebook.Failure("IkdError", str(error), task.failed) from None


def _explained(failure: notebook.Failure) -> str:
    told = failure.kind in ("IkdError", "DeadKernelError")  # their text says it all
    return failure.text if told else f"{failure.kind}: {failure.text}"


def _stop_on_signals(stopped: threading.Event) -> None:
    """A signal, or the end of the parent, interrupts the notebook; one that heeds nobody is ended."""

    def end() -> None:
        time.sleep(PATIENCE)
        kernel.end()
        os._exit(children.STOPPED[0])

    def stop(*_: Any) -> None:
        if not stopped.is_set():
            stopped.set()
            threading.Thread(target=end, daemon=True).start()
        kernel.send(signal.SIGINT)

    def orphaned() -> None:
        stop()
        time.sleep(kernel.GRACE)
        kernel.end()
        os._exit(children.STOPPED[0])

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if parent := os.environ.pop(children.PARENT, ""):  # nor is it the parent of what the notebook starts
        end_with_parent(int(parent), orphaned)


def main() -> int:
    """Execute the task on standard input."""
    try:
        return execute(Task.from_json(sys.stdin.read()))
    except IkdError as error:
        print(f"ikdlib: {error}", file=sys.stderr)
        return children.FAILED
    except OSError as error:
        print(f"ikdlib: {error}", file=sys.stderr)
        return children.DISK_FULL if error.errno in children.FULL else children.FAILED


if __name__ == "__main__":
    sys.exit(main())
