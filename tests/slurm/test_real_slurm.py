"""The example on a real Slurm of one node: cells run in jobs, survive the end of their job, and jobs end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
from distributed import Client  # noqa: E402
from one_node import OneNodeSlurm, wait_for  # noqa: E402
from slurm_cells import train, where  # noqa: E402

pytestmark = pytest.mark.slurm


def listening(numbers: list[int]) -> list[str]:
    """The addresses at which these processes wait for connections."""
    psutil = pytest.importorskip("psutil")
    found = []
    for number in numbers:
        try:
            sockets = psutil.Process(number).net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found += [one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN]
    return found


def test_cells_run_in_jobs_with_a_gpu_each_and_all_ends_when_none_comes(slurm: OneNodeSlurm, start_cluster):
    cluster = start_cluster("--jobs", "2", "--cores", "2", "--idle", "0.25")
    cluster.wait_until_it_serves()
    with Client(scheduler_file=str(cluster.scheduler_file)) as client:
        executor = client.get_executor(pure=False, resources={"GPU": 1})
        futures = [executor.submit(where, 4) for _ in range(4)]
        wait_for("both jobs", lambda: len(slurm.jobs("RUNNING")) == 2)
        jobs = slurm.jobs()
        seen = [future.result(60) for future in futures]
        addresses = listening(list(slurm.processes()))
        assert {cell["SLURM_JOB_ID"] for cell in seen} == set(jobs)
        assert {cell["CUDA_VISIBLE_DEVICES"] for cell in seen} == {"0", "1"}
        assert {cell["python"] for cell in seen} == {sys.executable}
        assert {(cell["OMP_NUM_THREADS"], cell["MKL_NUM_THREADS"]) for cell in seen} == {("2", "2")}
        assert len(addresses) >= 8 and set(addresses) == {"127.0.0.1"}
    assert cluster.process.wait(60) == 0
    assert "no cell for 0.25 minutes" in cluster.output
    wait_for("an empty queue", lambda: not slurm.jobs(), 30)


def test_a_cell_whose_job_is_cancelled_saves_and_goes_on_in_a_new_job(slurm, start_cluster, tmp_path):
    cluster = start_cluster("--jobs", "1", "--cores", "1")
    cluster.wait_until_it_serves()
    log = tmp_path / "log.txt"
    with Client(scheduler_file=str(cluster.scheduler_file)) as client:
        future = client.get_executor(pure=False, resources={"GPU": 1}).submit(train, str(log))
        wait_for("the cell", lambda: log.exists() and "began" in log.read_text())
        (first,) = slurm.jobs()
        slurm("scancel", first)
        second = future.result(120)
    assert second != first
    assert slurm.jobs("RUNNING") == [second]
    assert log.read_text().splitlines() == [f"{first} began", f"{first} saved"]


def test_interrupted_it_cancels_running_and_waiting_jobs(slurm, start_cluster):
    cluster = start_cluster("--jobs", "2", "--cores", "3")
    cluster.wait_until_it_serves()
    with Client(scheduler_file=str(cluster.scheduler_file)) as client:
        executor = client.get_executor(pure=False, resources={"GPU": 1})
        futures = [executor.submit(where, 300) for _ in range(2)]
        # Two jobs of three cores do not fit into the node's four.
        wait_for("one running, one waiting", lambda: slurm.jobs("RUNNING") and slurm.jobs("PENDING"))
        wait_for("a worker", lambda: client.scheduler_info()["workers"])
        assert not any(future.done() for future in futures)
    assert cluster.interrupt() == 0
    wait_for("an empty queue", lambda: not slurm.jobs(), 30)
    assert not cluster.scheduler_file.exists()


def test_a_job_that_slurm_refuses_is_said_at_once(slurm, start_cluster):
    cluster = start_cluster("--partition", "nowhere")
    assert cluster.process.wait(60) != 0
    assert "invalid partition" in cluster.output and "refuses" in cluster.output
    assert not slurm.jobs()


def notebook(*cells: tuple[str, str]) -> str:
    """A notebook of code cells, each a tag and its source."""
    made = [
        {
            "cell_type": "code",
            "id": tag,
            "execution_count": None,
            "outputs": [],
            "metadata": {"tags": [tag]},
            "source": source,
        }
        for tag, source in cells
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": made})


def test_a_sweep_of_four_cells(slurm, start_cluster, tmp_path):
    cluster = start_cluster("--jobs", "2", "--cores", "1")
    cluster.wait_until_it_serves()
    source = tmp_path / "doubled.ipynb"
    source.write_text(notebook(("parameters", "seed = 0"), ("outcome", "seed * 2")))
    grid = tmp_path / "grid.yaml"
    grid.write_text("seed: [1, 2, 3, 4]\n")
    results = tmp_path / "results"
    command = [sys.executable, "-m", "ikdlib", "sweep", "--notebook", str(source), "--grid", str(grid)]
    command += ["--scheduler", str(cluster.scheduler_file), "--results", str(results)]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr

    with (results / "sweeps" / "doubled" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["seed"]) for row in rows) == [1, 2, 3, 4]
    for row in rows:
        assert "finished" in row.values()
        assert str(2 * int(row["seed"])) in row.values()
    assert list((tmp_path / "slurm-logs").glob("*.out")), "the cells ran somewhere else"
