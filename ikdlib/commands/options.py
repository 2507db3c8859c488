"""Options that commands share: one for each setting of a study."""

from __future__ import annotations

import argparse

from ikdlib.errors import IkdError


def study_options(parser: argparse.ArgumentParser, dry: bool = False) -> None:
    """One option for each of `StudySettings`, as text; an empty one stands for the profile's choice."""
    from ikdlib.studies.settings import StudySettings

    for name, field in StudySettings.model_fields.items():
        shown = {"default": str(field.default), "help": field.description}
        if name == "profile":
            shown["default"] = "short"
        parser.add_argument(f"--{name}", metavar=name.upper(), **shown)
    if dry:
        parser.add_argument("--dry", action="store_true", help="list the runs and their time, and do nothing")


def study_settings(options: argparse.Namespace):
    """What `study_options` asked for, validated; an empty text, 0 or auto stands for the profile's choice.

    Raises:
        IkdError: a value that is none.
    """
    from ikdlib.studies.settings import StudySettings

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


def engine_options(parser: argparse.ArgumentParser) -> None:
    """Where cells run, and how another terminal looks on."""
    where = "of a Dask cluster: tcp://HOST:PORT or a scheduler file"
    parser.add_argument("--scheduler", default="", metavar="SCHEDULER", help=where)
    parser.add_argument("--watch", action="store_true", help="show what the same command does elsewhere")


def say(text: str) -> None:
    """Print at once, so that a log file shows it too."""
    print(text, flush=True)
