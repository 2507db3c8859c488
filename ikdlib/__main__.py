"""The command line: ``python -m ikdlib COMMAND``; without one, a line for each.

A mistake a user can mend ends with one line and status 2. ``table`` is what ``make demo`` and
``make reproduce-cifar`` call; ``train`` is one run, by hand or as the child of a pool.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any, NoReturn

from ikdlib.commands import evidence, machine, study, sweep
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
    except OSError as error:
        words = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"ikdlib: {words}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ikdlib: stopped; the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ikdlib", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (study, sweep, machine, evidence):
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
