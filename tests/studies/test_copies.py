"""What is kept of an executed notebook: no path of this machine, its outcome, and no more than fits."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from ikdlib.errors import IkdError
from ikdlib.studies import copies


def test_scrub_leaves_no_absolute_path_of_this_machine():
    inside, home = f"{Path.cwd()}/results/x", f"{Path.home()}/data"
    cell = nbformat.v4.new_code_cell(f"print({inside!r})")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"{inside}\n{home}\n")]
    made = nbformat.v4.new_notebook(cells=[cell])
    made.metadata["papermill"] = {
        "input_path": inside, "output_path": home, "environment_variables": {"HOME": home}, "duration": 3,
    }  # fmt: skip
    clean = copies.scrub(made)
    text = nbformat.writes(clean)
    assert str(Path.cwd()) not in text and str(Path.home()) + "/" not in text
    assert clean.cells[0].outputs[0].text == "./results/x\n~/data\n"
    assert clean.metadata["papermill"] == {"duration": 3}
    nbformat.validate(clean)


# Outcomes


def shown(text: str, tag: str = "outcome") -> dict:
    """An executed notebook whose tagged cell showed a text."""
    cell = nbformat.v4.new_code_cell("x", metadata={"tags": [tag]})
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": text}, execution_count=1)]
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("61.25", {"outcome": 61.25}), ("-3", {"outcome": -3}), ("True", {"outcome": True}),
        ("{'top1': 61.25, 'n': 3}", {"top1": 61.25, "n": 3}),
        ("{'a': np.float64(0.5),\n 'b': np.int64(-7)}", {"a": 0.5, "b": -7}),
        ("{'a': nan, 'nan': -inf, 'c': np.float64(nan)}", {"a": None, "nan": None, "c": None}),
    ],
)  # fmt: skip
def test_an_outcome_is_a_number_or_numbers_by_name(text, numbers):
    assert copies.outcome_of(shown(text)) == numbers


@pytest.mark.parametrize(
    "text", ["'good'", "[1, 2]", "{'a': 'b'}", "<object at 0x7f>", "tensor(0.5)", "None", "{}"]
)
def test_an_outcome_of_another_kind_is_named(text):
    with pytest.raises(IkdError, match="outcome: .* is neither a number nor a dict of numbers"):
        copies.outcome_of(shown(text))


def test_a_notebook_without_an_outcome_has_none():
    assert copies.outcome_of(shown("61.25", tag="other")) == {}
    silent = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["outcome"]})]
    )
    assert copies.outcome_of(silent) == {}


# Size


def test_an_executed_notebook_is_cut_at_its_longest_outputs():
    """The short ones stay whole, and of a long text its beginning and its end."""
    picture = nbformat.v4.new_output("display_data", {"image/png": "x" * 900_000, "text/plain": "<Figure>"})
    text = nbformat.v4.new_output(
        "stream", name="stdout", text="first line\n" + "1" * 3_000_000 + "\nlast line\n"
    )
    short = nbformat.v4.new_output("stream", name="stdout", text="kept")
    cell = nbformat.v4.new_code_cell("x", outputs=[picture, text, short])
    slim = copies.slim(nbformat.v4.new_notebook(cells=[cell]))
    nbformat.validate(slim)
    assert len(nbformat.writes(slim).encode()) <= copies.LARGEST
    assert slim.cells[0].outputs[0].data["image/png"] == "x" * 900_000, "it fits beside the cut text"
    words = slim.cells[0].outputs[1].text
    assert words.startswith("first line\n1") and words.endswith("1\nlast line\n") and "left out" in words
    assert slim.cells[0].outputs[2].text == "kept"


def test_what_was_printed_in_pieces_is_one_and_a_bar_is_what_it_showed_last():
    """As a terminal shows it: a carriage return begins its line anew. Pictures in between stay in between."""
    printed = [
        ("stdout", "a\n"),
        ("stdout", "b"),
        ("stderr", "\r  0%|"),
        ("stderr", "\r 50%|\r100%|\n"),
        ("stdout", "c\r\n"),
    ]
    streams = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in printed]
    picture = nbformat.v4.new_output("display_data", {"image/png": "x"})
    cell = nbformat.v4.new_code_cell("x", outputs=[*streams[:2], picture, *streams[2:]])
    made = copies.joined(nbformat.v4.new_notebook(cells=[cell]))
    nbformat.validate(made)
    first, drawn, bar, last = made.cells[0].outputs
    assert (first.text, drawn, bar.text, last.text) == ("a\nb", picture, "100%|\n", "c\n")


def test_pictures_are_left_out_where_texts_are_not_the_reason():
    pictures = [
        nbformat.v4.new_output("display_data", {"image/png": "x" * size}) for size in (800_000, 300_000)
    ]
    slim = copies.slim(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=pictures)]))
    nbformat.validate(slim)
    first, second = (output.data for output in slim.cells[0].outputs)
    assert first == {"text/plain": "image/png of 800000 characters left out"} and "image/png" in second
