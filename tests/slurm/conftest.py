"""A real Slurm, and the example's cluster running on it. Both skip where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from one_node import OneNodeSlurm, missing_programs, wait_for

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "slurm" / "cluster.py"


@pytest.fixture(scope="session")
def slurm() -> Iterator[OneNodeSlurm]:
    if missing := missing_programs():
        pytest.skip(
            f"no Slurm on this machine: {', '.join(missing)} "
            "(apt-get install --no-install-recommends slurmctld slurmd slurm-client munge)"
        )
    with OneNodeSlurm() as running:
        yield running


class Cluster:
    """The example, started as a user starts it."""

    def __init__(self, slurm: OneNodeSlurm, folder: Path, *options: str):
        self.scheduler_file = folder / "scheduler.json"
        self._output = folder / "cluster.txt"
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, str(EXAMPLE), "--interface", "lo", "--memory", "1GiB"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *options],
                cwd=folder,
                env=slurm.environment | {"PYTHONPATH": path},  # for slurm_cells.py
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_until_it_serves(self) -> None:
        def serves() -> bool:
            assert self.process.poll() is None, self.output
            return "Ctrl-C" in self.output

        wait_for("the example's scheduler", serves)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def start_cluster(slurm: OneNodeSlurm, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    started: list[Cluster] = []

    def start(*options: str) -> Cluster:
        started.append(Cluster(slurm, tmp_path, *options))
        return started[-1]

    yield start
    for cluster in started:
        if cluster.process.poll() is None:
            cluster.interrupt()
        print(cluster.output)
    for log in sorted((tmp_path / "slurm-logs").glob("*")):
        print(f"--- {log.name}\n{log.read_text()[-3000:]}")
    wait_for("an empty queue", lambda: not slurm.jobs())
