"""Sweeps on a Dask cluster: a worker, the command or the scheduler goes; the same command ends them.

Schedulers, workers, commands and cells are real processes; the notebooks are tiny, say in files of their
place what they do, and wait for files, so nothing depends on how fast the machine is.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from dask_processes import DaskProcesses, listeners
from sweeping import OF_A_SWEEP, Command, Place, notebook, until

import ikdlib

STOPPED = "ikdlib: stopped; the same command goes on from there"
# A cell says whose it is (its worker, its process, its kernel), then waits; asked to stop, it saves.
CELL = """
with open(f"/proc/{os.getppid()}/stat") as stat:
    worker = stat.read().rpartition(")")[2].split()[1]
whose = [worker, os.getppid(), os.getpid()]
note(f"{cell}.began", " ".join(map(str, whose)))
try:
    while not (here / f"{cell}.go").exists():
        time.sleep(0.05)
except KeyboardInterrupt:
    note(f"{cell}.saved")
    raise
note(f"{cell}.ended")
"""


class Sweeps(Place):
    """A place with a notebook whose cells wait, and a cluster."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.notebook = notebook(folder / "turns.ipynb", CELL, parameters="cell = 1")
        self.dask = DaskProcesses(folder / "dask", self.environment)

    def sweep(self, cells: int, scheduler: str = "") -> Command:
        where = scheduler or self.dask.address
        return self.start("--notebook", self.notebook, "-p", f"cell=1..{cells}", "--scheduler", where)

    def whose(self, cell: int) -> list[tuple[int, int, int]]:
        """Worker, cell process and kernel of each time a cell began."""
        return [tuple(map(int, line.split())) for line in self.notes(f"{cell}.began")]

    def let(self, *cells: int) -> None:
        """Let cells end."""
        for cell in cells:
            (self.folder / f"{cell}.go").touch()

    def done(self) -> dict[str, tuple]:
        """Each record's cell: how it ended, and with which parameters."""
        return {
            name: (record["status"], record["parameters"]["cell"], record["error"])
            for name, record in self.records("turns").items()
        }

    def clear(self) -> None:
        super().clear()
        self.dask.clear()


def all_done(cells: int) -> dict[str, tuple]:
    return {f"cell={cell}": ("finished", cell, None) for cell in range(1, cells + 1)}


@pytest.fixture
def place(tmp_path):
    made = Sweeps(tmp_path)
    yield made
    made.clear()


@pytest.fixture
def started(place):
    """The place, its scheduler and two workers without nannies, and a sweep whose first cells run."""
    place.scheduler = place.dask.scheduler()
    place.workers = [place.dask.worker("one"), place.dask.worker("two")]
    place.command = place.sweep(3)
    until(lambda: place.whose(1) and place.whose(2), place.command)
    return place


def alive(number: int) -> bool:
    return Path(f"/proc/{number}/environ").exists() and bool(Path(f"/proc/{number}/cmdline").read_bytes())


def gone(*numbers: int) -> bool:
    for number in numbers:
        try:
            if alive(number):
                return False
        except OSError:
            pass
    return True


def test_two_workers_share_the_cells(started):
    """Each cell is done once; nothing that the command started listens to the network."""
    (first, *_), (second, *_) = started.whose(1)[0], started.whose(2)[0]
    assert {first, second} == {worker.pid for worker in started.workers}
    assert listeners([started.command.process.pid]) == set()
    assert listeners(started.processes()) == {"127.0.0.1"}
    started.let(1, 2, 3)
    command = started.command.ends()
    assert "3 cells: 3 finished" in command.printed
    assert started.done() == all_done(3)
    assert [len(started.whose(cell)) for cell in (1, 2, 3)] == [1] * 3
    assert len({started.whose(cell)[0][0] for cell in (1, 2, 3)}) == 2
    assert started.litter() == []
    assert command.said.startswith(f"scheduler {started.dask.address}: workers: 2, cells at once: 2\n")


def test_a_killed_worker(started):
    """Its cell saves and is gone, with its kernel; the other worker does it, and the record is like any."""
    worker, *children = started.whose(1)[0]
    killed = next(process for process in started.workers if process.pid == worker)
    killed.kill()
    until(lambda: gone(*children), started.command)
    assert started.notes("1.saved") == [""]
    started.let(2, 3)
    until(lambda: len(started.whose(1)) == 2, started.command)
    assert started.whose(1)[1][0] == started.whose(2)[0][0]
    started.let(1)
    started.command.ends()
    assert started.done() == all_done(3)
    assert [len(started.notes(f"{cell}.ended")) for cell in (1, 2, 3)] == [1] * 3
    assert started.litter() == []


def test_a_killed_worker_that_its_nanny_starts_again(place):
    """The only one, by a scheduler file: its cell is done by its successor."""
    place.dask.scheduler()
    place.dask.worker("one", "--nanny")
    command = place.sweep(2, str(place.dask.file))
    until(lambda: place.whose(1), command)
    worker, *children = place.whose(1)[0]
    os.kill(worker, signal.SIGKILL)
    until(lambda: gone(worker, *children), command)
    until(lambda: len(place.whose(1)) + len(place.whose(2)) == 2, command)
    place.let(1, 2)
    command.ends()
    assert place.done() == all_done(2)
    assert [len(place.notes(f"{cell}.ended")) for cell in (1, 2)] == [1, 1]
    assert worker not in {whose[0] for whose in place.whose(1)[1:] + place.whose(2)}


def test_ctrl_c(started):
    """What runs saves and is gone, the rest is not started; the cluster serves the next command."""
    started.command.interrupt()
    command = started.command.ends(130)
    assert command.said.splitlines()[-1] == STOPPED
    assert "Traceback" not in command.said
    assert [started.notes(f"{cell}.saved") for cell in (1, 2, 3)] == [[""], [""], []]
    assert [len(started.whose(cell)) for cell in (1, 2, 3)] == [1, 1, 0]
    assert gone(*started.whose(1)[0][1:], *started.whose(2)[0][1:])
    assert started.done() == {}
    assert [name for name in started.litter() if not name.endswith(".log")] == []
    started.let(1, 2, 3)
    started.sweep(3).ends()
    assert started.done() == all_done(3)
    assert [len(started.whose(cell)) for cell in (1, 2, 3)] == [2, 2, 1]
    assert [worker.poll() for worker in started.workers] == [None, None]


def test_a_killed_command(started):
    """Its cells go on under their workers; the same command waits for them, and does the others."""
    os.kill(started.command.process.pid, signal.SIGKILL)
    started.command.process.wait()
    again = started.sweep(3)
    until(lambda: "cells at once: 2" in again.said, again)
    assert not gone(*started.whose(1)[0][1:]) and not gone(*started.whose(2)[0][1:])
    started.let(1, 2, 3)
    again.ends()
    assert started.done() == all_done(3)
    assert [len(started.whose(cell)) for cell in (1, 2, 3)] == [1] * 3
    assert [name for name in started.litter() if not name.endswith(".log")] == []


def test_a_killed_scheduler(started):
    """The command ends, with one line that says why; with another scheduler the same command goes on."""
    started.scheduler.kill()
    command = started.command.ends(1)
    assert "3 cells: 0 finished, 3 not done (the scheduler is gone)" in command.printed.splitlines()
    assert [
        line for line in command.said.splitlines() if not line.startswith(("scheduler ", "turns: "))
    ] == []
    started.dask.scheduler()
    started.dask.worker("three")
    again = started.sweep(3)
    until(lambda: "cells at once: 1" in again.said, again)
    started.let(1, 2, 3)
    again.ends()
    assert started.done() == all_done(3)
    assert Counter(len(started.notes(f"{cell}.ended")) for cell in (1, 2, 3)) == {1: 3}


def test_a_cluster_that_adapts_its_size(place):
    """It sees that a second worker would help while the first cell runs on the only one."""
    place.dask.adaptive(2)
    command = place.sweep(2)
    until(lambda: place.whose(1) and place.whose(2), command)
    place.let(1, 2)
    command.ends()
    assert place.done() == all_done(2)
    assert len({place.whose(cell)[0][0] for cell in (1, 2)}) == 2


def test_a_worker_that_comes_later_with_other_code(place):
    """Its cell fails, and says why; the others do not."""
    shutil.copytree(Path(ikdlib.__file__).parent, place.folder / "copy" / "ikdlib")
    with open(place.folder / "copy" / "ikdlib" / "errors.py", "a") as file:
        file.write("# changed\n")
    place.dask.scheduler()
    place.dask.worker("one")
    command = place.sweep(2)
    until(lambda: place.whose(1), command)
    place.dask.worker("other", PYTHONPATH=str(place.folder / "copy"))
    until(lambda: "other code" in command.said or list(place.results.rglob("cell=2*.log")), command)
    place.let(1, 2)
    command.ends(1)
    why = (
        f"ikdlib {ikdlib.__version__} here is other code than where the sweep was started; update one of them"
    )
    assert f"failed: cell=2: {why}" in command.printed.splitlines()
    assert place.done() == {**all_done(1), "cell=2": ("failed", 2, why)}
    assert place.whose(2) == []


def test_nothing_starts_where_something_is_missing(place):
    """A scheduler that does not answer, a worker without the package: one line, and no cell."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        command = place.sweep(2, address).ends(2)
    assert command.said == f"ikdlib: scheduler {address}: no answer within 10 s; is it running?\n"
    place.dask.scheduler()
    place.dask.worker("bare", PYTHONPATH=str(place.dask.without_package()))
    (line,) = place.sweep(2).ends(2).said.splitlines()
    assert line.startswith("ikdlib: worker tcp://127.0.0.1:") and "no module 'ikdlib' there" in line
    assert place.whose(1) == [] and place.done() == {}


@pytest.mark.long
def test_a_table_on_a_cluster(place):
    """The command for a table, with the results named as here: the worker started in another folder."""
    place.dask.scheduler()
    place.dask.worker("one", "--nanny")
    chosen = ("--profile", "demo", "--pairs", "resnet8/resnet8", "--methods", "ce", "--epochs", "1")
    where = ("--results", place.results.name, "--scheduler", place.dask.address)
    done = subprocess.run(
        [sys.executable, "-m", "ikdlib", "table", *chosen, *where], cwd=place.folder, env=place.environment,
        capture_output=True, text=True, timeout=OF_A_SWEEP,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| resnet8/resnet8 | ce " in done.stdout
    assert done.stderr.startswith(f"scheduler {place.dask.address}: workers: 1, cells at once: 1\n")
    (record,) = (place.results / "demo" / "runs").glob("*/result.json")
    assert [path for path in place.folder.rglob("result.json")] == [record]
    assert (
        place.results / "demo" / "tables" / "cifar100_same_architecture-resnet8-resnet8-1epochs.md"
    ).exists()
