"""The cells of a sweep, read from its folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd

from ikdlib.errors import IkdError

OWN = ("id", "status", "seconds", "attempts", "error")
ENDED = ("finished", "failed", "stopped")
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_NAME = r"[^\s'\"`,;:|()\[\]<>{}=\\/]+"
# In quotes a path may hold spaces. `kd/dkd`, `./x`, `~/x` and the inside of a web address are not absolute.
_PATH = re.compile(
    rf"""(?<=['"])(?:[A-Za-z]:[\\/]|/)[^'"\n]+(?=['"])"""
    rf"""|(?<![\w.~/\\)}}\]*])(?:file://)?(?:[A-Za-z]:[\\/]|/)(?:{_NAME}[\\/])*{_NAME}[\\/]?"""
)


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds: ``frame`` has a row a cell (`collect`), the rest names its columns."""

    notebook: str
    parameters: list[str]
    swept: list[str]
    outcomes: list[str]
    frame: pd.DataFrame

    def others(self, parameter: str) -> list[str]:
        """What else was swept, but for the seed."""
        return [name for name in self.swept if name not in (parameter, "seed")]

    @property
    def fixed(self) -> list[str]:
        """The parameters that have one value in all cells, as ``name = value``."""
        values = {name: set(map(text_of, self.frame[name])) for name in self.parameters}
        return [
            f"{name} = {min(texts)}"
            for name, texts in values.items()
            if name not in self.swept and len(texts) == 1
        ]

    def groups(self, names: list[str]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        """The cells by their values of these parameters, as text; all in grid order."""
        found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in self.frame.to_dict("records"):
            found.setdefault(tuple(text_of(row[name]) for name in names), []).append(row)
        return found


def collect(folder: Path) -> pd.DataFrame:
    """One row per cell, in grid order: id, every parameter, status, seconds, attempts, error, the outcomes.

    A cell without a record, or with one that is damaged or of another version of the notebook, is `not run`;
    ``error`` then has the reason. Of an absolute path among the values only the last name is left. A
    parameter or outcome with the name of another column gets a word behind it: ``seconds (outcome)``.
    """
    return read(folder).frame


def read(folder: Path) -> Sweep:
    """`collect`'s frame, and which of its columns are what; an IkdError without a sound ``sweep.json``."""
    notebook, sha256, swept, cells = _sheet(folder / "sweep.json")
    records = [_record(folder / "cells" / f"{cell['id']}.json", cell["id"], sha256) for cell in cells]
    names = {n: f"{n} (parameter)" if n in OWN else n for cell in cells for n in cell["parameters"]}
    taken = {*OWN, *names.values()}
    outcomes = {n: f"{n} (outcome)" if n in taken else n for one in records for n in one["outcome"]}
    columns = {"id": [cell["id"] for cell in cells]}
    columns |= {own: _hidden([cell["parameters"].get(n) for cell in cells]) for n, own in names.items()}
    columns |= {name: [one[name] for one in records] for name in OWN[1:]}
    columns |= {own: [one["outcome"].get(n) for one in records] for n, own in outcomes.items()}
    frame = pd.DataFrame(columns, dtype=object)
    for name in frame:  # None is a parameter's value like others, no missing number
        if name in outcomes.values() or frame[name].notna().all():
            frame[name] = frame[name].infer_objects()
    frame = frame.astype({"seconds": float, "attempts": "Int64"})
    swept = [names.get(name, name) for name in swept]
    return Sweep(notebook, list(names.values()), swept, list(outcomes.values()), frame)


def _sheet(path: Path) -> tuple[str, str, list[str], list[dict[str, Any]]]:
    """Notebook, its sha256, swept parameters and cells."""
    try:
        sheet = json.loads(path.read_bytes())
        cells, swept = sheet["cells"], sheet["swept"]
        fine = [set(swept) <= c["parameters"].keys() and re.fullmatch(r"[^/\\]+", c["id"]) for c in cells]
        if sheet["format_version"] == 1 and all(fine):
            return *_hidden([str(sheet["notebook"])]), sheet["notebook_sha256"], swept, cells
    except (FileNotFoundError, NotADirectoryError):
        raise IkdError(f"{path}: there is no such file; give the folder of a sweep") from None
    except DAMAGE:
        pass
    raise IkdError(f"{path}: damaged, or of another version of ikdlib; begin the sweep anew to mend it")


def _record(path: Path, name: str, sha256: str) -> dict[str, Any]:
    """Status, seconds, attempts, error and outcome of a cell."""
    found: dict[str, Any] = dict.fromkeys(OWN[1:]) | {"status": "not run", "outcome": {}}
    try:
        record = json.loads(path.read_bytes())
        status, error, outcome = record["status"], str(record["error"] or ""), record["outcome"]
        if (record["format_version"], record["id"]) != (1, name) or status not in ENDED:
            raise ValueError("not format 1, unknown status or another cell's id")
        if record["notebook_sha256"] != sha256:
            return found | {"error": "its record is of another version of the notebook"}
        numbers = {key: n * 1 for key, n in outcome.items() if isinstance(n, bool) or is_number(n)}
        took = {"seconds": float(record["seconds"]), "attempts": int(record["attempts"])}
        return took | {
            "status": status,
            "error": _hidden([error])[0] or None,
            "outcome": numbers if status == "finished" else {},
        }
    except FileNotFoundError:
        return found
    except DAMAGE as error:
        return found | {"error": _hidden([f"its record is damaged ({type(error).__name__}: {error})"])[0]}


def _hidden(values: list[Any]) -> list[Any]:
    """The values without absolute paths: of each its last name, or as many as tell it from the others."""

    def named(value: Any, depth: int) -> Any:
        value = json.dumps(value) if isinstance(value, (list, dict)) else value
        if not isinstance(value, str):
            return value
        for path in (PurePosixPath(value), PureWindowsPath(value)):
            if path.is_absolute():
                return "/".join(path.parts[1:][-depth:])
        return _PATH.sub(
            lambda found: "/".join(re.findall(r"[^\\/]+(?<!:)(?=[\\/]|$)", found[0])[-depth:]), value
        )

    for depth in range(1, 20):
        names = [named(value, depth) for value in values]
        if len(set(map(repr, names))) == len(set(map(repr, values))):
            break
    return names


def results_of(rows: list[dict[str, Any]], name: str) -> list[float]:
    """What these cells had of an outcome."""
    return [row[name] for row in rows if row["status"] == "finished" and pd.notna(row[name])]


def text_of(value: Any) -> str:
    """A value as a table and an axis show it; no text at all would look like no value."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value) or '""'


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis: neither a truth value nor too large to draw."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300
