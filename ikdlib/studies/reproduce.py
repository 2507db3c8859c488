"""From one command to a table: the teachers first, then the notebooks that make the students.

This is what ``make demo`` and ``make reproduce-cifar`` call. Nothing is trained here: the notebooks
do, through `pool.run_all`, so the same cells run by hand and by command.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ikdlib import models
from ikdlib.errors import WARNING
from ikdlib.studies import protocol
from ikdlib.studies.estimate import Estimate, seconds_of
from ikdlib.studies.notebook import execute
from ikdlib.studies.study import Study, StudySettings

TABLES = {
    "20_cifar100_same_architecture": protocol.SAME_ARCHITECTURE,
    "21_cifar100_different_architecture": protocol.DIFFERENT_ARCHITECTURE,
}


def same_architecture(pair: str) -> bool:
    """Whether teacher and student are of one family, the paper's first table."""
    if pair in protocol.SAME_ARCHITECTURE or pair in protocol.DIFFERENT_ARCHITECTURE:
        return pair in protocol.SAME_ARCHITECTURE
    teacher, student = protocol.split_pair(pair)
    return type(models.build(teacher, 2)) is type(models.build(student, 2))


def studies(settings: StudySettings) -> dict[str, Study]:
    """The tables a user's pairs fall into: notebook name to study."""
    asked = Study(settings).pairs if settings.pairs or settings.profile == "demo" else None
    found = {}
    for notebook, defaults in TABLES.items():
        same = notebook.startswith("20")
        pairs = defaults if asked is None else tuple(p for p in asked if same_architecture(p) == same)
        if pairs:
            found[notebook] = Study(settings.updated(pairs=",".join(pairs)))
    return found


def dry_run(settings: StudySettings) -> str:
    """Exactly the runs a command would do, with an estimate of their time."""
    lines, total, seen = [], 0.0, set()
    measured: dict[str, Estimate] = {}
    for study in studies(settings).values():
        jobs = [study.teacher_job(name) for name in study.missing_teachers()]
        waiting = [
            f"  {pair} {method} seed {seed}: after its teacher is trained"
            for pair in study.pairs for method in study.methods if not study.jobs(pair, method)
            for seed in study.seeds
        ]  # fmt: skip
        for job in jobs + study.student_jobs():
            if job.spec.run_id in seen:
                continue
            seen.add(job.spec.run_id)
            status = job.run.status
            if status in ("finished", "diverged"):
                lines.append(f"  {job.spec.run_id}: {status}, skipped")
                continue
            estimate = seconds_of(job, study.data, measured)
            total += estimate.seconds
            word = "resumed" if status == "unfinished" else "to do"
            lines.append(f"  {job.spec.run_id}: {word}, about {_time(estimate.seconds)} ({estimate.basis})")
        lines += waiting
    lines.append(f"about {_time(total)} of one core or GPU for the runs that can be named now")
    return "\n".join(lines)


def reproduce(settings: StudySettings) -> list[Path]:
    """Train what is missing and write the tables; returns the tables' Markdown files."""
    written = []
    for notebook, study in studies(settings).items():
        folder = study.folder / "notebooks"
        for architecture in study.missing_teachers():
            parameters = {**_shared(settings), "architecture": architecture}
            with progress(f"teacher {architecture}") as status:
                execute(
                    "10_train_teacher", folder / f"10_train_teacher-{architecture}.ipynb", parameters, status
                )
        parameters = {
            **_shared(study.settings), "pairs": study.settings.pairs, "methods": settings.methods,
            "seeds": settings.seeds,
        }  # fmt: skip
        with progress(notebook) as status:
            execute(notebook, folder / f"{notebook}{suffix(study)}.ipynb", parameters, status)
        written.append(table_path(study, notebook).with_suffix(".md"))
    return written


def suffix(study: Study) -> str:
    """What tells tables of one profile apart: another length, precision or protocol is another table."""
    parts = []
    if study.epochs != study.profile.epochs:
        parts.append(f"{study.epochs}epochs")
    if study.precision != study.profile.precision:
        parts.append(study.precision)
    if study.settings.protocol != "paper":
        parts.append(study.settings.protocol)
    if study.settings.holdout:
        parts.append(f"holdout{study.settings.holdout}")
    return "".join(f"-{part}" for part in parts)


def table_path(study: Study, notebook: str) -> Path:
    """Where a notebook writes its table, without the ending."""
    return study.folder / "tables" / f"{notebook[3:]}{suffix(study)}"


@contextmanager
def progress(title: str) -> Iterator[Path]:
    """A bar with an ETA, fed by the pool inside a notebook through the file this yields."""
    from tqdm import tqdm

    with TemporaryDirectory() as folder:
        status, over, complete = Path(folder) / "status.json", threading.Event(), threading.Event()

        def show() -> None:
            layout = "{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}, {remaining} left {postfix}"
            heard = 0
            with tqdm(total=1, desc=title, bar_format=layout) as bar:
                ended = False
                while not ended:
                    # A log file wants a line now and then, a terminal wants to see it move.
                    ended = over.wait(1.0 if sys.stderr.isatty() else 30.0)
                    try:
                        state = json.loads(status.read_text())
                    except (OSError, ValueError):
                        continue
                    bar.total, bar.n = max(state["total"], 1), round(state["done"], 2)
                    bar.set_postfix_str("; ".join(state["running"]))
                    for warning in state["warnings"][heard:]:
                        bar.write(WARNING + warning, file=sys.stderr)
                    heard = len(state["warnings"])
                if complete.is_set():
                    bar.n = bar.total
                bar.set_postfix_str("")

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield status
            complete.set()
        finally:
            over.set()
            thread.join()


def _shared(settings: StudySettings) -> dict:
    """What every notebook takes: all settings but those that choose cells."""
    return {name: value for name, value in settings if name not in ("pairs", "methods", "seeds")}


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
