"""Cells onto an engine until all are done: tried again where that helps, and counted where it does not.

The engine is the local pool or a Dask cluster; a cell is a process (`cell`) that leaves a record. Whatever
ends this loop, the same command goes on: what is done is known from the records alone.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from ikdlib.errors import IkdError
from ikdlib.studies import children
from ikdlib.studies.cell import Task
from ikdlib.studies.children import Child
from ikdlib.studies.display import Display

ATTEMPTS = 3
"""Times a cell is started whose process, kernel or machine was killed."""
ROOM_MIB = 100
"""Free space of a disk below which no cell is started."""


@dataclass
class Piece:
    """A cell, as the loop sees it.

    Attributes:
        name: as a reader calls it.
        epochs: how much work it is; 0 where nothing is known of it.
        done: whether it is done, whoever did it.
    """

    task: Task
    name: str
    epochs: float = 0.0
    done: Callable[[], bool] = lambda: False
    attempts: int = 0
    starved: bool = False  # had no GPU memory
    slots: int = 0  # cells at once when it was started
    elsewhere: bool = False  # another process was at it
    after: float = 0.0  # not to be started before this moment


class Unfinished(IkdError):
    """Some cells failed or were not started; the others are done."""


@dataclass
class Summary:
    """How a set of cells ended."""

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # the task's id to name and reason
    reason: str = ""  # why the rest was not started
    copies: set[Path] = field(default_factory=set)  # folders with the executed notebooks of failed cells

    def add_failure(self, piece: Piece, why: str) -> None:
        self.failed[piece.task.id] = f"{piece.name}: {why}"
        if piece.task.failed.exists():  # a process that was killed leaves no copy
            self.copies.add(piece.task.failed.parent)

    @property
    def lines(self) -> list[str]:
        """For a reader: each failure, where the tracebacks are, and last the counts."""
        left = self.total - self.done - len(self.failed)
        words = f"{self.total} cell{'s' * (self.total != 1)}: {self.done} finished"
        words += f", {len(self.failed)} failed" if self.failed else ""
        words += f", {left} not done ({self.reason})" if left else ""
        where = [f"their tracebacks are in {_near(folder)}/" for folder in sorted(self.copies)]
        return [*(f"failed: {words}" for words in self.failed.values()), *where, words]

    def check(self) -> None:
        """Raises `Unfinished` unless all cells are done."""
        if self.done < self.total:
            *told, counts = self.lines
            raise Unfinished("; ".join([counts, *told, "the same command tries them again"]))


def _near(folder: Path) -> Path:
    """A folder as the user would write it: from where the command was given, if it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def run(pieces: Iterable[Piece], engine, folder: Path, display: Display, before: int = 0) -> Summary:
    """Execute the cells that are not done, in their order, as many at once as the engine has slots.

    Args:
        before: cells that are known to be done, and not among ``pieces``.

    Raises:
        KeyboardInterrupt: after the running cells have saved; the rest was not started.
    """
    pieces, began = list(pieces), time.time()
    waiting = deque(piece for piece in pieces if not piece.done())
    summary = Summary(before + len(pieces), done=before + len(pieces) - len(waiting))
    display.begin(list(waiting), summary.done)
    running: dict[Future, Piece] = {}
    try:
        while waiting or running:
            most = engine.slots + engine.ahead
            while len(running) < most and _room(folder, summary) and (piece := _next(waiting)):
                waiting.remove(piece)
                if piece.done():  # by somebody else, since this was planned
                    summary.done += 1
                    piece.task.log.unlink(missing_ok=True)
                    display.ended(piece)
                    continue
                if piece.elsewhere and (why := _failed_elsewhere(piece, began)):
                    summary.add_failure(piece, why)
                    display.ended(piece, failed=True)
                    continue
                if piece.task.taken:
                    piece.elsewhere = True
                    piece.after = time.monotonic() + 2.0
                    waiting.append(piece)
                    continue
                piece.attempts, piece.slots = piece.attempts + 1, engine.slots
                display.started(piece)
                running[engine.submit(children.run, _child(piece, engine))] = piece
            if summary.reason and not running:
                break
            ended, _ = wait(running, timeout=0.3, return_when=FIRST_COMPLETED)
            if not running:
                time.sleep(0.3)  # somebody else is at all that is left
            for future in ended:
                piece = running.pop(future)
                if _end(piece, future, waiting, engine, summary):
                    display.ended(piece, failed=piece.task.id in summary.failed)
            display.show(running.values(), summary)
    except BaseException:
        engine.stop()
        wait(running, timeout=60)
        display.end(summary)
        raise
    display.end(summary)
    for place in {piece.task.failed.parent for piece in pieces}:
        with contextlib.suppress(OSError):  # not empty, or not there
            place.rmdir()  # what had failed is mended: an empty folder would look like a failure
    return summary


def _next(waiting: deque[Piece]) -> Piece | None:
    now = time.monotonic()
    return next((piece for piece in waiting if piece.after <= now), None)


def _failed_elsewhere(piece: Piece, since: float) -> str:
    """Why a cell failed in another process that was at it while we waited; that is not tried once more."""
    record = piece.task.record() or {}
    path = piece.task.output.with_suffix(".json")
    new = record.get("status") == "failed" and path.stat().st_mtime > since and not piece.task.taken
    return str(record.get("error") or "it failed") if new else ""


def _room(folder: Path, summary: Summary) -> bool:
    if not summary.reason and shutil.disk_usage(folder).free < ROOM_MIB * 2**20:
        summary.reason = "the disk is full"
    return not summary.reason


def _child(piece: Piece, engine) -> Child:
    task = piece.task.updated(attempt=piece.attempts, code=engine.code)
    arguments = ("ikdlib.studies.cell",)
    return Child(arguments, task.model_dump_json(), task.log, engine.owner, dict(engine.environment))


def _end(piece: Piece, future: Future, waiting: deque[Piece], engine, summary: Summary) -> bool:
    """What follows from how a cell's process ended; whether the cell is over."""
    try:
        code, words = future.result()
    except CancelledError:
        summary.reason = "the scheduler is gone"
        return False
    except Exception as error:  # Dask gave up, because workers died with it, say
        lost = type(error).__name__ == "KilledWorker"
        code = children.LOST if lost else children.FAILED
        words = "the workers that ran it died" if lost else f"{type(error).__name__}: {error}"
    if code == children.FINISHED or (code != children.ELSEWHERE and piece.done()):
        summary.done += 1
        if code == children.FINISHED:
            piece.task.log.unlink(missing_ok=True)
        return True
    killed = code < 0 or code in (*children.STOPPED, children.KERNEL_DIED, children.LOST)
    if code in children.STOPPED and engine.code:
        piece.attempts -= 1  # a cluster's job reached its time limit: a cell may take longer than a job
    if code == children.ELSEWHERE:
        piece.attempts -= 1
        waiting.append(piece)
    elif code == children.DISK_FULL:
        summary.reason = "the disk is full"
    elif code == children.NO_GPU_MEMORY and not piece.starved:
        piece.starved = True
        if engine.slots >= piece.slots:  # of several that starved together one is enough
            engine.fewer()
        waiting.append(piece)
    elif killed and piece.attempts < ATTEMPTS:
        waiting.appendleft(piece)
    else:
        why = children.reason(code, words) if code not in children.STOPPED else "stopped by a signal"
        why = why.removeprefix("ikdlib: ") + (f", {piece.attempts} times" if killed else "")
        summary.add_failure(piece, why)
        if not piece.task.taken:
            piece.task.tidy()
            if not piece.task.record():  # it came to no end of its own
                piece.task.updated(attempt=max(1, piece.attempts)).write_record(why, 0.0, {})
        return True
    return False
