"""Grids of a sweep: every cell that was asked for, in order, and no cell of a grid with a mistake in it."""

from __future__ import annotations

import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikdlib.errors import IkdError
from ikdlib.studies import grid, notebook
from ikdlib.studies.grid import Grid, of_options, read

yaml = pytest.importorskip("yaml")

DEFAULTS = {"pair": "a/b", "method": "kd", "seed": 1, "epochs": 0, "lr": 0.05, "decay": 0.1, "fast": False}
PARAMETERS = "".join(f"{name} = {default!r}  # a remark\n" for name, default in DEFAULTS.items())


def write_notebook(folder: Path, parameters: str, cells: int = 1, name: str = "tiny.ipynb") -> Path:
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": parameters, "outputs": []}
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell] * cells}
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("grids")


@pytest.fixture(scope="module")
def source(folder) -> Path:
    return write_notebook(folder, PARAMETERS)


def grid_of(source: Path, text: str, *options: str) -> Grid:
    path = source.parent / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path, source, options)


def cells_of(source: Path, text: str, *options: str) -> list[tuple[Any, ...]]:
    """The values of each cell, where all cells are known to have the same names."""
    return [tuple(cell.values()) for cell in grid_of(source, text, *options).cells]


def refusal(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(IkdError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def unique(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells without later equal ones, by comparison alone."""
    return [cell for number, cell in enumerate(cells) if cell not in cells[:number]]


def same_types(cells: tuple, expected: list[dict[str, Any]]) -> bool:
    """Equal, in names and their order and in types too (1 == 1.0 == True would pass otherwise)."""

    def shown(rows: Any) -> list[str]:
        return [repr([(n, type(v), abs(v) if v == 0 else v) for n, v in row.items()]) for row in rows]

    return shown(cells) == shown(expected)


# ---- what is in a grid

NUMBERS = st.integers(-9, 10**20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=8).map(str.strip)
VALUES = {"pair": TEXTS, "seed": NUMBERS, "epochs": NUMBERS, "lr": FLOATS, "fast": st.booleans()}


@st.composite
def grids(draw) -> dict[str, list[Any]]:
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    return {name: draw(st.lists(VALUES[name], min_size=1, max_size=3)) for name in names}


def expected_of(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return unique([dict(zip(values, combination, strict=True)) for combination in product(*values.values())])


def swept_of(cells: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(name for name in cells[0] if any(cell[name] != cells[0][name] for cell in cells))


@settings(deadline=None, max_examples=60)
@given(values=grids())
def test_a_file_gives_the_product_of_its_lists(source, values):
    written = {name: listed if len(listed) > 1 else listed[0] for name, listed in values.items()}
    made = grid_of(source, yaml.safe_dump(written, sort_keys=False, allow_unicode=True))
    assert same_types(made.cells, expected_of(values))
    assert made.swept == swept_of(expected_of(values))


@settings(deadline=None, max_examples=60)
@given(values=grids())
def test_options_give_the_product_of_their_values(source, values):
    def text(value: Any) -> str:
        if isinstance(value, str):
            return '"' + value.replace('"', '""') + '"'
        return str(value).lower() if isinstance(value, bool) else repr(value)

    made = of_options([f"{name}={','.join(map(text, listed))}" for name, listed in values.items()], source)
    assert same_types(made.cells, expected_of(values))
    assert made.swept == swept_of(expected_of(values))


def test_an_empty_text_needs_no_quotes_where_it_is_the_default(tmp_path):
    """As `changes` of notebook 11: it is the paper's own settings."""
    source = write_notebook(tmp_path, 'seed = 1\nchanges = ""\n')
    assert of_options(["changes="], source).cells == ({"changes": ""},)


def test_the_first_name_varies_slowest(source):
    made = grid_of(source, "method: [kd, dkd]\nepochs: 48\nseed: [1, 2]\n")
    assert made == Grid(
        (
            {"method": "kd", "epochs": 48, "seed": 1},
            {"method": "kd", "epochs": 48, "seed": 2},
            {"method": "dkd", "epochs": 48, "seed": 1},
            {"method": "dkd", "epochs": 48, "seed": 2},
        ),
        ("method", "seed"),
    )
    assert of_options(["method=kd,dkd", "epochs=48", "seed=1,2"], source) == made


@pytest.mark.parametrize("text", ["lr: [1, 1.0, 2]", "lr: [1.0, 2, 1]"])
def test_equal_cells_appear_once(source, text):
    made = grid_of(source, text)
    assert same_types(made.cells, [{"lr": 1.0}, {"lr": 2.0}])
    assert same_types(of_options(["lr=1,1.0,2"], source).cells, [{"lr": 1.0}, {"lr": 2.0}])
    assert grid_of(source, "seed: [3, 3]\nlr: 1").swept == ()


@pytest.mark.parametrize(
    "text", ["seeds: 5", "seed: 1..5", "seed: [1..3, 4, 2..5]", "seed: ' 1 .. 5 '", "seed: [1, 2, 3, 4, 5]"]
)
def test_ways_to_write_five_seeds(source, text):
    assert grid_of(source, text) == Grid(tuple({"seed": n} for n in range(1, 6)), ("seed",))


@pytest.mark.parametrize("option", ["seeds=5", "seed=1..5", "seed=1..3,4,5", "seed= 1,2, 3 ,4,5"])
def test_ways_to_give_five_seeds(source, option):
    assert of_options([option], source) == grid_of(source, "seeds: 5")


def test_a_range_may_be_negative_or_of_one(source):
    assert cells_of(source, "seed: -2..1") == [(-2,), (-1,), (0,), (1,)]
    assert grid_of(source, "seed: 3..3") == Grid(({"seed": 3},), ())


def test_a_range_is_a_text_where_a_text_belongs(source):
    assert cells_of(source, "method: 1..5") == [("1..5",)]
    assert of_options(["method=1..5"], source).cells == ({"method": "1..5"},)


def test_seeds_is_itself_where_the_notebook_has_it(tmp_path):
    source = write_notebook(tmp_path, 'seed = 1\nseeds = ""\n')
    assert grid_of(source, "seeds: ['5', '1,2']").cells == ({"seeds": "5"}, {"seeds": "1,2"})
    assert of_options(['seeds="1,2",5'], source).cells == ({"seeds": "1,2"}, {"seeds": "5"})
    assert "did you mean seed" in refusal(grid_of, write_notebook(tmp_path, "seed = ''"), "seeds: 5")


def test_quoted_values_keep_their_commas(source):
    made = of_options(['method="kd,dkd", nkd ,"say ""x"""', 'pair=""'], source)
    assert [cell["method"] for cell in made.cells] == ["kd,dkd", "nkd", 'say "x"']
    assert {cell["pair"] for cell in made.cells} == {""}
    assert of_options(['method="",kd'], source).cells == ({"method": ""}, {"method": "kd"})
    assert of_options(["method=a=b"], source).cells == ({"method": "a=b"},)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fast=true", True), ("fast=False", False), ("lr=1e-3", 0.001), ("lr=1", 1.0), ("epochs=-7", -7),
        ("epochs=010", 10), ("method=3", "3"), ("method=true", "true"), ("method=1e-3", "1e-3"),
    ],
)  # fmt: skip
def test_an_option_has_the_type_of_the_default(source, option, value):
    made = of_options([option], source)
    assert same_types(made.cells, [{option.partition("=")[0]: value}])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pair: 2024-01-31", "2024-01-31"), ("pair: 12:30", "12:30"), ("pair: .nan", ".nan"),
        ("epochs: 010", 10), ("epochs: 1_000", 1000), ("lr: 1.5e-3", 0.0015), ("lr: .5", 0.5),
        ("fast: off", False), ("epochs: &x 3", 3), ('"epochs": 3', 3),
    ],
)  # fmt: skip
def test_a_value_is_what_it_looks_like(source, text, value):
    """PyYAML alone makes a date, 750, NaN and 8 of the first, second, third and fourth."""
    [cell] = grid_of(source, text).cells
    assert same_types((cell,), [{next(iter(cell)): value}])


# ---- names that change together


def test_rows_change_together(source):
    text = """
        method: [kd, dkd]
        together: [{pair: r56/r20, epochs: 48}, {epochs: 60, pair: v13/v8}]
        seeds: 2
    """
    made = grid_of(source, text)
    rows = [("r56/r20", 48), ("v13/v8", 60)]
    expected = [
        {"method": method, "pair": pair, "epochs": epochs, "seed": seed}
        for method, (pair, epochs), seed in product(["kd", "dkd"], rows, (1, 2))
    ]
    assert list(made.cells) == expected
    assert made.swept == ("method", "pair", "epochs", "seed")


def test_a_name_that_stays_the_same_in_all_rows_is_not_swept(source):
    made = grid_of(source, "together: [{pair: a/b, epochs: 3, seed: 1}, {pair: c/d, epochs: 3, seed: 2}]")
    assert len(made.cells) == 2 and made.swept == ("pair", "seed")


def test_equal_rows_appear_once(source):
    text = "together: [{lr: 1, seed: 1}, {lr: 2, seed: 1}, {seed: 1, lr: 1.0}]"
    assert cells_of(source, text) == [(1.0, 1), (2.0, 1)]


def test_groups_change_by_themselves(source):
    first, second = [{"pair": "a", "epochs": 1}, {"pair": "b", "epochs": 2}], [{"lr": 0.5}, {"lr": 0.25}]
    made = grid_of(source, yaml.safe_dump({"together": [first, second]}))
    assert [dict(cell) for cell in made.cells] == [{**a, **b} for a, b in product(first, second)]


# ---- options beside a file


def test_options_replace_and_add(source):
    made = grid_of(source, "seed: [1, 2]\nmethod: [kd, dkd]\nepochs: 9", "method=nkd", "lr=1,2")
    expected = [
        {"seed": s, "epochs": 9, "method": "nkd", "lr": lr} for s, lr in product((1, 2), (1.0, 2.0))
    ]  # fmt: skip
    assert same_types(made.cells, expected)
    assert made.swept == ("seed", "lr")


def test_an_option_replaces_seeds_and_a_column_of_a_group(source):
    assert cells_of(source, "seeds: 5", "seed=7") == [(7,)]
    assert cells_of(source, "seed: [7, 8]", "seeds=1") == [(1,)]
    group = "together: [{pair: a, epochs: 1}, {pair: a, epochs: 2}, {pair: b, epochs: 2}]"
    assert cells_of(source, group, "epochs=5") == [("a", 5), ("b", 5)]
    assert cells_of(source, group, "epochs=5", "pair=c") == [(5, "c")]


def test_what_an_option_replaces_is_checked_all_the_same(source):
    assert "'x'" in refusal(grid_of, source, "seed: x", "seed=3")


# ---- what is refused

BAD_FILES = [
    ("sed: 1", "'sed'", "did you mean seed?"),
    ("Method: kd", "'Method'", "did you mean method?"),
    ("xyzzy: 1", "'xyzzy'", "known: pair, method, seed"),
    ("together: [{sed: 1}]", "'sed'", "did you mean seed?"),
    ("on: 1", "True", "unknown parameter"),
    ("lr: 1e-3", "lr = '1e-3'", "write 1.0e-3"),
    ("lr: [0.1, 1e3]", "lr = '1e3'", "write 1.0e+3"),
    ("lr: 1.5e3", "lr = '1.5e3'", "write 1.5e+3"),
    ("lr: '2'", "lr = '2'", "write 2.0"),
    ("lr: 1_0e1_0", "lr = '1_0e1_0'", "write 10.0e+10"),
    ("lr: fast", "lr = 'fast'", "like 0.05; write a number"),
    ("lr: 1..5", "lr = '1..5'", "write a number"),
    ("lr: true", "lr = True", "write a number"),
    ("lr: .nan", "lr = '.nan'", "write a number"),
    ("lr: !!float nan", "lr = nan", "not finite"),
    ("lr: 1.0e+999", "lr = inf", "not finite"),
    ("lr: 1" + 400 * "0", "lr = 1000", "write a number"),
    ("seed: true", "seed = True", "write a whole number"),
    ("seed: 1.0", "seed = 1.0", "like 1; write a whole number"),
    ("seed: !!float inf", "seed = inf", "write a whole number"),
    ("seed: '3'", "seed = '3'", "write 3"),
    ("seed: '1" + 400 * "0" + "'", "seed = '1000", "write 1000"),
    ("seed: 1:30", "seed = '1:30'", "write a whole number"),
    ("seed: 2024-01-31", "seed = '2024-01-31'", "write a whole number"),
    ("seed:", "seed = None", "write a whole number"),
    ("seed: [1, null]", "seed = None", "write a whole number"),
    ("seed: []", "seed is an empty list", "like [1], or leave it out"),
    ("method: []", "method is an empty list", "like ['kd'], or leave it out"),
    ("sed: []", "'sed'", "did you mean seed?"),
    ("seed: [1, [2, 3]]", "seed = [2, 3]", "write a whole number"),
    ("seed: {a: 1}", "seed = {'a': 1}", "write a whole number"),
    ("seed: !!set {1, 2}", "seed = {1, 2}", "write a whole number"),
    ("seed: 5..1", "5..1 runs backwards", "write 1..5"),
    ("seed: [1, 3..2]", "3..2 runs backwards", "write 2..3"),
    ("method: 3", "method = 3", "write a text in quotes"),
    ("method: no", "method = False", "write a text in quotes"),
    ("method:", "method = None", "write a text in quotes"),
    ("fast: 1", "fast = 1", "write true or false"),
    ("fast: 'true'", "fast = 'true'", "write true"),
    ("seeds: 0", "seeds = 0", "like 5"),
    ("seeds: true", "seeds = True", "like 5"),
    ("seeds: [1, 2]", "seeds = [1, 2]", "as seed"),
    ("seeds: 3\nseed: 1", "'seed' is given twice", "seeds is short for it"),
    ("seed: 1\ntogether: [{seed: 1}]", "'seed' is given twice", "keep one"),
    ("together: [[{seed: 1}], [{seed: 2}]]", "'seed' is given twice", "keep one"),
    ("together: []", "together", "[{seed: 1, epochs: 2}, ...]"),
    ("together: [[], [{seed: 1}]]", "together", "[{seed: 1, epochs: 2}, ...]"),
    ("together: [{}]", "together", "no list of rows"),
    ("together: {seed: 1}", "together", "no list of rows"),
    ("together: [{seed: 1}, [{epochs: 1}]]", "together", "no list of rows"),
    ("together:", "together", "no list of rows"),
    ("together: [{seed: 1, lr: 1}, {seed: 2}]", "rows 1 and 2 differ in lr", "all the same"),
    ("together: [{seed: 1}, {seed: 2}, {seed: 3, 4: 1, lr: 1}]", "rows 1 and 3 differ in 4, lr", "all"),
    ("together: [{seed: [1, 2]}]", "seed = [1, 2]", "write a whole number"),
    ("together: [{seed: 1..2}]", "seed = '1..2'", "write a whole number"),
    ("together: [{seeds: 2}]", "'seeds'", "did you mean seed?"),
    ("seed: &a [*a]", "seed = [[", "write a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "what", "cure"), BAD_FILES, ids=lambda text: text[:40])
def test_a_mistake_in_a_file_is_named_with_its_cure(source, text, what, cure):
    message = refusal(grid_of, source, text)
    assert message.startswith(f"{source.parent / 'grid.yaml'} for tiny.ipynb: ")
    assert what in message and cure in message
    assert len(message) < 700, "a value is shown shortened"


NOT_GRIDS = [
    ("", "names no parameters"), ("# nothing", "names no parameters"), ("{}", "names no parameters"),
    ("[seed]", "names no parameters"), ("seed", "names no parameters"),
    ("seed: [1, 2\n", "not YAML (expected"), ("a: b: c", "line 1"), ("seed: 1\n\tlr: 2", "line 2"),
    ("seed: 1\n---\nseed: 2", "not YAML"), ("seed: !!python/name:os.system", "not YAML"),
    ("seed: *a", "not YAML"), ("? {a: 1}\n: 2", "not YAML"), ("fast: !!bool maybe", "not YAML"),
    ("seed: \0", "not YAML"), ("seed: !!int [1]", "not YAML"), ("seed: " + "[" * 5000, "not YAML"),
    ("seed: 1\nlr: 2\nseed: 3", "'seed' is given twice"), ('seed: 1\n"seed": 1', "'seed' is given twice"),
    ("together: [{lr: 1, lr: 2}]", "'lr' is given twice"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "what"), NOT_GRIDS, ids=lambda text: text[:40])
def test_a_file_that_holds_no_grid_is_refused(source, text, what):
    message = refusal(grid_of, source, text)
    assert message.startswith(f"{source.parent / 'grid.yaml'}: ") and what in message


def test_a_list_that_would_fill_the_memory_is_shown_in_short(source):
    """Each of thirty lines holds the one before it ten times."""
    lines = ["a: &x0 [1, 1]", *(f"a{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 30))]
    text = "\n".join(lines).replace("a29:", "seed:")
    assert "unknown parameter" in refusal(grid_of, source, text)
    text = "seed:\n" + "\n".join("- " + line.partition(": ")[2] for line in lines)
    assert "seed = [1, 1] is no int" in refusal(grid_of, source, text)
    text = "method:\n- &y [a]\n- b\n".replace("[a]", "[[[[[[[[[[a]]]]]]]]]]")
    assert "..." in refusal(grid_of, source, text)


def test_merged_keys_are_no_doubles(source):
    """YAML's `<<` takes names over from another mapping; what is written beside it comes first."""
    text = "together: [&a {seed: 1, lr: 2}, {<<: *a, seed: 3}, {<<: *a, lr: 4}]"
    rows = [(cell["seed"], cell["lr"]) for cell in grid_of(source, text).cells]
    assert rows == [(1, 2.0), (3, 2.0), (1, 4.0)]


def test_a_file_that_cannot_be_read_is_named(source, tmp_path):
    missing = tmp_path / "missing.yaml"
    assert refusal(read, missing, source).startswith(f"{missing}: No such file")
    assert refusal(read, tmp_path, source).startswith(f"{tmp_path}: Is a directory")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("pair: \xe9".encode("latin-1"))
    assert refusal(read, latin, source).startswith(f"{latin}: not YAML")


BAD_OPTIONS = [
    (["sed=1"], "'sed'", "did you mean seed?"),
    (["=1"], "''", "known: pair"),
    (["together=1"], "'together'", "known: pair"),
    (["seed"], "'seed' is no name=value", "seed=1,2,3"),
    ([""], "'' is no name=value", "seed=1,2,3"),
    ([], "none given", "-p name=a,b,c for each"), ([], "none given", "make: GRID=FILE)"),
    (["method="], "method has no value", "like kd, or '\"\"' for an empty text"),
    (["seed=1", "pair= "], "pair has no value", "like a/b, or"),
    (["seed=1", "lr=1", "seed=2"], "'seed' is given twice", "keep one"),
    (["seed=1", "seeds=2"], "'seed' is given twice", "seeds is short for it"),
    (["seed=x"], "seed = 'x'", "write a whole number"),
    (["seed=1,1.5"], "seed = '1.5'", "write a whole number"),
    (["seed="], "seed = ''", "write a whole number"),
    (["seed=1,,2"], "'seed' has a comma too many", 'write ""'),
    (["method=kd,"], "'method' has a comma too many", 'write ""'),
    (["seed=5..1"], "5..1 runs backwards", "write 1..5"),
    (["seeds=1,2"], "seeds = [1, 2]", "as seed"),
    (["seeds=1..2"], "seeds = '1..2'", "like 5"),
    (["seeds=" + 30 * "9"], "seeds = 9999", "like 5"),
    (["lr=nan"], "lr = nan", "not finite"),
    (["lr=0.1,inf"], "lr = inf", "not finite"),
    (["lr=1e999"], "lr = inf", "not finite"),
    (["lr=1..3"], "lr = '1..3'", "write a number"),
    (["fast=yes"], "fast = 'yes'", "write true or false"),
    (["fast=1"], "fast = '1'", "write true or false"),
    (['method="kd'], "'method': unexpected end", 'like "a,b",c'),
    (['method="kd"x'], "'method'", 'like "a,b",c'),
    (["method=a\nb"], "'method'", 'like "a,b",c'),
    (["me\nthod=\"a"], "'me\\nthod'", 'like "a,b",c'),
]  # fmt: skip


@pytest.mark.parametrize(("options", "what", "cure"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_a_mistake_in_an_option_is_named_with_its_cure(source, options, what, cure):
    message = refusal(of_options, options, source)
    assert message.startswith("options for tiny.ipynb: ") and what in message and cure in message
    if options:
        assert refusal(grid_of, source, "pair: x", *options) == message, "beside a file too"


@settings(deadline=None, max_examples=60)
@given(number=FLOATS, digits=st.integers(0, 17), style=st.sampled_from("efg"))
def test_the_cure_for_a_number_that_yaml_takes_for_a_text_is_that_number(source, number, digits, style):
    for text in {f"{number:.{digits}{style}}", repr(number), repr(number).replace("e-0", "e-").lstrip("0")}:
        message = refusal(grid_of, source, f"lr: '{text}'")
        if math.isfinite(float(text)):
            cured = yaml.safe_load("lr: " + message.rpartition("write ")[2])["lr"]
            assert type(cured) is float and cured == float(text)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(list(DEFAULTS)),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab1.", max_size=3) | st.just({}),
)
def test_a_value_passes_where_the_notebook_would_take_it(source, name, value):
    """Only infinities are for the grid alone to refuse. (Three letters hold no range.)"""
    try:
        notebook.check_parameters(source, {name: value})
        fits = value not in (math.inf, -math.inf)
    except IkdError:
        fits = False
    text = yaml.safe_dump({name: value})
    if isinstance(value, float) and not math.isfinite(value):
        text = f"{name}: !!float {value}"
    if fits:
        assert cells_of(source, text) == [(float(value) if name in ("lr", "decay") else value,)]
    else:
        refusal(grid_of, source, text)


# ---- the size of a grid


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("seed: 1..1000000000", "1,000,000,000 cells"),
        ("seeds: 100001", "100,001 cells"),
        ("seed: 1..1000\nepochs: 0..999\nmethod: [kd, dkd]", "2,000,000 cells"),
        ("seed: 0..999999999999999999\nepochs: 0..999999999999999999", f"{10**36:,} cells"),
        ("together: [{pair: a, lr: 1}, {pair: b, lr: 2}, {pair: c, lr: 3}]\nseeds: 40000", "120,000 cells"),
    ],
)
def test_too_many_cells_are_counted_and_not_made(source, text, size):
    grid_of(source, "seed: 1")  # what is imported and kept at the first call does not count
    tracemalloc.start()
    message = refusal(grid_of, source, text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size in message and "100,000 are the most" in message
    assert peak < 1_000_000


def test_the_largest_grid_is_made_and_its_notebook_read_once(source, monkeypatch):
    calls = []
    monkeypatch.setattr(grid, "parameters_of", lambda path: calls.append(path) or DEFAULTS)
    made = grid_of(source, "seed: 1..1000\nepochs: 1..100")
    assert len(made.cells) == grid.LARGEST == 100_000
    assert made.cells[0] == {"seed": 1, "epochs": 1} and made.cells[-1] == {"seed": 1000, "epochs": 100}
    assert calls == [source]
    of_options(["seed=1..1000", "epochs=1..2"], source)
    assert calls == [source] * 2


# ---- the notebook


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", '{"cells": 3}', '{"cells": [3], "metadata": {}}', '{"cells": [{}], "metadata": {}}',
        '{"cells": [{"metadata": {"tags": null}}], "metadata": {}}', "\xff",
    ],
)  # fmt: skip
def test_what_is_no_notebook_is_refused_by_name(tmp_path, content):
    source = tmp_path / "odd.ipynb"
    source.write_text(content, encoding="latin-1")
    assert "odd.ipynb" in refusal(of_options, ["seed=1"], source)
    assert "odd.ipynb" in refusal(grid_of, source, "seed: 1")


def test_a_notebook_that_is_not_there_is_refused_by_name(tmp_path):
    for source in (tmp_path / "missing.ipynb", tmp_path):
        assert str(source) in refusal(of_options, ["seed=1"], source)


def test_a_notebook_needs_one_cell_of_parameters(tmp_path):
    for cells in (0, 2):
        source = write_notebook(tmp_path, PARAMETERS, cells=cells)
        assert f"{cells} cells tagged" in refusal(of_options, ["seed=1"], source)


@pytest.mark.parametrize("parameters", ["seed = ", "%matplotlib inline\nseed = 1", "seed = 1\0"])
def test_a_cell_that_is_no_python_is_refused(tmp_path, parameters):
    source = write_notebook(tmp_path, parameters)
    assert "tiny.ipynb" in refusal(of_options, ["seed=1"], source)


@pytest.mark.parametrize("default", ["[1, 2]", "None", "{}", "(1,)"])
def test_a_parameter_that_is_no_scalar_is_not_for_a_grid(tmp_path, default):
    source = write_notebook(tmp_path, f"layers = {default}\nseed = 1")
    for message in (
        refusal(of_options, ["layers=1"], source),
        refusal(grid_of, source, "layers: [1, 2]"),
        refusal(grid_of, source, "layers: null"),
    ):
        assert "layers cannot be in a grid" in message
    assert of_options(["seed=2"], source).cells == ({"seed": 2},)


def test_the_notebooks_of_this_checkout():
    student = notebook.SOURCES / "11_distill_student.ipynb"
    made = of_options(["pair=resnet20/resnet8,resnet56/resnet20", "method=kd,kd+ikd", "seeds=3"], student)
    assert len(made.cells) == 12 and made.swept == ("pair", "method", "seed")
    table = notebook.SOURCES / "20_cifar100_same_architecture.ipynb"
    assert of_options(['seeds="1,2,3"'], table).cells == ({"seeds": "1,2,3"},)
    for cell in made.cells:
        notebook.check_parameters(student, dict(cell))


def test_options_need_no_yaml(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert of_options(["seed=1"], source).cells == ({"seed": 1},)
