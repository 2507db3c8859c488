"""A sweep: a notebook executed for every cell of a grid, into a folder that is its own record.

``<results>/sweeps/<name>/`` holds ``sweep.json`` (what was asked), ``sources/`` (the notebook as it was),
``cells/`` (a record and an executed notebook for each cell that finished), ``failed/`` (notebooks with the
traceback), and the table and figures that reporting makes of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ikdlib import files
from ikdlib.errors import IkdError
from ikdlib.studies import copies, notebook
from ikdlib.studies.cell import FORMAT_VERSION, Task
from ikdlib.studies.dispatch import Piece
from ikdlib.studies.grid import Grid

LONGEST_NAME = 80
"""Characters of a cell's readable name; file systems allow 255 bytes, and endings are added."""


class Sweep:
    """The cells of one notebook and grid in one folder.

    Args:
        name: of the folder below ``<results>/sweeps/``; the notebook's own where none is given.
        places: values for parameters that say where things are or what computes, where the notebook has them
            and the grid does not name them. They are no part of what a cell is.

    Raises:
        IkdError: another notebook's sweep lies in the folder.
    """

    def __init__(
        self, source: Path, grid: Grid, results: Path, name: str = "", places: Mapping[str, Any] | None = None
    ):
        if Path(name).name != name or name == "..":
            raise IkdError(f"name: {name!r} is to be one folder's name, without /")
        self.source, self.grid = source, grid
        self.folder = results / "sweeps" / (name or source.stem)
        self.digest = notebook.digest_of(source)
        self.defaults = notebook.parameters_of(source)
        named = {name for cell in grid.cells for name in cell}
        self.places = {
            name: value for name, value in (places or {}).items()
            if value and name not in named and type(self.defaults.get(name)) is str
        }  # fmt: skip
        sheet = self.folder / "sweep.json"
        try:
            other = json.loads(sheet.read_text())["notebook"] if sheet.exists() else source.name
        except (OSError, ValueError, KeyError, TypeError):
            raise IkdError(
                f"{sheet}: cannot be read; delete it, and the same command makes it again"
            ) from None
        if other != source.name:
            raise IkdError(f"{self.folder}: holds a sweep of {other}; give this one another name (NAME=)")

    @property
    def copy(self) -> Path:
        """The notebook's copy that cells on any machine start from; other code is another file."""
        return self.folder / "sources" / f"{self.source.stem}-{self.digest[:12]}.ipynb"

    def pieces(self) -> list[Piece]:
        """A piece for each cell, in the grid's order, finished or not."""
        found = []
        places = {
            "folder": str(self.folder.resolve()),
            "notebook": str(self.copy.resolve()),
            "cwd": str(Path.cwd()),
        }
        for parameters in self.grid.cells:
            whole = {**self.places, **parameters}
            task = Task(id=self.id_of(parameters), digest=self.digest, parameters=whole, **places)
            swept = {name: parameters[name] for name in self.grid.swept if name in parameters}
            found.append(
                Piece(task, readable(swept) or self.source.stem, done=lambda task=task: task.finished)
            )
        return found

    def id_of(self, parameters: Mapping[str, Any]) -> str:
        """A cell's name: the parameters it was given, and a hash of them.

        So it is the same cell in another grid, whether a parameter is swept there or fixed. Where results go,
        and what computes, is no part of it; other data or teachers are.
        """
        inputs = {name: self.places[name] for name in ("data", "teachers") if name in self.places}
        whole = {**inputs, **parameters}
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()
        return f"{readable(dict(sorted(parameters.items())))}-{digest[:12]}"

    def begin(self) -> None:
        """Write what was asked and the notebook's source, from which cells on any machine start."""
        cells = [
            {"id": self.id_of(parameters), "parameters": copies.shown(parameters)}
            for parameters in self.grid.cells
        ]
        files.write_bytes(self.copy, self.source.read_bytes())
        sheet = {
            "format_version": FORMAT_VERSION, "notebook": self.source.name, "notebook_sha256": self.digest,
            "swept": list(self.grid.swept), "cells": cells,
        }  # fmt: skip
        files.write_json(self.folder / "sweep.json", sheet)


def readable(parameters: Mapping[str, Any]) -> str:
    """Parameters as a part of a file's name."""
    words = [f"{name}={value}" for name, value in copies.shown(parameters).items()]
    return re.sub(r"[^\w=,.+-]+", "-", ",".join(words))[:LONGEST_NAME]
