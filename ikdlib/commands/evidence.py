"""The project's own list of real runs: done in order, or shown with what is left of it."""

from __future__ import annotations

import argparse
import os

from ikdlib.commands.options import say, study_settings
from ikdlib.errors import IkdError


def add(commands: argparse._SubParsersAction) -> None:
    evidence = commands.add_parser(
        "evidence", help="the project's own list of CIFAR-100 runs, in order, one core at low priority"
    )
    for name in ("data", "teachers", "device", "results"):
        evidence.add_argument(f"--{name}", default="", metavar=name.upper())
    evidence.add_argument("--jobs", default="", help="runs at once; auto is one on a CPU, what pays on a GPU")
    evidence.add_argument("--first", type=int, default=0, metavar="N", help="stop after N runs ended")
    evidence.add_argument("--dry", action="store_true", help="list the runs and their time, and do nothing")
    evidence.set_defaults(run=_evidence)


def _evidence(options: argparse.Namespace) -> int:
    from ikdlib.studies import evidence

    if options.first < 0:
        raise IkdError(f"first: {options.first} is not a number of runs; 0 does all")
    settings = study_settings(options)
    if options.dry:
        _list(settings)
        return 0
    if not evidence.on_gpu(settings):
        os.nice(19)  # its runs inherit it: many hours that nobody else on the machine should notice
    evidence.work(settings, options.first, say)
    return 0


def _list(settings) -> None:
    """Every run with its state and an estimate of what is left of it, summed by item and over all."""
    from ikdlib.studies import evidence
    from ikdlib.studies.estimate import seconds_of
    from ikdlib.studies.variants import variant_of

    unit = "GPU-hours, one run after another" if evidence.on_gpu(settings) else "core-hours"
    total, left = 0.0, 0
    measured: dict[int, dict] = {}  # by images held apart: without those, a teacher is asked other questions
    for part, jobs in evidence.by_part(evidence.parts(settings)):
        seconds = 0.0
        say(part.state)
        for job in jobs:
            spec, status = job.spec, job.run.status
            if job.run.over:
                say(f"  {spec.run_id}: {status}, skipped")
                continue
            estimate = seconds_of(job, part.data, measured.setdefault(spec.holdout, {}))
            name, word = spec.run_id, "resumed" if status == "unfinished" else "to do"
            if evidence.waits(job):  # its id has the teacher's digest in it, so it has none yet
                name = f"{spec.pair} {variant_of(spec).label} seed {spec.seed}"
                word = f"after its teacher {spec.teacher}"
            say(f"  {name}: {word}, about {estimate.seconds / 3600:.2f} h ({estimate.basis})")
            seconds, left = seconds + estimate.seconds, left + 1
        say(f"  = about {seconds / 3600:.1f} {unit}")
        total += seconds
    say(f"{left} runs left, about {total / 3600:.1f} {unit}")
