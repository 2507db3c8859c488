"""A notebook executed for every cell of a grid, on this machine or a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ikdlib.commands.options import engine_options
from ikdlib.errors import IkdError

if TYPE_CHECKING:
    from ikdlib.studies.dispatch import Piece
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
    source, results = Path(options.notebook), Path(options.results or "results")
    if options.watch:
        watch(results / "sweeps" / (options.name or source.stem))
        return 0
    if options.grid:
        asked = grid.read(Path(options.grid), source, options.values)
    else:
        asked = grid.of_options(options.values, source)
    sweep = Sweep(source, asked, results, options.name, _places(options))
    pieces = sweep.pieces()
    done = [piece.done() for piece in pieces]
    if options.dry:
        for piece, ended in zip(pieces, done, strict=True):
            print(f"  {piece.name}: {'finished, skipped' if ended else 'to do'}")
        print(f"{len(pieces)} cells, {sum(done)} of them finished, in {sweep.folder}")
        return 0
    return _execute(sweep, pieces, len(pieces) - sum(done), options)


def _execute(sweep: Sweep, pieces: list[Piece], count: int, options: argparse.Namespace) -> int:
    """Run what is not done, then write the table and the plots of what is; 1 if a cell failed."""
    from ikdlib.reporting.sweep import write
    from ikdlib.studies import dispatch
    from ikdlib.studies.display import Display, forget
    from ikdlib.studies.engine import open_engine

    jobs = _jobs(options.jobs)
    if options.device not in ("", "auto", "cpu", "cuda"):
        raise IkdError(f"device: {options.device!r} is none of auto, cpu and cuda")
    summary = dispatch.Summary(len(pieces), done=len(pieces))
    if count:
        device = options.device or "auto"
        data = _data_of(sweep), options.data
        with open_engine(options.scheduler, jobs, device, count, sweep.folder, *data) as engine:
            sweep.begin()
            display = Display(sweep.folder.name, sweep.folder, lambda: engine.slots)
            try:
                summary = dispatch.run(pieces, engine, sweep.folder, display)
            finally:
                forget(sweep.folder)
    sweep.begin()  # another command may have asked for another grid meanwhile
    table, *_ = write(sweep.folder)
    print("\n".join([*summary.lines, str(table)]))
    return 0 if summary.done == summary.total else 1


def _places(options: argparse.Namespace) -> dict[str, str]:
    """What is passed on to the notebook; whole paths, where cells on other machines are to find them."""
    found = {name: getattr(options, name) for name in ("results", *PLACES)}
    found["device"] = "" if options.device == "auto" else options.device
    if options.scheduler:
        paths = ("results", "data", "teachers")
        found |= {name: str(Path(found[name]).resolve()) for name in paths if found[name]}
    return found


def _data_of(sweep: Sweep) -> str:
    """The data set its cells need, where the notebook has a `profile` as ours have; else unknown."""
    from ikdlib.studies.profiles import PROFILES

    chosen = {cell.get("profile", sweep.defaults.get("profile")) for cell in sweep.grid.cells}
    names = {PROFILES[name].data for name in chosen if name in PROFILES}
    return max(names, default="", key=lambda name: name == "cifar100")


def _jobs(text: str) -> int:
    try:
        count = 0 if text in ("", "auto") else int(text)
    except ValueError:
        raise IkdError(f"jobs: {text!r} is not a whole number") from None
    if count < 0:
        raise IkdError(f"jobs: {count} is less than one at a time; 0 or auto chooses")
    return count
