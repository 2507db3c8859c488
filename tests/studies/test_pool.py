"""The local pool, with children that only pretend to train: a small program stands in for `ikdlib train`."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, wait
from pathlib import Path

import pytest

from ikdlib import status
from ikdlib.errors import IkdError
from ikdlib.spec import MethodSpec, Recipe, RunSpec
from ikdlib.studies import children, pool
from ikdlib.studies.pool import LocalPool, Slots, run_all
from ikdlib.training.job import Job

# What a child does follows from its seed: 1 finishes, 2 fails, 3 diverges, 6 to 8 warn, from 10 on it waits
# for a signal.
CHILD = """#!{python} -S
import json, os, pathlib, signal, sys, time
assert sys.argv[1:] == ["-m", "ikdlib", "train", "--job", "-"], sys.argv
job = json.load(sys.stdin)
seed, method = job["spec"]["seed"], job["spec"]["method"]["name"]
(folder,) = pathlib.Path(job["runs"]).glob("*-seed" + str(seed) + "-*")
folder.joinpath("started").write_text(str(job["threads"]))
if seed >= 10:
    signal.signal(signal.SIGINT, lambda *_: (folder.joinpath("saved").touch(), os._exit(130)))
    folder.joinpath("waiting").touch()
    time.sleep(60)
if seed in (6, 7, 8):
    print("ikdlib: warning: " + ("the teacher knows nothing" if seed < 8 else "no room"), file=sys.stderr)
if seed == 2:
    print("first words")
    print("ikdlib: the disk is full", file=sys.stderr)
    sys.exit(2)
status = "diverged" if seed == 3 else "finished"
folder.joinpath("result.json").write_text(json.dumps(dict(status=status)))
sys.exit(3 if seed == 3 else 0)
"""


PYTHON = sys.executable


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """`jobs(1, 2)`: jobs of these seeds, whose children are the program above."""
    program = tmp_path / "child"
    program.write_text(CHILD.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(children.sys, "executable", str(program))
    monkeypatch.delenv(status.FILE, raising=False)

    def make(*seeds: int) -> list[Job]:
        specs = [
            RunSpec(
                data="glyphs100", data_sha256="0" * 64, student="resnet8", method=MethodSpec(name="ce"),
                recipe=Recipe().scaled(2), seed=seed,
            ) for seed in seeds
        ]  # fmt: skip
        return [Job(spec=spec, runs=str(tmp_path / "runs"), device="cpu") for spec in specs]

    return make


def submit(local: LocalPool, job: Job) -> Future:
    return local.submit(children.run, pool._child(job, local))


def until(path: Path) -> None:
    """Wait for a file of a child."""
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


def test_it_is_an_executor(jobs):
    local = LocalPool(Slots(1))
    assert isinstance(local, Executor)
    with local:
        assert submit(local, jobs(1)[0]).result() == (0, "")
        assert local.submit(divmod, 7, 2).result() == (3, 1)
        assert list(local.map(abs, [-1, 2])) == [1, 2]
    with pytest.raises(RuntimeError):
        submit(local, jobs(4)[0])


def test_futures_can_be_waited_for_as_any_others(jobs):
    with LocalPool(Slots(2)) as local:
        futures = [submit(local, job) for job in jobs(1, 3, 2)]
        assert wait(futures).not_done == set()
        last = "ikdlib: the disk is full"
        assert [future.result() for future in futures] == [(0, ""), (3, ""), (2, last)]


def test_statuses_of_what_was_started(jobs):
    good = jobs(1, 3, 5)
    assert run_all(good, show=False) == {
        good[0].spec.run_id: 0, good[1].spec.run_id: 3, good[2].spec.run_id: 0,
    }  # fmt: skip
    assert run_all(good, show=False) == {}, "finished and diverged runs are not started again"


def test_a_failed_run_is_named_with_its_log_after_the_others_ended(jobs):
    mixed, ended = jobs(2, 1, 4), []
    with pytest.raises(IkdError) as error:
        run_all(mixed, workers=1, show=False, ended=lambda job: ended.append((job, job.run.status)))
    said = str(error.value)
    log = mixed[0].run.folder / "log.txt"
    assert "1 of 3 runs failed" in said and "the disk is full" in said and str(log) in said
    assert "\n" not in said
    assert "first words" in log.read_text()
    states = ["missing", "finished", "finished"]
    assert [job.run.status for job in mixed] == states
    assert [(job.spec.run_id, state) for job, state in ended] == [
        (job.spec.run_id, state) for job, state in zip(mixed, states, strict=True)
    ]


def test_jobs_start_in_their_order(jobs):
    ordered = jobs(9, 1, 7, 4)
    run_all(ordered, workers=1, show=False)
    times = [(job.run.folder / "started").stat().st_mtime_ns for job in ordered]
    assert times == sorted(times)


def test_cores_are_shared_out(jobs, monkeypatch):
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    two = jobs(1, 4)
    run_all(two, workers=2, show=False)
    assert [(job.run.folder / "started").read_text() for job in two] == ["4", "4"]
    (own,) = [job.updated(threads=3) for job in jobs(5)]
    run_all([own], workers=1, show=False)
    assert (own.run.folder / "started").read_text() == "3"


def test_warnings_of_children_are_passed_on_once(jobs, tmp_path, monkeypatch, capsys):
    """To whoever looks on, and to the command outside a notebook; not what an earlier attempt said."""
    told = tmp_path / "status.json"
    monkeypatch.setenv(status.FILE, str(told))
    wanted = jobs(6, 7, 8)
    wanted[0].run.folder.mkdir(parents=True)
    (wanted[0].run.folder / "log.txt").write_text("ikdlib: warning: long ago\n")
    run_all(wanted)
    said = capsys.readouterr().err
    assert said.count("ikdlib: warning: the teacher knows nothing\n") == 1
    assert said.count("ikdlib: warning: no room\n") == 1 and "long ago" not in said
    assert sorted(status.read(told)["warnings"]) == ["no room", "the teacher knows nothing"]


def test_stop_reaches_the_running_and_starts_no_more(jobs):
    local = LocalPool(Slots(1))
    running, *rest = jobs(10, 11, 1)
    futures = [submit(local, job) for job in (running, *rest)]
    until(running.run.folder / "waiting")
    local.stop()
    assert futures[0].result()[0] == 130
    assert (running.run.folder / "saved").exists()
    assert all(future.cancelled() for future in futures[1:])
    assert not any((job.run.folder / "started").exists() for job in rest)
    with pytest.raises(RuntimeError):
        submit(local, rest[0])


def test_a_job_that_was_just_taken_when_stop_came_starts_no_child(jobs):
    """A thread may already be in `children.run`: it looks once more before it starts a process."""
    local = LocalPool(Slots(1))
    local.stop()
    (job,) = jobs(1)
    assert children.run(pool._child(job, local)) == (130, "")
    assert not (job.run.folder / "started").exists()


def test_ctrl_c_stops_the_children_and_goes_on_up(jobs, monkeypatch):
    running, never = jobs(10, 1)

    def interrupted(*_):
        until(running.run.folder / "waiting")
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all([running, never], workers=1, show=False)
    assert (running.run.folder / "saved").exists()
    assert not (never.run.folder / "started").exists()


def test_none_goes_on_unwatched_where_the_watching_fails(jobs):
    """Whoever is told of an ended run may fail, at a closed pipe say: the others are stopped and saved."""
    ended, running, never = jobs(1, 10, 4)

    def fail(job):
        until(running.run.folder / "waiting")
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_all([ended, running, never], workers=1, show=False, ended=fail)
    assert (running.run.folder / "saved").exists()
    assert not (never.run.folder / "started").exists()


def test_a_log_that_cannot_be_written_fails_its_run_alone(jobs):
    """Another user's folder, say: here a file is in its way."""
    both, ended = jobs(1, 4), []
    both[0].run.folder.parent.mkdir(parents=True)
    both[0].run.folder.write_text("in the way")
    with pytest.raises(IkdError, match=r"1 of 2 runs failed; .*log\.txt: (Not a directory|File exists)"):
        run_all(both, workers=1, show=False, ended=lambda job: ended.append(job.spec.seed))
    assert sorted(ended) == [1, 4] and both[1].run.status == "finished"


def test_a_full_quota_is_told_as_a_full_disk(tmp_path, monkeypatch):
    def full(self, **_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Path, "mkdir", full)
    child = children.Child(("ikdlib",), "", tmp_path / "runs" / "log.txt", "nobody")
    assert children.run(child) == (children.DISK_FULL, f"{child.log}: Disk quota exceeded")


def test_a_run_that_waits_is_not_shown_as_running(jobs):
    """Stopped yesterday, it left its progress."""
    (job,) = jobs(9)
    job.run.folder.mkdir(parents=True)
    state = {"epoch": 5, "epochs": 8, "step": 1, "steps": 2, "test_top1": 40.0}
    (job.run.folder / "progress.json").write_text(json.dumps(state))
    future = Future()
    assert pool._line(job, {job.spec.run_id: future}) == ""
    future.set_running_or_notify_cancel()
    assert pool._line(job, {job.spec.run_id: future}).endswith(" s9 5/8 40.0%")


def test_a_child_that_cannot_be_started_has_failed_and_leaves_its_gpu(jobs, monkeypatch):
    """As many processes as a user may have: the fork fails, and the next child gets that GPU again."""
    first, second = jobs(1, 4)
    start, failures = subprocess.Popen, iter([BlockingIOError(11, "Resource temporarily unavailable")])

    def popen(*arguments, **named):
        for error in failures:
            raise error
        assert named["env"]["CUDA_VISIBLE_DEVICES"] == "a"
        return start(*arguments, **named)

    monkeypatch.setattr(children.subprocess, "Popen", popen)
    monkeypatch.setattr(pool, "share_out", lambda *_: Slots(1, gpus=("a", "b")))
    monkeypatch.setattr(children, "gpus", ())
    with pytest.raises(IkdError, match="1 of 2 runs failed; .*could not be started .Resource temporarily"):
        run_all([first, second], show=False)
    assert [job.run.status for job in (first, second)] == ["missing", "finished"]


def test_only_its_own_children_are_stopped(jobs):
    """Two pools in one process, as in a Dask worker that serves two sweeps."""
    first, second = LocalPool(Slots(1)), LocalPool(Slots(1))
    one, other = jobs(10, 11)
    futures = submit(first, one), submit(second, other)
    until(one.run.folder / "waiting")
    until(other.run.folder / "waiting")
    first.stop()
    assert futures[0].result()[0] == 130 and not futures[1].done()
    second.stop()
    assert futures[1].result()[0] == 130


def test_a_bar_is_quiet_where_somebody_else_shows_it(jobs, tmp_path, monkeypatch, capsys):
    run_all(jobs(1))
    assert "100%" in capsys.readouterr().err
    monkeypatch.setenv(status.FILE, str(tmp_path / "status.json"))
    run_all(jobs(4))
    assert capsys.readouterr().err == ""


def test_children_go_round_the_gpus(jobs, tmp_path):
    """Each thread of the pool is a place on one of them; with a single one there is nothing to say."""
    rewritten(tmp_path, 'str(job["threads"])', 'os.environ.get("CUDA_VISIBLE_DEVICES", "any")')
    four = jobs(1, 4, 5, 9)
    with LocalPool(Slots(2, gpus=("3", "GPU-7"))) as local:
        wait([submit(local, job) for job in four])
    assert {(job.run.folder / "started").read_text() for job in four} == {"3", "GPU-7"}


def test_children_stay_as_nice_as_their_pool(jobs, tmp_path):
    """A session of its own counts as one that nobody made nice (Linux's autogroup), unless it is told."""
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this system shares the processor out without autogroups")
    rewritten(tmp_path, 'str(job["threads"])', 'open("/proc/self/autogroup").read().split()[-1]')
    rewritten(tmp_path, "seed, method", "time.sleep(0.5)\nseed, method")
    (job,) = jobs(1)
    nicer = "import os, sys; os.nice(7); from ikdlib.studies import children; sys.executable = sys.argv[1]\n"
    nicer += "from pathlib import Path\n"
    nicer += (
        "children.run(children.Child(('ikdlib', 'train', '--job', '-'), sys.argv[2], Path(sys.argv[3]), 'x'))"
    )
    job.run.folder.mkdir(parents=True)
    given = [str(tmp_path / "child"), job.model_dump_json(), str(tmp_path / "log.txt")]
    environment = {**os.environ, "PYTHONPATH": str(Path(pool.__file__).parents[2])}
    subprocess.run([PYTHON, "-c", nicer, *given], check=True, env=environment)
    assert (job.run.folder / "started").read_text() == "7"


def test_a_log_is_continued_not_overwritten(jobs):
    (job,) = jobs(2)
    for _ in range(2):
        with pytest.raises(IkdError):
            run_all([job], show=False)
    assert (job.run.folder / "log.txt").read_text().count("the disk is full") == 2


def test_children_get_their_environment_unless_told_otherwise(jobs, tmp_path, monkeypatch):
    program = tmp_path / "child"
    program.write_text(f"#!/bin/sh\ncat > /dev/null\nenv > {tmp_path}/environment\n")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    with LocalPool(Slots(1)) as local:
        assert submit(local, jobs(1)[0]).result() == (0, "")
    lines = (tmp_path / "environment").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert seen["MALLOC_TRIM_THRESHOLD_"] == children.ENVIRONMENT["MALLOC_TRIM_THRESHOLD_"]
    assert seen["MALLOC_TOP_PAD_"] == "1" and seen["PATH"] == os.environ["PATH"]


# How many at once


def rewritten(tmp_path: Path, old: str, new: str) -> None:
    """The child's program with something else in one place."""
    program = tmp_path / "child"
    before = program.read_text()
    assert old in before
    program.write_text(before.replace(old, new))


@pytest.fixture
def pools(monkeypatch) -> list[int]:
    """The workers of each pool that is made."""
    made: list[int] = []

    class Noted(LocalPool):
        def __init__(self, slots: Slots):
            made.append(slots.workers)
            super().__init__(slots)

    monkeypatch.setattr(pool, "LocalPool", Noted)
    return made


def test_a_killed_child_is_told_by_its_signal_and_the_others_finish(jobs, tmp_path):
    """What the kernel kills for want of memory says nothing itself: its log ends in the middle."""
    rewritten(
        tmp_path, "if seed == 2:", "if seed == 4:\n    os.kill(os.getpid(), signal.SIGKILL)\nif seed == 2:"
    )
    mixed = jobs(4, 1, 5)
    with pytest.raises(IkdError) as error:
        run_all(mixed, workers=2, show=False)
    said = str(error.value)
    assert "1 of 3 runs failed" in said and "SIGKILL" in said and "out of memory" in said
    assert str(mixed[0].run.folder / "log.txt") in said and "\n" not in said
    assert [job.run.status for job in mixed] == ["missing", "finished", "finished"]


def test_another_signal_is_not_called_a_want_of_memory(jobs, tmp_path):
    rewritten(
        tmp_path, "if seed == 2:", "if seed == 4:\n    os.kill(os.getpid(), signal.SIGSEGV)\nif seed == 2:"
    )
    with pytest.raises(IkdError, match="SIGSEGV") as error:
        run_all(jobs(4), show=False)
    assert "memory" not in str(error.value)


def test_a_child_that_fails_without_a_word_is_told_so(jobs, tmp_path):
    rewritten(tmp_path, "if seed == 2:", "if seed == 4:\n    sys.exit(1)\nif seed == 2:")
    with pytest.raises(IkdError, match="it printed nothing"):
        run_all(jobs(4), show=False)


@pytest.mark.parametrize("workers, started, share", [(2, 2, 0.5), (4, 3, 1 / 3), (1, 1, 1.0)])
def test_the_gpus_memory_is_shared_out(jobs, tmp_path, workers, started, share):
    """Each child is told its part, so that together they want no more than there is."""
    rewritten(tmp_path, 'str(job["threads"])', 'str(job["share"])')
    three = jobs(1, 4, 5)
    run_all(three, workers=workers, show=False)
    told = {float((job.run.folder / "started").read_text()) for job in three}
    assert told == {share} and started * share == 1


def test_more_than_memory_allows_are_fewer_with_one_warning(jobs, tmp_path, pools, monkeypatch):
    """Four asked for, room for two and a half: two at once, each with half of the GPU and of the cores."""
    rewritten(tmp_path, 'str(job["threads"])', 'str(job["threads"]) + " " + str(job["share"])')
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    monkeypatch.setattr(pool.memory, "available_mib", lambda: 2.5 * pool.memory.CHILD_MIB["cpu"])
    four = jobs(1, 4, 5, 9)
    with pytest.warns(UserWarning, match="4 runs at once") as said:
        run_all(four, workers=4, show=False)
    assert len(said) == 1 and str(said[0].message).endswith("2 at once")
    assert pools == [2]
    assert {(job.run.folder / "started").read_text() for job in four} == {"4 0.5"}
    assert {job.run.status for job in four} == {"finished"}


def test_enough_memory_and_a_single_run_are_no_reason_to_warn(jobs, pools, monkeypatch, recwarn):
    """One run starts in any case: whether it fits is found by trying."""
    monkeypatch.setattr(pool.memory, "available_mib", lambda: 2 * pool.memory.CHILD_MIB["cpu"])
    run_all(jobs(1, 4, 5), workers=2, show=False)
    monkeypatch.setattr(pool.memory, "available_mib", lambda: 1.0)
    run_all(jobs(9), workers=8, show=False)
    run_all(jobs(6, 7), workers=1, show=False)
    assert pools == [2, 1, 1] and not recwarn


@pytest.fixture
def choosing(monkeypatch) -> list[tuple]:
    """Replaces the measurement: it says three, and notes what it was asked."""
    asked: list[tuple] = []

    def choose(*given) -> int:
        asked.append(given)
        return 3

    monkeypatch.setattr(pool.throughput, "choose", choose)
    monkeypatch.setattr(pool, "usable_cores", lambda: 2)
    return asked


def test_short_work_is_not_measured(jobs, choosing):
    """One run a core, and no more than there are runs."""
    assert pool.default_workers(jobs(1, 4, 5)) == 2
    assert pool.default_workers(jobs(1)) == 1
    assert choosing == []


def test_long_work_is_measured(jobs, choosing, pools, monkeypatch, tmp_path):
    """And what was measured is how many start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(pool.MEASURED_FROM_STEPS, "cpu", 1)
    long = jobs(1, 4, 5, 9)
    assert pool.default_workers(long) == 3
    ((spec, shape, images, device, kept),) = choosing
    assert spec == long[0].spec and shape == (100, 32, 32) and (images, device) == (4400, "cpu")
    assert kept == tmp_path / "cache" / "ikdlib" / "jobs.json"
    run_all(long, show=False)
    assert pools == [3] and len(choosing) == 2


@pytest.mark.parametrize("more, measured", [(0, True), (1, False)])
def test_long_begins_where_the_steps_of_all_runs_together_say(jobs, choosing, monkeypatch, more, measured):
    """Three runs of 2 epochs of Glyphs-100, 100 classes of 44 images, in batches of 64."""
    monkeypatch.setitem(pool.MEASURED_FROM_STEPS, "cpu", 3 * 2 * 4400 / 64 + more)
    assert pool.default_workers(jobs(1, 4, 5)) == (3 if measured else 2)
    assert bool(choosing) == measured


def test_one_long_run_has_nobody_to_share_with(jobs, choosing, monkeypatch):
    monkeypatch.setitem(pool.MEASURED_FROM_STEPS, "cpu", 1)
    assert pool.default_workers(jobs(1)) == 1 and choosing == []


def test_a_number_that_was_asked_for_is_not_measured(jobs, choosing, pools, monkeypatch):
    monkeypatch.setitem(pool.MEASURED_FROM_STEPS, "cpu", 1)
    run_all(jobs(1, 4, 5), workers=2, show=False)
    assert pools == [2] and choosing == []
