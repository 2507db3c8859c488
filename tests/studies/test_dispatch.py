"""The loop over cells, on an engine that only pretends: what is tried again, counted, or ends it."""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path

import pytest
from filelock import FileLock

from ikdlib import files
from ikdlib.errors import IkdError
from ikdlib.studies import children, dispatch
from ikdlib.studies.cell import Task
from ikdlib.studies.dispatch import Piece
from ikdlib.studies.display import Display


class Pretence(Executor):
    """Cells end as they are told, in the order they were started, and leave the record of a cell.

    Attributes:
        endings: of each cell, the exit status of each attempt; FINISHED beyond them.
        started: ids and attempts, in order; ``most`` ran at once.
    """

    owner, code, environment = "nobody", "", {"SHARE": "1"}

    def __init__(self, slots: int, endings: dict[str, list] | None = None, ahead: int = 0):
        self.ahead, self.slots, self.endings = ahead, slots, defaultdict(list, endings or {})
        self.started, self.most, self.stopped, self.halved = [], 0, False, 0
        self._running: list[tuple[Future, Task]] = []

    def submit(self, function, child):
        assert function is children.run and child.arguments == ("ikdlib.studies.cell",)
        task, future = Task.from_json(child.text), Future()
        self.started.append((task.id, task.attempt))
        self._running.append((future, task))
        self.most = max(self.most, len(self._running))
        return future

    def proceed(self) -> None:
        """The first of the running cells ends."""
        if not self._running:
            return
        future, task = self._running.pop(0)
        ending = self.endings[task.id].pop(0) if self.endings[task.id] else children.FINISHED
        if isinstance(ending, BaseException):
            future.set_exception(ending)
            return
        if ending in (children.FINISHED, children.FAILED):
            status = "finished" if ending == children.FINISHED else "failed"
            record = {"notebook_sha256": task.digest, "status": status, "warnings": [f"{task.id} is odd"]}
            files.write_json(task.output.with_suffix(".json"), record)
        future.set_result((ending, "ikdlib: its last words"))

    def fewer(self):
        self.slots, self.halved = max(1, self.slots // 2), self.halved + 1

    def stop(self):
        self.stopped = True
        while self._running:
            self._running.pop(0)[0].set_result((children.STOPPED[0], ""))


@pytest.fixture
def pieces(tmp_path):
    """`pieces("a", "b")`: cells of these names in one folder."""

    def make(*names: str) -> list[Piece]:
        tasks = [
            Task(id=name, folder=str(tmp_path), notebook="none", digest="0" * 64, parameters={})
            for name in names
        ]
        return [Piece(task, f"cell {task.id}", done=lambda task=task: task.finished) for task in tasks]

    return make


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the loop; each turn of it lets one cell end."""
    monkeypatch.setattr(dispatch.time, "sleep", lambda seconds: None)

    def loop(engine: Pretence, given: list[Piece], turn=lambda: None) -> dispatch.Summary:
        def wait(running, timeout, return_when=None):
            turn()
            engine.proceed()
            done = {future for future in running if future.done()}
            return done, set(running) - done

        monkeypatch.setattr(dispatch, "wait", wait)
        return dispatch.run(given, engine, tmp_path, Display("a sweep", tmp_path))

    return loop


def finished(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "cells").glob("*.json")}


def test_all_are_done_in_their_order_so_many_at_once(run, pieces, tmp_path):
    engine = Pretence(2)
    summary = run(engine, pieces("a", "b", "c", "d", "e"))
    assert [name for name, _ in engine.started] == list("abcde") and engine.most == 2
    assert (summary.total, summary.done, summary.failed, summary.reason) == (5, 5, {}, "")
    assert summary.lines == ["5 cells: 5 finished"] and finished(tmp_path) == set("abcde")
    summary.check()


def test_a_cell_waits_at_an_engine_that_may_grow(run, pieces):
    engine = Pretence(2, ahead=1)
    assert run(engine, pieces("a", "b", "c", "d", "e")).done == 5
    assert [name for name, _ in engine.started] == list("abcde") and engine.most == 3


def test_what_is_done_is_not_done_again(run, pieces):
    run(Pretence(2), pieces("a", "b"))
    engine = Pretence(2)
    summary = run(engine, pieces("a", "b", "c"))
    assert engine.started == [("c", 1)] and summary.done == summary.total == 3


def test_a_record_of_another_notebook_is_none(run, pieces, tmp_path):
    run(Pretence(1), pieces("a"))
    path = tmp_path / "cells" / "a.json"
    path.write_text(path.read_text().replace("0" * 64, "1" * 64))
    engine = Pretence(1)
    run(engine, pieces("a"))
    assert engine.started == [("a", 1)]
    path.write_text("{")
    run(engine := Pretence(1), pieces("a"))
    assert engine.started == [("a", 1)], "a damaged record is none either"


def test_a_killed_cell_is_tried_again_before_the_others(run, pieces):
    engine = Pretence(1, {"a": [-9, -9], "b": [143]})
    summary = run(engine, pieces("a", "b", "c"))
    assert engine.started == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("c", 1)]
    assert summary.done == 3 and summary.failed == {}


def test_one_that_is_killed_each_time_fails_with_the_signal(run, pieces):
    engine = Pretence(1, {"a": [-9] * 5})
    summary = run(engine, pieces("a", "b"))
    assert engine.started == [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
    assert summary.failed == {"a": "cell a: killed by SIGKILL (out of memory, as a rule), 3 times"}
    assert summary.lines[-1] == "2 cells: 1 finished, 1 failed"
    with pytest.raises(IkdError, match="2 cells: 1 finished, 1 failed; failed: cell a: killed by SIGKILL"):
        summary.check()


def test_a_kernel_that_died_is_tried_again_too(run, pieces):
    engine = Pretence(1, {"a": [children.KERNEL_DIED, -9], "b": [children.KERNEL_DIED] * 3})
    summary = run(engine, pieces("a", "b"))
    assert engine.started == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)]
    assert summary.failed == {"b": "cell b: its last words, 3 times"}


def test_one_that_was_killed_each_time_has_a_record_of_it(run, pieces, tmp_path):
    run(Pretence(1, {"a": [-9] * 3}), pieces("a"))
    record = json.loads((tmp_path / "cells" / "a.json").read_text())
    assert (record["status"], record["attempts"], record["outcome"]) == ("failed", 3, {})
    assert record["error"] == "killed by SIGKILL (out of memory, as a rule), 3 times"


def test_a_failure_is_not_tried_again_in_one_command(run, pieces):
    engine = Pretence(2, {"a": [children.FAILED]})
    summary = run(engine, pieces("a", "b"))
    assert engine.started == [("a", 1), ("b", 1)]
    assert summary.failed == {"a": "cell a: its last words"}
    run(again := Pretence(2), pieces("a", "b"))
    assert again.started == [("a", 1)], "the next command tries it: its cause may be mended"


def test_tracebacks_are_named_and_an_empty_folder_of_them_goes(run, pieces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    given = pieces("a", "b")
    given[0].task.failed.parent.mkdir()
    given[0].task.failed.write_text("{}")
    summary = run(Pretence(1, {"a": [children.FAILED]}), given)
    assert summary.lines == [
        "failed: cell a: its last words", f"their tracebacks are in {tmp_path.name}/failed/",
        "2 cells: 1 finished, 1 failed",
    ]  # fmt: skip
    given[0].task.failed.unlink()  # as an execution does that ends well
    assert run(Pretence(1), pieces("a", "b")).lines == ["2 cells: 2 finished"]
    assert not (tmp_path / "failed").exists()


def test_without_gpu_memory_once_more_with_fewer_at_a_time(run, pieces):
    engine = Pretence(4, {"b": [children.NO_GPU_MEMORY], "c": [children.NO_GPU_MEMORY] * 2})
    summary = run(engine, pieces("a", "b", "c", "d"))
    assert [name for name, _ in engine.started] == ["a", "b", "c", "d", "b", "c"]
    assert engine.halved == 1 and engine.slots == 2, (
        "both starved at once: half as many is one answer to both"
    )
    assert summary.done == 3 and set(summary.failed) == {"c"}


def test_a_full_disk_starts_no_new_cells(run, pieces):
    engine = Pretence(2, {"a": [children.DISK_FULL]})
    summary = run(engine, pieces("a", "b", "c", "d"))
    assert engine.started == [("a", 1), ("b", 1)], "the running one ends, c and d are not begun"
    assert summary.lines == ["4 cells: 1 finished, 3 not done (the disk is full)"]
    with pytest.raises(IkdError, match="the disk is full"):
        summary.check()


def test_a_nearly_full_disk_is_not_tried(run, pieces, monkeypatch):
    usage = dispatch.shutil.disk_usage
    little = dispatch.ROOM_MIB * 2**20 - 1
    monkeypatch.setattr(dispatch.shutil, "disk_usage", lambda path: usage(path)._replace(free=little))
    summary = run(engine := Pretence(2), pieces("a"))
    assert engine.started == [] and summary.reason == "the disk is full"


def test_a_cell_that_another_process_is_at_is_waited_for(run, pieces, tmp_path):
    """And when the other one finishes it, it is counted, not done again; when it gives up, it is done."""
    (tmp_path / "cells").mkdir()
    locks = {name: FileLock(tmp_path / "cells" / f"{name}.lock") for name in "ab"}
    for lock in locks.values():
        lock.acquire()
    given = pieces("a", "b", "c")
    engine, turns = Pretence(3), []

    def turn():
        turns.append(1)
        if len(turns) == 3:
            record = {"notebook_sha256": "0" * 64, "status": "finished"}
            (tmp_path / "cells" / "a.json").write_text(json.dumps(record))
            for lock in locks.values():
                lock.release()
        for piece in given:
            piece.after = 0.0  # no need to wait for the clock

    summary = run(engine, given, turn)
    assert engine.started == [("c", 1), ("b", 1)] and len(turns) >= 3
    assert summary.done == 3


def test_a_cell_that_was_taken_in_the_last_moment_is_waited_for_too(run, pieces):
    given = pieces("a")
    engine = Pretence(1, {"a": [children.ELSEWHERE] * 5})
    summary = run(engine, given)
    assert summary.done == 1 and engine.started == [("a", 1)] * 6, "that is no attempt of ours"


def test_when_the_engine_is_gone_the_rest_is_not_done(run, pieces):
    engine = Pretence(1, {"a": [CancelledError("scheduler-connection-lost")]})
    summary = run(engine, pieces("a", "b"))
    assert engine.started == [("a", 1)]
    assert summary.lines == ["2 cells: 0 finished, 2 not done (the scheduler is gone)"]


def test_a_cell_that_failed_in_another_process_meanwhile_is_not_done_once_more(run, pieces, tmp_path):
    (tmp_path / "cells").mkdir()
    lock = FileLock(tmp_path / "cells" / "a.lock")
    lock.acquire()
    given = pieces("a", "b")
    engine = Pretence(1)

    def turn():
        if lock.is_locked and finished(tmp_path) == {"b"}:
            record = {"notebook_sha256": "0" * 64, "status": "failed", "error": "as it was told"}
            (tmp_path / "cells" / "a.json").write_text(json.dumps(record))
            lock.release()
        given[0].after = 0.0

    summary = run(engine, given, turn)
    assert engine.started == [("b", 1)] and summary.failed == {"a": "cell a: as it was told"}


def test_on_a_cluster_a_stop_is_no_attempt(run, pieces):
    """A job reaches its time limit and the cell saves: it goes on in the next, however often."""
    engine = Pretence(1, {"a": [143] * 5})
    engine.code = "of a cluster"
    summary = run(engine, pieces("a"))
    assert summary.done == 1 and len(engine.started) == 6


def test_namesakes_fail_and_finish_each_for_itself(run, pieces):
    """Sweeps cut long names, and two ablations have a `dkd s1` each."""
    given = pieces("a", "b", "c")
    for piece in given:
        piece.name = "dkd s1"
    summary = run(Pretence(1, {"a": [children.FAILED], "b": [children.FAILED]}), given)
    assert summary.lines == ["failed: dkd s1: its last words"] * 2 + ["3 cells: 1 finished, 2 failed"]


def test_an_engine_that_gives_a_cell_up_fails_it(run, pieces):
    engine = Pretence(1, {"a": [RuntimeError("three workers died of it")]})
    summary = run(engine, pieces("a", "b"))
    assert summary.failed == {"a": "cell a: RuntimeError: three workers died of it"} and summary.done == 1


def test_ctrl_c_asks_the_running_to_stop_and_goes_on_up(run, pieces):
    def interrupted():
        raise KeyboardInterrupt

    engine = Pretence(2)
    with pytest.raises(KeyboardInterrupt):
        run(engine, pieces("a", "b", "c"), interrupted)
    assert engine.stopped and engine.started == [("a", 1), ("b", 1)]


def test_a_run_that_diverged_is_done_though_its_cell_failed(run, pieces):
    """A table shows it as such: whether a student is done, its run folder says."""
    (piece,) = pieces("a")
    piece.done = iter([False, False, True, True]).__next__
    summary = run(Pretence(1, {"a": [children.FAILED]}), [piece])
    assert summary.done == 1 and summary.failed == {}


def test_warnings_of_cells_are_passed_on(run, pieces, capsys):
    run(Pretence(1), pieces("a"))
    assert capsys.readouterr().err.count("ikdlib: warning: a is odd\n") == 1
