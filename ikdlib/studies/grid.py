"""The grid of a sweep over a notebook: which values of its parameters are to be run.

It is written as YAML (`read`) or as options (`of_options`), and checked as a whole before its first cell
starts: a mistake in the last cell is found now, and not after a night.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from reprlib import repr as short  # a few YAML aliases make a list whose whole text would fill the memory
from typing import Any

from ikdlib.errors import IkdError
from ikdlib.spec import known
from ikdlib.studies.notebook import parameters_of

LARGEST = 100_000
"""Cells of a grid; whoever asks for more has a digit too many in a range."""
RANGE = re.compile(r"\s*(-?[0-9]{1,18})\s*\.\.\s*(-?[0-9]{1,18})\s*")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes"}

Factor = dict[str, list[Any]]
"""Names that change together, each with its values; a `range` among them stands for all that is in it."""


@dataclass(frozen=True)
class Grid:
    """The parameters of each cell of a sweep, in order; the notebook's defaults fill the rest.

    ``swept``: names that take more than one value, in the order they were written.
    """

    cells: tuple[Mapping[str, Any], ...]
    swept: tuple[str, ...]


def read(path: Path, notebook: Path, options: Iterable[str] = ()) -> Grid:
    """The grid in a YAML file: ``name: value`` is fixed, ``name: [a, b]`` swept, the first name slowest.

    ``together: [{pair: a/b, epochs: 48}, ...]`` holds rows of names that change together (or a list of such
    lists, each changing by itself), ``seed: 1..5`` a range, and ``seeds: 5`` is short for it. ``options``
    (see `of_options`) add names, which come last, or take the place of the file's.

    Raises:
        IkdError: a file cannot be read; a name the notebook has no parameter for, or that is written twice;
            a value of another type than the notebook's default, or not finite; no values; too many cells.
    """
    defaults = defaults_of(notebook)
    where = f"{path} for {notebook.name}"
    factors: list[Factor] = []
    for name, value in _loaded(path).items():
        if name == "together":
            nested = isinstance(value, list) and value and all(isinstance(rows, list) for rows in value)
            factors += [_group(rows, defaults, where) for rows in (value if nested else [value])]
        else:
            factors.append(_column(name, value, defaults, where))
    _refuse_twice(chain.from_iterable(factors), where)
    given = _of_options(options, defaults, f"options for {notebook.name}")
    replaced = set(chain.from_iterable(given))
    kept = [{name: column for name, column in f.items() if name not in replaced} for f in factors]
    return _expanded([factor for factor in (*kept, *given) if factor], where)


def of_options(options: Iterable[str], notebook: Path) -> Grid:
    """The grid of options like ``seed=1..3``, ``method=kd,dkd`` or ``methods="kd,dkd",nkd`` (two values).

    A value has the type of the notebook's default; blanks around it do not count.

    Raises:
        IkdError: as in `read`; no options; one that is not ``name=value``.
    """
    where = f"options for {notebook.name}"
    factors = _of_options(options, defaults_of(notebook), where)
    if not factors:
        raise IkdError(
            f"{where}: none given; write -p name=a,b,c for each parameter to be swept, or name a YAML file "
            "(--grid FILE; with make: GRID=FILE)"
        )
    return _expanded(factors, where)


def defaults_of(notebook: Path) -> dict[str, Any]:
    """Names and defaults of a notebook's parameters; raises `IkdError` where they cannot be read."""
    try:
        return parameters_of(notebook)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError) as error:
        raise IkdError(f"{notebook}: no notebook to read ({type(error).__name__}); name another") from None


def _loaded(path: Path) -> dict[Any, Any]:
    import yaml  # comes with papermill, which a sweep needs

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor):
            node = super().compose_mapping_node(anchor)
            keys = (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            _refuse_twice(keys, path)  # PyYAML takes the last of equal keys, and says nothing
            return node

    # Numbers as Python reads them: to YAML 1.1, 1:30 is 90 and 010 is 8. A folder may be called like a date.
    for tag, kind in {"int": int, "float": float, "timestamp": str}.items():
        tag = f"tag:yaml.org,2002:{tag}"
        Loader.add_constructor(tag, lambda of, node, kind=kind: _typed(of.construct_scalar(node), kind))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise IkdError(f"{path}: {error.strerror}; give a YAML file with the grid") from None
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        problem += f", line {mark.line + 1}" if mark else ""
        raise IkdError(f"{path}: not YAML ({problem}); write lines like `seed: [1, 2]`") from None
    if not isinstance(content, dict) or not content:
        raise IkdError(f"{path}: names no parameters; write lines like `seed: [1, 2]`")
    return content


def _of_options(options: Iterable[str], defaults: dict[str, Any], where: str) -> list[Factor]:
    factors: list[Factor] = []
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        if not equals:
            raise IkdError(f"{where}: {short(option)} is no name=value; write it like seed=1,2,3")
        try:
            values = next(csv.reader([text], strict=True, skipinitialspace=True), []) or [""]
        except csv.Error as error:
            raise IkdError(f'{where}: {short(name)}: {error}; quote whole values, like "a,b",c') from None
        if len(values) > 1 and values.count("") > text.count('""'):
            raise IkdError(f'{where}: {short(name)} has a comma too many; write "" for an empty value')
        default = defaults.get(name, "")
        if not text and isinstance(default, str) and default:  # mostly a variable of a shell that is not set
            raise IkdError(
                f"{where}: {name} has no value; write one, like {default}, or '\"\"' for an empty text"
            )
        typed = [_typed(value.strip(), type(defaults.get(name, 0))) for value in values]
        factors.append(_column(name, typed if len(typed) > 1 else typed[0], defaults, where))
    _refuse_twice(chain.from_iterable(factors), where)
    return factors


def _refuse_twice(names: Iterable[str], where: Any) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        hint = " (seeds is short for it)" if twice[0] == "seed" else ""
        raise IkdError(f"{where}: {twice[0]!r} is given twice{hint}; keep one")


def _group(rows: Any, defaults: dict[str, Any], where: str) -> Factor:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise IkdError(f"{where}: together is no list of rows; write it like [{{seed: 1, epochs: 2}}, ...]")
    for number, row in enumerate(rows, 1):
        if odd := ", ".join(sorted(map(str, row.keys() ^ rows[0].keys()))):
            raise IkdError(f"{where}: together: rows 1 and {number} differ in {odd}; give all the same names")
    return {name: [_value(name, row[name], defaults, where) for row in rows] for name in rows[0]}


def _column(name: Any, given: Any, defaults: dict[str, Any], where: str) -> Factor:
    if name == "seeds" and name not in defaults and type(defaults.get("seed")) is int:
        if type(given) is not int or not 0 < given < 10**18:
            raise IkdError(f"{where}: seeds = {short(given)} is no count, like 5; list single ones as seed")
        return {"seed": [range(1, given + 1)]}
    if given == [] and type(like := defaults.get(name)) in KINDS:
        raise IkdError(f"{where}: {name} is an empty list; write values, like [{like!r}], or leave it out")
    listed = given if isinstance(given, list) and given else [given]  # an empty list is no value either
    return {name: [_value(name, value, defaults, where, ranges=True) for value in listed]}


def _value(name: Any, value: Any, defaults: dict[str, Any], where: str, ranges: bool = False) -> Any:
    default = defaults[known(name, tuple(defaults), where, "parameter")]
    kind = type(default)
    if kind not in KINDS:
        raise IkdError(f"{where}: {name} cannot be in a grid, as its default {short(default)} is no scalar")
    if ranges and kind is int and isinstance(value, str) and (ends := RANGE.fullmatch(value)):
        first, last = int(ends[1]), int(ends[2])
        if first > last:
            raise IkdError(f"{where}: {name}: {value.strip()} runs backwards; write {last}..{first}")
        return range(first, last + 1)
    if kind is float and type(value) is int:  # 1 and 1.0 are one cell
        value = _typed(value, float)
    if isinstance(value, float) and not math.isfinite(value):
        raise IkdError(f"{where}: {name} = {value} is not finite; write {KINDS[kind]}")
    if type(value) is kind:
        return value
    cure = KINDS[kind]
    if isinstance(value, str) and type(typed := _typed(value, kind)) is kind and abs(typed) < math.inf:
        # YAML 1.1 wants digits, a point and a signed exponent: 1e3 is a text, 1.0e+3 a number.
        text = value.strip().lower().replace("_", "")
        text = re.sub(r"^([-+]?)(\d*)\.?(\d*)", lambda m: f"{m[1]}{m[2] or 0}.{m[3] or 0}", text)
        cure = re.sub(r"e(?=\d)", "e+", text) if kind is float else str(typed).lower()
    raise IkdError(f"{where}: {name} = {short(value)} is no {kind.__name__}, like {default!r}; write {cure}")


def _typed(text: Any, kind: type) -> Any:
    """``text`` as a value of its kind, or as it is where it cannot be read as one."""
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, LookupError, TypeError, OverflowError):
        return text


def _expanded(factors: list[Factor], where: str) -> Grid:
    # A range is counted by its ends: `seed: 1..1000000000` is refused before it takes memory.
    columns = [next(iter(factor.values())) for factor in factors]
    size = math.prod(sum(len(v) if type(v) is range else 1 for v in column) for column in columns)
    if size > LARGEST:
        raise IkdError(f"{where}: {size:,} cells; {LARGEST:,} are the most: name fewer values")
    choices, swept = [], []
    for factor in factors:
        columns = [[*chain.from_iterable(v if type(v) is range else [v] for v in c)] for c in factor.values()]
        choices.append(list(dict.fromkeys(zip(*columns, strict=True))))  # equal cells appear once
        swept += [name for name, column in zip(factor, columns, strict=True) if len(set(column)) > 1]
    names = list(chain.from_iterable(factors))
    cells = (dict(zip(names, chain.from_iterable(rows), strict=True)) for rows in product(*choices))
    return Grid(tuple(cells), tuple(swept))
