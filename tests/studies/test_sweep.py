"""A sweep's folder: what names a cell, what makes it another one, and what is written before the first."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from ikdlib import __main__
from ikdlib.errors import IkdError
from ikdlib.studies import grid
from ikdlib.studies.sweep import Sweep, cell_id, digest_of

PARAMETERS = 'seed = 1\nrate = 0.5\nname = "kd"\nresults = "results"\ndevice = "auto"'


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


def test_a_finished_cell_stays_finished_in_a_larger_grid(sweep):
    (first,) = sweep("seed=1").pieces()
    finish(first)
    more = sweep("seed=1").pieces() + sweep("seed=1,2", "name=kd").pieces()
    assert [piece.done() for piece in more] == [True, False, False], (
        "kd was not said then, so it is another cell"
    )


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


def test_where_things_are_does_not_name_a_cell(sweep, tmp_path):
    """The same results folder from another place, or on a GPU: the same cells."""
    (here,) = sweep("seed=1").pieces()
    (there,) = sweep("seed=1", results=str(tmp_path / "results"), device="cpu", teachers="none").pieces()
    assert there.task.id == here.task.id
    assert there.task.parameters == {"seed": 1, "results": str(tmp_path / "results"), "device": "cpu"}
    (own,) = sweep("device=cuda", device="cpu").pieces()
    assert own.task.parameters == {"device": "cuda"}, "what the grid says goes first"


def test_ids_are_file_names(sweep):
    parameters = {"name": "/a b/ü:*?" + "x" * 300}
    name = cell_id(parameters, ("name",))
    assert len(name) < 120 and "/" not in name and " " not in name
    assert cell_id({"name": "a"}, ()) != cell_id({"name": "b"}, ())
    assert cell_id({"a": 1, "b": 2}, ()) == cell_id({"b": 2, "a": 1}, ())
    assert cell_id({"seed": 1}, ()) != cell_id({"seed": 1.5}, ())


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
    assert (made.folder / "notebook.ipynb").read_bytes() == (tmp_path / "tiny.ipynb").read_bytes()
    assert "/home" not in (made.folder / "sweep.json").read_text()


def test_two_notebooks_do_not_share_a_folder(sweep, tmp_path):
    sweep("seed=1", name="mine").begin()
    with pytest.raises(IkdError, match="holds a sweep of tiny.ipynb.*NAME="):
        sweep("seed=1", name="mine", source=write(tmp_path / "other.ipynb"))
    with pytest.raises(IkdError, match="one folder's name"):
        sweep("seed=1", name="../mine")


def test_a_dry_run_says_what_is_left_and_writes_nothing(sweep, tmp_path, capsys):
    finish(sweep("seed=1,2").pieces()[0])
    before = sorted(tmp_path.rglob("*"))
    asked = ["sweep", "--notebook", str(tmp_path / "tiny.ipynb"), "--results", str(tmp_path / "results")]
    assert __main__.main([*asked, "-p", "seed=1,2", "--dry"]) == 0
    said = capsys.readouterr().out
    assert "  seed=1: finished, skipped\n  seed=2: to do\n2 cells, 1 of them finished" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_anywhere_in_the_grid_stops_before_anything_is_written(sweep, tmp_path, capsys):
    write(tmp_path / "tiny.ipynb", "seed")
    before = sorted(tmp_path.rglob("*"))
    asked = ["sweep", "--notebook", str(tmp_path / "tiny.ipynb"), "--results", str(tmp_path / "results")]
    for options, words in (
        (["-p", "sed=1"], "did you mean seed?"), (["-p", "seed=1,x"], "seed"), ([], "no"),
        (["-p", "seed=1", "--jobs", "many"], "jobs: 'many'"),
    ):  # fmt: skip
        assert __main__.main([*asked, *options]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    assert __main__.main(["sweep", "-p", "seed=1"]) == 2 and "NB=" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
