"""A Dask cluster as an engine: real schedulers and workers, on loopback, and functions instead of cells."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from dask_processes import PATIENCE, DaskProcesses, until

import ikdlib
from ikdlib import errors, status
from ikdlib.data import DataSet
from ikdlib.studies import children, cluster
from ikdlib.studies.children import Child
from ikdlib.studies.cluster import Cluster
from ikdlib.studies.engine import open_engine

PACKAGE = Path(ikdlib.__file__).parent
# What the workers have beside the package: functions and programs that say in files what they do.
DEEDS = '''
import os, sys, time
from pathlib import Path

def note(file, text):
    with open(file, "a") as out:  # O_APPEND: a line is whole, whoever else writes
        out.write(f"{text}\\n")

def lines(file):
    return Path(file).read_text().splitlines() if Path(file).exists() else []

def meet(file, several):
    """Begin, wait until so many have, and end."""
    note(file, "begin")
    while lines(file).count("begin") < several:
        time.sleep(0.01)
    time.sleep(0.2)
    note(file, "end")

def held(file):
    note(f"{file}.began", os.getpid())
    while not Path(file).exists():
        time.sleep(0.01)
    return os.getpid()

def stopped_in(owner):
    from ikdlib.studies import children
    return owner in children._stopped

if __name__ == "__main__":
    file, several = sys.argv[1:]
    note(file, os.environ.get("CUDA_VISIBLE_DEVICES"))
    while len(lines(file)) < float(several):
        time.sleep(0.01)
'''


@pytest.fixture(scope="module", autouse=True)
def deeds(tmp_path_factory):
    """The module `deeds`, for workers and for this process."""
    folder = tmp_path_factory.mktemp("deeds")
    (folder / "deeds.py").write_text(DEEDS)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def environment_with(*folders: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


@pytest.fixture
def dask(tmp_path, deeds):
    """A scheduler without workers."""
    made = DaskProcesses(tmp_path / "dask", environment_with(PACKAGE.parent, deeds))
    made.process = made.scheduler()
    yield made
    made.clear()


@pytest.fixture(scope="module")
def workers(tmp_path_factory, deeds):
    """A scheduler, a worker with one thread, and one with two and a nanny."""
    made = DaskProcesses(tmp_path_factory.mktemp("workers") / "dask", environment_with(PACKAGE.parent, deeds))
    made.scheduler()
    made.worker("one")
    made.worker("two", "--nanny", "--nthreads", "2")
    yield made
    made.clear()


@pytest.fixture
def engine(workers):
    with Cluster(str(workers.file)) as made:
        yield made


def deed(name: str):
    import deeds

    return getattr(deeds, name)


def results_of(futures: Iterable[Future]) -> list:
    return [future.result(timeout=PATIENCE) for future in futures]


def says(match: str):
    return pytest.raises(errors.IkdError, match=match)


# As an executor


def test_a_slot_for_each_thread_and_futures_as_everywhere(engine, tmp_path):
    """Three cells at once on two workers; `concurrent.futures.wait` waits for them."""
    assert engine.slots == 3
    futures = {engine.submit(deed("held"), str(tmp_path / f"go{n}")): n for n in range(3)}
    assert all(isinstance(future, Future) for future in futures)
    for number in range(3):
        until((tmp_path / f"go{number}.began").exists, f"call {number}")
    (tmp_path / "go1").touch()
    ended, others = wait(futures, timeout=PATIENCE, return_when=FIRST_COMPLETED)
    assert [futures[future] for future in ended] == [1] and len(others) == 2
    (tmp_path / "go0").touch()
    (tmp_path / "go2").touch()
    assert len(set(results_of(futures))) == 2  # processes: one thread in one, two in the other


def test_arguments_results_and_errors_are_the_functions_own(engine):
    assert engine.submit(divmod, 7, 2).result(timeout=PATIENCE) == (3, 1)
    assert engine.submit(int, "11", base=2).result(timeout=PATIENCE) == 3
    assert engine.submit(int, "11", base=2).result(timeout=PATIENCE) == 3  # done again, not remembered
    with pytest.raises(ZeroDivisionError):
        engine.submit(divmod, 1, 0).result(timeout=PATIENCE)


def test_equal_calls_are_each_done(engine, tmp_path):
    """Dask does equal pure calls once; two cells with equal arguments are two cells."""
    results_of([engine.submit(deed("note"), str(tmp_path / "notes"), "here") for _ in range(2)])
    assert deed("lines")(tmp_path / "notes") == ["here", "here"]


def test_stop_ends_busy_children_and_starts_no_more(engine, tmp_path):
    """Of every thread of every worker; other pools on the cluster go on."""
    files = [tmp_path / f"child{n}" for n in range(3)]
    running = [engine.submit(children.run, child(file, inf, engine)) for file in files]
    for file in files:
        until(file.exists, "a child")
    later = engine.submit(children.run, child(tmp_path / "later", inf, engine))
    engine.stop()
    assert [code for code, _ in results_of(running)] == [-signal.SIGINT] * 3
    assert later.result(timeout=PATIENCE) == (children.STOPPED[0], "")
    assert not (tmp_path / "later").exists()
    with Cluster(engine._scheduler) as other:
        assert other.submit(abs, -1).result(timeout=PATIENCE) == 1


def child(file: Path, several: float, engine: Cluster) -> Child:
    """A child that waits until so many have begun."""
    arguments = ("deeds", str(file), str(several))
    return Child(arguments, "", file.with_suffix(".log"), engine.owner, engine.environment)


def test_none_of_the_commands_own_ports(engine):
    """What a client opens listens nowhere: whoever is on the network finds a scheduler and workers only."""
    import psutil

    assert engine.submit(abs, -1).result(timeout=PATIENCE) == 1
    here = psutil.Process().net_connections("inet")
    assert [each.laddr for each in here if each.status == psutil.CONN_LISTEN] == []


# GPUs


def most_at_once(lines: list[str]) -> int:
    running = most = 0
    for line in lines:
        running += 1 if line == "begin" else -1
        most = max(most, running)
    return most


def test_cells_share_a_gpu_and_no_more_than_that(dask, tmp_path):
    """Of a worker with four threads and one GPU: two, then one; one without a GPU gets none."""
    dask.worker("gpu", "--resources", "GPU=1", "--nthreads", "4")
    dask.worker("none", "--nthreads", "4")
    with Cluster(dask.address, per_gpu=2) as engine:
        assert engine.slots == 2
        assert engine.environment[status.GPU_SHARE] == "0.5"
        results_of([engine.submit(deed("meet"), str(tmp_path / "two"), 2) for _ in range(6)])
        assert most_at_once(deed("lines")(tmp_path / "two")) == 2
        engine.fewer()
        assert engine.slots == 1
        assert engine.environment[status.GPU_SHARE] == "1.0"
        results_of([engine.submit(deed("meet"), str(tmp_path / "one"), 1) for _ in range(3)])
        assert most_at_once(deed("lines")(tmp_path / "one")) == 1
        engine.fewer()
        assert engine.slots == 1


@pytest.mark.parametrize("per_gpu", range(1, 33))
def test_shares_of_a_gpu_add_up_however_they_come_and_go(per_gpu, monkeypatch):
    """Dask subtracts a share from what a worker has, and adds it: sums of 1/3 would be off by a bit."""
    monkeypatch.setattr(cluster, "_connect", lambda scheduler: None)
    share = Cluster("tcp://nobody:1", per_gpu)._share
    free, taken = 1.0, 0
    for step in range(1000):
        if free >= share and (step % 7 or not taken):
            free, taken = free - share, taken + 1
        else:
            free, taken = free + share, taken - 1
        assert taken <= per_gpu
    assert free + taken * share == 1.0
    assert int(1 / share) == per_gpu


def test_children_of_a_worker_with_several_gpus_get_one_each(dask, tmp_path):
    """Among those the worker itself may see."""
    dask.worker("gpus", "--resources", "GPU=2", "--nthreads", "2", CUDA_VISIBLE_DEVICES="5,7")
    with Cluster(dask.address) as engine:
        assert engine.slots == 2
        for number, alone in enumerate((True, True, False)):  # what ended gave its GPU back
            calls = [(tmp_path / f"{number}", 1 if alone else 2, engine)] * (1 if alone else 2)
            ended = results_of([engine.submit(children.run, child(*call)) for call in calls])
            assert {code for code, _ in ended} == {0}
            gpus = sorted(deed("lines")(tmp_path / f"{number}"))
            assert gpus == (["5"] if alone else ["5", "7"])


# Schedulers that do not answer, or go


@pytest.fixture
def silent():
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def web():
    """A port that speaks HTTP."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def impatient(monkeypatch):
    """Three seconds: time enough for those that do answer."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 3)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 3)


def loops() -> int:
    """Threads of Dask's clients."""
    return sum("IO loop" in thread.name for thread in threading.enumerate())


def test_a_scheduler_that_does_not_answer(silent, web, impatient, capfd):
    """One line each, and no thread or word of Dask's is left of it."""
    before = loops()
    for address in (silent, "tcp://127.0.0.1:1", f"tcp://{web}"):
        with says(rf"^scheduler {address}: no answer within 3 s; is it running\?$"):
            Cluster(address)
    assert loops() == before
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "address, reason",
    [
        ("tcp://127.0.0.1", "missing port number"),
        ("http://{web}", "unknown address scheme 'http'"),
        ("ws://{web}", "Non-websocket response"),
        ("tls://{web}", "perhaps check your TLS configuration"),
        ("127.0.0.1:8786", "is neither an address like tcp://HOST:PORT nor a file"),
    ],
)
def test_an_address_that_is_none(address, reason, web, impatient):
    with says(f"^scheduler.*{reason}") as found:
        Cluster(address.format(web=web))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", "\N{SNOWMAN}"])
def test_a_file_that_is_no_scheduler_file(content, tmp_path):
    (tmp_path / "file").write_text(content)
    with says("file is not a scheduler file: it names no address$"):
        Cluster(str(tmp_path / "file"))


def test_the_address_of_a_worker(workers):
    with Cluster(workers.address) as engine:
        engine._look()
        address = next(iter(engine._workers))
    with says(f"^scheduler {address}: that is a Worker, not a scheduler"):
        Cluster(address)


def test_a_scheduler_that_goes(dask, impatient):
    """What ran and what comes is cancelled; asking for slots, stopping and leaving raise nothing."""
    dask.worker("one")
    with Cluster(dask.address) as engine:
        running = engine.submit(deed("held"), str(dask.folder / "never"))
        until((dask.folder / "never.began").exists, "the call")
        dask.process.kill()
        with pytest.raises(CancelledError):
            running.result(timeout=PATIENCE)
        until(lambda: engine._client.status == "closed", "the end of the client")
        assert engine.slots == 1
        with pytest.raises(CancelledError):
            engine.submit(abs, -1).result(timeout=PATIENCE)
        engine.stop()


def test_other_versions_of_dask_are_said_in_one_line(workers, monkeypatch):
    from distributed import versions

    found = versions.get_versions()
    found["packages"]["distributed"] = "1.0"
    monkeypatch.setattr(versions, "get_versions", lambda *_, **__: found)
    with warnings.catch_warnings(record=True) as heard, Cluster(workers.address):
        warnings.simplefilter("always")
    (warning,) = heard
    assert str(warning.message) == "the cluster has other versions of distributed than here"


def test_without_distributed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with says(r"^scheduler: needs the package distributed: pip install 'ikdlib\[cluster\]'$"):
        Cluster("tcp://127.0.0.1:1")


# What workers have, before the first cell


def check(dask: DaskProcesses, results: Path, data: str = "", folder: str = "") -> None:
    open_engine(dask.address, 0, "cpu", 1, results, data, folder).shutdown()


def test_workers_that_have_all(workers, tmp_path, capfd):
    check(workers, tmp_path / "results")
    assert capfd.readouterr().err == f"scheduler {workers.address}: workers: 2, cells at once: 3\n"
    assert list((tmp_path / "results").iterdir()) == []


def test_no_worker_yet(dask, tmp_path, capfd):
    """It is said; a cell that was submitted waits for one, which need not be there before."""
    with open_engine(dask.address, 0, "cpu", 1, tmp_path) as engine:
        assert "no worker yet" in capfd.readouterr().err
        assert engine.slots == 1
        waiting = engine.submit(abs, -1)
        dask.worker("one", "--nthreads", "3")
        assert waiting.result(timeout=PATIENCE) == 1
        until(lambda: engine.slots == 3, "three slots")


def test_a_worker_without_the_package(dask, tmp_path):
    dask.worker("bare", PYTHONPATH=str(dask.without_package()))
    with says(f"^worker tcp://.*: no module 'ikdlib' there; install ikdlib {ikdlib.__version__} there$"):
        check(dask, tmp_path)
    with Cluster(dask.address) as engine, pytest.raises(ModuleNotFoundError):
        engine.submit(abs, -1).result(timeout=PATIENCE)  # one that comes later: its cell fails, and says why


def test_a_worker_with_other_code(dask, tmp_path):
    """A checkout with the same version number, and one comment more."""
    shutil.copytree(PACKAGE, tmp_path / "copy" / "ikdlib")
    with open(tmp_path / "copy" / "ikdlib" / "errors.py", "a") as file:
        file.write("# changed\n")
    dask.worker("other", PYTHONPATH=str(tmp_path / "copy"))
    with says(rf"^worker tcp://.*: ikdlib {ikdlib.__version__}, other code than here"):
        check(dask, tmp_path)


def test_a_worker_that_does_not_see_the_results(dask, tmp_path):
    """Another file system is mounted over them, for this worker alone."""
    (tmp_path / "results").mkdir()
    alone = ("unshare", "--map-root-user", "--mount")
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody have mounts of their own")
    over = (*alone, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path / "results"))
    dask.worker("elsewhere", before=over)
    with says(r"^worker tcp://.*: does not see .*/results; it needs the shared results folder$"):
        check(dask, tmp_path / "results")


@pytest.fixture
def data_here(monkeypatch):
    """This process has a data set; it is not loaded, and workers know nothing of that."""
    have = DataSet(
        name="cifar100", classes=(), train=None, test=None, held_out=None, sha256="1" * 64, mean=(), std=()
    )
    monkeypatch.setattr("ikdlib.data.load", lambda *_, **__: have)


def test_a_worker_without_the_data(workers, tmp_path, data_here):
    (tmp_path / "empty").mkdir()
    with says(rf"^worker tcp://.*: cifar100: .*empty.*; here its sha256 is {'1' * 64}$"):
        check(workers, tmp_path, "cifar100", str(tmp_path / "empty"))


def test_the_data_is_loaded_once_in_each_folder_of_a_machine(dask, tmp_path, data_here, monkeypatch):
    """Where it lies, when nothing else is said, depends on the folder a worker started in."""
    (tmp_path / "elsewhere").mkdir()
    dask.worker("one")
    dask.worker("two")
    dask.worker("three", cwd=tmp_path / "elsewhere")
    asked, answer = str(tmp_path / "asked"), tmp_path / "answer"
    answer.write_text("1" * 64)

    async def digest_of(data: str, folder: str, asked: str = asked, answer: str = str(answer)) -> str:
        from pathlib import Path

        from deeds import note

        note(asked, Path.cwd())
        return Path(answer).read_text()

    monkeypatch.setattr(cluster, "digest_of", digest_of)
    check(dask, tmp_path, "cifar100")
    assert sorted(deed("lines")(asked)) == sorted(map(str, (dask.folder, tmp_path / "elsewhere")))
    answer.write_text("2" * 64)
    with says(rf"^worker tcp://.*: cifar100: {'2' * 64}; here its sha256 is {'1' * 64}$"):
        check(dask, tmp_path, "cifar100")


def test_a_worker_that_hangs(dask, tmp_path, impatient):
    """It is named; `stop` reaches the others all the same."""
    hanging = dask.worker("hanging")
    with Cluster(dask.address) as engine:
        dask.worker("one")
        until(lambda: engine.slots == 2, "two workers")
        hanging.send_signal(signal.SIGSTOP)
        with says("^worker tcp://.*: no answer within 3 s$"):
            engine.check(tmp_path)
        engine.stop()
        with Cluster(dask.address) as other:
            other._look()
            stopped = other._ask(deed("stopped_in"), engine.owner)
        assert sorted(map(str, stopped.values())) == ["", "True"]


def test_what_a_scheduler_file_names_is_reached(dask, tmp_path):
    shutil.copy(dask.file, tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text())["address"] == dask.address
    with Cluster(str(tmp_path / "copy.json")) as engine:
        assert engine.slots == 1
