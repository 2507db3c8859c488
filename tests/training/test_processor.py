"""A processor that names AMX but cannot do it: tried once, remembered, and bf16 survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ikdlib
from ikdlib.training import processor

WITH_AMX = "model name : Some Processor flags : fpu avx512f amx_bf16 amx_tile amx_int8"
WITHOUT = "model name : Some Processor flags : fpu avx512f amx_tiles_of_another_kind"
PRODUCT = (
    "import torch; product = torch.ones(64, 64).bfloat16() @ torch.ones(64, 64).bfloat16(); "
    "print(product.float().sum().item())"
)


class Machine:
    """A processor that says of itself what a test wants, and counts how often it is tried."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.features, self.works = WITH_AMX, True
        self.tried = 0

    def attempt(self) -> bool:
        self.tried += 1
        return self.works

    def guarded(self) -> str | None:
        """What `guard` leaves in the environment of a new process."""
        os.environ.pop(processor.LIMIT, None)
        processor.guard()
        return os.environ.get(processor.LIMIT)

    @property
    def kept(self) -> list[str]:
        return sorted(path.read_text() for path in self.cache.rglob("*") if path.is_file())


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    monkeypatch.setenv(processor.LIMIT, "put back when the test is over")
    monkeypatch.delenv(processor.LIMIT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Machine(tmp_path / "cache")
    monkeypatch.setattr(processor, "features", lambda: made.features)
    monkeypatch.setattr(processor, "_try", made.attempt)
    return made


# Whether anything is done at all


@pytest.mark.parametrize("features", ["", WITHOUT, "model name : A Processor flags :"])
def test_without_amx_nothing_is_tried_set_or_kept(machine, features):
    machine.features, machine.works = features, False
    assert machine.guarded() is None
    assert machine.tried == 0 and not machine.cache.exists()


@pytest.mark.parametrize("own", ["AVX2", "ALL", ""])
def test_what_the_user_has_set_stays(machine, monkeypatch, own):
    machine.works = False
    monkeypatch.setenv(processor.LIMIT, own)
    processor.guard()
    assert os.environ[processor.LIMIT] == own
    assert machine.tried == 0 and not machine.cache.exists()


# What a try leads to


def test_amx_that_works_is_left_on(machine):
    assert machine.guarded() is None
    assert machine.tried == 1 and machine.kept == ["works"]


def test_amx_that_kills_is_switched_off_for_this_process_and_its_children(machine):
    machine.works = False
    assert machine.guarded() == "AVX512_CORE_FP16"
    child = [sys.executable, "-S", "-c", "import os; print(os.environ['ONEDNN_MAX_CPU_ISA'])"]
    assert subprocess.run(child, capture_output=True, text=True).stdout == "AVX512_CORE_FP16\n"


@pytest.mark.parametrize("works", [True, False])
def test_the_answer_is_remembered(machine, works):
    """A try takes seconds; a run may have a hundred processes."""
    machine.works = works
    first = machine.guarded()
    machine.works = not works  # what a second try would say
    assert machine.guarded() == first == machine.guarded()
    assert machine.tried == 1 and len(machine.kept) == 1


def test_each_processor_and_each_torch_has_an_answer_of_its_own(machine, monkeypatch):
    """A home folder may be shared by machines, and the next torch may bring a library that looks better."""
    machine.works = False
    assert machine.guarded() == processor.WITHOUT_AMX
    machine.features, machine.works = WITH_AMX.replace("Some", "Another"), True
    assert machine.guarded() is None
    machine.features = WITH_AMX
    assert machine.guarded() == processor.WITHOUT_AMX and machine.tried == 2
    monkeypatch.setattr(torch, "__version__", "99.1")
    assert machine.guarded() is None and machine.tried == 3
    assert machine.kept == ["fails", "works", "works"]


@pytest.mark.parametrize("works", [True, False])
def test_a_cache_that_cannot_be_written_costs_a_try_each_time_and_no_more(machine, works):
    machine.cache.write_text("a file where the folder should be")
    machine.works = works
    wanted = None if works else processor.WITHOUT_AMX
    assert machine.guarded() == wanted == machine.guarded()
    assert machine.tried == 2


# The try itself


@pytest.mark.parametrize(
    "program, works",
    [
        ("pass", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", False),
        ("raise SystemExit(3)", True),  # a torch that cannot be imported is not for a processor to mend
    ],
    ids=["ends well", "SIGILL", "SIGSEGV", "an error"],
)
def test_only_a_signal_says_that_it_does_not_work(monkeypatch, capfd, program, works):
    monkeypatch.setattr(processor, "TRY", program)
    assert processor._try() is works
    assert capfd.readouterr() == ("", ""), "a try that dies is nobody's news"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what a processor can")
def test_the_features_are_those_of_this_processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    assert set(flags) <= set(processor.features().split())


def test_where_the_kernel_says_nothing_there_are_no_features(monkeypatch):
    def refuse(self):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(processor.Path, "read_text", refuse)
    assert processor.features() == ""


# A real process


def python(program: str, cache: Path) -> subprocess.CompletedProcess:
    """A process that starts without the limit which this one may have set for itself."""
    environment = {name: value for name, value in os.environ.items() if name != processor.LIMIT}
    environment.update(PYTHONPATH=str(Path(ikdlib.__file__).parent.parent), XDG_CACHE_HOME=str(cache))
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=cache
    )


def test_bf16_survives_on_this_machine_whatever_its_processor_says(tmp_path):
    """64 x 64 products, each a sum of 64 ones. The same without the guard says what there was to guard from:
    on some machines it ends with SIGILL, and then that is what must have been kept."""
    bare = python(PRODUCT, tmp_path)
    assert bare.returncode in (0, -signal.SIGILL), bare.stderr
    guarded = python(f"import ikdlib.training; {PRODUCT}", tmp_path)
    assert guarded.returncode == 0, guarded.stderr
    assert float(guarded.stdout) == 64 * 64 * 64
    has_amx = "amx_tile" in processor.features().split()
    kept = [path.read_text() for path in (tmp_path / "ikdlib").glob("*.txt")]
    assert kept == (["works" if bare.returncode == 0 else "fails"] if has_amx else [])
