"""Notebooks as programs: parameters are checked first, and a copy is whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest

from ikdlib.errors import IkdError
from ikdlib.studies import notebook

PARAMETERS = 'seed = 1\nrate = 0.5\nname = "kd"\nfast = False  # a remark\n'


def write(folder: Path, cells: list[str], tag: str = "parameters", name: str = "tiny") -> Path:
    """A notebook whose first cell is tagged."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    made.cells[0].metadata["tags"] = [tag]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(made, path)
    return path


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "SOURCES", tmp_path / "notebooks")
    return tmp_path / "notebooks"


def refusal(source: Path, given: dict) -> str:
    with pytest.raises(IkdError) as error:
        notebook.check_parameters(source, given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_parameters_are_read_with_their_defaults(sources):
    source = write(sources, [PARAMETERS, "other = 2"])
    assert notebook.parameters_of(source) == {"seed": 1, "rate": 0.5, "name": "kd", "fast": False}


def test_parameters_need_exactly_one_tagged_cell(sources):
    source = write(sources, [PARAMETERS], tag="parameter")
    with pytest.raises(IkdError, match="0 cells tagged"):
        notebook.parameters_of(source)


def test_the_notebooks_of_this_checkout_have_parameters_or_none(sources, monkeypatch):
    """Every notebook that trains has its cell; what `reproduce` passes is in it, with the right type."""
    monkeypatch.undo()
    trains = [*notebook.SOURCES.glob("1*.ipynb"), *notebook.SOURCES.glob("2*.ipynb")]
    assert len(trains) >= 3
    for source in trains:
        notebook.check_parameters(source, {"profile": "demo", "epochs": 1, "results": "results"})


def test_a_misspelt_name_is_refused_with_the_right_one(sources):
    source = write(sources, [PARAMETERS])
    assert "'sed'" in refusal(source, {"sed": 2}) and "did you mean seed?" in refusal(source, {"sed": 2})
    assert "seed, rate, name, fast" in refusal(source, {"xyzzy": 2})


@pytest.mark.parametrize(
    "given",
    [
        {"rate": "1e-3"}, {"rate": float("nan")}, {"seed": "1"}, {"seed": 1.0}, {"name": 3}, {"fast": 1},
        {"seed": None},
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(sources, given):
    assert next(iter(given)) in refusal(write(sources, [PARAMETERS]), given)


@pytest.mark.parametrize("given", [{"seed": True}, {"rate": True}])
def test_truth_is_no_number(sources, given):
    """Python calls True an int; a user who writes it where a number belongs made a mistake."""
    assert next(iter(given)) in refusal(write(sources, [PARAMETERS]), given)


def test_fitting_values_pass(sources):
    notebook.check_parameters(write(sources, [PARAMETERS]), {"seed": 2, "rate": 1, "name": "", "fast": True})
    notebook.check_parameters(write(sources, [PARAMETERS]), {"rate": 1e-3})


def test_a_notebook_that_is_not_there_is_named(sources, tmp_path):
    with pytest.raises(IkdError, match="no nothing.ipynb"):
        notebook.execute_here("nothing", tmp_path / "out.ipynb", {})


def test_bad_parameters_stop_before_anything_is_written(sources, tmp_path):
    write(sources, [PARAMETERS])
    with pytest.raises(IkdError, match="seed"):
        notebook.execute_here("tiny", tmp_path / "made" / "out.ipynb", {"sed": 1})
    assert not (tmp_path / "made").exists()


def test_an_executed_copy_is_whole_and_scrubbed(sources, tmp_path, monkeypatch):
    monkeypatch.delenv("IKDLIB_STATUS_FILE", raising=False)
    code = "import os\nprint(seed * 21, os.getcwd(), os.path.basename(os.environ['IKDLIB_STATUS_FILE']))"
    write(sources, [PARAMETERS, code])
    output = tmp_path / "made" / "out.ipynb"
    assert notebook.execute_here("tiny", output, {"seed": 2}) == output
    copy = nbformat.read(output, as_version=4)
    nbformat.validate(copy)
    printed = copy.cells[-1].outputs[0].text
    assert printed == "42 . status.json\n"
    assert all(cell.execution_count for cell in copy.cells)
    assert "seed = 2" in "".join(cell.source for cell in copy.cells)
    assert os.listdir(output.parent) == ["out.ipynb"], "a temporary file stayed"
    assert "IKDLIB_STATUS_FILE" not in os.environ


def test_a_failing_cell_keeps_its_copy_and_not_the_name(sources, tmp_path):
    write(sources, [PARAMETERS, "1 / 0"])
    output = tmp_path / "out.ipynb"
    with pytest.raises(IkdError, match="tiny.ipynb: ZeroDivisionError: division.*failed/out.ipynb") as error:
        notebook.execute_here("tiny", output, {})
    assert "\n" not in str(error.value)
    assert not output.exists()
    failed = json.loads((tmp_path / "failed" / "out.ipynb").read_text())
    assert "ZeroDivisionError" in json.dumps(failed)
    assert str(Path.cwd()) not in json.dumps(failed)
    assert not list(tmp_path.glob(".out*"))
    write(sources, [PARAMETERS, "1 / 1"])
    notebook.execute_here("tiny", output, {})
    assert output.exists() and not (tmp_path / "failed" / "out.ipynb").exists(), "the old traceback stayed"


def test_a_users_mistake_inside_a_cell_is_one_line(sources, tmp_path):
    raises = "from ikdlib.errors import IkdError\nraise IkdError('seeds: 1;2 is not a list of numbers')"
    write(sources, [PARAMETERS, raises])
    with pytest.raises(IkdError) as error:
        notebook.execute_here("tiny", tmp_path / "out.ipynb", {})
    assert str(error.value) == "seeds: 1;2 is not a list of numbers"
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        ("no json", "no notebook"), ("[1]", "no notebook"), ('{"cells": 3}', "no notebook"),
        ('{"cells": [], "metadata": {"kernelspec": {"language": "R"}}}', "its language is R"),
    ],
)  # fmt: skip
def test_what_is_no_python_notebook_is_said(tmp_path, content, reason):
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(IkdError, match=reason) as error:
        notebook.parameters_of(tmp_path / "x.ipynb")
    assert "\n" not in str(error.value)
    with pytest.raises(IkdError, match="No such file"):
        notebook.parameters_of(tmp_path / "y.ipynb")


def test_parameters_that_are_no_plain_scalars_are_none(sources):
    """They stay as the notebook has them: nothing can be swept over a function call."""
    cell = "import os\nseed: int = 3\na = b = 1\nhome = os.getcwd()\nx, y = 1, 2\nrate = -0.5"
    assert notebook.parameters_of(write(sources, [cell])) == {"seed": 3, "a": 1, "rate": -0.5}
    with pytest.raises(IkdError, match="no Python"):
        notebook.parameters_of(write(sources, ["seed = = 1"]))
