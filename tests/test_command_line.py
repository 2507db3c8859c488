"""`python -m ikdlib`: what a user can get wrong ends with one line and status 2."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ikdlib import __main__, methods, models


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """The program in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ikdlib", *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


@pytest.fixture
def fails(tmp_path, monkeypatch, capfd):
    """`fails(...)`: the one line that a command ends with, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def check(*arguments: str) -> str:
        try:
            status = __main__.main([*arguments])
        except SystemExit as stop:  # argparse's way
            status = stop.code
        said = capfd.readouterr().err
        assert status == 2, said
        assert "Traceback" not in said
        assert len(said.strip().splitlines()) == 1, said
        return said

    return check


def folder_of(tmp_path, name: str, saved_as: str, classes: int = 100) -> str:
    torch.manual_seed(0)
    torch.save(models.build(name, classes).state_dict(), tmp_path / f"{saved_as}.pth")
    return str(tmp_path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--precision", "fp61"], "precision"),
        (["--profile", "papr"], "profile"),
        (["--epochs", "ten"], "epochs: 'ten'"),
        (["--epochs", "-1"], "epochs"),
        (["--seeds", "one"], "seeds: 'one'"),
        (["--methods", "kd,dkdd"], "did you mean dkd"),
        (["--methods", "kd+ikdd"], "+ikd"),
        (["--pairs", "resnet65/resnet20"], "did you mean"),
        (["--pairs", "resnet56"], "teacher/student"),
        (["--jobs", "x"], "jobs: 'x'"),
        (["--protocol", "released!"], "protocol"),
    ],
)
def test_a_misspelt_value(fails, arguments, said):
    assert said in fails("table", "--dry", *arguments)


@pytest.mark.parametrize("option", ["--paars", "--lr"])
def test_a_misspelt_setting(fails, option):
    assert option in fails("table", "--dry", option, "resnet56/resnet20")


def test_a_misspelt_command(fails):
    assert "tabel" in fails("tabel")


def test_a_missing_data_folder(fails):
    said = fails("table", "--profile", "short", "--dry", "--data", "nowhere")
    assert "nowhere" in said
    assert "nowhere" in fails("data", "--data", "nowhere")


def test_data_that_was_never_fetched(fails):
    assert "make data" in fails("table", "--profile", "short", "--dry")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_cuda_without_cuda(fails):
    assert "DEVICE=cpu" in fails("table", "--profile", "demo", "--device", "cuda", "--dry")


def test_a_wrong_teacher_file(fails, tmp_path):
    given = folder_of(tmp_path, "resnet20", "resnet14")
    said = fails("table", "--profile", "demo", "--pairs", "resnet14/resnet8", "--dry", "--teachers", given)
    assert "resnet14.pth" in said and "resnet20" in said


def test_a_teacher_of_other_classes_and_a_damaged_one(fails, tmp_path):
    given = folder_of(tmp_path, "resnet14", "resnet14", classes=10)
    assert "10 classes" in fails(
        "table", "--profile", "demo", "--pairs", "resnet14/resnet8", "--dry", "--teachers", given
    )
    (tmp_path / "resnet14.pth").write_bytes(b"not weights")
    assert "cut off or not" in fails(
        "table", "--profile", "demo", "--pairs", "resnet14/resnet8", "--dry", "--teachers", given
    )


def test_a_teachers_folder_that_is_not_there(fails):
    assert "not a folder" in fails("table", "--profile", "demo", "--dry", "--teachers", "nowhere")


@pytest.mark.parametrize(
    "job, said",
    [(None, "job.json"), ("{}", "spec"), ("{", "Job"), ('{"spec": {"seeed": 1}, "runs": "x"}', "seed")],
)
def test_a_job_that_is_none(fails, tmp_path, job, said):
    if job is not None:
        (tmp_path / "job.json").write_text(job)
    assert said in fails("train", "--job", "job.json")


def test_methods_lists_everything(capsys):
    assert __main__.main(["methods"]) == 0
    listed = capsys.readouterr().out
    for name in methods.names():
        assert any(line.startswith(f"{name} ") for line in listed.splitlines()), name
        for setting in methods.settings_class(name).model_fields:
            assert f" {setting} " in listed
    for name in models.names():
        assert name in listed


def test_a_file_that_cannot_be_written(fails, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "results/table.md")

    monkeypatch.setattr("ikdlib.studies.plan.dry_run", full)
    assert fails("table", "--dry") == "ikdlib: results/table.md: No space left on device\n"


def test_ctrl_c_is_130_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ikdlib.studies.plan.dry_run", interrupted)
    assert __main__.main(["table", "--dry"]) == 130
    assert "goes on" in capsys.readouterr().err


def test_the_program_itself_ends_with_one_line_and_2(tmp_path):
    """The same in a process of its own."""
    told = run("table", "--dry", "--methods", "kdd", cwd=tmp_path)
    assert told.returncode == 2 and told.stdout == ""
    assert told.stderr.startswith("ikdlib: methods: kdd") and len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["methods"], ["table", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_read_enough_is_no_error(arguments, unbuffered):
    """As `| head -3`: its end of the pipe is closed."""
    ours, theirs = os.pipe()
    os.close(ours)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "ikdlib", *arguments]
    told = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(theirs)
    assert told.stderr == ""
    # argparse itself passes over a help that nobody reads, where nothing is buffered.
    assert told.returncode == 1 or (unbuffered and "--help" in arguments)


def test_help_names_every_command_and_setting(capsys):
    from ikdlib.studies.study import StudySettings

    for arguments in (["--help"], ["table", "--help"]):
        with pytest.raises(SystemExit) as stop:
            __main__.main(arguments)
        assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("train", "table", "data", "methods"))
    assert all(f"--{name}" in shown for name in StudySettings.model_fields)
