"""Figures are drawn from what is there, and the same runs give the same bytes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ikdlib.reporting import figures, tables  # noqa: E402
from ikdlib.studies import protocol  # noqa: E402

CLASSES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def cells(folders):
    """Of kd two runs, of kd+ikd one finished and one half, of dkd none."""
    return [
        folders.cell("kd", folders.finished("kd", 1, 70.0), folders.finished("kd", 2, 72.0)),
        folders.cell("kd+ikd", folders.finished("kd+ikd", 1, 71.0), folders.unfinished("kd+ikd", 2)),
        folders.cell("dkd", folders.run("dkd", 1)),
    ]


def table_of(cells) -> pd.DataFrame:
    return tables.study_table(cells, protocol.published().head(0), "last")


def lines_of(figure) -> dict[str, np.ndarray]:
    (axis,) = figure.axes
    return {line.get_label(): line.get_ydata() for line in axis.get_lines()}


def test_curves_are_means_over_finished_runs(cells):
    figure, data = figures.training_curves(cells, "a title")
    drawn = lines_of(figure)
    assert set(drawn) == {"kd (n=2)", "kd+ikd (n=1)"}
    np.testing.assert_allclose(drawn["kd (n=2)"], [(35 + 36) / 2, (71 + 73) / 2, (70 + 72) / 2])
    np.testing.assert_allclose(drawn["kd+ikd (n=1)"], [35.5, 72, 71])
    (axis,) = figure.axes
    assert axis.get_ylabel() == "test top-1 (%), mean over n seeds"
    assert all(tick == int(tick) for tick in axis.get_xticks()), "there is no epoch 1.2"
    assert len(data) == 9 and set(data) == {"epoch", "test_top1", "pair", "method", "seed"}


def test_curves_of_two_pairs_stand_side_by_side(folders, cells):
    more = folders.cell("kd", folders.finished("kd", 1, 60.0, pair="vgg13/vgg8"), pair="vgg13/vgg8")
    figure, _ = figures.training_curves([*cells, more], "a title")
    assert [axis.get_title() for axis in figure.axes] == ["resnet56/resnet20", "vgg13/vgg8"]


def test_dots_show_what_is_finished(cells):
    (axis,) = figures.accuracy_dots(table_of(cells), "last", "a title").axes
    dots = [container.lines[0] for container in axis.containers]
    assert [dot.get_xdata()[0] for dot in dots] == [71.0, 71.0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["kd (n=2)", "kd+ikd (n=1)"]
    (spread,) = [line for line in dots[0].axes.collections]  # one seed has none
    (segment,) = spread.get_segments()
    np.testing.assert_allclose(segment[:, 0], [71 - np.sqrt(2), 71 + np.sqrt(2)])


def test_dots_have_a_panel_a_pair(folders, cells):
    more = folders.cell("kd", folders.finished("kd", 1, 60.0, pair="vgg13/vgg8"), pair="vgg13/vgg8")
    axes = figures.accuracy_dots(table_of([*cells, more]), "last", "a title").axes
    assert [axis.get_title() for axis in axes] == ["resnet56/resnet20", "vgg13/vgg8"]


def test_without_any_run_pictures_are_empty_and_say_so(folders, tmp_path):
    nothing = [folders.cell("kd", folders.run("kd", 1))]
    figure, data = figures.training_curves(nothing, "a title")
    assert data.empty and figure.axes[0].get_title() == "no finished run"
    dots = figures.accuracy_dots(table_of(nothing), "last", "a title")
    assert not dots.axes[0].containers and dots.axes[0].get_title() == "no finished run"
    for name, drawn in (("curves", figure), ("dots", dots)):
        assert figures.write(drawn, tmp_path / name).exists()


def test_heatmap_is_a_softmax_of_each_row():
    means = np.array([[1.0, 0, 0], [0, 1000, 0], [0, 0, -1000]])
    figure, data = figures.class_means_heatmap(means, CLASSES, temperature=2.0)
    e = np.exp(0.5)
    np.testing.assert_allclose(data.loc["a"], [e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    np.testing.assert_allclose(data.sum(axis=1), 1)
    assert np.isfinite(data.to_numpy()).all()
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), data.to_numpy())
    own = (e / (e + 2) + 1 + 0) / 3  # of the third row all lies elsewhere
    assert f"on average {own:.3f} on the class itself" in figure.axes[0].get_title()


@pytest.mark.parametrize("least, end", [(0.9e-4, "min"), (1.1e-4, "neither")])
def test_the_heatmap_marks_what_its_colours_cannot_show(least, end):
    """Of two classes, one answers the other with a probability below or above 1e-4."""
    means = np.log(np.array([[1 - least, least], [0.5, 0.5]]))
    figure, _ = figures.class_means_heatmap(means, ("a", "b"))
    image, bar = figure.axes[0].images[0], figure.axes[1]
    assert image.norm.vmin == 1e-4 and image.colorbar.extend == end
    assert ("less" in bar.get_ylabel()) == (end == "min")


def test_a_method_keeps_its_colour_and_ikd_is_solid():
    assert figures.style("dkd")["color"] == figures.style("dkd+ikd")["color"] != figures.style("kd")["color"]
    assert figures.style("dkd")["linestyle"] == "--" and figures.style("dkd+ikd")["linestyle"] == "-"


def draw(kind: str, cells):
    if kind == "curves":
        return figures.training_curves(cells, "a title")
    if kind == "dots":
        return figures.accuracy_dots(table_of(cells), "last", "a title"), table_of(cells)
    return figures.class_means_heatmap(np.eye(3), CLASSES)


@pytest.mark.parametrize("kind", ["curves", "dots", "heatmap"])
def test_png_svg_and_csv_are_written_twice_alike_and_without_paths(kind, cells, tmp_path):
    for name in ("one", "two"):
        figure, data = draw(kind, cells)
        assert figures.write(figure, tmp_path / f"{name}", data) == tmp_path / f"{name}.png"
        plt.close(figure)
    for ending in (".png", ".svg", ".csv"):
        one, two = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "two"))
        assert one == two and one
        for place in (tmp_path, Path.cwd(), Path.home()):
            assert f"{place}/".encode() not in one
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")
    assert len(pd.read_csv(tmp_path / "one.csv")) == len(data)


def test_other_numbers_give_another_picture(folders, tmp_path):
    """The comparison of bytes above can fail."""
    for name, value in (("one", 70.0), ("two", 60.0)):
        cell = folders.cell("kd", folders.finished("kd", int(value), value))
        figures.write(figures.training_curves([cell], "a title")[0], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "two.svg").read_bytes()
