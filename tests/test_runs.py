"""A run folder: what stands in it, in which order it comes, and what is refused."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikdlib import files, runs
from ikdlib.errors import IkdError
from ikdlib.runs import Run
from ikdlib.spec import MethodSpec, RunSpec

SPEC = RunSpec(data="cifar100", data_sha256="a" * 64, student="resnet8", method=MethodSpec(name="ce"), seed=0)
OTHER = SPEC.updated(seed=1)
ROWS = [
    {"epoch": 1, "learning_rate": 0.05, "train_loss": 0.1 + 0.2},
    {"epoch": 2, "learning_rate": 5e-324, "train_loss": 1 / 3, "part_ikd": 1e300},
]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "runs", SPEC)


def finished(run: Run) -> Run:
    run.begin()
    run.write_history(ROWS)
    files.write_json(run.folder / "provenance.json", {"format_version": 1, "versions": {}})
    run.finish({"status": "finished"})
    return run


def test_the_stations_of_a_run(run):
    assert run.status == "missing" and not run.folder.exists()
    run.begin()
    assert run.status == "missing", "nothing to go on from yet"
    run.checkpoint.write_bytes(b"")
    assert run.status == "unfinished"
    run.write_history(ROWS)
    assert run.status == "unfinished"
    run.finish({"status": "finished"})
    assert run.status == "finished"
    other = Run(run.root, OTHER)
    other.begin()
    other.finish({"status": "diverged"})
    assert other.status == "diverged"


def test_result_is_written_last_and_names_the_others(run, monkeypatch):
    run.begin()
    run.write_history(ROWS)
    (run.folder / "progress.json").write_text('{"epoch": 2}')
    run.checkpoint.write_bytes(b"a checkpoint does not stay")
    written: list[str] = []
    monkeypatch.setattr(files, "write_bytes", lambda path, content: written.append(path.name))
    run.finish({"status": "finished"})
    monkeypatch.undo()
    assert written == ["result.json"]
    run.finish({"status": "finished"})
    assert run.progress is None
    digests = run.result["files_sha256"]
    assert digests == {n: files.sha256(run.folder / n) for n in ("spec.json", "history.csv")}


def test_begin_is_written_once_and_refuses_another_spec(run):
    run.begin()
    before = (run.folder / "spec.json").read_bytes()
    run.begin()
    assert (run.folder / "spec.json").read_bytes() == before
    assert runs.read(run.folder) == run
    other = {"format_version": 1, **json.loads(OTHER.model_dump_json())}
    files.write_json(run.folder / "spec.json", other)
    with pytest.raises(IkdError, match="another spec lies in this folder"):
        run.begin()


def test_runs_are_found_in_order_finished_or_not(tmp_path, run):
    specs = [SPEC.updated(seed=seed) for seed in (2, 0, 1)]
    for spec in specs:
        Run(run.root, spec).begin()
    finished(run)
    (run.root / "stray").mkdir()
    (run.root / "file.lock").touch()
    found = list(runs.find(run.root))
    assert [r.folder.name for r in found] == sorted(spec.run_id for spec in specs)
    assert [r.status for r in found].count("finished") == 1
    assert list(runs.find(tmp_path / "nowhere")) == []


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_history_reads_back_to_the_bit(tmp_path_factory, value):
    run = Run(tmp_path_factory.mktemp("history"), SPEC)
    run.write_history([{"epoch": 1, "train_loss": value, "x": 0.5}])
    assert float(run.history["train_loss"][0]).hex() == value.hex()


def test_a_part_that_begins_later_is_empty_before(run):
    run.write_history(ROWS)
    history = run.history
    assert list(history) == ["epoch", "learning_rate", "train_loss", "part_ikd"]
    assert math.isnan(history["part_ikd"][0]) and history["part_ikd"][1] == 1e300
    assert b"\r" not in (run.folder / "history.csv").read_bytes()


@pytest.mark.parametrize("name", ["spec.json", "result.json", "provenance.json", "history.csv"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "empty"])
def test_a_damaged_folder_says_so_in_one_line(run, name, damage):
    finished(run)
    path = run.folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:25] if damage == "cut off" and name != "history.csv" else b"")
    read = {
        "spec.json": lambda: runs.read(run.folder), "result.json": lambda: run.result,
        "provenance.json": lambda: run.provenance, "history.csv": lambda: run.history,
    }[name]  # fmt: skip
    with pytest.raises(IkdError) as caught:
        read()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_files_are_named(run):
    finished(run)
    assert runs.damaged_files(run) == []
    (run.folder / "provenance.json").write_text("{}")
    (run.folder / "history.csv").unlink()
    assert runs.damaged_files(run) == ["provenance.json", "history.csv"]


def test_the_lock_is_for_one(run):
    lock = run.lock(wait=False)
    with pytest.raises(IkdError, match="another process is at this run"):
        run.lock(wait=False)
    Run(run.root, OTHER).lock(wait=False).release()
    lock.release()
    run.lock(wait=False).release()


def test_who_waits_for_a_run_can_be_stopped(run):
    lock, said, asked = run.lock(wait=False), [], iter([False, True])
    assert run.lock(say=said.append, stop=lambda: next(asked)) is None
    assert said == [f"{run.spec.run_id}: another process is at this run; waiting for it"]
    lock.release()
    assert run.lock(say=said.append).is_locked and len(said) == 1


def test_what_a_killed_process_had_half_written_goes_with_the_next_lock(run):
    run.folder.mkdir(parents=True)
    half = [run.folder / f".{name}.x7.tmp" for name in ("checkpoint.safetensors", "history.csv")]
    for path in half:
        path.write_bytes(b"half")
    whole = run.folder / "history.csv"
    whole.write_text("epoch\n")
    lock = run.lock(wait=False)
    assert list(run.folder.iterdir()) == [whole]
    half[0].write_bytes(b"another process's")
    with pytest.raises(IkdError):
        run.lock(wait=False)
    assert half[0].exists()
    lock.release()


def test_nan_does_not_get_into_json(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        files.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_results_are_as_readable_as_any_file(tmp_path):
    """A temporary file is 0600; what a colleague should read follows the umask."""
    program = "import os, pathlib; from ikdlib import files; files.write_text(pathlib.Path('a'), 'text')"
    program += "; assert os.umask(0) == 0o027, 'the umask is as it was'"
    code = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent)}
    shell = ["sh", "-c", 'umask 027; exec "$0" -c "$1"', sys.executable, program]
    subprocess.run(shell, cwd=tmp_path, env=code, check=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_progress_that_is_half_written_is_none(run):
    run.begin()
    assert run.progress is None
    (run.folder / "progress.json").write_text('{"epoch": ')
    assert run.progress is None
    (run.folder / "progress.json").write_text('{"epoch": 3}')
    assert run.progress == {"epoch": 3}
