"""Sweeps as real commands: whatever ends a cell, a kernel or the command, the same command goes on.

The notebooks are tiny and load no torch. They say what they do in files of their place (`note`), and wait
for files, so nothing depends on how fast the machine is. Waiting ends when the thing waited for happens; a
test that waits for more than `PATIENCE` has failed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from sweeping import PATIENCE, Command, Place, memory_mib, notebook, until

REPOSITORY = Path(__file__).parent.parent.parent
STOPPED = "ikdlib: stopped; the same command goes on from there"


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.clear()


def gone(number: str) -> bool:
    """Whether a process has ended; one that nobody has asked for its end yet (a zombie) has."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def heeds_sigterm(number: int) -> bool:
    """Whether a process has a handler of its own for it."""
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


# One sweep with a cell for each thing that goes wrong in a cell, and a user's own settings around it

WHAT = """
note(f"{what}.tries", f"{os.getpid()} {os.getppid()}")
attempt = len((here / f"{what}.tries").read_text().splitlines())
note("ipython", os.environ["IPYTHONDIR"])
note("python", f"{sys.executable} {globals().get('planted')}")
""", """
if what == "killed-3-times" or what == "killed-once" and attempt == 1:
    note("sleeps", subprocess.Popen(["sleep", "10000"]).pid)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(10000)
""", """
if what == "fails":
    print("so far so good")
    1 / 0
if what == "dies":
    os._exit(7)
if what == "talks":
    for _ in range(50):
        print("x" * 100_000)
""", """
if what == "talks":
    from tqdm import tqdm
    for _ in tqdm(range(1000), mininterval=0, miniters=1):
        pass
if what == "floods":
    os.kill(os.getppid(), signal.SIGSTOP)  # who writes it down is busy for a while
    for line in range(3000):
        print(line, flush=True)
    os.kill(os.getppid(), signal.SIGCONT)
"""  # fmt: skip
CELLS = ("killed-once", "killed-3-times", "fails", "dies", "talks", "floods")


def ill_home(folder: Path) -> dict[str, str]:
    """A home whose start-up file leaves a trace, and whose kernel called python3 does too, then ends.

    The folder itself has a module that the debugger, which a kernel loads, expects of the standard library.
    """
    (folder / "code.py").write_text(f"open({str(folder / 'own code ran')!r}, 'w').close()\n")
    startup = folder / "home" / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text(f"planted = True\nopen({str(folder / 'start-up ran')!r}, 'w').close()\n")
    spec = folder / "home" / ".local" / "share" / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = ["touch", str(folder / "other kernel ran")]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "x", "language": "python"})
    )
    return {"HOME": str(folder / "home"), "JUPYTER_PREFER_ENV_PATH": "0"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A sweep that ended, three of whose six cells finished."""
    folder = tmp_path_factory.mktemp("mixed")
    place = Place(folder, **ill_home(folder))
    source = notebook(folder / "mixed.ipynb", *WHAT, parameters='what = "fine"')
    command = place.start("--notebook", source, "-p", "what=" + ",".join(CELLS), "--jobs", 2)
    yield SimpleNamespace(place=place, source=source, command=command.ends(status=1))
    place.clear()


def test_a_killed_cell_is_tried_again_and_its_children_go(mixed):
    """Kill -9: its kernel and what the notebook started go with it; the second attempt finishes."""
    first, second = mixed.place.notes("killed-once.tries")
    for number in [*first.split(), *mixed.place.notes("sleeps")]:
        until(lambda number=number: gone(number))
    assert first.split()[1] != second.split()[1], "a process of its own for each attempt"
    record = mixed.place.records("mixed")["what=killed-once"]
    assert (record["status"], record["attempts"]) == ("finished", 2)
    assert len(mixed.place.notes("sleeps")) == 4, "one of this cell, three of the other"


def test_a_cell_that_is_killed_three_times_has_failed(mixed):
    assert len(mixed.place.notes("killed-3-times.tries")) == 3
    assert "failed: what=killed-3-times: killed by SIGKILL" in mixed.command.printed
    assert "3 times" in mixed.command.printed
    record = mixed.place.records("mixed")["what=killed-3-times"]
    assert record["status"] == "failed" and "killed by SIGKILL" in record["error"] and record["attempts"] == 3
    assert "what=killed-3-times" not in mixed.place.copies("mixed")


def test_one_that_fails_keeps_its_notebook_and_the_others_finish(mixed):
    printed = mixed.command.printed
    assert "failed: what=fails: ZeroDivisionError: division by zero" in printed
    assert "6 cells: 3 finished, 3 failed" in printed
    assert "Traceback" not in mixed.command.said + printed
    record = mixed.place.records("mixed")["what=fails"]
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: division by zero")
    assert len(mixed.place.notes("fails.tries")) == 1, "an error of the notebook's own is no reason to retry"
    copy = mixed.place.copies("mixed", "failed")["what=fails"].read_text()
    assert "ZeroDivisionError" in copy and "so far so good" in copy
    finished = {"what=killed-once", "what=talks", "what=floods"}
    assert mixed.place.copies("mixed").keys() == finished


def test_a_kernel_that_dies_each_time_is_a_failure_with_a_reason(mixed):
    """As a rule memory was short for a moment, so it is tried again as a cell that was killed is."""
    assert "failed: what=dies: the kernel died (out of memory, as a rule), 3 times" in mixed.command.printed
    assert len(mixed.place.notes("dies.tries")) == 3
    copy = mixed.place.copies("mixed", "failed")["what=dies"]
    assert "os._exit(7)" in copy.read_text()
    record = mixed.place.records("mixed")["what=dies"]
    assert (record["status"], record["attempts"]) == ("failed", 3)


def test_an_executed_notebook_stays_small(mixed):
    """Of 5 MB the beginning and the end are kept; a bar's thousand states are one."""
    copy = mixed.place.copies("mixed")["what=talks"]
    assert copy.stat().st_size < 1_000_000
    assert "characters left out" in copy.read_text()
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    (bar,) = [output for output in cells[-1].outputs if output.get("name") == "stderr"]
    assert "1000/1000" in bar.text and len(bar.text) < 2_000
    assert sum(len(output.text) for output in cells[-2].outputs) < 20_000


def test_a_flood_of_small_outputs_is_kept_whole(mixed):
    """They come faster than they are written down: none is dropped, and least of all the last word."""
    copy = mixed.place.copies("mixed")["what=floods"]
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    text = "".join(output.text for output in cells[-1].outputs)
    assert text.split() == list(map(str, range(3000)))


def test_cells_have_ipython_folders_of_their_own(mixed):
    """Never the user's, and never two the same."""
    folders = mixed.place.notes("ipython")
    assert len(folders) == len(set(folders)) == 11, "two, twice three and three times one execution"
    home = Path(mixed.place.environment["HOME"])
    assert not any(Path(folder).is_relative_to(home) for folder in folders)


def test_a_users_start_up_files_and_kernels_stay_out(mixed):
    place = mixed.place
    assert set(place.notes("python")) == {f"{sys.executable} None"}
    for trace in ("start-up ran", "other kernel ran", "own code ran"):
        assert not (place.folder / trace).exists(), trace
    # The traps are real: an ordinary IPython reads the one, an ordinary Jupyter takes the other.
    ask = "from jupyter_client.kernelspec import get_kernel_spec as get; print(get('python3').argv)"
    for words in (["-m", "IPython", "-c", "pass"], ["-c", ask]):
        done = subprocess.run(
            [sys.executable, *words], env=place.environment, capture_output=True, text=True, timeout=PATIENCE
        )
    assert (place.folder / "start-up ran").exists()
    assert "other kernel ran" in done.stdout, done.stderr
    (place.folder / "start-up ran").unlink()


def test_nothing_is_left_of_a_sweep_with_failures(mixed):
    """No process, and nothing half-written: neither of killed cells nor of dead kernels."""
    until(lambda: not mixed.place.processes())
    assert mixed.place.litter() == []


def test_a_mended_notebook_is_executed_anew_in_all_cells(mixed):
    """Other code: even what had finished is done again, and the old failure's copy goes."""
    place = mixed.place
    before, results = place.changed("mixed"), place.results
    shutil.copytree(results, place.folder / "kept")
    place.results = place.folder / "kept"
    try:
        assert "what=fails" in place.copies("mixed", "failed")
        text = mixed.source.read_text()
        mixed.source.write_text(text.replace("1 / 0", "1 / 1"))
        place.start("--notebook", mixed.source, "-p", "what=fails,killed-once", "--jobs", 2).ends()
        now, records, done = place.changed("mixed"), place.records("mixed"), ("fails", "killed-once")
        assert all(now[f"what={what}"] > before[f"what={what}"] for what in done)
        assert {records[f"what={what}"]["status"] for what in done} == {"finished"}
        assert "what=fails" not in place.copies("mixed", "failed")
        assert "what=dies" in place.copies("mixed", "failed"), "it was not asked for"
    finally:
        mixed.source.write_text(text)
        place.results = results


# The command itself is killed, interrupted, started twice

WAITS = """
note("began", f"{seed} {os.getpid()} {os.getppid()}")
try:
    while seed > 1 and not (here / "go").exists():
        time.sleep(0.05)
except KeyboardInterrupt:
    note("saved", seed)
    raise
note("done", seed)
"""


def two_at_work(place: Place, command: Command, attempts: int) -> None:
    """Cell 1 has finished, and 2 and 3 stand in the middle, at their n-th attempt."""

    def stand() -> bool:
        begun = Counter(line.split()[0] for line in place.notes("began"))
        return begun["2"] == begun["3"] == attempts and "seed=1" in place.records("waits")

    until(stand, command)


def test_a_command_killed_then_interrupted_then_started_twice(place):
    """Each time all processes go; the same command does what is missing, and nothing twice."""
    source = notebook(place.folder / "waits.ipynb", WAITS)
    asked = ("--notebook", source, "-p", "seed=1..4", "--jobs", 2)

    driver = place.start(*asked)
    two_at_work(place, driver, attempts=1)
    assert len(place.processes()) == 5, "a command, two cells, two kernels"
    driver.process.kill()
    driver.process.wait()
    until(lambda: not place.processes())
    assert sorted(place.notes("saved")) == ["2", "3"], "notebooks hear of it in time to save"
    first = place.changed("waits")
    assert first.keys() == {"seed=1"}

    driver = place.start(*asked)
    two_at_work(place, driver, attempts=2)
    screen = place.watch(source)
    until(lambda: "seed=2: " in screen.text and "seed=3: " in screen.text, driver, screen)
    assert "waits: 25 %, 1/4 cells" in screen.text
    driver.interrupt()
    driver.ends(status=130)
    assert driver.said.splitlines()[-1] == STOPPED
    assert "Traceback" not in driver.said + driver.printed and "never retrieved" not in driver.said
    until(lambda: place.processes().keys() <= {screen.process.pid})
    assert sorted(place.notes("saved")) == ["2", "2", "3", "3"]
    assert not any(line.startswith("4 ") for line in place.notes("began")), "the rest was not started"
    assert place.changed("waits") == first
    assert not place.copies("waits", "failed"), "a stopped cell did not fail"
    assert "waits: it has ended" in screen.ends()

    (place.folder / "go").touch()
    drivers = [place.start(*asked), place.start(*asked)]
    for driver in drivers:
        driver.ends()
        assert "4 cells: 4 finished" in driver.printed
    assert sorted(place.notes("done")) == ["1", "2", "3", "4"], "each to its end exactly once"
    assert Counter(line.split()[0] for line in place.notes("began")) == {"1": 1, "2": 3, "3": 3, "4": 1}
    now = place.changed("waits")
    assert now.keys() == {"seed=1", "seed=2", "seed=3", "seed=4"} and now["seed=1"] == first["seed=1"]
    until(lambda: not place.processes())
    assert place.litter() == []
    assert "nothing runs there now" in place.watch(source).ends()


def test_an_interrupt_before_the_kernel_is_there(place):
    """A cell that is only starting ends too, and leaves nothing."""
    source = notebook(place.folder / "waits.ipynb", WAITS)
    driver = place.start("--notebook", source, "-p", "seed=2", "--jobs", 1)
    until(lambda: any(map(heeds_sigterm, place.processes())), driver)  # only a cell asks for it
    driver.interrupt()
    driver.ends(status=130)
    assert driver.said.splitlines()[-1] == STOPPED and "Traceback" not in driver.said
    until(lambda: not place.processes())
    assert place.litter() == []


def test_an_interrupt_between_two_cells_of_a_notebook(place):
    """A kernel that is idle hears no signal; the notebook does not go on all the same."""
    source = notebook(place.folder / "steps.ipynb", *["note('steps')"] * 150)
    driver = place.start("--notebook", source, "-p", "seed=2", "--jobs", 1)
    until(lambda: place.notes("steps"), driver)
    driver.interrupt()
    driver.ends(status=130)
    until(lambda: not place.processes())
    assert len(place.notes("steps")) < 150 and not place.records("steps")


# Memory and disk

GPU = """
class OutOfMemoryError(RuntimeError): pass
alive = here / f"alive-{seed}"
alive.touch()
note(f"share-{seed}", os.environ["IKDLIB_GPU_SHARE"])
""", """
try:
    if seed == 1:  # has all the memory until the others have felt it
        while not list(here.glob("results/sweeps/gpu/failed/seed=2-*")):
            time.sleep(0.05)
        time.sleep(3)  # one that was started now would meet it
    if seed == 2:
        while not (here / "alive-1").exists() and not (here / "starved").exists():
            time.sleep(0.05)
    others = [path.name for path in here.glob("alive-*") if path != alive]
    note(f"others-{seed}", len(others))
    if seed == 3 or seed == 2 and others:
        (here / "starved").touch()
        raise OutOfMemoryError("CUDA out of memory")
finally:
    alive.unlink()
"""  # fmt: skip


def test_cells_without_gpu_memory_are_tried_with_fewer_at_a_time(place):
    """Once: alone it has enough. One that never has enough fails with that reason."""
    source = notebook(place.folder / "gpu.ipynb", *GPU)
    command = place.start("--notebook", source, "-p", "seed=1..3", "--jobs", 2).ends(status=1)
    assert place.notes("share-2") == ["0.5", "1.0"], "the whole GPU is its own then"
    assert place.notes("others-2") == ["1", "0"] and place.notes("others-3") == ["0", "0"]
    records = place.records("gpu")
    found = {name: (record["status"], record["attempts"]) for name, record in records.items()}
    assert found == {"seed=1": ("finished", 1), "seed=2": ("finished", 2), "seed=3": ("failed", 2)}
    assert "failed: seed=3: OutOfMemoryError: CUDA out of memory" in command.printed
    assert "3 cells: 2 finished, 1 failed" in command.printed
    assert place.copies("gpu", "failed").keys() == {"seed=3"}


def test_a_full_disk_stops_the_sweep(place):
    """A device that is really full; no cell begins after it."""
    write = 'note("began", seed)\nwith open(target, "w") as file:\n    file.write("x" * 10_000)'
    source = notebook(place.folder / "full.ipynb", write, parameters='target = "/dev/null"\nseed = 1')
    asked = ("--notebook", source, "-p", "target=/dev/full,/dev/null", "-p", "seed=1,2", "--jobs", 1)
    command = place.start(*asked).ends(status=1)
    assert place.notes("began") == ["1"]
    assert "4 cells: 0 finished, 4 not done (the disk is full)" in command.printed
    assert "Traceback" not in command.said
    assert "No space left on device" in next(iter(place.copies("full", "failed").values())).read_text()


# Many cells


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_many_cells_twelve_at_once(place, count):
    """They start without getting in each other's way; no process and no folder is left, and memory is flat.

    The driver's memory is compared after 5 cells and at the last look before it draws the table.
    """
    source = notebook(place.folder / "many.ipynb", "note('done', seed)")
    driver = place.start("--notebook", source, "-p", f"seed=1..{count}", "--jobs", 12)
    sizes: dict[int, float] = {}
    folder = place.results / "sweeps" / "many"
    while driver.process.poll() is None:
        done = len(place.notes("done"))

        def further(done: int = done) -> bool:
            size = memory_mib(driver.process.pid)
            finished = len(place.changed("many"))
            if size and list(folder.glob("progress-*.json")):  # afterwards it loads what draws
                sizes[finished] = size
            return len(place.notes("done")) > done or driver.process.poll() is not None

        until(further)
    driver.ends()
    assert sorted(map(int, place.notes("done"))) == list(range(1, count + 1))
    assert f"{count} cells: {count} finished" in driver.printed
    assert "Traceback" not in driver.said
    assert {record["attempts"] for record in place.records("many").values()} == {1}
    until(lambda: not place.processes())
    assert place.litter() == [] and not list(place.results.rglob("*.log"))
    later = {finished: size for finished, size in sizes.items() if finished >= 5}
    assert len(later) > 1 and max(later) >= count - 2, sizes
    assert later[max(later)] - later[min(later)] < 20, sizes


# A real training

SITE = """
import os, sys, time
from importlib.machinery import PathFinder
from pathlib import Path
def small(glyphs):
    glyphs.TRAIN_PER_CLASS, glyphs.TEST_PER_CLASS = 2, 1
def waits(trainer):
    step = trainer.Trainer._train_step
    def waiting(self, *arguments):
        step(self, *arguments)
        if (self.epoch, self.step) == (2, 1):
            (Path(os.environ["SWEEPING_FOLDER"]) / "trains").write_text(str(os.getppid()))
            while not self.stop():
                time.sleep(0.02)
    trainer.Trainer._train_step = waiting
CHANGES = {"ikdlib.data.glyphs": small, "ikdlib.training.trainer": waits}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in CHANGES:
            spec = PathFinder.find_spec(name, path)
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), CHANGES[name](module))
            return spec
sys.meta_path.insert(0, Finder())
"""


def test_a_training_in_a_killed_cell_goes_on_from_its_checkpoint(tmp_path):
    """Notebook 11 as it is: its orphaned kernel saves, and the next attempt finishes the very run."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    place = Place(tmp_path, PYTHONPATH=f"{tmp_path / 'site'}:{REPOSITORY}", XDG_CACHE_HOME=str(tmp_path))
    try:
        chosen = ("pair=resnet8/resnet8", "method=ce", "epochs=3")
        options = [word for choice in chosen for word in ("-p", choice)]
        source = REPOSITORY / "notebooks" / "11_distill_student.ipynb"
        driver = place.start("--notebook", source, *options, "--device", "cpu", "--jobs", 1)
        until((tmp_path / "trains").exists, driver)
        until((tmp_path / "trains").read_text, driver)
        os.kill(int((tmp_path / "trains").read_text()), signal.SIGKILL)
        driver.ends()
        (run,) = (place.results / "demo" / "runs").glob("*/")
        assert json.loads((run / "result.json").read_text())["status"] == "finished"
        resumed = json.loads((run / "provenance.json").read_text())["resumed_at"]
        assert resumed == [{"epoch": 2, "step": 2}], "the step it stood at, and not the epoch's first"
        (record,) = place.records("11_distill_student").values()
        assert (record["status"], record["attempts"]) == ("finished", 2)
        assert record["outcome"].keys() == {"last top-1 (%)", "best top-1 (%)", "last top-5 (%)"}
        until(lambda: not place.processes())
    finally:
        place.clear()


# What a user gets wrong


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("-p sed=1", "did you mean seed?"),
        ("-p seed=kd", "is no int"),
        ("", "none given"),
        ("--grid empty.yaml", "names no parameters"),
        ("--notebook untagged.ipynb -p seed=1", "0 cells tagged `parameters`"),
        ("--notebook missing.ipynb -p seed=1", "missing.ipynb: No such file"),
        ("-p seed=1 --jobs x", "jobs: 'x' is not a whole number"),
        ("-p seed=1 --jobs -3", "jobs"),
        ("-p seed=1 --scheduler tcp://127.0.0.1:PORT", "no answer"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(place, words, reason):
    notebook(place.folder / "tiny.ipynb")
    notebook(place.folder / "untagged.ipynb", tag="parameter")
    (place.folder / "empty.yaml").write_text("{}\n")
    before = sorted(path for path in place.folder.rglob("*") if path.parent != place.outputs)
    named = "" if "--notebook" in words else "--notebook tiny.ipynb "
    command = place.start(*(named + words.replace("PORT", str(free_port()))).split()).ends(status=2)
    assert command.said.startswith("ikdlib: ") and reason in command.said
    assert command.said.count("\n") == 1 and command.printed == ""
    assert sorted(path for path in place.folder.rglob("*") if path.parent != place.outputs) == before


# The means of this file can fail


def test_a_process_that_is_left_is_seen_until_it_is_gone(place):
    child = subprocess.Popen(["sleep", "10000"], env=place.environment)
    until(lambda: list(place.processes()) == [child.pid])  # a moment after it began
    assert not gone(str(child.pid))
    child.kill()
    until(lambda: gone(str(child.pid)))
    assert place.processes() == {}
    child.wait()


def test_memory_that_grows_is_seen(place):
    program = "import sys; print(flush=True); input(); kept = b'x' * 50_000_000; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=place.environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        child.stdout.readline()
        before = memory_mib(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        assert memory_mib(child.pid) - before > 40
        child.kill()
    assert memory_mib(child.pid) is None


def test_litter_is_seen(place):
    assert place.litter() == []
    (place.temporary / "ikd123").mkdir()
    cells = place.results / "sweeps" / "many" / "cells"
    cells.mkdir(parents=True)
    for name in (".seed=1.42.ipynb", "seed=1.status.json", "seed=1.json", "seed=1.lock"):
        (cells / name).touch()
    (cells.parent / "progress-here-1.json").touch()
    assert place.litter() == [".seed=1.42.ipynb", "ikd123", "progress-here-1.json", "seed=1.status.json"]
