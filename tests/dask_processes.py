"""A real Dask cluster of processes on this machine, all of which listen on loopback only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

PATIENCE = 120  # seconds; only a broken program takes that long
HERE = "DASK_PROCESSES"
"""Environment: the folder of the cluster that a process belongs to, whoever its parent is by now."""
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ikdlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def until(condition: Callable[[], object], what: str = ""):
    """The first true answer."""
    end = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)
    return answer


ADAPTIVE = """
import sys, time
from distributed import LocalCluster
file, folder, most = sys.argv[1:]
with LocalCluster(
    n_workers=0, threads_per_worker=1, local_directory=folder, scheduler_kwargs={"scheduler_file": file},
    host="127.0.0.1", dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0",
) as cluster:
    cluster.adapt(minimum=0, maximum=int(most), interval="200ms", target_duration="100ms")
    while True:
        time.sleep(1)
"""


class DaskProcesses:
    """A scheduler and workers; all that they started is gone after `clear`.

    Args:
        folder: where they work and log.
        environment: theirs, with a PYTHONPATH that has the package.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self.folder, self.file = folder, folder / "scheduler.json"
        self.folder.mkdir()
        self.environment = {**environment, HERE: str(folder), "OMP_NUM_THREADS": "1"}
        self._started: list[subprocess.Popen] = []

    @property
    def address(self) -> str:
        return json.loads(self.file.read_text())["address"]

    def scheduler(self) -> subprocess.Popen:
        """A scheduler that has not the package: it need not."""
        self.file.unlink(missing_ok=True)
        changed = {"PYTHONPATH": str(self.without_package()), "TMPDIR": str(self.folder)}
        process = self._start("scheduler", "scheduler", "--port", "0", **changed)
        until(self.file.exists, "a scheduler")
        return process

    def worker(
        self, name: str, *more: str, cwd: Path | None = None, before: Iterable[str] = (), **environment: str
    ) -> subprocess.Popen:
        """A worker that has registered: one thread, and no nanny, unless ``more`` says so."""
        nanny = [] if "--nanny" in more else ["--no-nanny"]
        threads = [] if "--nthreads" in more else ["--nthreads", "1"]
        process = self._start(
            "worker", name, *nanny, *threads, "--name", name, "--local-directory", f"{self.folder}/{name}",
            *more, cwd=cwd, before=before, **environment,
        )  # fmt: skip
        until(lambda: process.poll() is not None or "Registered to" in self.log(name), f"worker {name}")
        assert process.poll() is None, self.log(name)
        return process

    def adaptive(self, most: int) -> None:
        """A scheduler that starts and ends its workers itself, as there is work for them; none at first."""
        self._run("adaptive", [sys.executable, "-c", ADAPTIVE, str(self.file), str(self.folder), str(most)])
        until(self.file.exists, "a scheduler")

    def _start(
        self,
        kind: str,
        name: str,
        *more: str,
        cwd: Path | None = None,
        before: Iterable[str] = (),
        **changed: str,
    ) -> subprocess.Popen:
        # An address for what there is to see of a process, or it would listen for the whole network.
        command = [
            *before, sys.executable, "-m", "dask", kind, "--host", "127.0.0.1", "--no-dashboard",
            "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(self.file), *more,
        ]  # fmt: skip
        return self._run(name, command, cwd, **changed)

    def _run(
        self, name: str, command: list[str], cwd: Path | None = None, **changed: str
    ) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command, cwd=cwd or self.folder, env={**self.environment, **changed},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def log(self, name: str) -> str:
        """What a process printed."""
        return (self.folder / f"{name}.log").read_text()

    def without_package(self) -> Path:
        """A folder that, in PYTHONPATH, hides the package."""
        folder = self.folder / "without"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(HIDE)
        return folder

    def processes(self) -> set[int]:
        """Those of this cluster that live."""
        return with_environment(HERE, str(self.folder))

    def clear(self) -> None:
        """End whatever still runs, whoever started it."""

        def none_left() -> bool:
            for number in self.processes():
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for process in self._started:
                process.poll()
            return not self.processes()

        until(none_left, "the end of all processes")
        for process in self._started:
            process.wait()


def with_environment(name: str, value: str) -> set[int]:
    """Processes that were started with this in their environment, and live."""
    mark, found = f"{name}={value}".encode(), set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            pass  # it went, or is another user's
    return found


def listeners(numbers: Iterable[int]) -> set[str]:
    """Addresses at which processes wait for connections."""
    import psutil

    found = set()
    for number in numbers:
        try:
            connections = psutil.Process(number).net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    return found
