"""A sweep's folder: what names a cell, what makes it another one, and what is written before the first."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import nbformat
import pytest

from ikdlib import __main__
from ikdlib.errors import IkdError
from ikdlib.studies import cell, grid
from ikdlib.studies.notebook import digest_of
from ikdlib.studies.sweep import LONGEST_NAME, Sweep

PARAMETERS = 'seed = 1\nrate = 0.5\nname = "kd"\nresults = "results"\ndevice = "auto"\ndata = ""'


def write(path: Path, *code: str, words: str = "Why.") -> Path:
    cells = [nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell(PARAMETERS)]
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, *map(nbformat.v4.new_code_cell, code)]), path)
    return path


@pytest.fixture
def sweep(tmp_path):
    def make(*options: str, source: Path | None = None, name: str = "", **places: str) -> Sweep:
        source = source or write(tmp_path / "tiny.ipynb", "seed")
        return Sweep(source, grid.of_options(options, source), tmp_path / "results", name, places)

    return make


def finish(piece, status: str = "finished") -> None:
    record = {"notebook_sha256": piece.task.digest, "status": status}
    piece.task.output.parent.mkdir(parents=True, exist_ok=True)
    piece.task.output.with_suffix(".json").write_text(json.dumps(record))


def test_a_cell_for_each_of_the_grid(sweep):
    pieces = sweep("seed=1,2", "name=kd,dkd", "rate=0.25").pieces()
    assert [piece.name for piece in pieces] == [
        "seed=1,name=kd", "seed=1,name=dkd", "seed=2,name=kd", "seed=2,name=dkd",
    ]  # fmt: skip
    assert [piece.task.parameters for piece in pieces[:1]] == [{"seed": 1, "name": "kd", "rate": 0.25}]
    assert len({piece.task.id for piece in pieces}) == 4
    assert not any(piece.done() for piece in pieces)


@pytest.mark.parametrize(
    "options, done",
    [
        (["seed=1..3", "rate=0.25"], [False, True, False]),
        (["rate=0.25,0.75", "seed=2"], [True, False]),
        (["seed=2", "rate=0.25", "name=dkd"], [False]),
        (["seed=2"], [False]),
    ],
)
def test_a_finished_cell_stays_finished_in_another_grid(sweep, options, done):
    """Whether it is one of many or alone: a cell is what its parameters are."""
    (first,) = sweep("seed=2", "rate=0.25").pieces()
    finish(first)
    assert [piece.done() for piece in sweep(*options).pieces()] == done


def test_places_need_not_be_named(tmp_path):
    source = write(tmp_path / "tiny.ipynb", "seed")
    (piece,) = Sweep(source, grid.of_options(["seed=2"], source), tmp_path / "results").pieces()
    assert piece.task.parameters == {"seed": 2}


def test_a_failed_one_is_not_done(sweep):
    (piece,) = sweep("seed=1").pieces()
    finish(piece, "failed")
    assert not piece.done()


def test_other_code_makes_all_cells_others_and_other_words_do_not(sweep, tmp_path):
    (piece,) = sweep("seed=1").pieces()
    finish(piece)
    (same,) = sweep("seed=1", source=write(tmp_path / "tiny.ipynb", "seed", words="Because.")).pieces()
    assert same.done()
    (other,) = sweep("seed=1", source=write(tmp_path / "tiny.ipynb", "seed + 1")).pieces()
    assert not other.done()


def test_a_tag_is_code_too(tmp_path):
    source = write(tmp_path / "tiny.ipynb", "seed")
    before = digest_of(source)
    content = json.loads(source.read_text())
    content["cells"][-1]["metadata"]["tags"] = ["outcome"]
    source.write_text(json.dumps(content))
    assert digest_of(source) != before


def test_where_results_go_and_what_computes_does_not_name_a_cell(sweep, tmp_path):
    """The same results folder from another place, or on a GPU: the same cells. Other data make others."""
    (here,) = sweep("seed=1").pieces()
    (there,) = sweep("seed=1", results=str(tmp_path / "results"), device="cpu", teachers="none").pieces()
    assert there.task.id == here.task.id
    assert there.task.parameters == {"seed": 1, "results": str(tmp_path / "results"), "device": "cpu"}
    (own,) = sweep("device=cuda", device="cpu").pieces()
    assert own.task.parameters == {"device": "cuda"}, "what the grid says goes first"
    (other,) = sweep("seed=1", data="elsewhere").pieces()
    assert other.task.id != here.task.id and other.task.parameters == {"seed": 1, "data": "elsewhere"}


def test_a_parameter_that_only_shares_its_name_is_let_alone(sweep, tmp_path):
    """In a notebook of somebody else `device = 0` may be the number of a printer."""
    source = write(tmp_path / "tiny.ipynb", "seed")
    source.write_text(source.read_text().replace('device = \\"auto\\"', "device = 0"))
    (piece,) = sweep("seed=1", source=source, device="cpu").pieces()
    assert piece.task.parameters == {"seed": 1}


def test_ids_are_file_names(sweep):
    (piece,) = sweep(f"name=/a b/ü:*?{'x' * 300}").pieces()
    assert len(piece.task.id) < LONGEST_NAME + 20 and not set("/ :*?") & set(piece.task.id)
    names = ["name=a", "name=b", "seed=2", "seed=3", "rate=2", "rate=3"]
    assert len({sweep(name).pieces()[0].task.id for name in names}) == len(names)


def test_what_was_asked_is_written_with_the_source(sweep, tmp_path):
    made = sweep("seed=1,2", "name=/home/me/kd")
    made.begin()
    sheet = json.loads((made.folder / "sweep.json").read_text())
    assert sheet["notebook"] == "tiny.ipynb" and sheet["swept"] == ["seed"]
    assert [cell["parameters"] for cell in sheet["cells"]] == [
        {"seed": 1, "name": "kd"},
        {"seed": 2, "name": "kd"},
    ]
    assert [cell["id"] for cell in sheet["cells"]] == [piece.task.id for piece in made.pieces()]
    (copy,) = (made.folder / "sources").iterdir()
    assert copy.read_bytes() == (tmp_path / "tiny.ipynb").read_bytes()
    assert {piece.task.notebook for piece in made.pieces()} == {str(copy)}
    sweep("seed=1", source=write(tmp_path / "tiny.ipynb", "seed + 1")).begin()
    assert len(list((made.folder / "sources").iterdir())) == 2, (
        "a command that runs keeps the code it began with"
    )
    assert "/home" not in (made.folder / "sweep.json").read_text()


def test_two_notebooks_do_not_share_a_folder(sweep, tmp_path):
    sweep("seed=1", name="mine").begin()
    with pytest.raises(IkdError, match="holds a sweep of tiny.ipynb.*NAME="):
        sweep("seed=1", name="mine", source=write(tmp_path / "other.ipynb"))
    for name in ("../mine", ".."):
        with pytest.raises(IkdError, match="one folder's name"):
            sweep("seed=1", name=name)
    (tmp_path / "results" / "sweeps" / "mine" / "sweep.json").write_text("[")
    with pytest.raises(IkdError, match="cannot be read; delete it"):
        sweep("seed=1", name="mine")


def test_a_dry_run_says_what_is_left_and_writes_nothing(sweep, tmp_path, capsys):
    finish(sweep("seed=1,2").pieces()[0])
    before = sorted(tmp_path.rglob("*"))
    asked = ["sweep", "--notebook", str(tmp_path / "tiny.ipynb"), "--results", str(tmp_path / "results")]
    assert __main__.main([*asked, "-p", "seed=1,2", "--dry"]) == 0
    said = capsys.readouterr().out
    assert "  seed=1: finished, skipped\n  seed=2: to do\n2 cells, 1 of them finished" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_one_cell_does_not_say_cells(tmp_path, capsys):
    source = write(tmp_path / "tiny.ipynb", "seed")
    asked = ["sweep", "--notebook", str(source), "--results", str(tmp_path / "results"), "--dry"]
    assert __main__.main([*asked, "-p", "seed=1"]) == 0
    assert "\n1 cell, 0 of them finished" in capsys.readouterr().out


def test_a_mistake_anywhere_in_the_grid_stops_before_anything_is_written(sweep, tmp_path, capsys):
    write(tmp_path / "tiny.ipynb", "seed")
    before = sorted(tmp_path.rglob("*"))
    asked = ["sweep", "--notebook", str(tmp_path / "tiny.ipynb"), "--results", str(tmp_path / "results")]
    for options, words in (
        (["-p", "sed=1"], "did you mean seed?"), (["-p", "seed=1,x"], "seed"), ([], "no"),
        (["-p", "seed=1", "--jobs", "many"], "jobs: 'many'"),
        (["-p", "seed=1", "--device", "gpu"], "device: 'gpu'"),
    ):  # fmt: skip
        assert __main__.main([*asked, *options]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    assert __main__.main(["sweep", "-p", "seed=1"]) == 2 and "NB=" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_data_for_a_sweep_of_the_demo_is_refused_before_its_cells_refuse_it_one_by_one(tmp_path, capsys):
    source = write(tmp_path / "tiny.ipynb", "seed")
    asked = ["sweep", "--notebook", str(source), "--results", str(tmp_path / "results"), "--dry"]
    asked += ["-p", "seed=1,2", "--data", "own"]
    assert __main__.main(asked) == 0, "whose data it is, nobody knows"
    source.write_text(source.read_text().replace("seed = 1", 'seed = 1\\nprofile = \\"demo\\"'))
    assert __main__.main(asked) == 2
    assert "data: these cells are the demo's" in capsys.readouterr().err
    assert __main__.main([*asked, "-p", "profile=demo,short"]) == 0


def test_an_outcome_that_is_none_fails_the_cell_and_keeps_its_notebook(sweep, monkeypatch):
    """Even where it is the first to fail, so that there is no folder for it yet."""
    task = sweep("seed=1").pieces()[0].task

    def execute(source, output, failed, parameters, stopped):
        output.parent.mkdir(parents=True)
        output.write_text("as it was executed")
        shown = nbformat.v4.new_output("execute_result", {"text/plain": "'good'"}, execution_count=1)
        cell = nbformat.v4.new_code_cell("x", metadata={"tags": ["outcome"]}, outputs=[shown])
        return nbformat.v4.new_notebook(cells=[cell])

    monkeypatch.setattr(cell.notebook, "execute", execute)
    with pytest.raises(cell.notebook.Failure) as failure:
        cell._outcome(task, threading.Event())
    assert failure.value.kind == "IkdError" and "neither a number nor a dict" in failure.value.text
    assert task.failed.read_text() == "as it was executed" and not task.output.exists()
