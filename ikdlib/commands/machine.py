"""What lies on this machine and how fast it is: data, teachers' logits, runs at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ikdlib.commands.options import study_options, study_settings
from ikdlib.errors import IkdError


def add(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser("data", help="download and verify CIFAR-100, or check a folder")
    data.add_argument("--data", default="", help="a folder that is there already")
    data.set_defaults(run=_data)
    cache = commands.add_parser("cache", help="the teachers' logits on disk: list, cost, make, prune")
    cache.add_argument("what", choices=("list", "cost", "make", "prune"))
    cache.add_argument("--teacher", default="", help="prune: of this teacher, by the start of its sha256")
    cache.add_argument("--days", type=float, default=0, help="prune: not written for so many days")
    study_options(cache)
    cache.set_defaults(run=_cache)
    bench = commands.add_parser("bench", help="how many runs at once give most runs an hour here")
    bench.add_argument("--trial", help=argparse.SUPPRESS)
    study_options(bench)
    bench.set_defaults(run=_bench)
    listing = commands.add_parser("methods", help="methods and models by name, with their settings")
    listing.set_defaults(run=_methods)


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
        study = Study(study_settings(options))
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
    study = Study(study_settings(options))
    classes, height, width, images = data.shape(study.profile.data)
    spec = study.synthetic_spec(study.pairs[0], study.methods[-1])
    table = throughput.compare(spec, (classes, height, width), choose_device(options.device), images)
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
