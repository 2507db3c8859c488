"""A sweep: a notebook executed for every cell of a grid, into a folder that is its own record.

``<results>/sweeps/<name>/`` holds ``sweep.json`` (what was asked), ``notebook.ipynb`` (the source as it was),
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
from ikdlib.studies import notebook
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
        if Path(name).name != name:
            raise IkdError(f"name: {name!r} is to be one folder's name, without /")
        self.source, self.grid = source, grid
        named = {name for cell in grid.cells for name in cell}
        free = notebook.parameters_of(source).keys() - named
        self.places = {name: value for name, value in (places or {}).items() if value and name in free}
        self.folder = results / "sweeps" / (name or source.stem)
        self.digest = digest_of(source)
        sheet = self.folder / "sweep.json"
        if sheet.exists() and (other := json.loads(sheet.read_text())["notebook"]) != source.name:
            raise IkdError(f"{self.folder}: holds a sweep of {other}; give this one another name (NAME=)")

    def pieces(self) -> list[Piece]:
        """A piece for each cell, in the grid's order, finished or not."""
        found = []
        for parameters in self.grid.cells:
            task = Task(
                id=cell_id(parameters, self.grid.swept), folder=str(self.folder.resolve()),
                notebook=str((self.folder / "notebook.ipynb").resolve()), digest=self.digest,
                parameters={**self.places, **parameters},
            )  # fmt: skip
            name = _readable(parameters, self.grid.swept) or self.source.stem
            found.append(Piece(task, name, done=lambda task=task: task.finished))
        return found

    def begin(self) -> None:
        """Write what was asked and the notebook's source, from which cells on any machine start."""
        cells = [
            {"id": cell_id(parameters, self.grid.swept), "parameters": notebook.shown(parameters)}
            for parameters in self.grid.cells
        ]
        files.write_bytes(self.folder / "notebook.ipynb", self.source.read_bytes())
        sheet = {
            "format_version": FORMAT_VERSION, "notebook": self.source.name, "notebook_sha256": self.digest,
            "swept": list(self.grid.swept), "cells": cells,
        }  # fmt: skip
        files.write_json(self.folder / "sweep.json", sheet)


def digest_of(source: Path) -> str:
    """sha256 of a notebook's code: words beside it may change without a cell becoming another."""
    cells = notebook.read(source)["cells"]
    code = [
        ["".join(cell["source"]), cell["metadata"].get("tags", [])]
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def cell_id(parameters: Mapping[str, Any], swept: tuple[str, ...]) -> str:
    """A readable name, and a hash of all parameters that were given."""
    text = json.dumps(parameters, sort_keys=True)
    return f"{_readable(parameters, swept)}-{hashlib.sha256(text.encode()).hexdigest()[:10]}".lstrip("-")


def _readable(parameters: Mapping[str, Any], swept: tuple[str, ...]) -> str:
    words = [f"{name}={notebook.shown(parameters)[name]}" for name in swept if name in parameters]
    return re.sub(r"[^\w=,.+-]+", "-", ",".join(words))[:LONGEST_NAME]
