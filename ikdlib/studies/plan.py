"""Which studies each command is made of, exactly which runs those are, and where their tables go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ikdlib import models
from ikdlib.errors import IkdError
from ikdlib.methods import fingerprint
from ikdlib.studies import ablations, protocol
from ikdlib.studies.estimate import Estimate, seconds_of
from ikdlib.studies.study import Study, StudySettings, listed

TABLES = {
    "20_cifar100_same_architecture": protocol.SAME_ARCHITECTURE,
    "21_cifar100_different_architecture": protocol.DIFFERENT_ARCHITECTURE,
}


ABLATIONS = (
    "30_temperature_of_the_term",
    "31_weight_of_the_term",
    "32_what_the_term_is",
    "33_batch_size_and_kd_temperature",
)


def same_architecture(pair: str) -> bool:
    """Whether teacher and student are of one family, as the field's tables divide the pairs."""
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
            found[notebook] = Study(settings.updated(pairs=",".join(pairs)), defaults)
    return found


def ablation_studies(settings: StudySettings, only: str = "") -> dict[str, list[Study]]:
    """Notebooks 30 to 33, or those whose numbers ``only`` lists: notebook name to its studies."""
    numbers = listed(only) or [name[:2] for name in ABLATIONS]
    known = {name[:2]: name for name in ABLATIONS}
    for number in numbers:
        if number not in known:
            raise IkdError(f"only: there is no ablation {number!r}; known: {', '.join(known)}")
    methods = settings.methods
    whole = settings.updated(holdout=0)  # nothing is chosen there, so all images are trained on
    made = {
        "30": lambda: [ablations.study(settings, ablations.term_temperatures(methods), apart=True)],
        "31": lambda: [ablations.study(settings, ablations.weights(methods), apart=True)],
        "32": lambda: [ablations.study(whole, ablations.what_the_term_is(methods))],
        "33": lambda: [
            ablations.study(whole, ablations.batch_sizes(methods) + ablations.kd_temperatures(methods))
        ],
    }
    return {known[number]: made[number]() for number in numbers}


def teacher_study(settings: StudySettings) -> Study:
    """The pairs whose teachers ``make teachers`` trains: all thirteen, or the user's or profile's own."""
    return Study(settings, protocol.SAME_ARCHITECTURE + protocol.DIFFERENT_ARCHITECTURE)


def dry_run(found: Iterable[Study], students: bool = True) -> str:
    """Exactly the runs a command would do, with an estimate of their time; or the teachers among them."""
    lines, total, seen = [], 0.0, set()
    measured: dict[str, Estimate] = {}
    for study in found:
        jobs = [study.teacher_job(name) for name in study.missing_teachers()]
        apart = f" ({study.settings.holdout} images a class held apart)" if study.settings.holdout else ""
        waiting = [
            f"  {pair} {method} seed {seed}: after its teacher is trained{apart}"
            for pair in study.pairs for method in study.methods if not study.jobs(pair, method)
            for seed in study.seeds
        ]  # fmt: skip
        for job in jobs + (study.student_jobs() if students else []):
            if job.spec.run_id in seen:
                continue
            seen.add(job.spec.run_id)
            status = job.run.status
            if job.run.over:
                why = " (with other code of its method)" if fingerprint.changed(job.run) else ""
                lines.append(f"  {job.spec.run_id}: {status}{why}, skipped")
                continue
            estimate = seconds_of(job, study.data, measured)
            total += estimate.seconds
            word = "resumed" if status == "unfinished" else "to do"
            lines.append(f"  {job.spec.run_id}: {word}, about {_time(estimate.seconds)} ({estimate.basis})")
        if students:
            lines += [line for line in waiting if line not in lines]
    lines.append(f"about {_time(total)} of one core or GPU for the runs that can be named now")
    return "\n".join(lines)


def suffix(study: Study, pairs: bool = True) -> str:
    """What tells tables of one profile apart: other pairs, length, precision or protocol is another table.

    ``pairs``: name the pairs where they are not the table's own, or, of more than three, their number.
    """
    parts = []
    if pairs and (names := [pair.replace("/", "-") for pair in study.chosen_pairs]):
        digest = hashlib.sha256("+".join(names).encode()).hexdigest()[:6]
        parts.append("+".join(names) if len(names) <= 3 else f"{len(names)}pairs-{digest}")
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


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
