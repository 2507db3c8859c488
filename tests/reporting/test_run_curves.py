"""Pictures of one run show its history, with units, and epochs are whole."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ikdlib import methods  # noqa: E402
from ikdlib.models import Outputs  # noqa: E402
from ikdlib.reporting import figures, run_curves  # noqa: E402
from ikdlib.spec import MethodSpec  # noqa: E402


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def run(folders):
    """Three epochs; ``recorded`` adds 2 in the first, takes 1 in the second, and nothing in the last."""
    recorded = {"train_top1": 60.0, "part_ce": 3.0, "part_tckd": 1.5, "part_ikd": 5.0, "part_own": 9.0}
    made = folders.finished("dkd+ikd", 1, 70.0, recorded=recorded)
    made.write_history(made.history.assign(part_ikd=[np.nan, 4.0, 5.0]).to_dict("records"))
    return made


def drawn(figure) -> dict:
    (axis,) = figure.axes
    assert axis.get_xlabel() == "epoch" and axis.get_title() == "resnet56/resnet20, dkd+ikd, seed 1: one run"
    assert all(tick == int(tick) for tick in axis.get_xticks()), "there is no epoch 1.2"
    assert len(axis.get_legend().get_texts()) == len(axis.lines)
    return {line.get_label().partition(":")[0]: line for line in axis.lines}


def test_accuracies(run):
    figure = run_curves.accuracies(run)
    lines = drawn(figure)
    np.testing.assert_array_equal(lines["test images"].get_ydata(), [35, 71, 70])
    np.testing.assert_array_equal(lines["training views, during the epoch"].get_ydata(), [62, 59, 60])
    assert {line.get_color() for line in lines.values()} == {figures.COLOURS["dkd"]}
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--"]
    assert figure.axes[0].get_ylabel() == "top-1 accuracy (%)"


def test_parts_of_the_loss(run):
    figure = run_curves.loss_parts(run)
    lines = drawn(figure)
    assert list(lines) == ["ce", "tckd", "ikd", "own"], "a part of somebody's own method is drawn too"
    np.testing.assert_array_equal(lines["tckd"].get_ydata(), [3.5, 0.5, 1.5])
    np.testing.assert_array_equal(lines["ikd"].get_ydata(), [np.nan, 4, 5])
    assert len({line.get_color() for line in lines.values()}) == 4
    assert lines["ikd"].get_linestyle() == "-" != lines["ce"].get_linestyle()
    assert "nats" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize("name", methods.names())
def test_a_methods_parts_have_words_and_looks_of_their_own(name):
    logits = torch.randn(4, 5)
    batch = SimpleNamespace(target=torch.arange(4), progress=torch.tensor([1.0, 0.0]))
    parts = methods.build(MethodSpec(name=name), 5)(Outputs(logits=logits), Outputs(logits=logits), batch)
    words, colours, markers = zip(*(run_curves.PARTS[part] for part in [*parts, "ikd"]), strict=True)
    assert all(words)
    for looks in (words, colours, markers):
        assert len(set(looks)) == len(parts) + 1


def test_a_long_run_has_no_markers(run):
    row = run.history.iloc[-1].to_dict()
    run.write_history([{**row, "epoch": epoch} for epoch in range(1, 241)])
    for figure in (run_curves.accuracies(run), run_curves.loss_parts(run)):
        assert {line.get_marker() for line in figure.axes[0].lines} <= {"", "None"}


def test_a_run_of_one_epoch_has_one_tick(run):
    run.write_history(run.history.head(1).to_dict("records"))
    for figure in (run_curves.accuracies(run), run_curves.loss_parts(run)):
        low, high = figure.axes[0].get_xlim()
        assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]
        drawn(figure)
