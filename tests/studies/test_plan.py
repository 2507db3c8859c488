"""`DRY=1` of each command lists exactly the runs that its notebooks then do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from ikdlib import __main__, runs
from ikdlib.errors import IkdError
from ikdlib.studies import children, estimate, plan, reproduce
from ikdlib.studies.cell import Task
from ikdlib.studies.notebook import SOURCES, check_parameters, parameters_of
from ikdlib.studies.study import StudySettings
from ikdlib.studies.variants import variant_of

PAIR = "resnet14/resnet8"

pytestmark = pytest.mark.filterwarnings("ignore:the teacher has")  # untrained, it knows nothing


class Here(Executor):
    """An engine whose cells are executed in this process, one after another."""

    slots, ahead, owner, code, environment = 1, 0, "here", "", {}

    def __init__(self, execute: Callable[[Task], None]):
        self.execute = execute

    def submit(self, function, child) -> Future:
        self.execute(Task.from_json(child.text))
        future = Future()
        future.set_result((children.FINISHED, ""))
        return future

    def stop(self):
        pass


class Command:
    """A command with fixed settings: what its dry run says, and its work, with the notebooks in here."""

    def __init__(self, studies, name: str, monkeypatch, capsys, only: str = "", **changes: str):
        self.studies, self.name, self.only, self.capsys = studies, name, only, capsys
        self.settings = studies.settings(**changes)
        self.done: list[str] = []
        self.cells: list[str] = []
        monkeypatch.setattr(reproduce, "open_engine", lambda *_: Here(self._cell))
        monkeypatch.setattr(reproduce.notebook, "execute_here", self._table)

    def dry(self) -> str:
        asked = [f"--{key}={value}" for key, value in self.settings if value not in ("", 0)]
        if self.name == "ablations":
            asked.append(f"--only={self.only}")
        assert __main__.main([self.name, "--dry", *asked]) == 0
        return self.capsys.readouterr().out

    def work(self) -> dict[str, runs.Run]:
        """Run id to run of everything that the command did."""
        doing: dict[str, Callable] = {
            "table": lambda: reproduce.reproduce(self.settings),
            "ablations": lambda: reproduce.ablate(self.settings, self.only),
            "teachers": lambda: reproduce.train_teachers([plan.teacher_study(self.settings)]),
        }
        doing[self.name]()
        return {run.spec.run_id: run for run in runs.find(self.studies.results / "demo" / "runs")}

    def _cell(self, task: Task) -> None:
        """Notebook 10 or 11: its own cells until they know their job, which is trained here."""
        known = self._known(Path(task.notebook), task.parameters, "job")
        assert known["job"].spec.run_id == task.id, "the cell is another run than the plan's"
        assert known["job"].run.folder.resolve().parent == (self.studies.results / "demo" / "runs").resolve()
        assert self.studies.train(known["job"]) == 0
        if "architecture" in task.parameters:
            known["study"].keep_teacher(known["job"])
        self.cells.append(task.id)

    def _table(self, name: str, output: Path, parameters: dict) -> Path:
        """A table's notebook, until it knows its study: all that it shows is there."""
        study = self._known(SOURCES / f"{name}.ipynb", parameters, "study")["study"]
        assert study.missing_teachers() == ()
        assert {job.run.status for job in study.student_jobs()} == {"finished"}
        self.done.append(name)
        return output

    def _known(self, source: Path, parameters: dict, wanted: str) -> dict:
        check_parameters(source, parameters)
        known = {**parameters_of(source), **parameters}
        known |= {"train_here": lambda job: None}
        for cell in json.loads(source.read_text())["cells"]:
            if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
                exec("".join(cell["source"]), known)
            if wanted in known:
                return known
        raise AssertionError(f"{source.name} has no {wanted}")


@pytest.fixture
def command(studies, monkeypatch, capsys):
    def make(name: str, **changes) -> Command:
        return Command(studies, name, monkeypatch, capsys, **changes)

    return make


def named(text: str, word: str) -> list[str]:
    return re.findall(rf"^  (\S+): {word}", text, re.MULTILINE)


def waiting(text: str) -> list[tuple[str, str, str, str]]:
    """Pair, label, seed and images apart of each line that waits for a teacher."""
    lines = re.findall(
        r"^  (\S+) (.+) seed (\d+): after its teacher is trained(?: \((\d+) images a class held apart\))?$",
        text,
        re.MULTILINE,
    )
    return [(pair, label, seed, apart or "0") for pair, label, seed, apart in lines]


def check_all_finished(text: str, done: dict) -> None:
    assert "to do" not in text and "resumed" not in text and "after its teacher" not in text
    assert set(named(text, "finished, skipped")) <= set(done)
    assert text.rstrip().endswith("about 0 s of one core or GPU for the runs that can be named now")


@pytest.mark.parametrize(
    "only, notebooks, count",
    [
        ("30", ["30_temperature_of_the_term"], 6),
        ("31", ["31_weight_of_the_term"], 18),
        ("32", ["32_what_the_term_is"], 11),
        ("33", ["33_batch_size_and_kd_temperature"], 16),
    ],
)
def test_dry_of_an_ablation_lists_what_its_notebook_trains(command, studies, only, notebooks, count):
    asked = command("ablations", only=only, pairs=PAIR, teachers=studies.teachers("resnet14"))
    said = asked.dry()
    assert not (studies.results / "demo" / "runs").exists(), "DRY trained something"
    done = asked.work()
    assert asked.done == notebooks
    assert sorted(named(said, "to do")) == sorted(done) and len(done) == count
    assert all(run.status == "finished" and not runs.damaged_files(run) for run in done.values())
    again = asked.dry()
    check_all_finished(again, done)
    assert set(named(again, "finished, skipped")) == set(done)


def test_dry_of_all_ablations_counts_a_run_that_two_notebooks_share_once(command, studies):
    """32 and 33 share nothing with 30 and 31 (images held apart); 33's own two curves share kd and kd+ikd."""
    teachers = studies.teachers("resnet14")
    everything = command("ablations", pairs=PAIR, teachers=teachers).dry()
    todo = named(everything, "to do")
    assert len(todo) == len(set(todo))
    parts = [
        command("ablations", only=n, pairs=PAIR, teachers=teachers).dry() for n in ("30", "31", "32", "33")
    ]
    assert set(todo) == set().union(*(named(part, "to do") for part in parts))
    both = set(named(parts[0], "to do")) & set(named(parts[1], "to do"))
    assert len(both) == 2, "30 and 31 share dkd and dkd+ikd with the same images held apart"
    assert not both & {*named(parts[2], "to do"), *named(parts[3], "to do")}


@pytest.mark.parametrize(
    "name, changes",
    [
        ("ablations", {"only": "31,33", "methods": "kd+ikd", "seeds": "1,2"}),
        ("table", {"methods": "ce,kd,kd+ikd", "seeds": "1,2"}),
    ],
)
def test_dry_without_the_teacher_names_each_run_that_waits_for_it_once(command, studies, name, changes):
    asked = command(name, pairs=PAIR, **changes)
    said = asked.dry()
    done = asked.work()
    todo = set(named(said, "to do"))
    late = {key: run.spec for key, run in done.items() if key not in todo}
    assert set(done) >= todo
    assert all(spec.teacher for spec in late.values())
    assert sorted(waiting(said)) == sorted(
        (spec.pair, variant_of(spec).label, str(spec.seed), str(spec.holdout)) for spec in late.values()
    )
    teachers = [key for key in done if done[key].spec.seed == 0]
    assert teachers == [studies.study(**{"pairs": PAIR}).teacher_job("resnet14").spec.run_id]
    assert set(teachers) <= todo
    again = asked.dry()
    check_all_finished(again, done)
    assert set(named(again, "finished, skipped")) == set(done) - set(teachers)


def test_dry_of_both_tables_lists_what_their_notebooks_train(command, studies):
    pairs = "resnet14/resnet8,wrn_16_1/ShuffleV1"
    teachers = studies.teachers("resnet14", "wrn_16_1")
    asked = command("table", pairs=pairs, methods="ce,kd", teachers=teachers)
    said = asked.dry()
    done = asked.work()
    assert asked.done == ["20_cifar100_same_architecture", "21_cifar100_different_architecture"]
    assert sorted(named(said, "to do")) == sorted(done) and len(done) == 4
    check_all_finished(asked.dry(), done)


def test_where_a_run_fails_the_table_of_the_others_is_written_and_the_command_fails(
    command, studies, monkeypatch, capsys
):
    """Its notebook would train the failed one again; and a reader is told where the traceback lies."""
    asked = command("table", pairs=PAIR, methods="ce,kd", teachers=studies.teachers("resnet14"))

    class Failing(Here):
        def submit(self, function, child) -> Future:
            task = Task.from_json(child.text)
            if "-ce-" in task.id:
                return super().submit(function, child)
            task.failed.parent.mkdir(parents=True)
            task.failed.write_text("{}")
            future = Future()
            future.set_result((children.FAILED, "ikdlib: ValueError: no luck"))
            return future

    monkeypatch.setattr(reproduce, "open_engine", lambda *_: Failing(asked._cell))
    monkeypatch.chdir(studies.root)
    given = [f"--{key}={value}" for key, value in asked.settings if value not in ("", 0)]
    assert __main__.main(["table", *given]) == 2
    said = capsys.readouterr()
    words = "2 cells: 1 finished, 1 failed; failed: kd s1: ValueError: no luck; "
    assert f"ikdlib: {words}their tracebacks are in results/demo/notebooks/failed/; the same" in said.err
    assert asked.done == [], "the notebook was executed"
    (path,) = (studies.results / "demo" / "tables").glob("*.md")
    (run,) = runs.find(studies.results / "demo" / "runs")
    rows = {line.split("|")[2].strip(): line for line in path.read_text().splitlines() if PAIR in line}
    assert f"{run.result['last']['top1']:.2f} (n=1)" in rows["ce"] and "not run" in rows["kd"]
    assert "Not complete: 1 of 2 runs have finished." in path.read_text()
    assert "| ce " in said.out


def test_dry_of_teachers_lists_the_teachers_that_are_then_trained(command, studies):
    asked = command("teachers", pairs="resnet14/resnet8,resnet14/resnet14,resnet8/resnet8")
    said = asked.dry()
    assert waiting(said) == [], "a student is not part of it"
    done = asked.work()
    assert sorted(named(said, "to do")) == sorted(done)
    assert sorted(run.spec.student for run in done.values()) == ["resnet14", "resnet8"]
    check_all_finished(asked.dry(), done)
    assert sorted(asked.cells) == sorted(done)
    asked.work()
    assert len(asked.cells) == 2, "a teacher that is there was trained again"


def test_teachers_are_those_of_all_thirteen_pairs_where_nobody_names_others():
    study = plan.teacher_study(StudySettings(profile="paper"))
    assert len(study.pairs) == 13
    assert set(study.architectures) == {
        "wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50",
    }  # fmt: skip


def test_an_ablation_that_is_none_is_refused(studies):
    with pytest.raises(IkdError, match="30, 31, 32, 33") as error:
        plan.ablation_studies(studies.settings(), "34")
    assert "\n" not in str(error.value)


def test_ablations_follow_the_order_asked_for_and_each_comes_once(studies):
    found = plan.ablation_studies(studies.settings(), "33, 30,33")
    assert [name[:2] for name in found] == ["33", "30"]


def test_the_time_of_an_epoch_is_not_read_off_runs_of_another_machine(studies, monkeypatch):
    """An H200's runs lie in `results/`: an epoch of five seconds there says nothing of a CPU."""
    study = studies.study(teachers=studies.teachers("resnet14"), methods="kd,dkd")
    job = next(job for job in study.student_jobs() if job.spec.method.name == "kd")
    assert studies.train(job) == 0
    other = next(job for job in study.student_jobs() if job.spec.method.name == "dkd")
    assert estimate._from_finished(other) is not None
    elsewhere = {"device": "cpu", "processor": "another"}
    monkeypatch.setattr(estimate.provenance, "machine", lambda device: elsewhere)
    assert estimate._from_finished(other) is None


def test_the_time_of_a_batch_size_is_not_read_off_runs_of_another(studies):
    """An epoch of small batches has more steps; a finished run at 64 says nothing of one at 16."""
    from ikdlib.studies import ablations

    settings = studies.settings(teachers=studies.teachers("resnet14"))
    study = ablations.study(settings, ablations.batch_sizes("kd", "16,64"))
    assert studies.train(study.jobs(PAIR, "kd")[0]) == 0
    said = plan.dry_run([study, studies.study(teachers=settings.teachers, methods="dkd")])
    by_name = {line.split(":")[0].strip(): line for line in said.splitlines()}
    (other,) = [job.spec.run_id for job in study.jobs(PAIR, "kd, batch 16")]
    assert "from timed steps" in by_name[other]
    assert any("-dkd-" in key and "from finished runs" in line for key, line in by_name.items())
