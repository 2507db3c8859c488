"""How many runs at once: what is concluded from a table, what is tried, and one trial with real processes."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from ikdlib.errors import IkdError
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec
from ikdlib.studies import throughput
from ikdlib.studies.throughput import Trial

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = (10, 8, 8)


def spec(method: str = "ce", student: str = "resnet8", **recipe) -> RunSpec:
    name, _, ikd = method.partition("+")
    own = MethodSpec(name=name, ikd=IKDSettings() if ikd else None)
    asked = {"teacher": "resnet8", "teacher_sha256": "1" * 64} if own.needs_teacher else {}
    return RunSpec(
        data="cifar100", data_sha256="0" * 64, student=student, method=own, seed=0,
        recipe=Recipe(**recipe), **asked,
    )  # fmt: skip


def trial(**changes) -> Trial:
    values = {"spec": spec(batch_size=4), "classes": 10, "height": 8, "width": 8, "device": "cpu"}
    return Trial(**{**values, "threads": 1, "seconds": 0.2, **changes})


def rates(**of: float) -> pd.DataFrame:
    return pd.DataFrame(
        [{"jobs": int(count[1:]), "images_per_second": float(rate)} for count, rate in of.items()]
    )


# What follows from a table


@pytest.mark.parametrize(
    "table, jobs",
    [
        (rates(x1=100), 1),
        (rates(x1=100, x2=200), 2),
        (rates(x1=100, x2=102), 1),  # 2 % more is noise, and each run takes twice as long
        (rates(x1=100, x2=104), 2),
        (rates(x1=100, x2=102, x4=104), 4),  # beside the one chosen so far, not beside the last
        (rates(x1=100, x2=150, x4=153), 2),
        (rates(x1=100, x2=150, x4=120), 2),
        (rates(x1=100, x2=90, x4=110, x8=112), 4),
        (rates(x1=100, x2=99, x4=98), 1),
    ],
)
def test_the_smallest_number_that_is_as_good_within_3_percent_wins(table, jobs):
    assert throughput.best(table) == jobs


# What is tried


class Measuring:
    """Stands in for `measure`: so many images a second for each number of runs, and a note of each trial."""

    def __init__(self, rates: dict[int, float] | None = None, mib: float = 100, fails_from: int = 10**9):
        self.rates, self.mib, self.fails_from = rates or {}, mib, fails_from
        self.asked: list[tuple[int, Trial]] = []

    def __call__(self, given: Trial, count: int) -> dict[str, float]:
        self.asked.append((count, given))
        if count >= self.fails_from:
            raise IkdError(f"jobs: {count} runs at once do not start here")
        rate = self.rates.get(count, 100.0 * count)
        return {
            "jobs": count, "threads": given.threads, "images_per_second": rate,
            "mib": self.mib, "gpu_mib": 0.0,
        }  # fmt: skip

    @property
    def counts(self) -> list[int]:
        return [count for count, _ in self.asked]


@pytest.fixture
def measuring(monkeypatch):
    """`measuring(...)`: puts a `Measuring` in place, on a machine with 8 cores and memory for everything."""

    def replace(
        available: float = float("inf"), cores: int = 8, on_gpu: float = float("inf"), **behaviour
    ) -> Measuring:
        fake = Measuring(**behaviour)
        monkeypatch.setattr(throughput, "measure", fake)
        monkeypatch.setattr(throughput.memory, "available_mib", lambda: available)
        monkeypatch.setattr(throughput.memory, "gpu_free_mib", lambda device: on_gpu)
        monkeypatch.setattr(throughput, "usable_cores", lambda: cores)
        return fake

    return replace


@pytest.mark.parametrize(
    "cores, tried",
    [(8, [(1, 8), (4, 2), (8, 1)]), (6, [(1, 6), (3, 2), (6, 1)]), (2, [(1, 2), (2, 1)]), (1, [(1, 1)])],
)
def test_a_cpus_cores_are_divided_among_the_runs(measuring, cores, tried):
    fake = measuring(cores=cores)
    table = throughput.compare(spec(), SHAPE, CPU)
    assert [(count, given.threads) for count, given in fake.asked] == tried
    assert list(zip(table["jobs"], table["threads"], strict=True)) == tried


def test_a_trial_is_of_the_spec_and_the_shape_that_were_asked_for(measuring):
    fake = measuring()
    wanted = spec("dkd+ikd", student="resnet20", precision="bf16")
    throughput.compare(wanted, (7, 12, 9), CPU)
    for _, given in fake.asked:
        assert given.spec == wanted and given.device == "cpu"
        assert (given.classes, given.height, given.width) == (7, 12, 9)
        assert Trial.from_json(given.model_dump_json()) == given, "as it reaches a child"


@pytest.mark.parametrize(
    "device, epochs, images, compiles",
    [
        (GPU, 240, 50_000, True),
        (GPU, 77, 50_000, True),
        (GPU, 76, 50_000, False),
        (GPU, 240, 0, False),
        (CPU, 240, 50_000, False),
    ],
)
def test_a_trial_compiles_what_such_a_run_would_on_a_gpu(measuring, device, epochs, images, compiles):
    """From 60,000 steps on: 77 epochs of CIFAR-100's 50,000 images in batches of 64."""
    fake = measuring()
    throughput.compare(spec(epochs=epochs, milestones=()), SHAPE, device, images)
    assert {given.compile for _, given in fake.asked} == {compiles}
    throughput.compare(spec(epochs=epochs, milestones=()).updated(deterministic=True), SHAPE, device, images)
    assert not fake.asked[-1][1].compile


def test_on_a_gpu_more_are_tried_until_more_no_longer_pays(measuring):
    """3 % beside the last: 1 -> 2 gives much, 2 -> 4 gives 3.4 %, 4 -> 8 gives 2 %, and 16 is not tried."""
    fake = measuring(cores=16, rates={1: 100, 2: 145, 4: 150, 8: 153})
    table = throughput.compare(spec(), SHAPE, GPU)
    assert fake.counts == [1, 2, 4, 8] == table["jobs"].tolist()
    assert [given.threads for _, given in fake.asked] == [16, 8, 4, 2]
    assert throughput.best(table) == 4


def test_it_stops_before_memory_runs_out(measuring):
    """2 cores, 500 MiB a run, 900 MiB: one has room, two have not."""
    fake = measuring(cores=2, available=900, mib=500)
    assert throughput.compare(spec(), SHAPE, CPU)["jobs"].tolist() == [1] == fake.counts
    roomy = measuring(cores=2, available=1001, mib=500)
    assert throughput.compare(spec(), SHAPE, CPU)["jobs"].tolist() == [1, 2] == roomy.counts


def test_a_gpu_is_not_filled_by_a_trial(measuring, monkeypatch):
    """Room for five runs: 8 at once are not tried, though each more would pay."""
    monkeypatch.setattr(throughput.memory, "CHILD_GPU_MIB", 1000)
    fake = measuring(cores=16, on_gpu=5_500, rates={1: 100, 2: 200, 4: 400, 8: 800})
    assert throughput.compare(spec(), SHAPE, GPU)["jobs"].tolist() == [1, 2, 4] == fake.counts


@pytest.mark.parametrize("device, cores", [(CPU, 8), (CPU, 64), (GPU, 8)])
@pytest.mark.parametrize("available", [2_500, 5_000, 20_000])
def test_nothing_is_tried_that_by_the_sizes_seen_would_not_fit(measuring, device, cores, available):
    """From the first trial on the size of a run is known: 1,000 MiB. A trial may not fill the machine."""
    fake = measuring(cores=cores, available=available, mib=1_000)
    throughput.compare(spec(), SHAPE, device)
    assert max(fake.counts) * 1_000 <= available, fake.counts


def test_it_ends_with_what_was_found_when_more_do_not_start(measuring):
    fake = measuring(fails_from=5)
    assert throughput.compare(spec(), SHAPE, CPU)["jobs"].tolist() == [1, 4]
    assert fake.counts == [1, 4, 8]


def test_when_not_even_one_starts_it_says_so(measuring):
    measuring(fails_from=1)
    with pytest.raises(IkdError, match="1 runs at once do not start"):
        throughput.compare(spec(), SHAPE, CPU)


# What is remembered


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """`choose(spec)`: the number for a spec, and how many comparisons were made for it."""

    class Choose:
        kept = tmp_path / "cache" / "jobs.json"
        table = rates(x1=100, x2=150)

        def __init__(self):
            self.compared: list[tuple] = []
            self.said: list[str] = []

        def __call__(self, wanted: RunSpec) -> tuple[int, int]:
            before = len(self.compared)
            jobs = throughput.choose(wanted, SHAPE, 50_000, "cpu", self.kept, self.said.append)
            return jobs, len(self.compared) - before

        def compare(self, *given):
            self.compared.append(given)
            return self.table

    made = Choose()
    monkeypatch.setattr(throughput, "compare", made.compare)
    return made


def test_it_is_measured_once_and_kept(choose):
    assert choose(spec()) == (2, 1)
    assert choose.compared == [(spec(), SHAPE, CPU, 50_000)]
    assert len(choose.said) == 1 and choose.said[0].startswith("2 runs at once") and "JOBS=" in choose.said[0]
    choose.table = rates(x1=100)  # what a second measurement would say
    assert choose(spec()) == (2, 0)
    assert choose(spec(epochs=7, learning_rate=0.1)) == (2, 0), "neither changes how fast a step is"
    assert len(choose.said) == 1


@pytest.mark.parametrize("changed", [{"student": "resnet20"}, {"precision": "bf16"}, {"batch_size": 128}])
def test_another_student_precision_or_batch_size_is_measured_anew(choose, changed):
    choose(spec())
    choose.table = rates(x1=100, x3=900)
    assert choose(spec(**changed)) == (3, 1)
    assert choose(spec(**changed)) == (3, 0)
    assert choose(spec()) == (2, 0), "the first answer stays"


@pytest.mark.parametrize("fact", ["processor", "cores", "gpu"])
def test_another_machine_is_measured_anew(choose, monkeypatch, fact):
    """A home folder may be shared by many machines."""
    facts = {"processor": "one", "cores": 4, "gpu": "none"}
    monkeypatch.setattr(throughput.provenance, "machine", lambda device: facts)
    monkeypatch.setattr(throughput, "usable_cores", lambda: facts["cores"])  # of a job maybe fewer
    assert choose(spec()) == (2, 1)
    facts[fact] = 77
    assert choose(spec()) == (2, 1)
    assert choose(spec()) == (2, 0)


def test_a_file_that_cannot_be_written_only_means_measured_again(choose, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert choose(spec()) == (2, 1)
    assert choose(spec()) == (2, 1)


@pytest.mark.parametrize("content", [b"", b'{"half', b"\xff\xfe\x00"])
def test_a_damaged_file_is_replaced(choose, content):
    choose.kept.parent.mkdir()
    choose.kept.write_bytes(content)
    assert choose(spec()) == (2, 1)
    assert choose(spec()) == (2, 0)


# What a process of a trial does


class Recorded(subprocess.Popen):
    """A process that notes what it was heard to say, and is noted itself."""

    every: list[Recorded] = []

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.heard: list[str] = []
        readline = self.stdout.readline

        def listen() -> str:
            self.heard.append(readline())
            return self.heard[-1]

        self.stdout.readline = listen
        Recorded.every.append(self)


@pytest.fixture
def children(monkeypatch):
    """The processes that `measure` starts; none may be left when the test is over."""
    monkeypatch.setattr(Recorded, "every", [])
    stand_in = SimpleNamespace(Popen=Recorded, PIPE=subprocess.PIPE)
    monkeypatch.setattr(throughput, "subprocess", stand_in)
    yield Recorded.every
    left = [child.pid for child in Recorded.every if child.poll() is None]
    for child in Recorded.every:
        child.kill()
        child.wait()
    assert not left


def gone(child: subprocess.Popen) -> bool:
    """Ended and reaped, as the kernel sees it."""
    try:
        os.kill(child.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_two_real_processes_report_and_end(children):
    """resnet8 on noise of 8 x 8 pixels: what comes back is the sum of what the two said."""
    found = throughput.measure(trial(), 2)
    assert len(children) == 2 and len({child.pid for child in children}) == 2
    assert all(map(gone, children))
    said = [[json.loads(line) for line in child.heard[1:]] for child in children]
    assert [child.heard[0] for child in children] == ["ready\n"] * 2
    assert [len(lines) for lines in said] == [1, 1]
    first, second = (lines[0] for lines in said)
    assert first["rate"] > 0 and second["rate"] > 0
    assert found["images_per_second"] == pytest.approx(first["rate"] + second["rate"], abs=0.06)
    assert found["mib"] == max(first["mib"], second["mib"]) and found["gpu_mib"] == 0
    assert (found["jobs"], found["threads"]) == (2, 1)
    if Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        own = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        assert own / 8 < found["mib"] < 8 * own, "in MiB, like this process, which has torch in it too"


@pytest.fixture
def program(tmp_path, monkeypatch, children):
    """`program(text)`: a small program instead of `python -m ikdlib bench`."""

    def replace(body: str) -> None:
        path = tmp_path / "child"
        path.write_text(f"#!{sys.executable} -S\nimport os, signal, sys\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setattr(throughput.sys, "executable", str(path))

    return replace


ANSWER = """print('{"rate": 50.04, "mib": 7.5, "gpu_mib": 2.0}', flush=True)"""


def test_rates_are_added_and_the_largest_process_counts(program, children, monkeypatch):
    """Numbers by hand, and what each process is told."""
    program(f"""
assert sys.argv[1:] == ["-m", "ikdlib", "bench", "--trial", "-"], sys.argv
assert '"threads":3' in sys.stdin.readline() and os.environ["MALLOC_TOP_PAD_"] == "1"
print("ready", flush=True)
assert sys.stdin.readline() == "go\\n"
{ANSWER}
""")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert throughput.measure(trial(threads=3), 3) == {
        "jobs": 3, "threads": 3, "images_per_second": 150.1, "mib": 7.5, "gpu_mib": 2.0,
    }  # fmt: skip
    assert len(children) == 3 and all(map(gone, children))


@pytest.mark.parametrize(
    "body, said",
    [
        ("sys.stdin.readline(); sys.exit(1)", "do not start"),
        ("sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)", "do not start"),
        ("sys.stdin.readline(); print('no memory', flush=True); sys.stdin.read()", "do not start"),
        ("sys.stdin.readline(); print('ready', flush=True); sys.stdin.readline()", "do not last"),
    ],
    ids=["ends before it is ready", "killed before it is ready", "says something else", "ends at work"],
)
def test_a_process_that_dies_is_one_line_and_leaves_none_behind(program, children, body, said):
    program(body)
    with pytest.raises(IkdError, match=f"2 runs at once {said}") as error:
        throughput.measure(trial(), 2)
    assert "\n" not in str(error.value)
    assert len(children) == 2 and all(map(gone, children))


def test_a_process_that_dies_while_it_waits_for_the_others_is_the_same_mistake(program, children):
    """What the kernel kills for want of memory is often one that was ready: the others are still growing.

    It stops listening before it says that it is ready, so that it is surely deaf when it is told to go.
    """
    program("sys.stdin.readline(); os.close(0); print('ready', flush=True); os._exit(1)")
    with pytest.raises(IkdError, match="2 runs at once"):
        throughput.measure(trial(), 2)
    assert len(children) == 2 and all(map(gone, children))


def test_one_of_two_is_enough_to_fail(program, children, tmp_path):
    """The first to come goes on, the second ends at work."""
    program(f"""
sys.stdin.readline()
try:
    os.mkdir({str(tmp_path / "first")!r})
    first = True
except FileExistsError:
    first = False
print("ready", flush=True)
sys.stdin.readline()
if first:
    {ANSWER}
    sys.stdin.read()
""")
    with pytest.raises(IkdError, match="do not last"):
        throughput.measure(trial(), 2)
    assert all(map(gone, children))


def test_the_rate_is_steps_times_batch_size_over_seconds(monkeypatch, capsys):
    """By a clock that only steps move: 0.25 s each. In 3 s there is room for 12 of 64 images: 256 a second.

    The steps before the trial begins, which warm up, do not count.
    """
    clock = SimpleNamespace(now=1000.0, steps=0)

    def step() -> None:
        clock.now += 0.25
        clock.steps += 1

    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(throughput, "synthetic_step", lambda *given: step)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    throughput.take_part(trial(spec=spec(batch_size=64), seconds=3.0, threads=2))
    ready, line = capsys.readouterr().out.splitlines()
    assert ready == "ready" and json.loads(line)["rate"] == 256
    assert clock.steps > 12 and torch.get_num_threads() == 2


# The step


class Step(throughput.TrainStep):
    """A training step that notes what it was given."""

    last: Step

    def __init__(self, student, method, recipe, views, device):
        super().__init__(student, method, recipe, views, device)
        self.given: list = []
        Step.last = self

    def __call__(self, inputs):
        self.given.append(inputs)
        super().__call__(inputs)


@pytest.fixture
def made(monkeypatch):
    """`made(method)`: a synthetic step of resnet8 on 8 pictures of 8 x 8, and the `Step` inside it."""
    monkeypatch.setattr(throughput, "TrainStep", Step)

    def make(method: str):
        torch.manual_seed(3)
        run = throughput.synthetic_step(spec(method, batch_size=8), 10, 8, 8, CPU)
        return run, Step.last

    return make


def dkd(student, teacher, target, temperature: float = 4.0, beta: float = 8.0):
    """The two parts of the paper's equation 7, from probabilities: cross-entropy + TCKD + beta NCKD."""
    own = F.one_hot(target, student.shape[1]).bool()
    p, q = ((logits / temperature).softmax(1) for logits in (teacher, student))
    pt, qt = p[own], q[own]
    tckd = pt * (pt / qt).log() + (1 - pt) * ((1 - pt) / (1 - qt)).log()
    ph, qh = (
        probability[~own].view(len(target), -1) / (1 - probability[own])[:, None] for probability in (p, q)
    )
    nckd = (ph * (ph / qh).log()).sum(1)
    return F.cross_entropy(student, target) + temperature**2 * (tckd + beta * nckd).mean()


@pytest.mark.parametrize("method", ["ce", "dkd+ikd"])
def test_a_synthetic_step_trains_as_sgd_by_hand_does(made, method):
    """Twice: the second step has a momentum."""
    run, step = made(method)
    twin = copy.deepcopy(step.student).train()
    before = {name: value.clone() for name, value in twin.named_parameters()}
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=False)
    total = 0.0
    for number in (1, 2):
        run()
        assert len(step.given) == number
        inputs = step.given[-1]
        assert inputs.target.tolist() == [0, 1, 2, 3, 4, 5, 6, 7] and inputs.pixels.shape == (8, 8, 8, 3)
        answer = twin(step.views.apply(inputs.pixels, inputs.views))
        if method == "ce":
            assert inputs.teacher is None
            loss = F.cross_entropy(answer, inputs.target)
        else:
            assert inputs.teacher.dtype == torch.float16 and inputs.teacher.shape == (8, 10)
            p, log_q = step.method.ikd.means[inputs.target].softmax(1), answer.log_softmax(1)
            loss = dkd(answer, inputs.teacher.float(), inputs.target)
            loss = loss + 6.5 * (p * (p.log() - log_q)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += 8 * loss.item()
        assert step.sums["loss"].item() == pytest.approx(total, rel=1e-4)
    for name, value in step.student.named_parameters():
        assert not torch.equal(value, before[name]), f"{name} did not move"
        moved, wanted = value - before[name], dict(twin.named_parameters())[name] - before[name]
        # Where the exact gradient is 0, as of a constant before a batch norm, both have rounding alone.
        assert (moved - wanted).norm() <= 1e-2 * wanted.norm() + 1e-7, name


def test_a_synthetic_step_is_of_the_phase_that_a_run_spends_its_time_in(made):
    """From epoch 2 on the IKD term pulls; observing is the first epoch's."""
    run, step = made("dkd+ikd")
    run()
    assert "ikd" in step.sums and step.method.phase[0] == "pull"
    assert step.method.ikd.counts.tolist() == [1] * 10, "the class means given to it"
    plain, without = made("dkd")
    plain()
    assert "ikd" not in without.sums


def test_as_many_optimiser_steps_as_calls(made, monkeypatch):
    real, count = torch.optim.SGD.step, [0]

    def counted(self, *arguments):
        count[0] += 1
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    run, _ = made("ce")
    for _ in range(3):
        run()
    assert count == [3]
