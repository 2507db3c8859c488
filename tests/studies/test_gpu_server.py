"""A server that lets runs share a GPU: started for a pool, found by its children, and never left behind.

NVIDIA's program needs a GPU; one that does what its manual says of ``-d`` and ``quit`` takes its place here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ikdlib.studies import gpu_server, pool
from ikdlib.studies.gpu_server import GpuServer
from ikdlib.studies.pool import LocalPool, Slots

CONTROL = """#!/bin/sh
if [ "$1" = -d ]; then
    [ -e {folder}/broken ] && exit 1
    echo "started, sees ${{CUDA_VISIBLE_DEVICES-all}}" >> {folder}/log
    touch "$CUDA_MPS_PIPE_DIRECTORY/control"
else
    read -r line
    echo "$line $(ls $CUDA_MPS_PIPE_DIRECTORY)" >> {folder}/log
fi
"""


@pytest.fixture
def control(tmp_path, monkeypatch):
    """The folder of a stand-in for the program, on the PATH; its ``log`` says what was asked of it."""
    program = tmp_path / "bin" / gpu_server.CONTROL
    program.parent.mkdir()
    program.write_text(CONTROL.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv(gpu_server.PIPES, raising=False)
    monkeypatch.delenv(gpu_server.SWITCH, raising=False)
    monkeypatch.setattr(gpu_server, "USERS_OWN", str(tmp_path / "nobody's"))
    monkeypatch.setattr(gpu_server, "CLIENT", "pass")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gpu_server.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def left(folder: Path) -> list[Path]:
    return list(folder.glob("ikdlib-mps-*"))


def test_it_is_there_until_it_is_closed(control, monkeypatch):
    """All GPUs are its: children name theirs by this process's numbers, which it would count anew."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    server = GpuServer(8)
    assert Path(server.environment[gpu_server.PIPES]) in left(control)
    assert log(control) == ["started, sees all"]
    server.close()
    assert log(control)[1:] == ["quit -t 10 control"] and left(control) == [] and server.environment == {}
    server.close()


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_it_goes_with_the_process_that_started_it(control, how):
    end = f"os.kill(os.getpid(), {int(signal.SIGKILL)})" if how == "killed" else "sys.exit(1)"
    program = f"""
import os, sys
from ikdlib.studies import gpu_server
gpu_server.USERS_OWN, gpu_server.CLIENT = "{control}/nobody's", "pass"
server = gpu_server.GpuServer(8)
print(len(server.environment), flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
    until = time.monotonic() + 30
    while left(control) and time.monotonic() < until:
        time.sleep(0.05)
    assert log(control) == ["started, sees all", "quit -t 10 control"] and left(control) == []


def test_each_run_gets_twice_its_part_of_the_processors(control, monkeypatch):
    """Unless the user says how much."""
    assert [gpu_server.part(runs) for runs in (2, 3, 4, 8, 16)] == [100, 67, 50, 25, 13]
    monkeypatch.delenv(gpu_server.PART, raising=False)
    with gpu_server.shared(8) as environment:
        assert environment[gpu_server.PART] == "25"
    monkeypatch.setenv(gpu_server.PART, "40")
    with LocalPool(Slots(8, packed=4)) as packed:
        assert packed.shares_gpu[gpu_server.PART] == "40"
    monkeypatch.delenv(gpu_server.PART)
    with LocalPool(Slots(8, packed=4)) as packed:
        assert packed.environment[gpu_server.PART] == "50", "eight on two GPUs"
    with LocalPool(Slots(8, packed=8)) as packed:
        for per_cent in ("25", "50", "100", "100"):
            assert packed.environment[gpu_server.PART] == per_cent
            packed.fewer()
    with gpu_server.shared(1) as environment:
        assert environment == {}


def test_a_users_own_is_used_and_left_alone(control, monkeypatch):
    monkeypatch.setenv(gpu_server.PIPES, "/somewhere")
    assert GpuServer(8).environment == {}, "children inherit where it is"
    monkeypatch.delenv(gpu_server.PIPES)
    monkeypatch.setattr(gpu_server, "USERS_OWN", str(control))
    assert GpuServer(8).environment == {} and log(control) == []


def test_it_can_be_switched_off(control, monkeypatch):
    monkeypatch.setenv(gpu_server.SWITCH, "off")
    assert GpuServer(8).environment == {} and log(control) == []


def test_where_it_is_missing_does_not_start_or_serves_nobody_runs_take_turns(control, monkeypatch):
    (control / "broken").touch()
    assert GpuServer(8).environment == {} and left(control) == []
    (control / "broken").unlink()
    monkeypatch.setattr(gpu_server, "CLIENT", "raise SystemExit(805)")
    assert GpuServer(8).environment == {} and left(control) == []
    assert log(control) == ["started, sees all", "quit -t 10 control"], "not left running"
    monkeypatch.setenv("PATH", "/nowhere")
    server = GpuServer(8)
    assert server.environment == {}
    server.close()


def test_a_driver_that_hangs_is_not_waited_for(control, monkeypatch):
    monkeypatch.setattr(gpu_server, "PATIENCE", 0.2)
    program = control / "bin" / gpu_server.CONTROL
    program.write_text(program.read_text().replace("read -r line", "exec sleep 60"))
    server, began = GpuServer(8), time.monotonic()
    server.close()
    assert time.monotonic() - began < 30 and left(control) == []
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    assert GpuServer(8).environment == {} and time.monotonic() - began < 30 and left(control) == []


def test_a_full_disk_lets_runs_take_turns(control, monkeypatch):
    def full(prefix: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gpu_server.tempfile, "mkdtemp", full)
    assert GpuServer(8).environment == {} and log(control) == []


def test_a_pool_has_one_where_its_children_share_a_gpu(control, monkeypatch):
    monkeypatch.setattr(pool, "choose_device", lambda name: torch.device("cuda" if name == "cuda" else "cpu"))
    monkeypatch.setattr(pool, "_gpus", lambda: ("0", "1"))
    monkeypatch.setattr(pool.memory, "fitting", lambda workers, *_: workers)
    monkeypatch.setattr(pool.memory, "gpu_share", lambda *_: 0.5)
    assert [pool.share_out(count, "cuda", 8).packed for count in (1, 2, 3, 8)] == [0, 0, 2, 4]
    assert not pool.share_out(2, "cpu", 8).packed
    with LocalPool(Slots(2, packed=2)) as packed:
        assert packed.environment[gpu_server.PIPES] == packed.shares_gpu[gpu_server.PIPES]
        assert left(control)
    assert log(control)[-1] == "quit -t 10 control" and left(control) == []
    with LocalPool(Slots(2)) as apart:
        assert gpu_server.PIPES not in apart.environment and apart.shares_gpu == {}
    stopped = LocalPool(Slots(2, packed=2))
    stopped.stop()
    assert left(control) == []
