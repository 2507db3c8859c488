"""The command line: ``python -m ikdlib COMMAND``; without one, a line for each.

A mistake a user can mend ends with one line and status 2. ``table`` is what ``make demo`` and
``make reproduce-cifar`` call; ``train`` is one run, by hand or as the child of a pool.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from ikdlib.errors import WARNING, IkdError


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage before what is wrong; here one line says it, like every other mistake."""

    def __init__(self, **settings: Any):
        super().__init__(**{**settings, "allow_abbrev": False})  # --seed is not --seeds

    def error(self, message: str) -> NoReturn:
        raise IkdError(f"{message}; {self.prog} --help lists what there is")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    warnings.formatwarning = lambda message, *_, **__: f"{WARNING}{message}\n"
    try:
        options = _parser().parse_args(arguments)
        return options.run(options)
    except IkdError as error:
        print(f"ikdlib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ikdlib: stopped; the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ikdlib", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="one run, from a pair, a method and a seed")
    train.add_argument("--job", metavar="FILE", help="a job as JSON (- reads it from standard input)")
    _study_options(train)
    train.add_argument("--threads", type=int, help="threads on the CPU")
    train.set_defaults(run=_train)
    table = commands.add_parser("table", help="the runs of a table, and the table, through its notebook")
    _study_options(table, dry=True)
    table.set_defaults(run=_table)

    ablations = commands.add_parser("ablations", help="notebooks 30 to 33: the paper's ablations, and more")
    ablations.add_argument("--only", default="", help="numbers of notebooks, like 30,31")
    _study_options(ablations, dry=True)
    ablations.set_defaults(run=_ablations)
    teachers = commands.add_parser("teachers", help="train the teachers that are not there")
    _study_options(teachers, dry=True)
    teachers.set_defaults(run=_teachers)
    report = commands.add_parser("report", help="report.html from the run folders; trains nothing")
    report.add_argument("--results", default="results", metavar="RESULTS")
    report.set_defaults(run=_report)
    equal = commands.add_parser("equivalence", help="bf16 against fp32: sixteen paired runs, and the verdict")
    for name in ("data", "device", "results", "jobs"):
        equal.add_argument(f"--{name}", default="", metavar=name.upper())
    equal.add_argument("--dry", action="store_true", help="train nothing, read what is finished")
    equal.set_defaults(run=_equivalence)
    data = commands.add_parser("data", help="download and verify CIFAR-100, or check a folder")
    data.add_argument("--data", default="", help="a folder that is there already")
    data.set_defaults(run=_data)
    cache = commands.add_parser("cache", help="the teachers' logits on disk: list, cost, make, prune")
    cache.add_argument("what", choices=("list", "cost", "make", "prune"))
    cache.add_argument("--teacher", default="", help="prune: of this teacher, by the start of its sha256")
    cache.add_argument("--days", type=float, default=0, help="prune: not written for so many days")
    _study_options(cache)
    cache.set_defaults(run=_cache)
    bench = commands.add_parser("bench", help="how many runs at once give most runs an hour here")
    bench.add_argument("--trial", help=argparse.SUPPRESS)
    _study_options(bench)
    bench.set_defaults(run=_bench)
    listing = commands.add_parser("methods", help="methods and models by name, with their settings")
    listing.set_defaults(run=_methods)
    return parser


def _study_options(parser: argparse.ArgumentParser, dry: bool = False) -> None:
    """One option for each of `StudySettings`, as text; an empty one stands for the profile's choice."""
    from ikdlib.studies.study import StudySettings

    for name, field in StudySettings.model_fields.items():
        shown = {"default": str(field.default), "help": field.description}
        if name == "profile":
            shown["default"] = "short"
        parser.add_argument(f"--{name}", metavar=name.upper(), **shown)
    if dry:
        parser.add_argument("--dry", action="store_true", help="list the runs and their time, and do nothing")


def _study_settings(options: argparse.Namespace):
    from ikdlib.studies.study import StudySettings

    values = {}
    for name, field in StudySettings.model_fields.items():
        text = getattr(options, name, "")
        if field.annotation is int:
            try:
                values[name] = 0 if text in ("", "auto") and field.default == 0 else int(text)
            except ValueError:
                raise IkdError(f"{name}: {text!r} is not a whole number") from None
        else:
            values[name] = text or field.default
    return StudySettings(**values)


def _train(options: argparse.Namespace) -> int:
    from ikdlib.training.job import Job, Stop, execute

    if options.job:
        text = sys.stdin.read() if options.job == "-" else _read(options.job)
        return execute(Job.from_json(text), Stop(orphan_stops=True), _say)
    from ikdlib.studies.pool import CHILD_ENVIRONMENT
    from ikdlib.studies.study import Study

    if not set(CHILD_ENVIRONMENT) <= set(os.environ):  # read by the C library at its start: start once more
        os.execvpe(
            sys.executable,
            [sys.executable, "-m", "ikdlib", *sys.argv[1:]],
            {**CHILD_ENVIRONMENT, **os.environ},
        )
    study = Study(_study_settings(options))
    stop = Stop()
    status = 0
    for job in [study.teacher_job(name) for name in study.missing_teachers()]:
        status = status or execute(job.updated(threads=options.threads), stop, _say)
        if status == 0:
            study.keep_teacher(job)
    for job in study.student_jobs() if status == 0 else []:
        status = status or execute(job.updated(threads=options.threads), stop, _say)
    return status


def _table(options: argparse.Namespace) -> int:
    from ikdlib.studies import plan, reproduce

    settings = _study_settings(options)
    if options.dry:
        print(plan.dry_run(plan.studies(settings).values()))
    else:
        _show(reproduce.reproduce(settings))
    return 0


def _ablations(options: argparse.Namespace) -> int:
    from ikdlib.studies import plan, reproduce

    settings = _study_settings(options)
    if options.dry:
        found = plan.ablation_studies(settings, options.only).values()
        print(plan.dry_run(study for studies in found for study in studies))
    else:
        _show(reproduce.ablate(settings, options.only))
    return 0


def _teachers(options: argparse.Namespace) -> int:
    from ikdlib.studies import plan, reproduce

    study = plan.teacher_study(_study_settings(options))
    if options.dry:
        print(plan.dry_run([study], students=False))
        return 0
    reproduce.train_teachers([study])
    for architecture in study.architectures:
        print(f"{architecture}: {study.teacher(architecture).path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from ikdlib.reporting.report import write

    print(write(Path(options.results)))
    return 0


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

    settings = _study_settings(options)
    if not options.dry:
        if (job := equivalence.teacher_job(settings)) is not None:
            run_all([job], 1)
            equivalence.study(settings, "fp32").keep_teacher(job)
        run_all(equivalence.jobs(settings), settings.jobs)
    rows = reporting.table(*equivalence.runs(settings))
    sentence = reporting.verdict(rows, len(equivalence.SEEDS), equivalence.MARGIN)
    path = Path(settings.results) / "short" / "tables" / "equivalence-bf16"
    reporting.write(rows, sentence, path)
    print(f"{sentence}\n{path}.csv, .md")
    return 0


def _data(options: argparse.Namespace) -> int:
    from ikdlib import data
    from ikdlib.data.download import fetch_cifar100

    if not options.data:
        fetch_cifar100()
    images = data.load("cifar100", options.data or None)
    print(
        f"CIFAR-100: {len(images.train)} training and {len(images.test)} test images, sha256 {images.sha256}"
    )
    return 0


def _cache(options: argparse.Namespace) -> int:
    from ikdlib.studies import cache
    from ikdlib.studies.estimate import seconds_of_slab
    from ikdlib.studies.study import Study

    root = cache.folder(Path(options.results or "results"))
    if options.what == "prune":
        count, freed = cache.prune(root, options.teacher, options.days)
        print(f"{count} slabs deleted, {freed:.0f} MiB freed")
        return 0
    if options.what != "list":
        study = Study(_study_settings(options))
        if missing := study.missing_teachers():
            raise IkdError(f"teachers: there is no {missing[0]} yet; train it first, or give TEACHERS=")
        for job in cache.needed(study):
            slabs, title = cache.Slabs(study, job), f"{job.spec.teacher} seed {job.spec.seed}"
            left = len(slabs.missing())
            seconds = seconds_of_slab(job, study.data) * left
            cost = f"{left * slabs.mib_each:.0f} MiB, about {seconds / 60:.0f} min of one core or GPU"
            print(f"{title}: {left} of {len(slabs.epochs)} epochs to compute, {cost}", flush=True)
            for epoch, seconds in slabs.make() if options.what == "make" else ():
                print(f"{title} epoch {epoch}: {seconds:.1f} s", flush=True)
    table = cache.listing(root)
    print(table.to_string(index=False, float_format="{:.1f}".format) if len(table) else "no teacher logits")
    print(f"{table['MiB'].sum():.0f} MiB in {root}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from ikdlib import data
    from ikdlib.studies import throughput
    from ikdlib.studies.study import Study
    from ikdlib.training.job import choose_device

    if options.trial:
        throughput.take_part(throughput.Trial.from_json(sys.stdin.readline()))
        return 0
    study = Study(_study_settings(options))
    classes, height, width, _ = data.shape(study.profile.data)
    spec = study.synthetic_spec(study.pairs[0], study.methods[-1])
    table = throughput.compare(spec, (classes, height, width), choose_device(options.device))
    print(table.to_string(index=False, float_format="{:.0f}".format))
    print(f"{study.pairs[0]} {spec.method}: {throughput.best(table)} at once give most images a second")
    return 0


def _methods(options: argparse.Namespace) -> int:
    from ikdlib import methods, models

    for name in methods.names():
        settings = ", ".join(f"{key} {value:g}" for key, value in methods.settings_class(name)())
        first = sys.modules[methods.method_class(name).__module__].__doc__.splitlines()[0]
        print(f"{name:6} {first}\n       {settings}")
    print("each also as NAME+ikd\n\nmodels: " + ", ".join(models.names()))
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise IkdError(f"{path}: {error.strerror}") from None


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
