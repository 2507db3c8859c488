"""Pictures of one run: its accuracy and the parts of its loss, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ikdlib.reporting.curves import MARKERS
from ikdlib.reporting.figures import COLOURS, style
from ikdlib.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {
    "ce": ("cross-entropy with the label", COLOURS["ce"], "v"),
    "kd": ("KL to the teacher's answer", COLOURS["kd"], "o"),
    "tckd": ("KL to the teacher: the class against the rest", COLOURS["dkd"], "s"),
    "nckd": ("KL to the teacher: among the other classes", "#56B4E9", "D"),
    "target": ("cross-entropy with the teacher: the class", COLOURS["nkd"], "^"),
    "non_target": ("cross-entropy with the teacher: the others", "#56B4E9", "D"),
    "wttm": ("weighted KL to the transformed teacher", COLOURS["wttm"], "D"),
    "ikd": ("the IKD term", "#D55E00", "*"),
}
"""Part of a loss to what it is, its colour and its marker; the IKD term has the class means' colour."""


def accuracies(run: Run) -> Figure:
    """Top-1 (%) over the epochs: of the test images, and of the training views as they were learnt from."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.2, 3.6))
    history, name = run.history, str(run.spec.method)
    marker = MARKERS.get(name.removesuffix("+ikd"), "o")
    look = {"color": style(name)["color"], "marker": _marker(run, marker), "markersize": 4}
    axis.plot(history["epoch"], history["test_top1"], label="test images", **look)
    learnt = {**look, "markerfacecolor": "white", "linestyle": "--"}
    axis.plot(history["epoch"], history["train_top1"], label="training views, during the epoch", **learnt)
    return _finished(axis, run, "top-1 accuracy (%)")


def loss_parts(run: Run) -> Figure:
    """The parts of the training loss over the epochs, each with its weight: together they are the loss."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.2, 3.6))
    for column in [name for name in run.history if name.startswith("part_")]:
        name = column.removeprefix("part_")
        words, colour, marker = PARTS.get(name, ("", "#767676", "x"))
        line = "-" if name == "ikd" else "--"
        look = {"color": colour, "marker": _marker(run, marker), "markersize": 4, "linestyle": line}
        axis.plot(
            run.history["epoch"], run.history[column], label=f"{name}: {words}" if words else name, **look
        )
    return _finished(axis, run, "part of the training loss,\nwith its weight (nats)")


def _marker(run: Run, marker: str) -> str:
    """None in a long run, where markers would hide the line."""
    return marker if len(run.history) <= 30 else ""


def _finished(axis: Axes, run: Run, label: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(f"{run.spec.pair}, {run.spec.method}, seed {run.spec.seed}: one run", fontsize=10)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    axis.figure.tight_layout()
    return axis.figure
