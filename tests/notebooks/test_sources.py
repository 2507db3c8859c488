"""The notebooks as files: what a reader and papermill rely on."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from ikdlib.studies.notebook import enter_project, parameters_of
from ikdlib.studies.study import StudySettings

SOURCES = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in SOURCES]
# What a notebook lets a user choose beyond the settings of a study, by its number.
OWN = {
    "10": {"architecture"},
    "11": {"pair", "method", "seed", "changes", "keep_logits"},
    "30": {"grid"},
    "31": {"grid"},
    "32": {"method", "controls"},
    "33": {"batch_sizes", "temperatures"},
    "40": {"pair", "base"},
}
# 00 explains one batch of made-up numbers. 90 reports on a folder, whatever studies filled it: its one
# parameter, `results`, is that folder, and there is nothing to train, so it makes no StudySettings.
STUDIES = [path for path in SOURCES if path.stem not in ("00_ikd_step_by_step", "90_report")]


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def test_all_eleven_are_there():
    numbers = [name[:2] for name in NAMES]
    assert numbers == ["00", "10", "11", "20", "21", "30", "31", "32", "33", "40", "90"]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_committed_without_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert cell.get("id")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_explains_itself_first_and_has_plain_scalar_parameters(path):
    first = json.loads(path.read_text())["cells"][0]
    assert first["cell_type"] == "markdown" and "".join(first["source"]).startswith("# ")
    assert all(isinstance(value, (str, int, float, bool)) for value in parameters_of(path).values())


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_names_versions(path):
    assert any("ikdlib.__version__" in source for source in cells(path, "code"))


@pytest.mark.parametrize("path", SOURCES[1:], ids=NAMES[1:])
def test_works_from_the_projects_folder(path):
    """JupyterLab starts a notebook in notebooks/; its results belong beside those of the commands."""
    assert "enter_project()" in cells(path, "code")[0]


def test_enter_project_leaves_the_notebooks_folder_and_no_other(monkeypatch, tmp_path):
    monkeypatch.chdir(SOURCES[0].parent)
    enter_project()
    assert Path.cwd() == SOURCES[0].parents[1].resolve()
    monkeypatch.chdir(tmp_path)
    enter_project()
    assert Path.cwd() == tmp_path.resolve()


@pytest.mark.parametrize("path", SOURCES[1:], ids=NAMES[1:])
def test_defines_nothing(path):
    """What a notebook needs stands in ikdlib, where tests reach it."""
    for source in cells(path, "code"):
        assert not any(
            isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))
            for node in ast.walk(ast.parse(source))
        )


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_cells_are_short(path):
    lengths = sorted(len(source.splitlines()) for source in cells(path, "code"))
    assert lengths[len(lengths) // 2] <= 7


@pytest.mark.parametrize("path", SOURCES[1:], ids=NAMES[1:])
def test_parameters_are_settings_of_a_study(path):
    """Each parameter exists in StudySettings under this name, with the same type and default there."""
    for name, value in parameters_of(path).items():
        if name not in OWN.get(path.stem[:2], ()):
            field = StudySettings.model_fields[name]
            assert value == field.default, name


@pytest.mark.parametrize("path", SOURCES[1:], ids=NAMES[1:])
def test_every_parameter_is_read(path):
    """One that no cell reads would change nothing, and say nothing."""
    code = [source for source in cells(path, "code")]
    read = {
        node.id for source in code for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }  # fmt: skip
    assert set(parameters_of(path)) <= read


@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_every_setting_can_be_given_and_is_used(path):
    """What the command passes on would be lost in a notebook that does not hand it to its study."""
    (call,) = [
        node for source in cells(path, "code") for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "StudySettings"
    ]  # fmt: skip
    passed = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    # One run trains in the notebook itself, so there is no number at once to choose.
    others = {"pairs", "methods", "seeds"} | ({"jobs"} if path.stem[:2] in ("10", "11") else set())
    for name in set(StudySettings.model_fields) - others:
        assert name in parameters_of(path) and passed[name] == name


def test_the_report_has_one_parameter():
    assert parameters_of(SOURCES[-1]) == {"results": "results"}
