"""The job script that the example has dask-jobqueue write: what a user asks for, Slurm and Dask can read."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "slurm" / "cluster.py"


def script(folder: Path, *options: str) -> list[str]:
    command = [sys.executable, str(EXAMPLE), "--show", "--interface", "lo", *options]
    return subprocess.run(
        command, cwd=folder, text=True, capture_output=True, check=True, timeout=120
    ).stdout.splitlines()


def directives(lines: list[str]) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]


def worker(lines: list[str]) -> dict:
    """What the installed Dask makes of the worker's command line; it refuses options it does not have."""
    from distributed.cli.dask_worker import main

    (command,) = [shlex.split(line) for line in lines if "dask_worker" in line]
    assert command[:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    return main.make_context("dask-worker", command[3:]).params


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[str]:
    options = ["--cores", "8", "--memory", "32GiB", "--gpus", "2", "--walltime", "12:00:00"]
    options += ["--partition", "gpu", "--account", "lab", "--directive=--qos=low", "--logs", "out"]
    options += ["--setup", "module load cuda", "--setup", "export IKDLIB_CACHE=/scratch"]
    return script(tmp_path_factory.mktemp("asked"), *options)


def test_slurm_reserves_what_was_asked_for(asked):
    wanted = ["-p gpu", "-A lab", "-n 1", "--cpus-per-task=8", "--mem=32G", "-t 12:00:00", "--gres=gpu:2"]
    wanted += ["--qos=low", "-J ikdlib", "-e out/ikdlib-%J.err", "-o out/ikdlib-%J.out"]
    assert sorted(directives(asked)) == sorted(wanted)


def test_without_a_choice_slurm_chooses_partition_and_account(tmp_path):
    wanted = ["-n 1", "--cpus-per-task=4", "--mem=16G", "-t 04:00:00", "--gres=gpu:1", "-J ikdlib"]
    wanted += ["-e slurm-logs/ikdlib-%J.err", "-o slurm-logs/ikdlib-%J.out"]
    assert sorted(directives(script(tmp_path))) == sorted(wanted)


def test_a_job_is_one_worker_with_a_thread_for_each_gpu(asked):
    options = worker(asked)
    assert options["nthreads"] == 2
    assert not options["n_workers"] or int(options["n_workers"]) == 1
    assert options["resources"] == "GPU=2"
    assert options["interface"] == "lo"
    assert options["memory_limit"] == "32.00GiB"
    assert options["death_timeout"] == "120s"
    assert options["dashboard_address"] == "127.0.0.1:0"


def test_cells_can_share_a_gpu_and_share_the_cores(tmp_path):
    lines = script(tmp_path, "--gpus", "1", "--cells", "3", "--cores", "7")
    assert worker(lines)["nthreads"] == 3
    assert worker(lines)["resources"] == "GPU=1"
    assert "export OMP_NUM_THREADS=2" in lines
    assert "--cpus-per-task=7" in directives(lines)


def test_a_worker_without_gpus_runs_one_cell_and_reserves_none(tmp_path):
    lines = script(tmp_path, "--gpus", "0")
    assert worker(lines)["nthreads"] == 1
    assert "export OMP_NUM_THREADS=4" in lines
    assert not worker(lines)["resources"]
    assert not [line for line in directives(lines) if "gpu" in line]


def test_the_worker_starts_last_with_the_environment_set_up(asked):
    (command,) = [line for line in asked if "dask_worker" in line]
    commands = [line for line in asked if line and not line.startswith("#")]
    assert commands[-1] == command
    assert commands[:2] == ["module load cuda", "export IKDLIB_CACHE=/scratch"]
    for library in ("OMP", "MKL", "OPENBLAS"):
        assert f"export {library}_NUM_THREADS=4" in commands


def test_bash_can_read_it(asked):
    assert asked[0] == "#!/usr/bin/env bash"
    subprocess.run(["bash", "-n"], input="\n".join(asked), text=True, check=True)


def test_showing_it_leaves_a_running_clusters_scheduler_file_alone(tmp_path):
    other = tmp_path / "scheduler.json"
    other.write_text("another cluster's")
    script(tmp_path)
    assert other.read_text() == "another cluster's"
