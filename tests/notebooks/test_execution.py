"""The notebooks as programs: each passes through papermill and shows numbers of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from ikdlib import runs
from ikdlib.errors import IkdError
from ikdlib.studies.notebook import execute

FAST = {"profile": "demo", "epochs": 1}


def text_of(notebook: Path) -> str:
    """All text a reader sees in the outputs."""
    found = []
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            found.append("".join(output.get("text", "")))
            found.append("".join(output.get("data", {}).get("text/markdown", "")))
            found.append("".join(output.get("data", {}).get("text/plain", "")))
    return "\n".join(found)


def pictures(notebook: Path) -> int:
    content = json.loads(notebook.read_text())
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """One results folder with blanks in its path, in which the notebooks follow one another."""
    return tmp_path_factory.mktemp("results with blanks")


def test_step_by_step(tmp_path):
    done = execute("00_ikd_step_by_step", tmp_path / "00.ipynb", {})
    assert pictures(done) >= 4


def test_train_teacher(results):
    parameters = {**FAST, "architecture": "resnet8", "results": str(results)}
    done = execute("10_train_teacher", results / "10.ipynb", parameters)
    (run,) = runs.find(results / "demo" / "runs")
    assert f"{run.result['last']['top1']:.2f} %" in text_of(done)
    assert len(list((results / "demo" / "teachers").glob("*.safetensors"))) == 1
    assert str(results.parent) not in done.read_text()


def test_distil_one_student(results):
    parameters = {**FAST, "pair": "resnet8/resnet8", "method": "kd+ikd", "results": str(results)}
    done = execute("11_distill_student", results / "11.ipynb", parameters)
    run = next(run for run in runs.find(results / "demo" / "runs") if str(run.spec.method) == "kd+ikd")
    assert f"top-1 {run.result['last']['top1']:.2f} %" in text_of(done)
    assert pictures(done) == 2


@pytest.mark.parametrize("number, name", [("20", "same"), ("21", "different")])
def test_table(results, number, name):
    """The run of notebook 11 is read, the others are made; then a second pass trains nothing."""
    notebook = f"{number}_cifar100_{name}_architecture"
    asked = {"pairs": "resnet8/resnet8", "methods": "ce,kd,kd+ikd", "seeds": "1"}
    parameters = {**FAST, **asked, "results": str(results)}
    done = execute(notebook, results / f"{number}.ipynb", parameters)
    table = pd.read_csv(results / "demo" / "tables" / f"cifar100_{name}_architecture-1epochs.csv")
    assert list(table["method"]) == ["ce", "kd", "kd+ikd"] and (table["n"] == 1).all()
    by_id = {run.spec.run_id: run for run in runs.find(results / "demo" / "runs")}
    for row in table.itertuples():
        assert row.last_top1 == by_id[row.runs].result["last"]["top1"]
        assert f"{row.last_top1:.2f} (n=1)" in text_of(done)
    assert "undecided" in text_of(done) and pictures(done) == 3
    before = {path: path.stat().st_mtime_ns for path in results.rglob("result.json")}
    execute(notebook, results / f"{number}.ipynb", parameters)
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("result.json")}


def test_bad_parameters_stop_before_anything_trains(tmp_path):
    with pytest.raises(IkdError, match="unknown parameter 'sed'; did you mean seed"):
        execute("11_distill_student", tmp_path / "a.ipynb", {"sed": 3})
    with pytest.raises(IkdError, match="unknown method 'dkt'"):
        execute(
            "11_distill_student", tmp_path / "a.ipynb", {**FAST, "method": "dkt", "results": str(tmp_path)}
        )
    assert not list(tmp_path.rglob("runs"))
