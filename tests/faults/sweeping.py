"""Sweeps of tiny notebooks as real commands, for `test_sweeps`: made, started, watched and cleared away.

Every process of a place has its folder in the environment, so what a command left behind is found by it,
whoever its parent is by now.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import nbformat

import ikdlib

PATIENCE = 120  # seconds until something happens; only a broken program takes that long
OF_A_SWEEP = 5 * PATIENCE  # the same for a whole command, on a machine that others use too
HERE = "SWEEPING_FOLDER"
"""Environment: the folder of the place, where its notebooks leave word of what they did."""

# What the notebooks here begin with.
BEGIN = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
here = Path(os.environ["{HERE}"])
def note(name, text=""):
    with open(here / name, "a") as file:  # O_APPEND: a line is whole, whoever else writes
        file.write(f"{{text}}\\n")
"""


def notebook(path: Path, *cells: str, parameters: str = "seed = 1", tag: str = "parameters") -> Path:
    """Write a notebook: a cell with the parameters, which has the tag, then `BEGIN`, then these."""
    texts = [parameters, BEGIN, *cells]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in texts])
    made.cells[0].metadata["tags"] = [tag]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


class Command:
    """A command that runs; what it prints and says (on stderr) can be read at any time."""

    def __init__(self, arguments: Iterable[str], place: Place, number: int):
        self._results = place.results
        self._printed, self._said = (place.outputs / f"{number}.{kind}" for kind in ("out", "err"))
        with open(self._printed, "wb") as out, open(self._said, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ikdlib", "sweep", *arguments], cwd=place.folder,
                env=place.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    @property
    def said(self) -> str:
        return self._said.read_text()

    def ends(self, status: int = 0) -> Command:
        """Wait for its end."""
        found = self.process.wait(timeout=OF_A_SWEEP)
        assert found == status, f"exit status {found}:\n{self.printed}\n{self.said}\n{self._logs()}"
        return self

    def _logs(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()}" for log in self._results.rglob("*.log"))

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C: to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)


class Screen:
    """A command in a terminal of its own, and all it wrote there."""

    def __init__(self, arguments: Iterable[str], place: Place):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ikdlib", "sweep", *arguments], cwd=place.folder, env=place.environment,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return self._written.decode(errors="replace")

    def ends(self) -> str:
        """Wait for its good end; all it wrote."""
        assert self.process.wait(timeout=PATIENCE) == 0, self.text
        self._reader.join(timeout=PATIENCE)
        return self.text

    def _read(self) -> None:
        try:
            while part := os.read(self._master, 4096):
                self._written += part
        except OSError:
            pass  # nobody has the terminal open any more
        os.close(self._master)


class Place:
    """A folder with notebooks and results, a home and a folder of temporary files: all of a user's own."""

    def __init__(self, folder: Path, **environment: str):
        self.folder, self.results, self.outputs = folder, folder / "results", folder / "outputs"
        self.outputs.mkdir()
        # Not below pytest's folder: a Unix socket's path is short, and the kernels' would lie elsewhere.
        self.temporary = Path(tempfile.mkdtemp(prefix="sweeping"))
        self.environment = {
            **os.environ, "PYTHONPATH": str(Path(ikdlib.__file__).parent.parent), "OMP_NUM_THREADS": "1",
            HERE: str(folder), "TMPDIR": str(self.temporary), "MPLCONFIGDIR": matplotlib.get_cachedir(),
            **environment,
        }  # fmt: skip
        self._commands: list[Command | Screen] = []

    def start(self, *arguments: object) -> Command:
        """``python -m ikdlib sweep`` with these arguments, and the results in this place."""
        command = Command([*map(str, arguments), "--results", self.results.name], self, len(self._commands))
        self._commands.append(command)
        return command

    def watch(self, notebook: Path) -> Screen:
        """The same command with ``--watch``, in a terminal."""
        screen = Screen(["--notebook", str(notebook), "--results", "results", "--watch"], self)
        self._commands.append(screen)
        return screen

    def notes(self, name: str) -> list[str]:
        """The lines that notebooks left under this name."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def records(self, sweep: str) -> dict[str, dict]:
        """The records of a sweep's cells, by the readable part of their name."""
        found = sorted((self.results / "sweeps" / sweep / "cells").glob("[!.]*.json"))
        paths = [path for path in found if not path.name.endswith(".status.json")]
        return {_readable(path): json.loads(path.read_text()) for path in paths}

    def copies(self, sweep: str, folder: str = "cells") -> dict[str, Path]:
        """The executed notebooks of a sweep, or those in ``failed``."""
        found = sorted((self.results / "sweeps" / sweep / folder).glob("[!.]*.ipynb"))
        return {_readable(path): path for path in found}

    def changed(self, sweep: str) -> dict[str, int]:
        """When each record was written."""
        paths = (self.results / "sweeps" / sweep / "cells").glob("[!.]*.json")
        return {_readable(p): p.stat().st_mtime_ns for p in paths if not p.name.endswith(".status.json")}

    def litter(self) -> list[str]:
        """What nobody needs any more: temporary folders, half-written files, told progress."""
        below = [path for path in self.results.rglob("*") if path.is_file()]
        odd = [path for path in below if path.name.startswith(".") or path.name.endswith(".status.json")]
        odd += [path for path in below if path.name.startswith("progress-") and "sweeps" in path.parts[-3:]]
        return sorted(path.name for path in (*odd, *self.temporary.iterdir()))

    def processes(self) -> dict[int, str]:
        """Processes that were started from here and live: their number and command."""
        mark, found = f"{HERE}={self.folder}".encode(), {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                pass  # it went, or is another user's
        return found

    def clear(self) -> None:
        """End whatever still runs, whoever started it."""
        end = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < end:
            for number in left:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for command in self._commands:
                command.process.poll()
            time.sleep(0.05)
        for command in self._commands:
            command.process.wait()
        shutil.rmtree(self.temporary)


def until(condition: Callable[[], object], *commands: Command | Screen) -> None:
    """Wait for a condition while these commands run."""
    end = time.monotonic() + PATIENCE
    while not condition():
        for command in commands:
            told = getattr(command, "said", "") + getattr(command, "printed", "")
            assert command.process.poll() is None or condition(), f"it ended meanwhile: {told}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def memory_mib(number: int) -> float | None:
    """Resident memory of a process; None where it has ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(found[0]) / 1024 if found else None


def _readable(path: Path) -> str:
    """A cell's name without the hash behind it."""
    return path.stem.rpartition("-")[0]
