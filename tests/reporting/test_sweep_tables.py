"""Table and plots of a sweep, against numbers taken from its raw records."""

from __future__ import annotations

import io
import json
import math
import random
import time
from itertools import combinations, product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402

from ikdlib.errors import IkdError  # noqa: E402
from ikdlib.reporting import sweep, sweep_cells, sweep_figures  # noqa: E402

SHA = "a" * 64
GRID = {"method": ["kd", "dkd+ikd", "nkd"], "lr": [0.1, 0.001, 0.01], "seed": [1, 2, 3]}
NOISE = random.Random(1)


def top1(parameters):
    return {"top1": 60 + NOISE.gauss(0, 1), "ece": 3 + NOISE.gauss(0, 0.1)}


@pytest.fixture
def make(tmp_path):
    """Writes a sweep's folder: a cell a point of the grid; ``change`` edits its record, or drops it."""

    def write(grid, outcome=top1, change=lambda record: record, fixed=None):
        cells, given = [], [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        (tmp_path / "cells").mkdir()
        for place, parameters in enumerate(given):
            cell = {"id": f"cell-{place:04d}", "parameters": parameters | (fixed or {})}
            cells.append(cell)
            record = change({
                "format_version": 1, **cell, "notebook_sha256": SHA, "status": "finished",
                "seconds": 10.1 + place / 7, "attempts": 1, "outcome": outcome(parameters), "error": None,
            })  # fmt: skip
            if record is not None:
                text = record if isinstance(record, str) else json.dumps(record)
                (tmp_path / "cells" / f"{cell['id']}.json").write_text(text)
        sheet = {"format_version": 1, "notebook": "11_distill_student.ipynb", "notebook_sha256": SHA}
        (tmp_path / "sweep.json").write_text(json.dumps(sheet | {"swept": list(grid), "cells": cells}))
        return tmp_path

    return write


def fails(where, reason="CUDA out of memory"):
    """Makes the cells fail that have these parameters."""

    def change(record):
        hit = where.items() <= record["parameters"].items()
        return record | {"status": "failed", "outcome": {}, "error": reason} if hit else record

    return change


def raw(folder):
    """The finished records, flat, by plain JSON and pandas."""
    records = [json.loads(path.read_text()) for path in sorted((folder / "cells").iterdir())]
    rows = [r["parameters"] | r["outcome"] | {"seconds": r["seconds"]} for r in records if r["outcome"]]
    return pd.DataFrame(rows)


def table(folder):
    """The rows of the Markdown table, a dict each."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.replace("\\|", "\0").split("|")[1:-1]] for line in lines]
    assert len({len(row) for row in cells}) == 1, "a value broke the table"
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def drawn(figure):
    """Label to (points, bars) of each series: [n, 2] and the ends of the bars [n, 2]."""
    found = {}
    for container in figure.axes[0].containers:
        line, _, bars = container.lines
        ends = [s for s in bars[0].get_segments() if len(s)] if bars else []
        found[container.get_label()] = (line.get_xydata(), ends)
    return found


def canvas(figure):
    drawing = FigureCanvasAgg(figure)
    drawing.draw()
    return drawing.get_renderer()


def words(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_the_csv_has_every_cell_and_its_numbers_to_the_bit(make):
    folder = make(GRID, change=fails({"method": "nkd", "seed": 2}), fixed={"epochs": 2})
    written = sweep.write(folder)
    found = pd.read_csv(folder / "table.csv")
    assert list(found)[:4] == ["id", "method", "lr", "seed"]
    assert list(found)[4:] == ["epochs", "status", "seconds", "attempts", "error", "top1", "ece"]
    assert len(found) == 27 and list(found["id"]) == [f"cell-{n:04d}" for n in range(27)]
    done, expected = found[found["status"] == "finished"], raw(folder)
    for name in ("method", "lr", "seed", "seconds", "top1", "ece"):
        assert list(done[name]) == list(expected[name]), name
    failed = found[found["status"] == "failed"]
    assert list(failed["seed"]) == [2] * 3 and set(failed["error"]) == {"CUDA out of memory"}
    assert failed[["top1", "ece"]].isna().all(axis=None) and set(found["attempts"]) == {1}
    pd.testing.assert_frame_equal(sweep_cells.collect(folder), sweep_cells.read(folder).frame)
    assert written[:2] == [folder / "table.md", folder / "table.csv"]
    names = {
        f"{o}-by-{p}.{kind}" for o in ("top1", "ece") for p in ("method", "lr") for kind in ("png", "pdf")
    }
    assert {path.name for path in written[2:]} == names == {p.name for p in (folder / "figures").iterdir()}
    assert (folder / "figures/top1-by-lr.pdf").read_bytes()[:5] == b"%PDF-"


def test_a_picture_says_what_it_is_of(make):
    """It is passed on without its page: notebook, what all cells have in common, units."""
    fixed = {
        "profile": "demo",
        "epochs": 1,
        "changes": "",
        "teacher": "/home/me/$w$.pth",
        "words": "many " * 60,
    }
    folder = make({"lr": [1, 2]}, lambda p: {"last top-1 (%)": 50.5}, fixed=fixed)
    figure = sweep_figures.figure(sweep_cells.read(folder), "last top-1 (%)", "lr")
    first, *rest = figure.get_suptitle().split("\n")
    assert first == "11_distill_student.ipynb" and len(rest) == 3
    told = " ".join(rest)
    assert told.startswith('profile = demo, epochs = 1, changes = "", teacher = \\$w\\$.pth, words = many')
    assert told.endswith("…")
    renderer, (axis,) = canvas(figure), figure.axes
    box = figure._suptitle.get_window_extent(renderer)
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 > axis.get_tightbbox(renderer).y1
    assert axis.get_ylabel() == "last top-1 (%)"
    assert not figure.legends
    names = {path.name for path in sweep.write(folder)[2:]}
    assert names == {"last-top-1-by-lr.png", "last-top-1-by-lr.pdf"}


def test_the_title_leaves_the_legend_alone(make):
    grid = {"lr": [1, 2], "method": [f"method-number-{n}" for n in range(8)]}
    figure = sweep_figures.figure(sweep_cells.read(make(grid, fixed={"words": "many " * 60})), "top1", "lr")
    renderer, (legend,) = canvas(figure), figure.legends
    assert not figure._suptitle.get_window_extent(renderer).overlaps(legend.get_window_extent(renderer))


def test_one_cell_is_not_called_cells(make):
    sweep.write(folder := make({"lr": [1]}))
    assert "\n1 cell: 1 finished," in (folder / "table.md").read_text()


def test_the_table_gathers_the_seeds(make):
    def change(record):
        p = record["parameters"]
        if p == {"method": "kd", "lr": 0.1, "seed": 3} or p["method"] == "nkd" and p["lr"] == 0.1:
            return None
        return fails({"method": "kd", "lr": 0.01, "seed": 1})(record)

    folder = make(GRID, change=change)
    sweep.write(folder)
    text, rows = (folder / "table.md").read_text(), table(folder)
    assert text.startswith("# Sweep of 11_distill_student.ipynb\n")
    assert "27 cells: 22 finished, 1 failed, 4 not run." in text
    assert [(r["method"], float(r["lr"])) for r in rows] == list(product(GRID["method"], GRID["lr"]))
    groups = raw(folder).groupby(["method", "lr"])
    for row in rows:
        if (row["method"], row["lr"]) == ("nkd", "0.1"):
            assert (row["top1"], row["seconds"], row["status"]) == ("", "", "not run")
            continue
        part = groups.get_group((row["method"], float(row["lr"])))
        n = len(part)
        assert row["top1"] == f"{part.top1.mean():.2f} ± {part.top1.std(ddof=1):.2f} (n={n})"
        assert row["ece"] == f"{part.ece.mean():.3f} ± {part.ece.std(ddof=1):.3f} (n={n})"
        assert float(row["seconds"]) == pytest.approx(part.seconds.mean(), abs=0.006)
        assert (row["status"] == "finished") == (n == 3)
    status = {(r["method"], r["lr"]): r["status"] for r in rows}
    assert status["kd", "0.1"] == "1 of 3 missing: not run (seed 3)"
    assert status["kd", "0.01"] == "1 of 3 missing: failed: CUDA out of memory (seed 1)"


def test_one_seed_has_no_spread(make):
    folder = make({"method": ["kd", "dkd"], "seed": [7]}, lambda p: {"top1": 61.25})
    sweep.write(folder)
    assert [row["top1"] for row in table(folder)] == ["61.25 (n=1)"] * 2
    chart = sweep_cells.read(folder)
    assert np.isnan(sweep_figures.points(chart, "top1", "method")["std"]).all()
    ((line, bars),) = drawn(sweep_figures.figure(chart, "top1", "method")).values()
    assert list(line[:, 1]) == [61.25] * 2 and not bars


def test_seed_alone_is_one_row_and_its_own_axis(make):
    folder = make({"seed": [3, 1, 2]})
    sweep.write(folder)
    values = raw(folder)
    (row,) = table(folder)
    assert row["top1"] == f"{values.top1.mean():.2f} ± {values.top1.std(ddof=1):.2f} (n=3)"
    found = sweep_cells.read(folder)
    ((line, bars),) = drawn(sweep_figures.figure(found, "top1", "seed")).values()
    np.testing.assert_array_equal(line, values.sort_values("seed")[["seed", "top1"]])
    assert not bars and "a point is a cell" in sweep_figures.caption(found, "top1", "seed")


def test_without_seeds_a_row_is_a_cell_and_shows_what_happened(make):
    def change(record):
        rate = record["parameters"]["lr"]
        return None if rate == 1 else fails({"lr": 2}, "bad | worse\n* worst")(record)

    folder = make({"lr": [1, 2, 3, 4]}, lambda p: {"loss": p["lr"] * 1.23456e-3}, change, {"model": "vgg|8"})
    sweep.write(folder)
    rows = table(folder)
    assert [row["loss"] for row in rows] == ["", "", "0.003704", "0.004938"]
    assert [row["status"] for row in rows] == ["not run", "failed: bad \0 worse \\* worst", *["finished"] * 2]
    text = (folder / "table.md").read_text()
    assert "Fixed: model = vgg\\|8." in text and "bad \\| worse" in text and "over seeds" not in text


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{not json", "JSONDecodeError"), ("[]", "TypeError"), ("", "JSONDecodeError"),
        ({"status": None}, "unknown status"), ({"id": "cell-0001"}, "another cell's id"),
        ({"format_version": 2}, "not format 1"), ({"outcome": [61.2]}, "AttributeError"),
        ({"seconds": "long"}, "ValueError"),
        ({"notebook_sha256": "b" * 64}, "another version of the notebook"),
    ],
)  # fmt: skip
def test_a_record_that_is_damaged_or_of_another_notebook_counts_as_not_run(make, record, reason):
    def change(sound):
        hit = sound["parameters"]["method"] == "kd"
        return (record if isinstance(record, str) else sound | record) if hit else sound

    folder = make({"method": ["kd", "dkd"]}, lambda p: {"top1": 61.5}, change)
    first, second = sweep_cells.collect(folder).to_dict("records")
    assert (first["status"], second["status"]) == ("not run", "finished")
    assert reason in first["error"] and "\n" not in first["error"] and second["error"] is None
    assert np.isnan(first["top1"]) and np.isnan(first["seconds"]) and second["top1"] == 61.5
    sweep.write(folder)
    assert table(folder)[0]["status"].startswith("not run: ")
    assert "2 cells: 1 finished, 0 failed, 1 not run." in (folder / "table.md").read_text()


@pytest.mark.parametrize("key", ["status", "outcome", "attempts", "notebook_sha256", "error", "id"])
def test_a_record_without_a_key_counts_as_not_run(make, key):
    folder = make({"lr": [1]}, change=lambda record: {k: v for k, v in record.items() if k != key})
    (row,) = sweep_cells.collect(folder).to_dict("records")
    assert row["status"] == "not run" and f"KeyError: '{key}'" in row["error"]


@pytest.mark.parametrize(
    "change",
    [
        lambda sheet: None, lambda sheet: "{", lambda sheet: [], lambda sheet: sheet | {"format_version": 2},
        lambda sheet: sheet | {"cells": None}, lambda sheet: sheet | {"swept": ["width"]},
        lambda sheet: sheet | {"cells": [{"id": "../x", "parameters": {"lr": 1}}]},
        lambda sheet: {k: v for k, v in sheet.items() if k != "notebook_sha256"},
    ],
)  # fmt: skip
def test_without_a_sound_sheet_one_line_says_so(make, change):
    path = make({"lr": [1]}) / "sweep.json"
    changed = change(json.loads(path.read_text()))
    path.unlink()
    if changed is not None:
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(IkdError) as caught:
        sweep.write(path.parent)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert ("no such file" in str(caught.value)) == (changed is None)


def test_without_an_outcome_it_says_how_to_get_one(make):
    folder = make({"method": ["kd", "dkd"], "seed": [1, 2]}, lambda p: {})
    assert sweep.write(folder) == [folder / "table.md", folder / "table.csv"]
    assert "tag its last cell `outcome`" in (folder / "table.md").read_text()
    assert [list(row) for row in table(folder)] == [["method", "seconds", "status"]] * 2
    assert not (folder / "figures").exists()


def test_before_any_cell_finished_nothing_is_asked_of_the_notebook(make):
    sweep.write(folder := make({"method": ["kd", "dkd"]}, change=lambda record: None))
    text = (folder / "table.md").read_text()
    assert "No cell has finished" in text and "tag its last cell" not in text


def test_outcomes_may_differ_between_cells_and_the_first_four_are_drawn(make):
    def outcome(parameters):
        return {"kd": {"a": 1.5}, "dkd": {name: 2 for name in "bcdef"}}[parameters["method"]]

    written = sweep.write(folder := make({"method": ["kd", "dkd"]}, outcome))
    first, second = table(folder)
    assert (first["a"], first["b"], second["a"], second["f"]) == ("1.500", "", "", "2")
    drawings = [path.name for path in written if path.suffix == ".png"]
    assert drawings == [f"{name}-by-method.png" for name in "abcd"]
    assert "first 4 of 6 outcomes" in (folder / "table.md").read_text()


def test_lines_pass_through_the_means_and_bars_are_standard_deviations(make):
    folder = make(GRID, change=fails({"method": "nkd", "lr": 0.1}))
    found = sweep_cells.read(folder)
    figure = sweep_figures.figure(found, "top1", "lr")
    (axis,) = figure.axes
    lines, values = drawn(figure), raw(folder)
    assert list(lines) == GRID["method"]
    for method, part in values.groupby("method"):
        by_rate = part.groupby("lr").top1
        line, bars = lines[method]
        np.testing.assert_allclose(line, np.column_stack([by_rate.mean().index, by_rate.mean()]))
        heights = [(end[1, 1] - end[0, 1]) / 2 for end in bars]
        np.testing.assert_allclose(heights, by_rate.std(ddof=1))
    assert len(lines["nkd"][0]) == 2 and len(lines["kd"][0]) == 3
    assert (axis.get_xscale(), axis.get_xlabel(), axis.get_ylabel()) == ("log", "lr", "top1")
    assert figure.get_suptitle() == "11_distill_student.ipynb"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == GRID["method"]
    looks = [(c.lines[0].get_marker(), c.lines[0].get_color()) for c in axis.containers]
    assert len({marker for marker, _ in looks}) == len({colour for _, colour in looks}) == 3
    renderer = canvas(figure)
    assert legend.get_window_extent(renderer).x0 > axis.get_window_extent(renderer).x1, "over the points"
    assert "for each method: mean over seeds; bars: one standard deviation over them (n = 3)" in (
        sweep_figures.caption(found, "top1", "lr")
    )


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 99], "linear"), ([1, 100], "log"), ([0, 1, 1000], "linear"), ([-1, 500], "linear")],
)
def test_wide_positive_numbers_have_a_logarithmic_axis(make, values, scale):
    figure = sweep_figures.figure(sweep_cells.read(make({"width": values})), "top1", "width")
    assert figure.axes[0].get_xscale() == scale


@pytest.mark.parametrize(
    "values", [["nkd", "ce", "kd"], [True, False], [None, 0.5, 0.1]], ids=["text", "bool", "none"]
)
def test_categories_stand_in_grid_order_without_a_line(make, values):
    folder = make({"what": values, "lr": [1, 2], "seed": [1, 2]})
    found = sweep_cells.read(folder)
    axis = (figure := sweep_figures.figure(found, "top1", "what")).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [str(value) for value in values]
    expected = raw(folder)
    for label, (line, _) in drawn(figure).items():
        rows = expected[expected["lr"] == int(label)]
        means = [rows[rows["what"].isna() if v is None else rows["what"] == v].top1.mean() for v in values]
        np.testing.assert_allclose(line[:, 1], means)
        assert list(np.round(line[:, 0])) == [0, 1, 2][: len(values)]
    assert {c.lines[0].get_linestyle() for c in axis.containers} == {"None"}
    at = [line[0, 0] for line, _ in drawn(figure).values()]
    assert at[0] != at[1], "bars over each other"


def test_more_than_eight_lines_become_their_mean_with_its_spread(make):
    grid = {"T": [1, 2], "lr": [0.1, 0.2, 0.3], "method": ["kd", "dkd", "nkd"], "seed": [1, 2]}
    folder = make(grid, change=fails({"T": 2, "lr": 0.3, "method": "kd"}))
    found = sweep_cells.read(folder)
    figure = sweep_figures.figure(found, "top1", "T")
    ((line, bars),) = drawn(figure).values()
    over_seeds = raw(folder).groupby(["T", "lr", "method"]).top1.mean().groupby("T")
    np.testing.assert_allclose(line[:, 1], over_seeds.mean())
    np.testing.assert_allclose([(end[1, 1] - end[0, 1]) / 2 for end in bars], over_seeds.std(ddof=1))
    assert not figure.legends
    text = sweep_figures.caption(found, "top1", "T")
    assert "mean over combinations of lr, method, each the mean over its seeds" in text
    assert "(n = 8 to 9)" in text
    lines = [container.lines[0] for container in sweep_figures.figure(found, "top1", "lr").axes[0].containers]
    assert len({line.get_marker() for line in lines}) == 6, "few enough for a line each"
    assert len({line.get_color() for line in lines}) == 6


def test_long_names_neither_overlap_nor_are_confused(make):
    names = [
        f"/weights/a{n:02d}-of-a-teacher-with-a-name-that-goes-on-and-on-v{n}.safetensors" for n in range(30)
    ]
    figure = sweep_figures.figure(
        sweep_cells.read(make({"teacher": names, "seed": [1, 2]})), "top1", "teacher"
    )
    (axis,), renderer = figure.axes, canvas(figure)
    ticks = axis.get_yticklabels()
    assert len({tick.get_text() for tick in ticks}) == 30 and max(len(t.get_text()) for t in ticks) <= 48
    boxes = [tick.get_window_extent(renderer) for tick in ticks]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x0 >= 0 for box in boxes), "cut off"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("top1", "teacher")
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first on top"


@pytest.mark.parametrize("rates", [[1e-5, 1e-4, 3e-4, 1e-3, 0.1], [1, 2, 3, 4, 100], [0.25, 0.5, 0.75, 1]])
def test_numbers_on_the_axis_do_not_overlap(make, rates):
    figure = sweep_figures.figure(sweep_cells.read(make({"lr": rates})), "top1", "lr")
    renderer = canvas(figure)
    ticks = [tick for tick in figure.axes[0].get_xticklabels() if tick.get_text()]
    boxes = [tick.get_window_extent(renderer) for tick in ticks]
    assert len(boxes) >= 3 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_no_absolute_path_is_written(make):
    teachers = ["/home/me/a/best.pt", "/home/me/b/best.pt", "C:\\Users\\me\\c\\best.pt"]
    fixed = {"data": "/home/me/my sets/cifar.npz", "roots": ["/home/me/x", "kd/dkd"], "page": "https://a.b/c"}
    error = "no file '/home/me/my sets/x.npz' nor file:///home/me/y, at /home/me/z.py:3 (resnet56/resnet20)"
    folder = make({"teacher": teachers, "seed": [1, 2]}, change=fails({"seed": 2}, error), fixed=fixed)
    written = sweep.write(folder)
    frame = sweep_cells.collect(folder)
    assert list(frame["teacher"][::2]) == ["a/best.pt", "b/best.pt", "c/best.pt"], "told apart"
    assert set(frame["data"]) == {"cifar.npz"} and set(frame["page"]) == {"https://a.b/c"}
    assert set(frame["roots"]) == {'["x", "kd/dkd"]'}
    assert frame["error"][1] == "no file 'x.npz' nor y, at z.py:3 (resnet56/resnet20)"
    texts = [path.read_text() for path in written[:2]]
    texts += words(sweep_figures.figure(sweep_cells.read(folder), "top1", "teacher"))
    assert not [text for text in texts if "/home" in text or "Users" in text or str(folder) in text]
    assert len(table(folder)) == 3


def test_cells_that_look_alike_are_owned_up_to(make):
    folder = make({"teacher": ["best.pt", "best.pt", "last.pt"]}, lambda p: {"o": 1.5})
    sweep.write(folder)
    assert "look like another one here: 1." in (folder / "table.md").read_text()
    assert len(table(folder)) == 2 and len(pd.read_csv(folder / "table.csv")) == 3


def test_names_that_clash_with_other_columns_get_a_word(make):
    folder = make(
        {"status": ["x", "y"], "epochs": [1, 2]}, lambda p: {"seconds": 5.5, "epochs": p["epochs"] * 2}
    )
    frame = sweep_cells.collect(folder)
    assert list(frame["status (parameter)"]) == ["x", "x", "y", "y"]
    assert set(frame["status"]) == {"finished"} and set(frame["seconds (outcome)"]) == {5.5}
    assert list(frame["epochs"]) == [1, 2, 1, 2] and list(frame["epochs (outcome)"]) == [2, 4, 2, 4]
    names = [path.name for path in sweep.write(folder) if path.suffix == ".png"]
    assert len(set(names)) == 4 and "seconds-outcome-by-epochs.png" in names


def test_names_that_are_no_file_names_are_made_into_some_and_stay_apart(make):
    written = sweep.write(make({"lr": [1, 2]}, lambda p: {"top 1": 1.5, "top-1": 2.5, "../$x": 3.5}))
    assert len(set(written)) == 8 and all(path.exists() for path in written)
    assert {path.parent.name for path in written[2:]} == {"figures"}


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([61.2, 63.44], ["61.20", "63.44"]), ([0.0123, 0.0456], ["0.01230", "0.04560"]),
        ([3, 12], ["3", "12"]), ([0.5, 0.5], ["0.5000", "0.5000"]), ([0.0, 0.0], ["0", "0"]),
        ([1234567, 7654321], ["1234567", "7654321"]), ([1000.01, 1000.04], ["1000.0100", "1000.0400"]),
        ([1e-12, 2e-12], ["1.000e-12", "2.000e-12"]), ([-61.2, 0.5], ["-61.20", "0.50"]),
    ],
)  # fmt: skip
def test_outcomes_have_the_digits_they_deserve(make, values, shown):
    sweep.write(folder := make({"at": [0, 1]}, lambda p: {"o": values[p["at"]]}))
    assert [row["o"] for row in table(folder)] == shown


def test_no_text_at_all_is_seen_to_be_a_value(make):
    sweep.write(folder := make({"changes": ["", "ikd.weight=4"]}))
    assert [row["changes"] for row in table(folder)] == ['""', "ikd.weight=4"]
    figure = sweep_figures.figure(sweep_cells.read(folder), "top1", "changes")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ['""', "ikd.weight=4"]


def test_what_is_no_finite_number_is_no_outcome(make):
    def outcome(parameters):
        return {"o": [1.5, math.nan, math.inf, "2.5", True, None, 10**400][parameters["at"]]}

    frame = sweep_cells.collect(make({"at": list(range(7))}, outcome))
    assert list(frame["o"].dropna()) == [1.5, 1] and set(frame["status"]) == {"finished"}


def test_a_thousand_cells_are_read_at_once(make):
    folder = make({"lr": list(range(50)), "seed": list(range(20))})
    begin = time.perf_counter()
    found = sweep_cells.read(folder)
    assert time.perf_counter() - begin < 2 and len(found.frame) == 1000
    ((line, _),) = drawn(sweep_figures.figure(found, "top1", "lr")).values()
    np.testing.assert_allclose(line[:, 1], raw(folder).groupby("lr").top1.mean())


def test_the_same_records_give_the_same_bytes(make):
    folder = make({"method": ["kd", "dkd"], "seed": [1, 2]})
    first = {path: path.read_bytes() for path in sweep.write(folder)}
    assert {path: path.read_bytes() for path in sweep.write(folder)} == first


def test_a_sweep_of_nothing_is_an_empty_table(make):
    path = make({"lr": [1]}) / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cells": []}))
    sweep.write(path.parent)
    assert "0 cells" in (path.parent / "table.md").read_text() and table(path.parent) == []
    header = (path.parent / "table.csv").read_text()
    assert list(pd.read_csv(io.StringIO(header))) == ["id", "status", "seconds", "attempts", "error"]


def test_every_picture_is_named_by_the_page_with_its_caption(make):
    folder: Path = make({"method": ["kd", "dkd"], "seed": [1, 2]})
    written, text = sweep.write(folder), (folder / "table.md").read_text()
    for path in written[2:]:
        assert f"({path.relative_to(folder).as_posix()})" in text
    assert sweep_figures.caption(sweep_cells.read(folder), "ece", "method") in text
