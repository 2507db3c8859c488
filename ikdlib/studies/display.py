"""How far a set of cells is: one bar with the time left, and a line for each running cell.

The same is written to a file, from which a second terminal reads it (`watch`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikdlib import files, status
from ikdlib.errors import WARNING

if TYPE_CHECKING:
    from ikdlib.studies.dispatch import Piece, Summary

EVERY = 1.0
"""Seconds between two looks at the running cells."""
EVERY_IN_A_LOG = 30.0
"""The same where nobody sees a bar move: a log file wants a line now and then."""
SILENT = 300.0
"""Seconds after which a file that nobody writes any more is that of a command that was killed."""
RUN_FILE = "progress.json"
"""What a training writes in its run folder."""
NAME = 40
"""Characters of a cell's name in its line: the numbers behind it count for more."""


class Display:
    """Shows cells while they run.

    Args:
        folder: where the file for `watch` goes.
        slots: cells at once, for the time left.
    """

    def __init__(self, title: str, folder: Path, slots: Callable[[], int] = lambda: 1):
        self.title, self.folder, self.slots, self.before = title, folder, slots, 0
        self._heard: set[str] = set()
        self._told = self._printed = 0.0
        self._pieces: list[Piece] = []
        self._began: dict[str, float] = {}
        self._part: dict[str, float] = {}  # of each cell's work that is done, 1 where it ended
        self._pace: dict[str, float] = {}  # measured seconds an epoch (or a cell, where it has none)
        self._bars: list[Any] = []

    def begin(self, pieces: list[Piece], before: int) -> None:
        """The cells that are to be done, and how many were done before."""
        self._pieces, self.before = pieces, before
        for path in self.folder.glob("progress-*.json"):
            if _read(path) is None:  # of a command that was killed
                path.unlink(missing_ok=True)
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}{postfix}"
            self._bars = [tqdm(total=1, desc=self.title, bar_format=layout, position=0)]

    def started(self, piece: Piece) -> None:
        """A cell was handed to the engine, perhaps once more."""
        self._began[piece.task.id], self._part[piece.task.id] = time.monotonic(), 0.0

    def ended(self, piece: Piece, failed: bool = False) -> None:
        """A cell is done or has failed: then it says nothing of how long one takes."""
        name = piece.task.id
        self._part[name] = 1.0
        if failed:
            self._pace.pop(name, None)
        elif name in self._began:
            self._pace.setdefault(name, (time.monotonic() - self._began[name]) / (piece.epochs or 1.0))
        self._pass_on((piece.task.record() or {}).get("warnings", ()))  # its last words

    def show(self, running: Iterable[Piece], summary: Summary, last: bool = False) -> None:
        """Look at the running cells and draw; call it as often as you like."""
        if time.monotonic() - self._told < EVERY and not last:
            return
        self._told = time.monotonic()
        state = self._state(list(running), summary)
        try:
            files.write_json(progress_file(self.folder), state)
        except OSError:
            pass  # a full disk: the cells find out themselves
        if self._bars:
            self._draw(state)
        elif last or self._told - self._printed > EVERY_IN_A_LOG:
            self._printed = self._told
            print("; ".join([sentence(state), *state["running"]]), file=sys.stderr, flush=True)

    def end(self, summary: Summary) -> None:
        """The last look."""
        self.show([], summary, last=True)
        for bar in reversed(self._bars):
            bar.close()

    def _state(self, running: list[Piece], summary: Summary) -> dict[str, Any]:
        lines = [self._look(piece) for piece in running]
        cells = self.before + len(self._pieces)
        return {
            "title": self.title, "cells": cells, "done": summary.done,
            "failed": len(summary.failed), "running": lines,
            "part": round((self.before + sum(self._part.values())) / max(1, cells), 4),
            "seconds_left": self._left(),
        }  # fmt: skip

    def _look(self, piece: Piece) -> str:
        """A running cell's line; what it tells goes into the measured pace."""
        name = piece.task.id
        told = status.read(piece.task.status_file)
        self._pass_on(told["warnings"])
        try:
            run = json.loads(Path(told["run"], RUN_FILE).read_text())
            part = (run["epoch"] - 1 + run["step"] / run["steps"]) / run["epochs"]
        except (OSError, ValueError, KeyError, TypeError):  # no training, or not yet
            return f"{_short(piece.name)}: {_clock(time.monotonic() - self._began[name])}"
        self._part[name] = part
        if part > 0:
            self._pace[name] = run["seconds"] / part / (piece.epochs or 1.0)
        numbers = {"loss": run["train_loss"], "top-1": run["test_top1"]}
        words = [f"{key} {value:.4g}" for key, value in numbers.items() if value is not None]
        return f"{_short(piece.name)}: " + ", ".join([f"epoch {run['epoch']}/{run['epochs']}", *words])

    def _left(self) -> float | None:
        """Seconds until all is done, from the measured pace of each cell, or of the others; None: unknown."""
        if not self._pace:
            return None
        usual = sum(self._pace.values()) / len(self._pace)
        rest = [
            (piece.epochs or 1.0)
            * (1 - self._part.get(piece.task.id, 0.0))
            * self._pace.get(piece.task.id, usual)
            for piece in self._pieces
        ]
        return max(sum(rest) / max(1, self.slots()), *rest) if rest else 0.0

    def _pass_on(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            if warning not in self._heard:  # of five cells with one bad teacher, one speaks
                self._heard.add(warning)
                print(WARNING + warning, file=sys.stderr, flush=True)

    def _draw(self, state: dict[str, Any]) -> None:
        from tqdm import tqdm

        lines = state["running"]
        while len(self._bars) <= len(lines):
            position = len(self._bars)
            self._bars.append(tqdm(total=0, bar_format="{desc}", position=position, leave=False))
        first, *rest = self._bars
        first.n = state["part"]
        first.set_postfix_str(_words(state), refresh=False)
        first.refresh()
        for bar, line in zip(rest, lines + [""] * len(rest), strict=False):
            bar.set_description_str("  " + line)


def progress_file(folder: Path) -> Path:
    """Where this process says how far its cells are; `forget` it when the command ends."""
    return folder / f"progress-{socket.gethostname()}-{os.getpid()}.json"


def forget(folder: Path) -> None:
    """The command has ended: who watches it ends too."""
    progress_file(folder).unlink(missing_ok=True)


def watch(folder: Path) -> None:
    """Show, until they end, what other processes do in ``folder``, as their `Display` writes it there."""
    seen, printed = False, 0.0
    while states := [state for path in sorted(folder.glob("progress-*.json")) if (state := _read(path))]:
        seen = True
        if time.monotonic() - printed > (2.0 if sys.stdout.isatty() else EVERY_IN_A_LOG) or not printed:
            printed = time.monotonic()
            for state in states:  # one block after another: it can be read in any terminal, and in a file
                lines = [sentence(state), *(f"  {line}" for line in state["running"])]
                print("\n".join(lines), flush=True)
        time.sleep(EVERY / 2)
    print(f"{folder.name}: {'it has ended' if seen else 'nothing runs there now'}")


def sentence(state: dict[str, Any]) -> str:
    """A state in one line."""
    return f"{state['title']}: {100 * state['part']:.0f} %, {_words(state)}"


def _words(state: dict[str, Any]) -> str:
    words = f"{state['done']}/{state['cells']} cells"
    words += f", {state['failed']} failed" if state["failed"] else ""
    left = state["seconds_left"]
    return words + (f", {_clock(left)} left" if left is not None else "")


def _read(path: Path) -> dict[str, Any] | None:
    """The state another process wrote; None where it has ended, however."""
    try:
        state = json.loads(path.read_text())
        host, pid = path.stem.removeprefix("progress-").rsplit("-", 1)
        if host == socket.gethostname():
            with contextlib.suppress(PermissionError):  # it is there, and another user's
                os.kill(int(pid), 0)
        return state if time.time() - path.stat().st_mtime < SILENT else None
    except (OSError, ValueError):
        return None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[1 - NAME // 2 :]}"
