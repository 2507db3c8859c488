"""A study: the runs behind one table, what is there of them, and how to make the rest.

What a notebook or a command lets a user choose stands in `settings.StudySettings`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ikdlib import data
from ikdlib.data import DataSet
from ikdlib.errors import IkdError
from ikdlib.runs import Cell
from ikdlib.spec import MethodSpec, Recipe, RunSpec
from ikdlib.studies import protocol, teachers
from ikdlib.studies.profiles import Profile, profile
from ikdlib.studies.settings import StudySettings
from ikdlib.studies.variants import Variant
from ikdlib.training.job import Job, choose_device


@dataclass(frozen=True)
class Student:
    """One student to train: a run, and the cell of a table that it belongs to."""

    pair: str
    variant: Variant
    job: Job


class Study:
    """The runs of some pairs, methods and seeds under one profile and protocol.

    Args:
        settings: what the user chose.
        default_pairs: the pairs of this table, where neither user nor profile names others.
        variants: what is compared, where it is not the methods the user or the profile names.

    Raises:
        IkdError: an unknown pair, method or profile, no list of seeds, no such device, data for the demo.
    """

    def __init__(
        self,
        settings: StudySettings,
        default_pairs: tuple[str, ...] = protocol.SAME_ARCHITECTURE,
        variants: Iterable[Variant] = (),
    ):
        self.settings = settings
        self.profile: Profile = profile(settings.profile)
        if settings.data and self.profile.data == "glyphs100":
            raise IkdError(
                f"data: the demo draws its own images and would not read {settings.data}; leave it out or "
                "take profile short or paper, with CIFAR-100"
            )
        self._usual_pairs = self.profile.pairs or default_pairs
        self.pairs = listed(settings.pairs) or self._usual_pairs
        asked = list(variants) or [Variant(name) for name in listed(settings.methods) or self.profile.methods]
        self.variants = {variant.label: variant for variant in asked}
        self.seeds = _seeds(settings.seeds) or self.profile.seeds
        self.epochs = settings.epochs or self.profile.epochs
        self.precision = settings.precision or self.profile.precision
        self.results = Path(settings.results)
        self.folder = self.results / settings.profile
        # A demo's teachers are no asset; those of CIFAR-100 serve every profile and are kept.
        self.own_teachers = (self.folder if self.profile.name == "demo" else self.results) / "teachers"
        for pair in self.pairs:
            protocol.split_pair(pair)
        for variant in asked:
            protocol.split_method(variant.method)
            for pair in self.pairs if variant.changes else ():  # refused here, before anything trains
                self._settings_of(*protocol.split_pair(pair), variant)
        choose_device(settings.device)

    @property
    def methods(self) -> tuple[str, ...]:
        """The cells of each pair by their label: a method's name, and what is changed in it."""
        return tuple(self.variants)

    @property
    def chosen_pairs(self) -> tuple[str, ...]:
        """The pairs, in the order of their names, where they are not the table's own; else empty."""
        chosen = tuple(sorted(set(self.pairs)))
        return () if chosen == tuple(sorted(self._usual_pairs)) else chosen

    @cached_property
    def data(self) -> DataSet:
        """The data set, decoded; only its digest is needed to name the runs."""
        return data.load(self.profile.data, self.settings.data or None, holdout=self.settings.holdout)

    @property
    def title(self) -> str:
        """Data set, length and precision, as figures and tables name them."""
        seeds = f"{len(self.seeds)} seed" + "s" * (len(self.seeds) > 1)
        apart = f", {self.settings.holdout} images a class held apart" if self.settings.holdout else ""
        epochs = f"{self.epochs} epoch" + "s" * (self.epochs > 1)
        words = f"{self.data.name}, {epochs}, {self.precision}, {seeds}"
        return f"{words}, {self.settings.protocol} protocol{apart}"

    @property
    def comparable(self) -> bool:
        """Whether published numbers may stand beside it: CIFAR-100, all its images, 240 epochs."""
        return (self.profile.data, self.epochs, self.settings.holdout) == ("cifar100", 240, 0)

    @property
    def caption(self) -> str:
        """What a table of this study is, and what it is not."""
        short = "CIFAR-100, not as the published numbers are made: not comparable with them"
        words = self.profile.caption if self.comparable or self.profile.name != "paper" else short
        return f"{words}. {self.title}."

    @property
    def architectures(self) -> tuple[str, ...]:
        """The teachers the asked methods need, each once, in the order of the pairs."""
        if all(map(_asks_nobody, self.methods)):
            return ()
        return tuple(dict.fromkeys(protocol.split_pair(pair)[0] for pair in self.pairs))

    # Teachers

    def teacher_spec(self, architecture: str, epochs: int, precision: str) -> RunSpec:
        """A teacher's training: plain cross-entropy, without warm-up, from seed 0, in either protocol.

        It sees all training images, whatever a study holds apart: one teacher for every study. No student
        is trained on its answers to the images held apart, so what is chosen on them stays honest.
        """
        recipe = protocol.recipe("paper", "-", architecture, epochs, precision)
        return self._spec(None, architecture, MethodSpec(name="ce"), recipe, seed=0).updated(holdout=0)

    def teacher_job(self, architecture: str) -> Job:
        """The training of a teacher that is not there yet, as long as the study's runs are."""
        own_length = self.settings.epochs or self.profile.teacher_epochs
        return self._job(self.teacher_spec(architecture, own_length, self.precision), None, True)

    def teacher(self, architecture: str) -> teachers.TeacherFile | None:
        """Where a trained teacher lies: TEACHERS, then the project's own, else None.

        Of the project's own, one trained for the paper's 240 epochs comes first, and one of the study's
        precision before the other: what teaches is a file, and a second one would be another teacher.
        """
        own = self.teacher_job(architecture).spec
        other = "bf16" if self.precision == "fp32" else "fp32"
        specs = [own, own.updated(recipe=own.recipe.updated(precision=other))]
        if self.profile.name != "demo":
            specs = [self.teacher_spec(architecture, 240, p) for p in ("fp32", "bf16")] + specs
        return teachers.locate(
            architecture,
            self.data.num_classes,
            Path(self.settings.teachers) if self.settings.teachers else None,
            self.own_teachers,
            specs,
        )

    def missing_teachers(self) -> tuple[str, ...]:
        return tuple(name for name in self.architectures if self.teacher(name) is None)

    def keep_teacher(self, job: Job) -> Path:
        """Save a finished teacher for all students to use; returns its file."""
        return teachers.keep(job.run, self.own_teachers, self.data.num_classes)

    # Students

    def cells(self) -> list[Cell]:
        """Every cell whose teacher is there, pair by pair, with its runs, finished or not."""
        found = []
        for pair in self.pairs:
            for method in self.methods:
                jobs = self.jobs(pair, method)
                if jobs:
                    found.append(Cell(pair, method, tuple(job.run for job in jobs)))
        return found

    def jobs(self, pair: str, method: str) -> list[Job]:
        """A job for each seed of a cell; none while the teacher is still to be trained."""
        teacher_name, student = protocol.split_pair(pair)
        spec, recipe = self._settings_of(teacher_name, student, self.variants[method])
        teacher = self.teacher(teacher_name) if spec.needs_teacher else None
        if spec.needs_teacher and teacher is None:
            return []
        jobs = []
        for seed in self.seeds:
            run_spec = self._spec(teacher, student, spec, recipe, seed, teacher_name)
            jobs.append(self._job(run_spec, teacher, seed == min(self.seeds)))
        return jobs

    def synthetic_spec(self, pair: str, method: str) -> RunSpec:
        """A spec of the study as far as speed goes, which needs neither data nor a trained teacher."""
        teacher_name, student = protocol.split_pair(pair)
        method_spec, recipe = self._settings_of(teacher_name, student, self.variants[method])
        asked = {"teacher": teacher_name, "teacher_sha256": "0" * 64} if method_spec.needs_teacher else {}
        return RunSpec(
            data=self.profile.data, data_sha256="0" * 64, student=student, method=method_spec,
            recipe=recipe, seed=0, **asked,
        )  # fmt: skip

    def students(self) -> list[Student]:
        """Every student of the study once: `ce` of one student serves all its pairs.

        The first run of each (teacher, seed) comes before the others, because it leaves the
        teacher's logits that they read; then those that ask no teacher.
        """
        found = {
            job.spec.run_id: (turn, Student(pair, self.variants[method], job))
            for pair in self.pairs
            for turn, method in enumerate(sorted(self.methods, key=_asks_nobody))
            for job in self.jobs(pair, method)
        }

        def rank(item: tuple[int, Student]) -> int:
            turn, student = item
            # Those who need no teacher's logits keep a core busy while the first runs compute them.
            return 0 if turn == 0 else 1 if student.job.spec.teacher is None else 2

        return [student for _, student in sorted(found.values(), key=rank)]

    def student_jobs(self) -> list[Job]:
        """The jobs of `students`, in their order."""
        return [student.job for student in self.students()]

    def _settings_of(self, teacher: str, student: str, variant: Variant) -> tuple[MethodSpec, Recipe]:
        method = protocol.method_spec(self.settings.protocol, teacher, student, variant.method)
        recipe = protocol.recipe(self.settings.protocol, teacher, student, self.epochs, self.precision)
        return variant.applied(method, recipe)

    def _spec(self, teacher, student, method, recipe, seed, teacher_name=None) -> RunSpec:
        asked = {} if teacher is None else {"teacher": teacher_name, "teacher_sha256": teacher.sha256}
        return RunSpec(
            data=self.data.name,
            data_sha256=self.data.sha256,
            student=student,
            method=method,
            recipe=recipe,
            protocol="paper" if teacher_name is None else self.settings.protocol,
            seed=seed,
            holdout=self.settings.holdout,
            **asked,
        )

    def _job(self, spec: RunSpec, teacher: teachers.TeacherFile | None, keep_logits: bool) -> Job:
        return Job(
            spec=spec,
            runs=str(self.folder / "runs"),
            data=self.settings.data or None,
            teacher=None if teacher is None else str(teacher.path),
            slabs=str(self.results / "cache" / "teacher_logits"),
            device=self.settings.device,
            keep_logits=keep_logits,
        )


def _asks_nobody(method: str) -> bool:
    return method.partition(",")[0] == "ce"


def listed(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list, without blanks, each once: a pair named twice is one pair."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in listed(text))
    except ValueError:
        raise IkdError(f"seeds: {text!r} is not a list of whole numbers, like 1,2,3") from None
    if any(seed < 0 for seed in seeds):
        raise IkdError(f"seeds: {text!r} has a negative one; seeds count from 0")
    return tuple(dict.fromkeys(seeds))  # 1 and 01 are one
