"""The plan of a study: which runs, in which order, and that DRY lists exactly what is then done."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ikdlib import __main__, runs
from ikdlib.errors import IkdError
from ikdlib.studies.children import ENVIRONMENT
from ikdlib.studies.plan import dry_run, same_architecture, suffix
from ikdlib.studies.plan import studies as tables_of
from ikdlib.studies.profiles import LOGIT_METHODS
from ikdlib.studies.study import Study, StudySettings
from ikdlib.training.checkpoint import digest
from ikdlib.training.job import load_teacher


def names(jobs) -> list[tuple[str, str, int]]:
    return [(job.spec.student, str(job.spec.method), job.spec.seed) for job in jobs]


def ids(jobs) -> list[str]:
    return [job.spec.run_id for job in jobs]


def test_every_cell_and_seed_is_one_job(studies):
    study = studies.study(teachers=studies.teachers("resnet14"), methods="ce,kd,kd+ikd", seeds="3,1")
    wanted = {("resnet8", method, seed) for method in ("ce", "kd", "kd+ikd") for seed in (1, 3)}
    jobs = study.student_jobs()
    assert set(names(jobs)) == wanted and len(jobs) == 6
    assert len(set(ids(jobs))) == 6
    assert set(ids(jobs)) == {run.spec.run_id for cell in study.cells() for run in cell.runs}


def test_what_is_named_twice_is_run_and_shown_once(studies):
    """Else a table has its rows twice, and Holm's correction counts each gain double."""
    study = studies.study(
        teachers=studies.teachers("resnet14"), methods="kd,kd+ikd,kd", seeds="1,1",
        pairs="resnet14/resnet8, resnet14/resnet8",
    )  # fmt: skip
    assert [(cell.pair, cell.method, len(cell.runs)) for cell in study.cells()] == [
        ("resnet14/resnet8", "kd", 1), ("resnet14/resnet8", "kd+ikd", 1),
    ]  # fmt: skip


def test_job_ids_say_pair_method_and_seed_and_stay(studies):
    study = studies.study(teachers=studies.teachers("resnet14"), methods="kd+ikd", seeds="7")
    (first,) = ids(study.student_jobs())
    assert re.fullmatch(r"resnet14-resnet8-kd\+ikd-seed7-[0-9a-f]{10}", first)
    assert ids(
        studies.study(teachers=study.settings.teachers, methods="kd+ikd", seeds="7").student_jobs()
    ) == [first]


@pytest.mark.parametrize(
    "change", [{"epochs": 2}, {"precision": "bf16"}, {"protocol": "released"}, {"holdout": 1}]
)
def test_another_length_precision_protocol_or_holdout_is_another_run_and_table(studies, change):
    teachers = studies.teachers("resnet14")
    plain, other = studies.study(teachers=teachers), studies.study(teachers=teachers, **change)
    assert set(ids(plain.student_jobs())).isdisjoint(ids(other.student_jobs()))
    assert suffix(plain) != suffix(other)


def test_other_pairs_are_another_table_and_the_tables_own_need_no_name(studies):
    own = ("resnet14/resnet8", "resnet20/resnet8")
    asked = [
        "",
        "resnet20/resnet8,resnet14/resnet8",
        "resnet20/resnet8",
        "resnet20/resnet14,resnet14/resnet8",
    ]
    made = [Study(studies.settings(pairs=pairs, profile="short", epochs=0), own) for pairs in asked]
    assert [suffix(study) for study in made] == [
        "", "", "-resnet20-resnet8", "-resnet14-resnet8+resnet20-resnet14",
    ]  # fmt: skip
    assert suffix(made[2], pairs=False) == ""
    three = "vgg13/vgg8,resnet56/resnet20,resnet20/resnet8"
    four = [
        studies.settings(pairs=f"{three},{last}", profile="short", epochs=0)
        for last in ("resnet110/resnet20", "resnet110/resnet32")
    ]
    names = [suffix(Study(settings, own)) for settings in four]
    assert all(re.fullmatch("-4pairs-[0-9a-f]{6}", name) for name in names) and len(set(names)) == 2


def test_where_things_lie_does_not_change_what_a_run_is(studies):
    """Another results folder, device or number of jobs: the same runs."""
    teachers = studies.teachers("resnet14")
    plain = studies.study(teachers=teachers)
    moved = studies.study(teachers=teachers, results=str(studies.root / "else where"), device="auto", jobs=3)
    assert ids(plain.student_jobs()) == ids(moved.student_jobs())


def test_ce_is_shared_by_the_pairs_of_one_student(studies):
    teachers = studies.teachers("resnet14", "resnet20")
    study = studies.study(teachers=teachers, pairs="resnet14/resnet8,resnet20/resnet8", methods="ce,kd")
    assert sorted(names(study.student_jobs())) == [
        ("resnet8", "ce", 1), ("resnet8", "kd", 1), ("resnet8", "kd", 1),
    ]  # fmt: skip
    shared = [cell.runs for cell in study.cells() if cell.method == "ce"]
    assert len(shared) == 2 and shared[0] == shared[1]


def test_the_seeds_of_a_cell_differ_in_nothing_else(studies):
    study = studies.study(teachers=studies.teachers("resnet14"), methods="dkd+ikd", seeds="1,2,3")
    (cell,) = study.cells()
    assert [run.spec.seed for run in cell.runs] == [1, 2, 3]
    assert len({run.spec.updated(seed=0).model_dump_json() for run in cell.runs}) == 1


def test_only_the_lowest_seed_of_a_cell_keeps_its_logits(studies):
    study = studies.study(teachers=studies.teachers("resnet14"), methods="ce,kd", seeds="5,2,9")
    assert {job.spec.seed for job in study.student_jobs() if job.keep_logits} == {2}


def test_who_leaves_the_teachers_logits_goes_first(studies):
    """The first run with a teacher, for each pair and seed, comes before all others, and `ce`, which asks
    nobody, before those who would wait for it."""
    study = studies.study(
        teachers=studies.teachers("resnet14", "resnet20"),
        pairs="resnet14/resnet8,resnet20/resnet8", methods="ce,kd,dkd", seeds="1,2",
    )  # fmt: skip
    order = [(job.spec.teacher, str(job.spec.method), job.spec.seed) for job in study.student_jobs()]
    first = [(teacher, "kd", seed) for teacher in ("resnet14", "resnet20") for seed in (1, 2)]
    assert order[:4] == first
    assert order[4:6] == [(None, "ce", 1), (None, "ce", 2)]
    assert len(order) == 10


def test_students_wait_for_a_teacher_that_is_missing(studies):
    study = studies.study(methods="ce,kd,kd+ikd")
    assert study.missing_teachers() == ("resnet14",)
    assert names(study.student_jobs()) == [("resnet8", "ce", 1)]
    assert [cell.method for cell in study.cells()] == ["ce"]
    there = studies.study(methods="ce,kd,kd+ikd", teachers=studies.teachers("resnet14"))
    assert there.missing_teachers() == ()
    assert len(there.student_jobs()) == 3


def test_ce_alone_needs_no_teacher(studies):
    assert studies.study(methods="ce").missing_teachers() == ()
    assert studies.study(methods="ce+ikd").missing_teachers() == ("resnet14",)


def test_students_name_the_teacher_they_are_given(studies):
    study = studies.study(teachers=studies.teachers("resnet14"), methods="kd")
    (job,) = study.student_jobs()
    model = load_teacher(job.spec, study.teacher("resnet14").path, 10)
    assert job.spec.teacher_sha256 == digest(model.state_dict())


def test_profiles_fill_in_what_is_left_open():
    from ikdlib.studies.study import Study

    demo, short, paper = (Study(StudySettings(profile=name)) for name in ("demo", "short", "paper"))
    assert (demo.epochs, short.epochs, paper.epochs) == (8, 48, 240)
    assert demo.pairs == ("resnet20/resnet8",) and len(short.pairs) == 7
    assert short.methods == paper.methods == LOGIT_METHODS
    assert paper.seeds == (1, 2, 3)
    assert Study(StudySettings(profile="paper", seeds="8", epochs=5, methods="kd")).seeds == (8,)


def test_one_epoch_is_not_called_epochs(studies):
    assert ", 1 epoch, fp32, 1 seed," in studies.study(epochs=1).caption
    assert ", 2 epochs, fp32, 2 seeds," in studies.study(epochs=2, seeds="1,2").caption


# What a user can get wrong


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"sed": "1"}, "did you mean seed"),
        ({"profile": "papr"}, "profile"),
        ({"precision": "fp16"}, "precision"),
        ({"epochs": "12"}, "epochs"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"epochs": float("nan")}, "epochs"),
        ({"seeds": "1;2"}, "seeds"),
        ({"seeds": "-1"}, "negative"),
        ({"seeds": 1}, 'seeds: 1 is no string; write it in quotes, "1" .a list of seeds, like 1,2,3'),
        ({"seeds": [1, 2]}, 'seeds: .* write it in quotes, "1,2"'),
        ({"seeds": None}, "seeds: .*None"),
        ({"pairs": "resnet14"}, "teacher/student"),
        ({"pairs": "resnet14/resnet9"}, "resnet8"),
        ({"methods": "kd+idk"}, r"\+ikd"),
        ({"methods": "kdd"}, "did you mean"),
        ({"protocol": "relesed"}, "protocol"),
        ({"data": "own"}, "the demo draws its own images and would not read own; leave it out"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(studies, settings, said):
    with pytest.raises(IkdError, match=said) as error:
        studies.study(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, seeds", [("1,2,3", (1, 2, 3)), (" 2 , 1,", (2, 1)), ("0", (0,)), ("4,4,1", (4, 1))]
)
def test_seeds_are_read(studies, text, seeds):
    assert studies.study(seeds=text).seeds == seeds


# Which table a pair is in


def test_pairs_go_to_the_table_of_their_kind(studies):
    found = tables_of(studies.settings(pairs="vgg13/MobileNetV2,resnet14/resnet8,resnet32x4/ShuffleV2"))
    assert [study.pairs for study in found.values()] == [
        ("resnet14/resnet8",), ("vgg13/MobileNetV2", "resnet32x4/ShuffleV2"),
    ]  # fmt: skip
    assert list(tables_of(studies.settings(pairs="vgg13/vgg8"))) == ["20_cifar100_same_architecture"]
    everything = tables_of(StudySettings(profile="paper"))
    assert sum(len(study.pairs) for study in everything.values()) == 13


def test_a_pair_outside_the_thirteen_is_sorted_by_family():
    assert same_architecture("wrn_40_1/wrn_16_1") and not same_architecture("vgg16/resnet20")


# DRY


def listed(text: str, word: str) -> set[str]:
    return set(re.findall(rf"^  (\S+): {word}", text, re.MULTILINE))


def test_dry_lists_exactly_what_is_then_done(studies):
    asked = {"methods": "ce,kd,kd+ikd", "seeds": "1,2"}
    study = studies.study(**asked)
    said = dry_run(tables_of(study.settings).values())
    assert list(runs.find(study.folder / "runs")) == [], "DRY trained something"
    assert not study.own_teachers.exists()
    waiting = re.findall(r"^  (\S+) (\S+) seed (\d+): after its teacher", said, re.MULTILINE)
    assert len(listed(said, "to do")) == 3  # the teacher, and ce of two seeds

    teacher = study.teacher_job("resnet14")
    assert studies.train(teacher) == 0
    study.keep_teacher(teacher)
    done = studies.study(**asked)
    named = dry_run(tables_of(done.settings).values())
    for job in done.student_jobs():
        assert studies.train(job) == 0
    finished = {run.spec.run_id: run.spec for run in runs.find(study.folder / "runs")}
    assert set(finished) == listed(said, "to do") | listed(named, "to do")
    late = {(spec.pair, str(spec.method), str(spec.seed)) for spec in finished.values() if spec.teacher}
    assert late == set(waiting)

    again = dry_run(tables_of(done.settings).values())
    assert listed(again, "finished, skipped") >= set(ids(done.student_jobs()))
    assert "to do" not in again and "about 0 s" in again


def test_dry_counts_the_teachers_logits_once_a_seed(studies):
    study = studies.study(teachers=studies.teachers("resnet14"), methods="ce,kd,dkd", seeds="1,2")
    said = dry_run(tables_of(study.settings).values())
    lines = [line for line in said.splitlines() if "with the teacher's logits" in line]
    assert len(lines) == 2
    assert ["-kd-seed1-" in lines[0], "-kd-seed2-" in lines[1]] == [True, True]


def test_dry_tells_finished_half_finished_and_missing_apart(studies):
    study = studies.study(teachers=studies.teachers("resnet14"), methods="ce,kd,dkd")
    jobs = {str(job.spec.method): job for job in study.student_jobs()}
    assert studies.train(jobs["ce"]) == 0
    jobs["kd"].run.folder.mkdir(parents=True)
    jobs["kd"].run.checkpoint.write_bytes(b"half")
    said = dry_run(tables_of(study.settings).values())
    assert listed(said, "finished, skipped") == {jobs["ce"].spec.run_id}
    assert listed(said, "resumed") == {jobs["kd"].spec.run_id}
    assert listed(said, "to do") == {jobs["dkd"].spec.run_id}


def test_a_finished_run_is_not_trained_again(studies):
    study = studies.study(methods="ce")
    (job,) = study.student_jobs()
    assert studies.train(job) == 0
    before = {path.name: path.stat().st_mtime_ns for path in job.run.folder.iterdir()}
    assert studies.train(job) == 0
    assert {path.name: path.stat().st_mtime_ns for path in job.run.folder.iterdir()} == before


def test_the_program_in_the_readme_trains_and_loads_a_student(studies, monkeypatch, capsys):
    """It runs as it stands; what it loads is as good on the test images as the run's last epoch says."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(
        r"```python\n(.*?)```", text.partition("## From Python\n")[2].partition("\n## ")[0], re.S
    )
    monkeypatch.chdir(studies.root)
    known: dict[str, Any] = {}
    exec(code, known)
    done = {run.spec.run_id: run for run in runs.find(Path("results/demo/runs"))}
    assert sorted(str(run.spec.method) for run in done.values()) == ["ce", "kd", "kd+ikd"], (
        "a teacher, students"
    )
    told = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[0] in done]
    for name, top1, epochs in told:
        assert float(top1) == done[name].result["last"]["top1"] and int(epochs) == 8
    assert {name for name, *_ in told} == set(ids(known["study"].student_jobs()))
    test, run = known["study"].data.test, known["job"].run
    images = (test.images.numpy() / 255 - known["study"].data.mean) / known["study"].data.std
    with torch.no_grad():
        logits = known["student"](torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32))
    right = (logits.argmax(1) == test.targets).float().mean().item()
    assert 100 * right == pytest.approx(run.result["last"]["top1"], abs=1e-4)
    assert digest(known["student"].state_dict()) == run.result["weights_sha256"]


def test_the_train_command_makes_teacher_and_students(studies, monkeypatch):
    """`python -m ikdlib train`, here in this process: the teacher, its students, then nothing is left."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # else the command would start itself once more
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    settings = studies.settings(methods="ce,dkd+ikd", epochs=2)
    asked = [f"--{name}={value}" for name, value in dict(settings).items() if value not in ("", 0)]
    try:
        assert __main__.main(["train", *asked, "--threads", "1"]) == 0
        done = {run.spec.run_id: run for run in runs.find(studies.results / "demo" / "runs")}
        study = studies.study(methods="ce,dkd+ikd", epochs=2)
        assert set(done) == {*ids(study.student_jobs()), study.teacher_job("resnet14").spec.run_id}
        assert all(run.status == "finished" and not runs.damaged_files(run) for run in done.values())
        assert study.missing_teachers() == ()
        assert __main__.main(["train", *asked]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
