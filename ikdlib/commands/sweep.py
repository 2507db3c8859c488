"""A notebook executed for every cell of a grid, on this machine or a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ikdlib.commands.options import engine_options, study_settings
from ikdlib.errors import IkdError

if TYPE_CHECKING:
    from ikdlib.studies.dispatch import Piece
    from ikdlib.studies.settings import StudySettings
    from ikdlib.studies.sweep import Sweep

PLACES = ("data", "teachers", "device")
"""Options that are passed on to a notebook that has a parameter of the name; they name no cell."""


def add(commands: argparse._SubParsersAction) -> None:
    sweep = commands.add_parser("sweep", help="any parameterised notebook over a grid of its parameters")
    sweep.add_argument("--notebook", default="", metavar="NB", help="the notebook's file")
    sweep.add_argument("--grid", default="", metavar="GRID", help="a YAML file of names and values")
    sweep.add_argument(
        "-p",
        dest="values",
        action="append",
        default=[],
        metavar="NAME=A,B,C",
        help="in its place, or over it",
    )
    sweep.add_argument("--name", default="", metavar="NAME", help="of the folder in RESULTS/sweeps")
    sweep.add_argument("--results", default="", metavar="RESULTS", help="folder (results)")
    sweep.add_argument(
        "--jobs", default="0", metavar="JOBS", help="cells at once; 0 or auto: one a core or GPU"
    )
    for name in PLACES:
        sweep.add_argument(f"--{name}", default="", metavar=name.upper(), help=f"the notebook's `{name}`")
    sweep.add_argument("--dry", action="store_true", help="list the cells, and do nothing")
    engine_options(sweep)
    sweep.set_defaults(run=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from ikdlib.studies import grid
    from ikdlib.studies.display import watch
    from ikdlib.studies.sweep import Sweep

    if not options.notebook:
        raise IkdError("notebook: none was named (NB=notebooks/11_distill_student.ipynb)")
    if options.device not in ("", "auto", "cpu", "cuda"):
        raise IkdError(f"device: {options.device!r} is none of auto, cpu and cuda")
    source, settings = Path(options.notebook), study_settings(options)
    results = Path(settings.results)
    if options.watch:
        watch(results / "sweeps" / (options.name or source.stem))
        return 0
    if options.grid:
        asked = grid.read(Path(options.grid), source, options.values)
    else:
        asked = grid.of_options(options.values, source)
    sweep = Sweep(source, asked, results, options.name, _places(options, settings))
    if "data" in sweep.places and _data_of(sweep) == "glyphs100":
        raise IkdError("data: these cells are the demo's, which draws its own images; leave it out")
    pieces = sweep.pieces()
    done = [piece.done() for piece in pieces]
    if options.dry:
        for piece, ended in zip(pieces, done, strict=True):
            print(f"  {piece.name}: {'finished, skipped' if ended else 'to do'}")
        cells = f"{len(pieces)} cell{'s' * (len(pieces) != 1)}"
        print(f"{cells}, {sum(done)} of them finished, in {sweep.folder}")
        return 0
    waiting = [piece for piece, ended in zip(pieces, done, strict=True) if not ended]
    return _execute(sweep, waiting, sum(done), settings, options.scheduler)


def _execute(sweep: Sweep, waiting: list[Piece], before: int, settings: StudySettings, scheduler: str) -> int:
    """Run what is not done, then write the table and the plots of what is; 1 if a cell failed."""
    from ikdlib.reporting.sweep import write
    from ikdlib.studies import dispatch
    from ikdlib.studies.display import Display, forget
    from ikdlib.studies.engine import open_engine

    summary, folder = dispatch.Summary(before, done=before), sweep.folder
    if waiting:
        where = scheduler, settings.jobs, settings.device, len(waiting), folder
        with open_engine(*where, _data_of(sweep), settings.data) as engine:
            sweep.begin()
            display = Display(folder.name, folder, lambda: engine.slots)
            try:
                summary = dispatch.run(waiting, engine, folder, display, before)
            finally:
                forget(folder)
    sweep.begin()  # another command may have asked for another grid meanwhile
    table, *_ = write(folder)
    print("\n".join([*summary.lines, str(table)]))
    return 0 if summary.done == summary.total else 1


def _places(options: argparse.Namespace, settings: StudySettings) -> dict[str, str]:
    """What is passed on to the notebook: the places that were named, and the device unless it is auto."""
    placed = settings.placed(options.scheduler)
    found = {name: getattr(placed, name) for name in ("results", *PLACES) if getattr(options, name)}
    return {name: value for name, value in found.items() if (name, value) != ("device", "auto")}


def _data_of(sweep: Sweep) -> str:
    """The data set its cells need, where the notebook has a `profile` as ours have; else unknown."""
    from ikdlib.studies.profiles import PROFILES

    chosen = {cell.get("profile", sweep.defaults.get("profile")) for cell in sweep.grid.cells}
    names = {PROFILES[name].data for name in chosen if name in PROFILES}
    return max(names, default="", key=lambda name: name == "cifar100")
