"""The teachers' logits on disk: what is made ahead is what a training would have made, to the bit."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open

from ikdlib import __main__
from ikdlib.runs import Run
from ikdlib.studies import cache
from ikdlib.studies.study import Study
from ikdlib.training.teacher import Teacher

MIB = 2**20
DAY = 86_400


@pytest.fixture
def study(studies) -> Study:
    """kd and dkd+ikd of one pair, two epochs, seeds 1 and 2, from a teacher that never learnt anything."""
    return studies.study(
        teachers=studies.teachers("resnet14"), methods="ce,kd,dkd+ikd", seeds="1,2", epochs=2
    )


def make(study: Study) -> list[tuple[int, int]]:
    """Make all that a study needs; (seed, epoch) of each that was computed."""
    return [
        (job.spec.seed, epoch) for job in cache.needed(study) for epoch, _ in cache.Slabs(study, job).make()
    ]


def slabs(root: Path) -> dict[str, tuple]:
    """Every file of logits below the folder, by name: its numbers to the bit, and what it says they are.

    Not the file's bytes: safetensors writes its header in an order of the moment.
    """
    found = {}
    for path in root.rglob("*.safetensors"):
        if path.name != "accuracy.safetensors":
            with safe_open(path, "np") as file:
                logits, facts = file.get_tensor("logits"), file.metadata()
            found[str(path.relative_to(root))] = (logits.dtype.name, logits.shape, logits.tobytes(), facts)
    return found


def outcome(run: Run) -> tuple:
    """What a run came to, without how long it took."""
    history = str(run.history.drop(columns="seconds").to_dict("records"))  # as text: NaN is not itself
    return run.result["weights_sha256"], run.result["last"], run.result["teacher"], history


def train(studies, study: Study, method: str = "kd", seed: int = 1) -> Run:
    (job,) = (job for job in study.jobs(study.pairs[0], method) if job.spec.seed == seed)
    assert studies.train(job) == 0
    return job.run


# Making them ahead


def test_one_job_for_each_teacher_and_seed(studies):
    """However many students and methods ask: they all read the same logits."""
    wide = studies.study(
        teachers=studies.teachers("resnet14", "resnet20"), methods="ce,kd,dkd,dkd+ikd", seeds="3,1",
        pairs="resnet14/resnet8,resnet20/resnet8,resnet14/resnet20",
    )  # fmt: skip
    jobs = cache.needed(wide)
    assert len(wide.student_jobs()) == 22  # ce: 2 students; kd, dkd, dkd+ikd: 3 pairs; all: 2 seeds
    assert sorted((job.spec.teacher, job.spec.seed) for job in jobs) == [
        ("resnet14", 1), ("resnet14", 3), ("resnet20", 1), ("resnet20", 3),
    ]  # fmt: skip
    assert {job.spec.teacher_sha256 for job in jobs if job.spec.teacher == "resnet14"} == {
        wide.teacher("resnet14").sha256
    }


def test_each_precision_has_logits_of_its_own(studies):
    teachers = studies.teachers("resnet14")
    both = [studies.study(teachers=teachers, methods="kd", precision=p) for p in ("fp32", "bf16")]
    assert [[job.spec.recipe.precision for job in cache.needed(study)] for study in both] == [
        ["fp32"], ["bf16"],
    ]  # fmt: skip


def test_who_asks_nobody_needs_nothing(studies):
    assert cache.needed(studies.study(methods="ce")) == []


@pytest.mark.filterwarnings("ignore:the teacher has")
def test_what_is_made_ahead_is_what_a_training_makes(studies, study):
    """The same files with the same numbers, to the bit, as trainings leave that found none."""
    assert make(study) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    made = slabs(cache.folder(studies.results))
    assert len(made) == 4
    assert {numbers[:2] for numbers in made.values()} == {("float16", (150, 10))}
    alone = study.settings.updated(results=str(studies.root / "elsewhere"))
    for seed in (1, 2):
        run = train(studies, Study(alone), seed=seed)
        assert run.provenance["slabs"] == {"computed": 2, "found": 0}
    assert slabs(cache.folder(studies.root / "elsewhere")) == made


@pytest.mark.filterwarnings("ignore:the teacher has")
@pytest.mark.parametrize("method", ["kd", "dkd+ikd"])
def test_a_training_finds_what_was_made_and_ends_with_the_same_bits(studies, study, method):
    make(study)
    served = train(studies, study, method)
    assert served.provenance["slabs"] == {"computed": 0, "found": 2}
    alone = train(studies, Study(study.settings.updated(results=str(studies.root / "elsewhere"))), method)
    assert alone.provenance["slabs"]["computed"] == 2
    assert outcome(served) == outcome(alone)
    other = train(studies, study, method, seed=2)
    assert outcome(other) != outcome(alone), "the comparison tells runs apart"


def test_what_is_there_is_not_computed_again(studies, study):
    make(study)
    root = cache.folder(studies.results)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")}
    assert make(study) == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")} == before
    longer = Study(study.settings.updated(epochs=3, seeds="2"))
    assert make(longer) == [(2, 3)], "an order has no length in it"


def test_what_is_missing_is_known_before_it_is_made(studies, study):
    first, second = (cache.Slabs(study, job) for job in cache.needed(study))
    assert first.mib_each == 150 * 10 * 2 / MIB, "150 images, 10 classes, two bytes each"
    assert first.missing() == [1, 2] == second.missing()
    assert [epoch for epoch, seconds in first.make() if seconds > 0] == [1, 2]
    assert first.missing() == [] and second.missing() == [1, 2]
    next(second.make())
    assert second.missing() == [2], "one by one: a stop loses the one that is being made"


def test_what_another_process_is_making_is_left_to_it(study):
    """It has epoch 1, so epoch 2 is made first; it dies, so epoch 1 is made after all."""
    made = cache.Slabs(study, cache.needed(study)[0])
    path = made.logits.path(made.loader.epoch(1))
    path.parent.mkdir(parents=True)
    other = FileLock(path.with_suffix(".lock"))
    other.acquire()
    making = made.make()
    assert next(making)[0] == 2
    other.release()
    assert [epoch for epoch, _ in making] == [1] and made.missing() == []


def test_where_nothing_can_be_kept_nothing_is_made(study, monkeypatch):
    made = cache.Slabs(study, cache.needed(study)[0])
    usage = type(shutil.disk_usage("."))(total=1 << 40, used=1 << 40, free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.warns(UserWarning, match="no room for teacher logits"):
        assert len(list(made.make())) <= 1
    assert made.logits.computed == 1


def test_fp32_made_ahead_is_not_tf32(study, monkeypatch):
    """A training tells torch not to round a convolution's inputs to 10 bits on a GPU; so must this, or what
    is found differs from what is computed."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    real, allowed = Teacher.logits, []

    def noted(self, *arguments):
        allowed.append(torch.backends.cudnn.allow_tf32)
        return real(self, *arguments)

    monkeypatch.setattr(Teacher, "logits", noted)
    make(study)
    assert allowed == [False] * 4


# Listing them


def test_a_listing_adds_up_what_lies_there(studies, study):
    make(study)
    root = cache.folder(studies.results)
    paths = sorted(root.rglob("*.safetensors"))
    now = time.time()
    for age, path in zip((5, 3, 9, 4), paths, strict=True):
        os.utime(path, (now, now - age * DAY))
    (row,) = cache.listing(root).to_dict("records")
    assert row["teacher"] == study.teacher("resnet14").sha256[:16] and row["data"] == "0" * 16
    assert (row["precision"], row["slabs"], row["damaged"]) == ("fp32-float16", 4, 0)
    assert row["MiB"] == sum(os.stat(path).st_size for path in paths) / MIB
    assert row["MiB"] > 4 * 150 * 10 * 2 / MIB, "150 images, 10 classes, two bytes each"
    assert row["days"] == pytest.approx(3, abs=0.01), "since the last was written"


@pytest.mark.filterwarnings("ignore:the teacher has")
def test_teachers_and_precisions_have_rows_of_their_own(studies):
    teachers = studies.teachers("resnet14", "resnet20")
    pairs = "resnet14/resnet8,resnet20/resnet8"
    for precision, seeds in (("fp32", "1,2"), ("bf16", "1")):
        wanted = studies.study(teachers=teachers, pairs=pairs, methods="kd", seeds=seeds, precision=precision)
        make(wanted)
        train(studies, wanted)  # leaves an accuracy beside the logits, which is none of them
    table = cache.listing(cache.folder(studies.results))
    names = {wanted.teacher(name).sha256[:16]: name for name in ("resnet14", "resnet20")}
    found = [(names[row.teacher], row.precision, row.slabs) for row in table.itertuples()]
    assert sorted(found) == [
        ("resnet14", "bf16-float16", 1), ("resnet14", "fp32-float16", 2),
        ("resnet20", "bf16-float16", 1), ("resnet20", "fp32-float16", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["cut off", "empty", "no logits"])
def test_a_damaged_file_is_counted(studies, study, damage):
    make(study)
    root = cache.folder(studies.results)
    path = sorted(root.rglob("*.safetensors"))[1]
    content = path.read_bytes()
    path.write_bytes(
        {"cut off": content[:-100], "empty": b"", "no logits": content.replace(b"logits", b"lagits")}[damage]
    )
    (row,) = cache.listing(root).to_dict("records")
    assert (row["slabs"], row["damaged"]) == (4, 1)


def test_nothing_there_is_an_empty_table(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        table = cache.listing(root)
        assert len(table) == 0 and {"teacher", "slabs", "MiB", "days", "damaged"} <= set(table.columns)


# Throwing them away


def test_a_teachers_logits_go_by_the_start_of_its_name(studies):
    """And nobody else's; what was freed is what `os.stat` said."""
    wanted = studies.study(
        teachers=studies.teachers("resnet14", "resnet20"), methods="kd",
        pairs="resnet14/resnet8,resnet20/resnet8", epochs=2,
    )  # fmt: skip
    make(wanted)
    root = cache.folder(studies.results)
    ours, theirs = (root / wanted.teacher(name).sha256[:16] for name in ("resnet14", "resnet20"))
    sizes = [path.stat().st_size for path in ours.rglob("*.safetensors")]
    kept = slabs(theirs)
    assert cache.prune(root, teacher="no such teacher") == (0, 0.0)
    assert cache.prune(root, teacher=ours.name[:6]) == (2, sum(sizes) / MIB)
    assert slabs(ours) == {} and slabs(theirs) == kept and len(kept) == 2


def test_old_logits_go_by_their_days(studies, study):
    make(study)
    root = cache.folder(studies.results)
    paths = sorted(root.rglob("*.safetensors"))
    now = time.time()
    for age, path in zip((10, 2, 7.01, 6.99), paths, strict=True):
        os.utime(path, (now, now - age * DAY))
    old = [paths[0].stat().st_size, paths[2].stat().st_size]
    assert cache.prune(root, days=7) == (2, sum(old) / MIB)
    assert [path.exists() for path in paths] == [False, True, False, True]
    assert cache.prune(root, days=7) == (0, 0.0)
    assert cache.prune(root)[0] == 2, "without a number of days, all"


@pytest.mark.filterwarnings("ignore:the teacher has")
def test_after_a_pruning_a_run_computes_again_and_ends_with_the_same_bits(studies, study):
    before = outcome(train(studies, study, "kd"))
    root = cache.folder(studies.results)
    (accuracy,) = root.rglob("accuracy.safetensors")
    assert cache.prune(root)[0] == 2
    assert accuracy.exists() and slabs(root) == {}
    again = train(studies, study, "dkd+ikd")
    assert again.provenance["slabs"] == {"computed": 2, "found": 0}
    assert outcome(again)[2] == before[2], "the teacher's accuracy was kept"
    (studies.results / "demo" / "runs").rename(studies.root / "away")
    cache.prune(root)
    assert outcome(train(studies, study, "kd")) == before


# The command


def asked(study: Study) -> list[str]:
    return [f"--{name}={value}" for name, value in dict(study.settings).items() if value not in ("", 0)]


def test_the_command_counts_makes_lists_and_prunes(studies, study, capsys):
    results = ["--results", str(studies.results)]
    root = cache.folder(studies.results)

    def says(*arguments: str) -> list[str]:
        assert __main__.main(["cache", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    nothing = ["no teacher logits", f"0 MiB in {root}"]
    assert says("list", *results) == nothing
    first, second, *rest = says("cost", *asked(study))
    assert first.startswith("resnet14 seed 1: 2 of 2 epochs to compute, 0 MiB, about ") and rest == nothing
    assert second.startswith("resnet14 seed 2: 2 of 2 epochs")
    assert slabs(root) == {}, "what it would cost, and no more"

    said = says("make", *asked(study))
    epochs = [line.rsplit(":", 1)[0] for line in said if " epoch " in line]
    assert epochs == [f"resnet14 seed {seed} epoch {epoch}" for seed in (1, 2) for epoch in (1, 2)]
    paths = list(root.rglob("*.safetensors"))
    assert len(paths) == 4
    assert study.teacher("resnet14").sha256[:16] in said[-2] and " 4 " in said[-2]
    assert said[-1] == f"0 MiB in {root}"
    again = says("make", *asked(study))
    assert sum("0 of 2 epochs to compute" in line for line in again) == 2
    assert not any(" epoch " in line for line in again)

    os.utime(paths[0], (time.time(), time.time() - 9 * DAY))
    assert says("prune", *results, "--days", "8") == ["1 slabs deleted, 0 MiB freed"]
    assert says("prune", *results, "--teacher", "nobody") == ["0 slabs deleted, 0 MiB freed"]
    assert [path.exists() for path in paths] == [False, True, True, True]


def test_large_files_are_told_in_mib(tmp_path, capsys):
    """Made by hand: 3 MiB and 4.5 MiB of one teacher."""
    for number, size in enumerate((3.0, 4.5)):
        path = cache.folder(tmp_path) / ("a" * 16) / ("b" * 16) / f"{number}-fp32-float16.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(int(size * MIB)))
    assert __main__.main(["cache", "list", "--results", str(tmp_path)]) == 0
    header, row, total = capsys.readouterr().out.splitlines()
    told = dict(zip(header.split(), row.split(), strict=True))
    assert (told["slabs"], told["MiB"], told["damaged"]) == ("2", "7.5", "2")
    assert total == f"8 MiB in {cache.folder(tmp_path)}"
    assert __main__.main(["cache", "prune", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "2 slabs deleted, 8 MiB freed\n"


@pytest.mark.parametrize("given", [[], ["--results="]], ids=["left out", "empty"])
def test_results_left_open_are_where_everything_else_puts_them(studies, study, monkeypatch, capsys, given):
    """An empty option stands for the default, here as everywhere: what is made there is listed there."""
    monkeypatch.chdir(studies.root)
    others = [option for option in asked(study) if not option.startswith("--results")]
    assert __main__.main(["cache", "make", *others, *given]) == 0
    assert len(slabs(studies.root / "results" / "cache" / "teacher_logits")) == 4
    said = capsys.readouterr().out
    assert "no teacher logits" not in said and said.endswith("in results/cache/teacher_logits\n")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["make", "--profile=demo", "--pairs=resnet14/resnet8", "--methods=kd"], "no resnet14 yet"),
        (["make", "--profile=demo", "--pairs=resnet14/resnet8", "--teachers=nowhere"], "not a folder"),
        (["make", "--profile=dmo"], "profile"),
        (["mkae"], "mkae"),
        (["prune", "--days", "a week"], "a week"),
        ([], "what"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(studies, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(studies.root)
    assert __main__.main(["cache", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert told.err.startswith("ikdlib: ") and said in told.err
    assert not list(studies.root.rglob("*.safetensors"))
