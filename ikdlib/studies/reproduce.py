"""From one command to a table or an ablation: a cell for each run that is missing, then the notebook.

This is what ``make demo``, ``reproduce-cifar``, ``teachers`` and ``ablations`` call. Nothing is trained
here: the cells are notebooks 10 and 11, each in a process of its own, on this machine or a cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ikdlib import files
from ikdlib.methods import fingerprint
from ikdlib.studies import dispatch, notebook, plan
from ikdlib.studies.cell import Task
from ikdlib.studies.display import Display, forget
from ikdlib.studies.engine import open_engine
from ikdlib.studies.pool import default_workers
from ikdlib.studies.settings import StudySettings
from ikdlib.studies.study import Student, Study
from ikdlib.training.job import Job

TEACHER, STUDENT = "10_train_teacher", "11_distill_student"


def reproduce(settings: StudySettings, scheduler: str = "") -> list[Path]:
    """Train what is missing and write the tables; returns the tables' Markdown files.

    Raises:
        dispatch.Unfinished: a cell failed; the others were done first, and no notebook drew the tables.
    """
    settings = settings.placed(scheduler)
    studies = plan.studies(settings)
    train(studies.values(), scheduler)
    return [_table(name, study, study.settings.pairs, settings.methods) for name, study in studies.items()]


def ablate(settings: StudySettings, only: str = "", scheduler: str = "") -> list[Path]:
    """Train what the ablations miss and write their tables; returns and raises as `reproduce`."""
    settings = settings.placed(scheduler)
    found = plan.ablation_studies(settings, only)
    train([study for studies in found.values() for study in studies], scheduler)
    return [_table(name, studies[0], settings.pairs, settings.methods) for name, studies in found.items()]


def train(studies: Iterable[Study], scheduler: str = "") -> None:
    """Train the teachers that some studies miss, all at once, and then their students."""
    studies = list(studies)
    try:
        _train(studies, scheduler)
    finally:
        for study in studies:
            forget(_folder(study))


def _train(studies: list[Study], scheduler: str) -> None:
    train_teachers(studies, scheduler)
    students = {
        student.job.spec.run_id: (study, student) for study in studies for student in study.students()
    }
    several = len({student.pair for _, student in students.values()}) > 1
    pieces = [_student(study, student, several) for study, student in students.values()]
    _run(STUDENT, studies, pieces, scheduler)


def train_teachers(studies: Iterable[Study], scheduler: str = "") -> None:
    """Train the teachers that are not there."""
    studies = list(studies)
    missing = {name: study for study in studies for name in study.missing_teachers()}
    pieces = [_teacher(study, name) for name, study in missing.items()]
    _run(TEACHER, studies, pieces, scheduler)


def _run(name: str, studies: list[Study], pieces: list[tuple[dispatch.Piece, Job]], scheduler: str) -> None:
    """Execute the cells of one notebook that are not done, all at once."""
    missing = [(piece, job) for piece, job in pieces if not piece.done()]
    if old := [job.run for _, job in pieces if job.run.over and fingerprint.changed(job.run)]:
        told = f"{len(old)} finished with other code of their method, like {old[0].folder}"
        print(f"{told}; if the loss itself changed, delete such folders to run them again", file=sys.stderr)
    if not missing:
        return
    settings, folder, results = studies[0].settings, _folder(studies[0]), studies[0].results
    source = _source(folder, name)
    files.write_bytes(source, notebook.source_of(name).read_bytes())
    for piece, _ in missing:
        notebook.check_parameters(source, piece.task.parameters)
    wanted = settings.jobs or (0 if scheduler else default_workers([job for _, job in missing]))
    data = (studies[0].profile.data, settings.data)
    with open_engine(scheduler, wanted, settings.device, len(missing), results, *data) as engine:
        display = Display(name, folder, lambda: engine.slots)
        waiting = [piece for piece, _ in missing]
        dispatch.run(waiting, engine, folder, display, len(pieces) - len(missing)).check()


def _student(study: Study, student: Student, several_pairs: bool) -> tuple[dispatch.Piece, Job]:
    spec = student.job.spec
    chosen = {
        "pair": student.pair, "method": student.variant.method, "changes": student.variant.text,
        "seed": spec.seed, "keep_logits": student.job.keep_logits,
    }  # fmt: skip
    task = _task(study, STUDENT, spec.run_id, chosen)
    name = f"{student.variant.label} s{spec.seed}" + (f" {student.pair}" if several_pairs else "")
    done = lambda: student.job.run.over  # noqa: E731
    return dispatch.Piece(task, name, spec.recipe.epochs, done), student.job


def _teacher(study: Study, architecture: str) -> tuple[dispatch.Piece, Job]:
    job = study.teacher_job(architecture)
    task = _task(study, TEACHER, job.spec.run_id, {"architecture": architecture, "holdout": 0})
    there = lambda: study.teacher(architecture) is not None  # noqa: E731
    return dispatch.Piece(task, f"teacher {architecture}", job.spec.recipe.epochs, there), job


def _task(study: Study, name: str, run_id: str, chosen: dict[str, Any]) -> Task:
    folder = _folder(study).resolve()
    parameters = {**_shared(study.settings), **chosen}
    parameters.pop("jobs")
    source, cwd = str(_source(folder, name)), str(Path.cwd())
    return Task(id=run_id, folder=str(folder), notebook=source, digest="", parameters=parameters, cwd=cwd)


def _folder(study: Study) -> Path:
    return study.folder / "notebooks"


def _source(folder: Path, name: str) -> Path:
    """The notebook's copy in the results folder, where cells on any machine find it."""
    return folder / "sources" / f"{name}-{notebook.digest_of(notebook.source_of(name))[:12]}.ipynb"


def _table(name: str, study: Study, pairs: str, methods: str) -> Path:
    """Execute a table's notebook; returns the table it wrote."""
    print(f"{name}: the table", file=sys.stderr)
    chosen = {"pairs": pairs, "methods": methods, "seeds": study.settings.seeds}
    output = _folder(study) / f"{name}{plan.suffix(study)}.ipynb"
    notebook.execute_here(name, output, {**_shared(study.settings), **chosen})
    return plan.table_path(study, name).with_suffix(".md")


def _shared(settings: StudySettings) -> dict[str, Any]:
    """What every notebook takes: all settings but those that choose cells."""
    return {name: value for name, value in settings if name not in ("pairs", "methods", "seeds")}
