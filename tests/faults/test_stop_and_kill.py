"""Real processes, real signals: whatever ends a run, the same command goes on to the same weights.

Glyphs-100 is drawn smaller here, and a run waits at a named step for what the test does to it, so nothing
depends on how fast the machine is. Waiting ends when the thing waited for happens; a test that waits for
more than `PATIENCE` has failed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ikdlib
from ikdlib import data, files
from ikdlib.data import glyphs
from ikdlib.models import build
from ikdlib.runs import Run
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec
from ikdlib.training import checkpoint
from ikdlib.training.job import Job

PATIENCE = 120  # seconds; only a broken program takes that long
PER_CLASS = (2, 1)  # 200 images to train on: 4 steps an epoch
DRIVER = f"""
import os, runpy, sys, time
from pathlib import Path
from ikdlib.data import glyphs
from ikdlib.training import trainer
glyphs.TRAIN_PER_CLASS, glyphs.TEST_PER_CLASS = {PER_CLASS}
if os.environ.get("EVERY_STEP"):
    trainer.CHECKPOINT_SECONDS = 0.0
step = trainer.Trainer._train_step
def waiting(self, *arguments):
    step(self, *arguments)
    if [self.epoch, self.step] == [int(n) for n in os.environ.get("WAIT_AT", "0,0").split(",")]:
        here = Path(os.environ["WAITING"])
        here.touch()
        while here.exists() and not self.stop():
            time.sleep(0.02)
trainer.Trainer._train_step = waiting
runpy.run_module("ikdlib", run_name="__main__")
"""


class Place:
    """Jobs, and the folder they work in."""

    def __init__(self, folder: Path, cache: Path, method: str = "dkd+ikd"):
        self.folder, self.marker = folder, folder / "waiting"
        torch.manual_seed(5)
        teacher = build("resnet8", 100)
        teacher_file = folder / "teacher.safetensors"
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in teacher.state_dict().items()}, teacher_file)
        name, _, ikd = method.partition("+")
        spec = RunSpec(
            data="glyphs100", data_sha256=glyphs.draw(*PER_CLASS).sha256, student="resnet8",
            teacher="resnet8", teacher_sha256=checkpoint.digest(teacher.state_dict()),
            method=MethodSpec(name=name, ikd=IKDSettings() if ikd else None),
            recipe=Recipe().scaled(2), seed=0, deterministic=True,
        )  # fmt: skip
        runs, slabs = str(folder / "runs"), str(folder / "slabs")
        self.job = Job(spec=spec, runs=runs, teacher=str(teacher_file), slabs=slabs, device="cpu", threads=1)
        (folder / "job.json").write_text(self.job.model_dump_json())
        (folder / "driver.py").write_text(DRIVER)
        self.environment = {
            **os.environ, "PYTHONPATH": str(Path(ikdlib.__file__).parent.parent),
            "XDG_CACHE_HOME": str(cache), "WAITING": str(self.marker), "OMP_NUM_THREADS": "1",
            "IKDLIB_COMMIT": "c" * 40,  # the checkout may move on between two processes of a test
        }  # fmt: skip
        self.environment.pop("IKDLIB_PARENT", None)
        self.children: list[subprocess.Popen] = []

    @property
    def run(self) -> Run:
        return self.job.run

    def command(self) -> list[str]:
        return [sys.executable, str(self.folder / "driver.py"), "train", "--job", f"{self.folder}/job.json"]

    def start(self, command: list[str] | None = None, **environment: str) -> subprocess.Popen:
        child = subprocess.Popen(
            command or self.command(), env={**self.environment, **environment}, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.children.append(child)
        return child

    def waits_at(self, epoch: int, step: int, **more: str) -> subprocess.Popen:
        """A process that stands still after a step, until it is signalled or the marker is gone."""
        child = self.start(WAIT_AT=f"{epoch},{step}", **more)
        until(self.marker.exists, child)
        return child

    def finishes(self) -> str:
        """Start the command, let it end well; what it printed."""
        output, _ = (child := self.start()).communicate(timeout=PATIENCE)
        assert child.returncode == 0, output
        return output

    def clear(self) -> None:
        for child in self.children:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
            child.stdout.close()


def until(condition, child: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert child.poll() is None, child.stdout.read()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache) -> str:
    """The sha256 of the weights that a run without any stop ends with."""
    place = Place(tmp_path_factory.mktemp("uninterrupted"), cache)
    place.finishes()
    return place.run.result["weights_sha256"]


@pytest.fixture
def place(tmp_path, cache):
    place = Place(tmp_path, cache)
    yield place
    place.clear()


def test_sigint_then_sigterm_then_the_end(place, uninterrupted):
    """Exit 130, then 143, a checkpoint each time; then the same command ends with the same weights."""
    for number, (epoch, step), status in ((signal.SIGINT, (1, 2), 130), (signal.SIGTERM, (2, 1), 143)):
        child = place.waits_at(epoch, step)
        child.send_signal(number)
        output, _ = child.communicate(timeout=PATIENCE)
        place.marker.unlink()
        assert child.returncode == status, output
        assert f"stopped at epoch {epoch}, step {step + 1}" in output and "same command" in output
        assert "Traceback" not in output
        assert place.run.status == "unfinished"
        assert checkpoint.read(place.run.checkpoint)[1]["epoch"] == epoch
    place.finishes()
    assert place.run.result["weights_sha256"] == uninterrupted
    assert [stop["epoch"] for stop in place.run.provenance["resumed_at"]] == [1, 2]


def test_kill_9_after_a_checkpoint(place, uninterrupted):
    """Nothing can be saved any more; the run goes on from the checkpoint before, past a stale lock."""
    child = place.waits_at(2, 2, EVERY_STEP="1")
    child.kill()
    child.wait()
    place.marker.unlink()
    facts = checkpoint.read(place.run.checkpoint)[1]
    assert (facts["epoch"], facts["step"]) == (2, 2), "steps 1 and 2 were saved, step 3 was not"
    assert Path(place.job.runs, f"{place.run.spec.run_id}.lock").exists()
    place.finishes()
    assert place.run.result["weights_sha256"] == uninterrupted
    assert place.run.provenance["resumed_at"] == [{"epoch": 2, "step": 2}]


def test_a_run_dies_with_its_parent(place):
    """It saves, lets go of its lock and ends: a pool that was killed leaves nothing at work."""
    command = f"'{sys.executable}' driver.py train --job job.json & wait"
    parent = place.start(["sh", "-c", command], WAIT_AT="1,1")
    until(place.marker.exists, parent)
    os.kill(parent.pid, signal.SIGKILL)
    output, _ = parent.communicate(timeout=PATIENCE)  # the pipe closes when the child has ended too
    assert "stopped at epoch 1, step 2" in output
    assert checkpoint.read(place.run.checkpoint)[1]["step"] == 2
    place.run.lock(wait=False).release()


def test_a_second_process_waits_and_says_so(place, uninterrupted):
    """Then it finds the run finished and leaves it alone."""
    first = place.waits_at(1, 0)
    second = place.start()
    said = second.stdout.readline()
    assert "another process is at this run; waiting" in said
    place.marker.unlink()
    output, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, output
    written = (place.run.folder / "result.json").stat().st_mtime_ns
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0 and "finished before" in output
    assert (place.run.folder / "result.json").stat().st_mtime_ns == written
    assert place.run.result["weights_sha256"] == uninterrupted


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_waits_for_another_can_be_stopped(place, number, status):
    lock = place.run.lock(wait=False)
    child = place.start()
    assert "another process is at this run; waiting" in child.stdout.readline()
    child.send_signal(number)
    output, _ = child.communicate(timeout=PATIENCE)
    lock.release()
    assert child.returncode == status and "stopped while another process was at it" in output
    assert not list(place.run.folder.iterdir())


def test_a_child_whose_parent_died_before_it_could_ask_stops_all_the_same(place):
    """Its pool was killed while torch was still being imported: its parent is another by then."""
    child = place.start(IKDLIB_PARENT=str(2**22 - 1), WAIT_AT="1,1")
    output, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 143 and "stopped before its first step" in output, output


def test_a_lock_file_that_nobody_holds_does_not_block(place):
    place.run.root.mkdir(parents=True)
    (place.run.root / f"{place.run.spec.run_id}.lock").write_text("4242")
    lock = place.run.lock(wait=False)
    assert lock.is_locked
    lock.release()


def test_the_command_itself_on_the_whole_data_set(place, monkeypatch):
    """No driver: `python -m ikdlib train --job FILE`, stopped as soon as it tells how far it is."""
    spec = place.job.spec.updated(data_sha256=data.load("glyphs100").sha256)
    job = place.job.updated(spec=spec)
    (place.folder / "whole.json").write_text(job.model_dump_json())
    command = [sys.executable, "-m", "ikdlib", "train", "--job", "whole.json"]
    without_cache = {k: v for k, v in place.environment.items() if k != "XDG_CACHE_HOME"}
    monkeypatch.setattr(place, "environment", without_cache)
    child = place.start(command)
    until((job.run.folder / "progress.json").exists, child)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, output
    assert job.run.status == "unfinished" and checkpoint.read(job.run.checkpoint)


def test_ctrl_c_in_the_middle_of_a_table(place, monkeypatch):
    """Command, notebook, kernel, child: all end, the run is saved, and one line says how to go on."""
    without_cache = {k: v for k, v in place.environment.items() if k != "XDG_CACHE_HOME"}
    monkeypatch.setattr(place, "environment", without_cache)
    asked = "--profile demo --pairs resnet8/resnet8 --methods ce --seeds 1 --device cpu --results results"
    child = place.start([sys.executable, "-m", "ikdlib", "table", *asked.split()])
    folder = place.folder / "results" / "demo" / "runs"
    until(lambda: any(folder.glob("*/progress.json")), child)
    (told,) = folder.glob("*/progress.json")
    trainer = json.loads(told.read_text())["pid"]
    os.killpg(child.pid, signal.SIGINT)  # what a terminal does: to make and to the command, as one group
    output, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, output
    assert "ikdlib: stopped; the same command goes on from there" in output
    assert "Traceback" not in output and "never retrieved" not in output and "100%" not in output
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)
    assert checkpoint.read(told.parent / "checkpoint.safetensors")[1]["epoch"] >= 1
    left = {path.parent.name for path in place.folder.rglob("*.ipynb")}
    assert left == {"sources"}, "neither an executed notebook nor a failed one"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_old_one(tmp_path, moment):
    """A process that is gone at the worst moment: what lies there is whole, and is the one before."""
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, {"weight": torch.ones(1000)}, {"step": 1})
    child = os.fork()
    if child == 0:
        setattr(os, moment, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        try:
            checkpoint.write(path, {"weight": torch.zeros(1000)}, {"step": 2})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    tensors, facts = checkpoint.read(path)
    assert facts == {"step": 1} and bool((tensors["weight"] == 1).all())


def test_a_kill_right_after_the_rename_leaves_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, {"weight": torch.ones(3)}, {"step": 1})
    replace = os.replace

    def replace_and_die(*arguments):
        replace(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_and_die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(path, {"weight": torch.zeros(3)}, {"step": 2})
    assert checkpoint.read(path)[1] == {"step": 2}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, moment):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    files.write_text(tmp_path / "history.csv", "old")
    monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(tmp_path / "history.csv", "new")
    monkeypatch.undo()
    assert (tmp_path / "history.csv").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


def test_the_job_file_is_the_whole_job(place):
    """What a pool writes is what the command reads."""
    text = (place.folder / "job.json").read_text()
    assert Job.from_json(text) == place.job
    assert json.loads(text)["spec"]["student"] == "resnet8"
