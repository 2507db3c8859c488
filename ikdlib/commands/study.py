"""Runs, and the tables and reports that are made of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ikdlib.commands.options import engine_options, say, study_options, study_settings
from ikdlib.errors import IkdError

if TYPE_CHECKING:
    from ikdlib.studies.settings import StudySettings


def add(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser("train", help="one run, from a pair, a method and a seed")
    train.add_argument("--job", metavar="FILE", help="a job as JSON (- reads it from standard input)")
    study_options(train)
    train.add_argument("--threads", type=int, help="threads on the CPU")
    train.set_defaults(run=_train)
    _of_cells(commands, "table", "the runs of a table, and the table, through its notebook", _table)
    words = "notebooks 30 to 33: the paper's ablations, and more"
    ablations = _of_cells(commands, "ablations", words, _ablations)
    ablations.add_argument("--only", default="", help="numbers of notebooks, like 30,31")
    _of_cells(commands, "teachers", "train the teachers that are not there", _teachers)
    report = commands.add_parser("report", help="report.html from the run folders; trains nothing")
    report.add_argument("--results", default="results", metavar="RESULTS")
    report.set_defaults(run=_report)
    equal = commands.add_parser("equivalence", help="bf16 against fp32: sixteen paired runs, and the verdict")
    for name in ("data", "device", "results", "jobs"):
        equal.add_argument(f"--{name}", default="", metavar=name.upper())
    equal.add_argument("--dry", action="store_true", help="train nothing, read what is finished")
    equal.set_defaults(run=_equivalence)


def _of_cells(
    commands: argparse._SubParsersAction, name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """A command whose missing runs are cells of an engine."""
    parser = commands.add_parser(name, help=text)
    study_options(parser, dry=True)
    engine_options(parser)
    parser.set_defaults(run=run)
    return parser


def _train(options: argparse.Namespace) -> int:
    from ikdlib.training.job import Job, Stop, execute

    if options.job:
        text = sys.stdin.read() if options.job == "-" else _read(options.job)
        return execute(Job.from_json(text), Stop(orphan_stops=True), say)
    from ikdlib.studies import children
    from ikdlib.studies.study import Study

    if not children.ENVIRONMENT.keys() <= os.environ.keys():
        # The C library reads them at its start: start once more.
        os.execvpe(
            sys.executable,
            [sys.executable, "-m", "ikdlib", *sys.argv[1:]],
            {**children.ENVIRONMENT, **os.environ},
        )
    study = Study(study_settings(options))
    stop = Stop()
    status = 0
    for job in [study.teacher_job(name) for name in study.missing_teachers()]:
        status = status or execute(job.updated(threads=options.threads), stop, say)
        if status == 0:
            study.keep_teacher(job)
    for job in study.student_jobs() if status == 0 else []:
        status = status or execute(job.updated(threads=options.threads), stop, say)
    return status


def _table(options: argparse.Namespace) -> int:
    from ikdlib.studies import dispatch, plan, reproduce

    settings = study_settings(options)
    if options.dry:
        print(plan.dry_run(plan.studies(settings).values()))
    elif options.watch:
        _watch(settings)
    else:
        try:
            tables = reproduce.reproduce(settings, options.scheduler)
        except dispatch.Unfinished:
            _show(_tables_so_far(settings.placed(options.scheduler)))
            raise
        _show(tables)
    return 0


def _tables_so_far(settings: StudySettings) -> list[Path]:
    """Write the tables of what has finished; their notebooks would train once more what failed."""
    from ikdlib.reporting import collect, tables
    from ikdlib.studies import plan, protocol

    written = []
    for name, study in plan.studies(settings).items():
        cells, left_out = collect.sound(study.cells())
        for line in left_out:
            print("left out:", line, file=sys.stderr)
        ended = [run.status == "finished" for cell in cells for run in cell.runs]
        if not any(ended):
            continue
        asked = len(study.pairs) * len(study.methods) * len(study.seeds)
        primary, path = protocol.PRIMARY[settings.protocol], plan.table_path(study, name)
        published = protocol.published() if study.comparable else protocol.published().head(0)
        told = f" Not complete: {sum(ended)} of {asked} runs have finished."
        table = tables.study_table(cells, published, primary)
        tables.write(table, primary, study.caption + told, path)
        written.append(path.with_suffix(".md"))
    return written


def _ablations(options: argparse.Namespace) -> int:
    from ikdlib.studies import plan, reproduce

    settings = study_settings(options)
    if options.dry:
        found = plan.ablation_studies(settings, options.only).values()
        print(plan.dry_run(study for studies in found for study in studies))
    elif options.watch:
        _watch(settings)
    else:
        _show(reproduce.ablate(settings, options.only, options.scheduler))
    return 0


def _teachers(options: argparse.Namespace) -> int:
    from ikdlib.studies import plan, reproduce

    settings = study_settings(options)
    if options.watch:
        _watch(settings)
        return 0
    if options.dry:
        print(plan.dry_run([plan.teacher_study(settings)], students=False))
        return 0
    study = plan.teacher_study(settings.placed(options.scheduler))
    reproduce.train_teachers([study], options.scheduler)
    for architecture in study.architectures:
        print(f"{architecture}: {study.teacher(architecture).path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from ikdlib.reporting.report import write

    print(write(Path(options.results)))
    return 0


def _watch(settings: StudySettings) -> None:
    from ikdlib.studies.display import watch

    watch(Path(settings.results) / settings.profile / "notebooks")


def _show(tables: list[Path]) -> None:
    for path in tables:
        print()
        for line in path.read_text().splitlines():
            # The last column links the runs' folders: of use on a page, in the way in a terminal.
            print("|".join(line.split("|")[:-2]) + "|" if line.startswith("|") else line)
        print(f"\nRuns, figures and notebooks are beside it, in {path.parent.parent}/")


def _equivalence(options: argparse.Namespace) -> int:
    from ikdlib.reporting import equivalence as reporting
    from ikdlib.studies import equivalence
    from ikdlib.studies.pool import run_all

    settings = study_settings(options)
    if not options.dry:
        if (job := equivalence.teacher_job(settings)) is not None:
            run_all([job], 1)
            equivalence.study(settings, "fp32").keep_teacher(job)
        run_all(equivalence.jobs(settings), settings.jobs)
    rows = reporting.table(*equivalence.runs(settings))
    sentence = reporting.verdict(rows, len(equivalence.SEEDS), equivalence.MARGIN)
    path = Path(settings.results) / "short" / "tables" / "equivalence-bf16"
    reporting.write(rows, sentence, equivalence.CAPTION, path)
    print(f"{sentence}\n{path}.csv, .md")
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise IkdError(f"{path}: {error.strerror}") from None
