"""`make evidence`: which runs, in which order, and what the command does with each. Nothing is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ikdlib import __main__, models
from ikdlib.commands.options import study_settings
from ikdlib.data import DataSet, ImageSet
from ikdlib.data.base import hold_out
from ikdlib.errors import IkdError
from ikdlib.runs import Run
from ikdlib.studies import cache, evidence, plan
from ikdlib.studies.estimate import Estimate
from ikdlib.studies.study import Study, StudySettings
from ikdlib.studies.variants import variant_of
from ikdlib.training.job import Job

CLASSES = tuple("abcdefghij")
FIVE = ["kd", "ce", "kd+ikd", "dkd", "dkd+ikd"]  # of a seed: who asks the teacher first, then who asks nobody
FOUR = ["kd", "kd+ikd", "dkd", "dkd+ikd"]


def finish(run: Run, top1: float = 50.0, status: str = "finished") -> None:
    """A run folder made by hand; the best epoch is another number than the last."""
    run.begin()
    scores = {"last": {"epoch": 8, "top1": top1, "top5": 99.0}, "best": {"epoch": 2, "top1": 97.0}}
    run.finish({"status": status, "epochs": 8, **(scores if status == "finished" else {})})


class Machine:
    """The command, with the pool replaced: what was handed to it, and what it answered."""

    def __init__(self, studies, monkeypatch, capsys):
        self.studies, self.patch, self.capsys = studies, monkeypatch, capsys
        self.results = studies.results
        self.teachers = ""
        self.device = "cpu"
        self.handed: list[tuple[list[Job], int]] = []
        self.started: list[str] = []
        self.niced: list[int] = []
        self.listed: list[Job] | None = None
        self.does: Callable[[Job], object] = lambda job: finish(job.run)
        monkeypatch.setattr("ikdlib.studies.pool.run_all", self._run_all)
        monkeypatch.setattr(os, "nice", self.niced.append)

    def _run_all(self, jobs, workers, show, ended) -> dict[str, int]:
        """As the pool: what is over is not started, and a failure is raised when the others have ended."""
        self.handed.append((list(jobs), workers))
        failed = []
        for job in jobs:
            assert job.run.status not in ("finished", "diverged"), "it was over"
            assert job.teacher is None or Path(job.teacher).exists()
            self.started.append(job.spec.run_id)
            if self.does(job) is False:
                failed.append(job.spec.run_id)
            elif job.spec.seed == 0:
                save_file(models.build(job.spec.student, len(CLASSES)).state_dict(), job.run.weights)
            ended(job)
        if failed:
            raise IkdError(f"{len(failed)} of {len(jobs)} runs failed; the disk is full")
        return {}

    def has_gpu(self) -> None:
        self.patch.setattr(evidence, "choose_device", lambda name: torch.device("cuda:0"))

    @property
    def settings(self) -> StudySettings:
        return StudySettings(results=str(self.results), teachers=self.teachers, device=self.device)

    def __call__(self, *options: str, status: int = 0) -> str:
        given = ["--results", str(self.results), "--teachers", self.teachers, "--device", self.device]
        assert __main__.main(["evidence", *given, *options]) == status
        told = self.capsys.readouterr()
        return told.out + told.err

    def parts(self) -> list[evidence.Part]:
        return evidence.parts(self.settings)

    def jobs(self) -> list[Job]:
        """All runs of the list, in its order; made once, because to make them takes a second."""
        if self.listed is None:
            self.listed = [job for _, own in evidence.by_part(self.parts()) for job in own]
        return self.listed

    def ids(self) -> list[str]:
        return [job.spec.run_id for job in self.jobs()]

    def done(self) -> list[str]:
        """Run ids in the order in which they were started."""
        return self.started

    def forget(self) -> None:
        """What was handed over and started until now."""
        self.handed.clear()
        self.started.clear()


@pytest.fixture
def machine(studies, monkeypatch, capsys) -> Machine:
    """A machine with a CPU, and the published teacher of its list."""

    def load(name, root=None, cache=None, holdout=0) -> DataSet:
        images = torch.zeros(600, 8, 8, 3, dtype=torch.uint8)  # 60 of a class: 50 can be held apart
        every = ImageSet(images, torch.arange(600) % 10)
        train, held_out = hold_out(every, CLASSES, holdout)
        return DataSet(
            name=name, classes=CLASSES, train=train, test=every,
            held_out=held_out, sha256="0" * 64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25),
        )  # fmt: skip

    monkeypatch.setattr("ikdlib.data.load", load)
    made = Machine(studies, monkeypatch, capsys)
    made.teachers = studies.teachers("resnet56")
    return made


@pytest.fixture
def gpu(machine) -> Machine:
    """A machine with a GPU and no teachers."""
    machine.has_gpu()
    machine.teachers = ""
    machine.device = "auto"
    return machine


def row(job: Job) -> tuple[str, int, str, int]:
    spec = job.spec
    return spec.student, spec.seed, variant_of(spec).label, spec.holdout


# Which runs, and in which order


def test_the_cpu_list_goes_item_by_item_and_seed_by_seed(machine):
    lambdas = [f"dkd+ikd, λ {value}" for value in ("0.5", "1", "2", "4", "6", "7", "8")]
    expected = [("resnet8", seed, name, 0) for seed in (1, 2, 3, 4, 5) for name in FIVE]
    expected += [("resnet20", seed, name, 0) for seed in (1, 2) for name in FIVE]
    plain = ["dkd+ikd, towards one hot", "dkd+ikd, towards even rest"]
    of_kd = ["kd+ikd, towards one hot", "kd+ikd, towards permuted"]
    others = ["nkd", "nkd+ikd", "wttm", "wttm+ikd"]
    for names in (plain, ["dkd+ikd, towards permuted"], of_kd, others):
        expected += [("resnet8", seed, name, 0) for seed in (1, 2, 3) for name in names]
    expected += [("resnet8", 1, name, 50) for name in ["dkd", *lambdas[:5], "dkd+ikd", *lambdas[5:]]]
    expected += [("resnet20", seed, name, 0) for seed in (3, 4, 5) for name in FIVE]
    assert [row(job) for job in machine.jobs()] == expected
    for job in machine.jobs():
        assert job.spec.teacher in ("resnet56", None) and job.spec.recipe.epochs == 48
        assert job.spec.recipe.precision == "bf16" and Path(job.runs) == machine.results / "short" / "runs"


def test_nothing_is_in_the_list_twice(machine, gpu):
    for device in ("cpu", "cuda"):
        machine.patch.setattr(evidence, "choose_device", lambda name, device=device: torch.device(device))
        machine.listed = None
        ids = machine.ids()
        assert len(ids) == len(set(ids))


def asked(machine: Machine, *command: str) -> StudySettings:
    """The settings of a command as a user would write it, with this machine's folders."""
    given = ["--results", str(machine.results), "--teachers", machine.teachers, "--device", machine.device]
    return study_settings(__main__._parser().parse_args([*command, *given]))


def of(studies_by_name: dict) -> dict[str, Job]:
    """Run id to job of the studies of a command."""
    every = [
        one for found in studies_by_name.values() for one in (found if isinstance(found, list) else [found])
    ]
    return {job.spec.run_id: job for study in every for job in study.student_jobs()}


def test_the_cpu_runs_are_those_of_the_tables_and_ablations_to_the_job(machine):
    """Where they lie, whose logits they keep, their spec: all but the number of threads."""
    short = ("--profile", "short", "--precision", "bf16", "--pairs")
    five, rest = "ce,kd,kd+ikd,dkd,dkd+ikd", "nkd,nkd+ikd,wttm,wttm+ikd"
    table = [
        ("resnet56/resnet8", five, "1,2,3,4,5"), ("resnet56/resnet20", five, "1,2"),
        ("resnet56/resnet8", rest, "1,2,3"),
    ]  # fmt: skip
    more = ("resnet56/resnet20", five, "1,2,3,4,5")
    expected: dict[str, Job] = {}
    for pair, names, seeds in table:
        command = ("table", *short, pair, "--methods", names, "--seeds", seeds)
        expected |= of(plan.studies(asked(machine, *command)))
    assert len(expected) == 47
    ablations = ("ablations", *short, "resnet56/resnet8", "--methods", "kd+ikd,dkd+ikd", "--seeds")
    controls = of(plan.ablation_studies(asked(machine, *ablations, "1,2,3"), "32"))
    wanted = [f"dkd+ikd, towards {name}" for name in ("one hot", "even rest", "permuted")]
    wanted += [f"kd+ikd, towards {name}" for name in ("one hot", "permuted")]
    compared = {key: job for key, job in controls.items() if variant_of(job.spec).label in wanted}
    assert len(compared) == 15
    lambdas = [word.replace("kd+ikd,dkd+ikd", "dkd+ikd") for word in ablations]
    compared |= of(plan.ablation_studies(asked(machine, *lambdas, "1"), "31"))
    assert len(compared) == 24
    pair, names, seeds = more
    expected |= of(plan.studies(asked(machine, "table", *short, pair, "--methods", names, "--seeds", seeds)))
    assert sum(job.keep_logits for job in expected.values()) == 5 + 5 + 4, "a seed of each table's cells"
    expected |= {key: job.updated(keep_logits=False) for key, job in compared.items()}
    assert len(expected) == 86
    assert {job.spec.run_id: job.updated(threads=None) for job in machine.jobs()} == expected


def test_the_gpu_list_trains_each_teacher_before_its_pairs(gpu):
    titles = [part.item.title for part in gpu.parts()]
    four = " with kd, kd+ikd, dkd, dkd+ikd"
    assert titles == [
        "the teacher resnet32x4", f"resnet32x4/resnet8x4{four}",
        "resnet32x4/resnet8x4, the term's T (notebook 30)", "resnet32x4/resnet8x4, lambda (notebook 31)",
        "the teacher wrn_40_2", f"wrn_40_2/wrn_16_2{four}", f"wrn_40_2/wrn_40_1{four}",
        f"wrn_40_2/ShuffleV1{four}",
        "the teacher resnet56", f"resnet56/resnet20{four}",
        "the teacher resnet110", f"resnet110/resnet20{four}", f"resnet110/resnet32{four}",
        "the teacher vgg13", f"vgg13/vgg8{four}", f"vgg13/MobileNetV2{four}",
        "the teacher ResNet50", f"ResNet50/MobileNetV2{four}", f"ResNet50/vgg8{four}",
        f"resnet32x4/ShuffleV1{four}", f"resnet32x4/ShuffleV2{four}",
    ]  # fmt: skip
    part = gpu.parts()[1]
    assert [row(job)[1:3] for job in part.ordered()] == [(seed, name) for seed in (1, 2, 3) for name in FOUR]
    for job in gpu.jobs():
        assert job.spec.recipe.epochs == 240 and job.spec.recipe.batch_size == 64
        assert job.spec.recipe.precision == "fp32" and job.threads is None


def test_the_gpu_runs_are_those_of_the_commands_and_their_teachers_are_trained_here(gpu):
    gpu()
    trained = [job for group, _ in gpu.handed for job in group]
    teachers = {job.spec.student: job for job in trained if job.spec.seed == 0}
    assert list(teachers) == ["resnet32x4", "wrn_40_2", "resnet56", "resnet110", "vgg13", "ResNet50"]
    kept = {path.stem for path in (gpu.results / "teachers").glob("*.safetensors")}
    assert kept == {job.spec.run_id for job in teachers.values()}
    paper = ("--profile", "paper")
    expected = of(plan.studies(asked(gpu, "table", *paper, "--methods", "kd,kd+ikd,dkd,dkd+ikd")))
    assert len(expected) == 13 * 4 * 3
    expected |= of(plan.ablation_studies(asked(gpu, "ablations", *paper), "30,31"))
    students = {job.spec.run_id: job for job in trained if job.spec.seed}
    assert students == {
        key: job.updated(keep_logits=job.keep_logits and not job.spec.holdout)
        for key, job in expected.items()
    }
    by_name = plan.teacher_study(asked(gpu, "teachers", *paper))
    assert {name: by_name.teacher_job(name).spec for name in teachers} == {
        k: j.spec for k, j in teachers.items()
    }
    gpu.forget()
    assert "the teacher vgg13: complete" in gpu() and gpu.handed == [], "all of it was done"


# What the command does


def test_on_a_cpu_one_run_at_a_time_on_one_thread_at_low_priority(machine):
    told = machine()
    assert machine.done() == machine.ids() and len(machine.done()) == 86
    assert {workers for _, workers in machine.handed} == {1}
    assert {job.threads for group, _ in machine.handed for job in group} == {1}
    assert machine.niced == [19]
    assert told.count("complete, ") == 8 and "86 runs" not in told


@pytest.mark.parametrize("jobs, workers", [("auto", 1), ("0", 1), ("1", 1), ("2", 2)])
def test_more_at_once_only_where_it_is_asked_for(machine, jobs, workers):
    machine("--jobs", jobs)
    assert {given for _, given in machine.handed} == {workers}
    assert [len(group) for group, _ in machine.handed] == [25, 10, 6, 3, 6, 12, 9, 15], "an item is a turn"
    assert machine.done() == machine.ids()
    assert {job.threads for group, _ in machine.handed for job in group} == {1}


def test_a_gpu_is_packed_and_has_its_usual_priority(gpu):
    gpu("--first", "30")
    assert [(len(group), workers) for group, workers in gpu.handed] == [(1, 0), (12, 0), (17, 0)]
    assert gpu.niced == []


def test_what_was_measured_is_said_run_by_run(machine):
    machine.does = lambda job: finish(job.run, 40 + job.spec.seed)
    lines = machine("--first", "6").splitlines()
    ids = machine.ids()
    for name, top1 in zip(ids[:6], ["41.00"] * 5 + ["42.00"], strict=True):
        assert f"{name}: top-1 {top1} % (last epoch)" in lines
    assert lines[-8].endswith(": 6 of 25 runs") and lines[-2].endswith(": 0 of 9 runs")


def test_it_goes_on_where_it_stopped(machine):
    machine("--first", "3")
    machine("--first", "2")
    assert machine.done() == machine.ids()[:5]
    finish(Run(machine.results / "short" / "runs", machine.jobs()[6].spec))  # by another command
    machine("--first", "2")
    assert machine.done()[5:] == [machine.ids()[5], machine.ids()[7]]


def test_first_also_stops_in_the_middle_of_a_pack(machine):
    machine("--jobs", "2", "--first", "27")
    assert [len(group) for group, _ in machine.handed] == [25, 2]
    assert "first" in machine("--first", "-1", status=2)


def test_ctrl_c_ends_it_and_the_same_command_goes_on(machine):
    def interrupted(job):
        if len(machine.started) == 4:
            raise KeyboardInterrupt
        finish(job.run)

    machine.does = interrupted
    assert "the same command goes on" in machine(status=130)
    assert machine.done() == machine.ids()[:4]
    machine("--first", "1")
    assert machine.done()[4:] == [machine.ids()[3]]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_fails_is_named_and_the_others_go_on(machine, jobs):
    bad = [machine.ids()[place] for place in (1, 2, 30)]
    machine.does = lambda job: False if job.spec.run_id in bad else finish(job.run)
    told = machine("--jobs", jobs, status=2)
    assert machine.done() == machine.ids(), "it ended the list"
    log = Path(machine.results, "short", "runs", bad[2], "log.txt")
    assert f"{bad[2]}: failed, see {log}" in told and "the disk is full" in told
    assert told.splitlines()[-1].startswith("ikdlib: 3 runs failed") and all(
        name in told.splitlines()[-1] for name in bad
    )
    assert "23 of 25 runs" in told and "9 of 10 runs" in told and "complete, 12 runs" in told
    machine.forget()
    machine.does = lambda job: finish(job.run)
    machine()
    assert machine.done() == bad, "what failed is tried again, and nothing else"


def test_a_run_that_diverged_is_over_and_said(machine):
    bad = machine.ids()[2]
    machine.does = lambda job: finish(job.run, status="diverged" if job.spec.run_id == bad else "finished")
    told = machine()
    assert f"{bad}: diverged" in told and "complete, 25 runs, 1 of them diverged" in told
    machine.forget()
    machine()
    assert machine.handed == []


# Teachers


def test_without_the_teacher_only_those_run_that_ask_nobody(machine):
    whole = {job.spec.run_id for job in machine.jobs() if job.spec.teacher is None}
    machine.teachers = ""
    told = machine()
    assert set(machine.done()) == whole and len(whole) == 5 + 2 + 3
    passed = [line for line in told.splitlines() if "passed over" in line]
    counted = [int(line.split(": ")[1].split()[0]) for line in passed]
    assert counted == [20, 8, 6, 3, 6, 12, 9, 12], "one line each"
    assert all("there is no resnet56 (TEACHERS=DIR)" in line for line in passed)
    machine.teachers = machine.studies.teachers("resnet56")
    machine.forget()
    machine()
    assert len(machine.done()) == 86 - 10, "now they can be done"


def test_a_teacher_that_cannot_be_trained_holds_up_its_own_pairs_alone(gpu):
    gpu.does = lambda job: False if job.spec.student == "wrn_40_2" else finish(job.run)
    told = gpu(status=2)
    assert {line.split(" with")[0] for line in told.splitlines() if "passed over" in line} == {
        "wrn_40_2/wrn_16_2", "wrn_40_2/wrn_40_1", "wrn_40_2/ShuffleV1",
    }  # fmt: skip
    assert "the teacher wrn_40_2: not there yet" in told and "the teacher vgg13: complete" in told
    assert not [job for group, _ in gpu.handed for job in group if job.spec.teacher == "wrn_40_2"]


def test_a_given_teacher_is_not_trained(gpu):
    gpu.teachers = gpu.studies.teachers("resnet32x4")
    gpu("--first", "3")
    file = Path(gpu.teachers, "resnet32x4.pth")
    assert {job.teacher for group, _ in gpu.handed for job in group} == {str(file)}


def test_a_teacher_whose_command_died_before_it_was_kept_is_kept_now(gpu):
    job = gpu.parts()[0].ordered()[0]
    finish(job.run)
    save_file(models.build("resnet32x4", len(CLASSES)).state_dict(), job.run.weights)
    gpu("--first", "1")
    assert [job.spec.pair for group, _ in gpu.handed for job in group] == ["resnet32x4/resnet8x4"]


def test_runs_that_wait_are_named_anew_when_their_teacher_is_there(gpu):
    teacher, students = gpu.parts()[:2]
    before = students.ordered()
    assert len(before) == 12 and all(map(evidence.waits, before))
    (job,) = teacher.ordered()
    finish(job.run)
    save_file(models.build("resnet32x4", len(CLASSES)).state_dict(), job.run.weights)
    teacher.keep_if_finished()
    after = students.ordered()
    assert not any(map(evidence.waits, after))
    assert not {job.spec.run_id for job in before} & {job.spec.run_id for job in after}


def test_one_that_is_gone_is_neither_kept_nor_trained_again(gpu):
    """Its run is finished, but somebody threw the weights away: nothing can be done, and nothing breaks."""
    finish(gpu.parts()[0].ordered()[0].run)
    told = gpu("--first", "1")
    assert "resnet32x4/resnet8x4 with kd, kd+ikd, dkd, dkd+ikd: 12 runs passed over" in told
    assert [job.spec.student for group, _ in gpu.handed for job in group] == ["wrn_40_2"]


# --dry


@pytest.fixture
def an_hour(monkeypatch) -> None:
    monkeypatch.setattr(
        "ikdlib.studies.estimate.seconds_of", lambda job, data, measured: Estimate(3600.0, "planted")
    )


def test_dry_lists_every_run_with_its_state_and_does_nothing(machine, an_hour):
    jobs = machine.jobs()
    finish(jobs[0].run)
    finish(jobs[1].run, status="diverged")
    jobs[2].run.begin()
    jobs[2].run.checkpoint.touch()
    before = sorted(machine.results.rglob("*"))
    lines = machine("--dry").splitlines()
    assert machine.handed == [] and machine.niced == []
    assert sorted(machine.results.rglob("*")) == before
    states = ["finished, skipped", "diverged, skipped", "resumed, about 1.00 h (planted)"]
    states += ["to do, about 1.00 h (planted)"] * 83
    runs = [f"  {job.spec.run_id}: {state}" for job, state in zip(jobs, states, strict=True)]
    assert [line for line in lines if line.startswith("  resnet")] == runs
    sums = [line for line in lines if line.startswith("  = ")]
    assert sums == [f"  = about {hours}.0 core-hours" for hours in (23, 10, 6, 3, 6, 12, 9, 15)]
    assert lines[-1] == "84 runs left, about 84.0 core-hours"
    assert lines[0].endswith(": 2 of 25 runs, 1 of them diverged")


def test_dry_counts_what_waits_for_a_teacher_too(gpu, an_hour):
    lines = gpu("--dry").splitlines()
    assert gpu.handed == [] and not gpu.results.exists()
    shared = 2 * 3  # dkd and dkd+ikd with images apart stand in notebooks 30 and 31
    count = 6 + 13 * 12 + (6 + 18) * 3 - shared
    assert lines[-1] == f"{count} runs left, about {count}.0 GPU-hours, one run after another"
    waiting = "  vgg13/vgg8 dkd+ikd seed 3: after its teacher vgg13, about 1.00 h (planted)"
    assert lines.count(waiting) == 1
    assert len([line for line in lines if ": to do" in line]) == 6, "a run that waits has no id yet"


def test_dry_prices_the_teachers_logits_once_a_seed_and_anew_with_images_apart(machine, monkeypatch):
    """Real estimates of planted times: 100 s a training epoch, 10 s for an epoch of logits."""
    monkeypatch.setattr("ikdlib.studies.estimate._timed_epoch", lambda job, data: 100.0)
    monkeypatch.setattr("ikdlib.studies.estimate.seconds_of_slab", lambda job, data: 10.0)
    last = machine("--dry").splitlines()[-1]
    hours = 48 * (86 * 100 + (5 + 1) * 10) / 3600
    assert last == f"86 runs left, about {hours:.1f} core-hours"


# Teacher logits on disk


def plant(job: Job, study: Study) -> Path:
    """A slab of epoch 1; returns its file."""
    slabs = cache.Slabs(study, job)
    path = slabs.logits.path(slabs.loader.epoch(1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * 2**20)
    return path


def test_logits_are_thrown_away_when_no_run_of_the_list_will_read_them(machine):
    first, *_, apart, _ = machine.parts()
    files = {job.spec.seed: plant(job, first) for job in cache.needed(first)}
    held = plant(cache.needed(apart)[0], apart)
    other = Study(first.settings.updated(seeds="4", methods="kd", precision="fp32"))
    foreign = plant(cache.needed(other)[0], other)
    accuracy = foreign.with_name("accuracy.safetensors")
    accuracy.touch()

    def there() -> list[int]:
        return [seed for seed, path in files.items() if path.exists()]

    machine("--first", "53")  # all but the last run of the other methods' first seed
    assert there() == [1, 2, 3, 4, 5], "the last item reads those of seeds 3 to 5"
    said = machine("--first", "1")
    assert there() == [2, 3, 4, 5] and "resnet56 seed 1" in said and " 1 MiB deleted" in said
    machine.does = lambda job: False if row(job)[2] == "wttm+ikd" else finish(job.run)
    machine("--first", "4", status=2)
    assert 2 in there(), "the run that failed reads it next time"
    machine.does = lambda job: finish(job.run)
    assert held.exists()
    machine("--first", str(86 - 54 - 3 - 10))  # one of the four was not done, and ten are left
    assert there() == [4, 5] and not held.exists()
    machine()
    assert there() == [] and not held.exists()
    assert foreign.exists() and accuracy.exists(), "they are not the list's"


# What it takes


def test_importing_it_changes_no_priority_and_needs_no_notebooks():
    code = (
        "import os, sys; before = os.nice(0); import ikdlib.__main__, ikdlib.commands.evidence;"
        "import ikdlib.studies.evidence; ikdlib.__main__._parser(); assert os.nice(0) == before;"
        "assert not {'papermill', 'matplotlib', 'dask'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
