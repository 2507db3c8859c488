"""The command line: ``python -m ikdlib COMMAND``; without one, a line for each.

A mistake a user can mend ends with one line and status 2. ``table`` is what ``make demo`` and
``make reproduce-cifar`` call; ``train`` is one run, by hand or as the child of a pool.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import Any, NoReturn

from ikdlib.commands import evidence, machine, study, sweep
from ikdlib.errors import WARNING, IkdError


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage before what is wrong; here one line says it, like every other mistake."""

    def __init__(self, **settings: Any):
        super().__init__(**{**settings, "allow_abbrev": False})  # --seed is not --seeds

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # of a help whose reader is gone `main` hears, and not Python's very end
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        raise IkdError(f"{message}; {self.prog} --help lists what there is")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    warnings.formatwarning = lambda message, *_, **__: f"{WARNING}{message}\n"
    try:
        options = _parser().parse_args(arguments)
        status = options.run(options)
        sys.stdout.flush()
        return status
    except IkdError as error:
        print(f"ikdlib: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough, which is no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush once more
        return 1
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
