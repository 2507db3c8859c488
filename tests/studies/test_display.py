"""What a user sees of running cells: their lines, the time left, and the same in a second terminal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from ikdlib import files, status
from ikdlib.studies import display
from ikdlib.studies.cell import Task
from ikdlib.studies.dispatch import Piece, Summary
from ikdlib.studies.display import Display


@pytest.fixture
def piece(tmp_path):
    def make(name: str, epochs: float = 0.0) -> Piece:
        task = Task(id=name, folder=str(tmp_path), notebook="none", digest="0", parameters={})
        return Piece(task, name, epochs)

    return make


def tell(piece: Piece, folder, **progress) -> None:
    """What a training in the cell says of itself."""
    run = folder / "runs" / piece.task.id
    usual = {
        "epoch": 1,
        "epochs": 4,
        "step": 0,
        "steps": 10,
        "seconds": 0.0,
        "train_loss": None,
        "test_top1": None,
    }
    files.write_json(run / "progress.json", usual | progress)
    files.write_json(piece.task.status_file, {"run": str(run), "warnings": []})


def state(folder) -> dict:
    return json.loads(display.progress_file(folder).read_text())


def test_a_running_cell_has_a_line_of_epoch_loss_and_accuracy(tmp_path, piece):
    one, other = piece("kd s1"), piece("quiet")
    shown = Display("a sweep", tmp_path)
    shown.begin([one, other], before=3)
    shown.started(one)
    shown.started(other)
    tell(one, tmp_path, epoch=3, step=5, seconds=50.0, train_loss=2.34567, test_top1=45.25)
    shown.show([one, other], Summary(5, done=3))
    found = state(tmp_path)
    assert found["running"] == ["kd s1: epoch 3/4, loss 2.346, top-1 45.25", "quiet: 0:00"]
    assert (found["cells"], found["done"], found["failed"]) == (5, 3, 0)
    assert found["part"] == pytest.approx((3 + 2.5 / 4) / 5, abs=1e-4)


def test_the_time_left_follows_from_measured_epochs(tmp_path, piece):
    """20 s an epoch: 1.5 of 4 are left of the one, 4 of the other, which are done two at a time."""
    one, other = piece("a", 4), piece("b", 4)
    shown = Display("a sweep", tmp_path, lambda: 2)
    shown.begin([one, other], before=0)
    tell(one, tmp_path, epoch=3, step=5, seconds=50.0)
    shown.show([one], Summary(2))
    assert state(tmp_path)["seconds_left"] == pytest.approx(4 * 20), "the longer of them is the end"
    third = piece("c", 4)
    shown.begin([one, other, third], before=0)
    time.sleep(display.EVERY)
    shown.show([one], Summary(3))
    assert state(tmp_path)["seconds_left"] == pytest.approx((1.5 * 20 + 4 * 20 + 4 * 20) / 2)


def test_longer_runs_count_for_more(tmp_path, piece):
    one, other = piece("a", 4), piece("b", 40)
    shown = Display("a sweep", tmp_path)
    shown.begin([one, other], before=0)
    tell(one, tmp_path, epoch=3, step=0, seconds=20.0)
    shown.show([one], Summary(2))
    assert state(tmp_path)["seconds_left"] == pytest.approx(2 * 10 + 40 * 10)


def test_cells_that_tell_nothing_are_measured_whole(tmp_path, piece, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    pieces = [piece(name) for name in "abc"]
    shown = Display("a sweep", tmp_path)
    shown.begin(pieces, before=0)
    shown.started(pieces[0])
    shown.show(pieces[:1], Summary(3))
    assert state(tmp_path)["seconds_left"] is None, "nothing is known yet, and nothing is made up"
    clock[0] += 30
    shown.ended(pieces[0])
    shown.started(pieces[1])
    shown.show(pieces[1:2], Summary(3, done=1))
    assert state(tmp_path)["seconds_left"] == pytest.approx(2 * 30)


def test_a_cell_that_is_tried_again_is_not_done(tmp_path, piece, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    one = piece("a")
    shown = Display("a sweep", tmp_path)
    shown.begin([one], before=0)
    parts = []
    for happens, running in ((shown.started, [one]), (shown.ended, []), (shown.started, [one])):
        clock[0] += 2
        happens(one)
        shown.show(running, Summary(1))
        parts.append(state(tmp_path)["part"])
    assert parts == [0.0, 1.0, 0.0]


def test_cells_that_fail_at_once_say_nothing_of_the_others(tmp_path, piece, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    pieces = [piece(name) for name in "abc"]
    shown = Display("a sweep", tmp_path)
    shown.begin(pieces, before=0)
    for one, seconds, failed in zip(pieces, (1, 100, 0), (True, False, False), strict=True):
        shown.started(one)
        clock[0] += seconds
        if one is not pieces[-1]:
            shown.ended(one, failed)
    shown.show(pieces[-1:], Summary(3))
    assert state(tmp_path)["seconds_left"] == pytest.approx(100)


def test_a_long_name_leaves_room_for_the_numbers(tmp_path, piece):
    one = piece("x" * 100 + " seed=1")
    shown = Display("a sweep", tmp_path)
    shown.begin([one], before=0)
    shown.started(one)
    shown.show([one], Summary(1))
    (line,) = state(tmp_path)["running"]
    assert len(line) < 50 and line.endswith(" seed=1: 0:00")


def test_a_log_gets_a_line_now_and_then(tmp_path, piece, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    shown = Display("a sweep", tmp_path)
    shown.begin([piece("a")], before=0)
    for _ in range(70):
        clock[0] += 1
        shown.show([], Summary(1))
    assert capsys.readouterr().err.count("a sweep: 0 %, 0/1 cells") == 3
    shown.end(Summary(1, done=1))
    assert capsys.readouterr().err.count("1/1 cells") == 1
    assert display.progress_file(tmp_path).exists(), "the command may go on with other cells"
    display.forget(tmp_path)
    assert not display.progress_file(tmp_path).exists()


def test_a_terminal_gets_a_bar_and_lines(tmp_path, piece, monkeypatch, capsys):
    monkeypatch.setattr(display.sys.stderr, "isatty", lambda: True, raising=False)
    one = piece("kd s1", 4)
    shown = Display("a sweep", tmp_path)
    shown.begin([one], before=0)
    tell(one, tmp_path, epoch=3, step=0, seconds=20.0)
    shown.show([one], Summary(1))
    drawn = capsys.readouterr().err
    assert "a sweep:  50% |" in drawn and "0/1 cells, 0:20 left" in drawn and "  kd s1: epoch 3/4" in drawn
    shown.end(Summary(1, done=1))


def test_a_second_terminal_sees_it_until_it_ends(tmp_path, piece, monkeypatch, capsys):
    monkeypatch.setattr(display, "EVERY_IN_A_LOG", 0.01)
    shown = Display("a sweep", tmp_path)
    shown.begin([piece("a")], before=0)
    shown.started(piece("a"))
    shown.show([piece("a")], Summary(1))
    watcher = threading.Thread(target=display.watch, args=(tmp_path,))
    watcher.start()
    time.sleep(0.2)
    assert watcher.is_alive()
    shown.end(Summary(1, done=1))
    Display("another of its phases", tmp_path).begin([piece("b")], before=0)
    time.sleep(0.7)
    assert watcher.is_alive()
    display.forget(tmp_path)
    watcher.join(30)
    assert not watcher.is_alive()
    said = capsys.readouterr().out
    assert "a sweep: 0 %, 0/1 cells\n  a: 0:00" in said and said.endswith("it has ended\n")


def test_what_was_killed_is_not_watched_for_ever(tmp_path, piece, capsys):
    display.watch(tmp_path)
    assert "nothing runs there now" in capsys.readouterr().out
    shown = Display("a sweep", tmp_path)
    shown.begin([piece("a")], before=0)
    shown.show([], Summary(1))
    long_ago = time.time() - 2 * display.SILENT
    path = display.progress_file(tmp_path)
    os.utime(path, (long_ago, long_ago))
    display.watch(tmp_path)
    assert "nothing runs there now" in capsys.readouterr().out
    dead = subprocess.Popen(["true"])
    dead.wait()
    path.rename(path.with_name(f"progress-{socket.gethostname()}-{dead.pid}.json")).touch()
    display.watch(tmp_path)
    assert "nothing runs there now" in capsys.readouterr().out, "its process is gone from this machine"


def test_another_users_command_is_left_alone(tmp_path, piece, monkeypatch):
    def forbidden(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    shown = Display("a sweep", tmp_path)
    shown.begin([piece("a")], before=0)
    shown.show([], Summary(1))
    monkeypatch.setattr(display.os, "kill", forbidden)
    Display("mine", tmp_path).begin([piece("b")], before=0)
    assert display.progress_file(tmp_path).exists() and display._read(display.progress_file(tmp_path))


def test_warnings_are_passed_on_once(tmp_path, piece, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    pieces = [piece("a"), piece("b")]
    shown = Display("a sweep", tmp_path)
    shown.begin(pieces, before=0)
    for one in pieces:
        shown.started(one)
        monkeypatch.setenv(status.FILE, str(one.task.status_file))
        status.tell(warning="the teacher knows nothing")
    for _ in range(3):
        clock[0] += 2
        shown.show(pieces, Summary(2))
    assert capsys.readouterr().err.count("ikdlib: warning: the teacher knows nothing\n") == 1


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_the_clock(seconds, text):
    assert display._clock(seconds) == text
