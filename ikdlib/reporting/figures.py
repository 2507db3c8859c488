"""Pictures of runs. Every figure is written as PNG and SVG with the CSV behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ikdlib import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; a method keeps its colour everywhere.
COLOURS = {
    "ce": "#000000", "kd": "#E69F00", "dkd": "#0072B2", "nkd": "#009E73", "wttm": "#CC79A7",
}  # fmt: skip

LEAST = 1e-4
"""Probability at the lower end of the heatmap's colours; what is less has the same colour."""


def style(method: str) -> dict[str, Any]:
    """Colour of the base method; the IKD term shows as a solid line, its base as a dashed one."""
    base = method.removesuffix("+ikd")
    solid = method.endswith("+ikd") or method == "ce"
    return {"color": COLOURS.get(base, "#56B4E9"), "linestyle": "-" if solid else "--"}


def training_curves(cells: Iterable[Any], title: str) -> tuple[Figure, pd.DataFrame]:
    """Test top-1 against the epoch, the mean over a cell's n seeds; and the rows behind it."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rows = []
    for cell in cells:
        for run in cell.runs:
            if run.status == "finished":
                history = run.history[["epoch", "test_top1"]]
                rows.append(history.assign(pair=cell.pair, method=cell.method, seed=run.spec.seed))
    data = pd.concat(rows) if rows else pd.DataFrame(columns=["epoch", "test_top1", "pair", "method", "seed"])
    pairs = list(dict.fromkeys(data["pair"])) or ["no finished run"]
    figure, axes = plt.subplots(1, len(pairs), figsize=(5.2 * len(pairs), 3.8), squeeze=False)
    for axis, pair in zip(axes[0], pairs, strict=True):
        for method, part in data[data["pair"] == pair].groupby("method", sort=False):
            curve = part.groupby("epoch")["test_top1"].mean()
            label = f"{method} (n={part['seed'].nunique()})"
            axis.plot(curve.index, curve.values, label=label, **style(str(method)))
        axis.set(title=pair, xlabel="epoch", ylabel="test top-1 (%), mean over n seeds")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if len(data):
            axis.legend(frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    return figure, data


def class_means_heatmap(
    means: np.ndarray, classes: Sequence[str], temperature: float = 1.0, title: str = "the teacher"
) -> tuple[Figure, pd.DataFrame]:
    """softmax(mean / T), a row a class: what the IKD term pulls each class towards. ``means`` [C, C].

    ``title``: whose means they are.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    scaled = means / temperature
    probability = np.exp(scaled - scaled.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    figure, axis = plt.subplots(figsize=(6.4, 5.4))
    image = axis.imshow(probability, norm=LogNorm(LEAST, 1.0), cmap="cividis", interpolation="nearest")
    step = max(1, len(classes) // 20)
    places = np.arange(0, len(classes), step)
    axis.set_xticks(places, [str(classes[i]) for i in places], rotation=90, fontsize=7, family="monospace")
    axis.set_yticks(places, [str(classes[i]) for i in places], fontsize=7, family="monospace")
    axis.set(xlabel="class the teacher answers", ylabel="class of the images")
    own = np.diag(probability).mean()
    axis.set_title(
        f"class means of {title}, softmax at T = {temperature:g}\non average {own:.3f} on the class itself",
        fontsize=10,
    )
    below = " (arrow: less)" if (probability < LEAST).any() else ""
    figure.colorbar(image, label=f"probability, log scale{below}", extend="min" if below else "neither")
    figure.tight_layout()
    return figure, pd.DataFrame(probability, index=list(classes), columns=list(classes))


def accuracy_dots(table: pd.DataFrame, primary: str, title: str) -> Figure:
    """Test top-1 of each cell as a dot, a panel a pair; the bar is one standard deviation over its n seeds.

    Dots and not bars: a bar has to begin at zero, and the differences are a hundredth of that.
    """
    import matplotlib.pyplot as plt

    done = table[table["n"] > 0]
    pairs = list(dict.fromkeys(done["pair"])) or ["no finished run"]
    columns = min(3, len(pairs))
    lines = -(-len(pairs) // columns)
    tallest = max((done["pair"] == pair).sum() for pair in pairs) if len(done) else 1
    size = (4.2 * columns + 0.6, (0.34 * tallest + 1.0) * lines + 0.4)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(pairs) :]:
        axis.set_visible(False)
    for axis, pair in zip(axes.flat, pairs, strict=False):
        rows = done[done["pair"] == pair]
        for place, (_, row) in enumerate(rows.iterrows()):
            value, std, look = row[f"{primary}_top1"], row[f"{primary}_std"], style(row["method"])
            full = look["linestyle"] == "-"
            axis.errorbar(
                value, place, xerr=None if pd.isna(std) else std, marker="o", capsize=3, color=look["color"],
                markerfacecolor=look["color"] if full else "white",
            )  # fmt: skip
            axis.annotate(
                f"{value:.1f}", (value, place), ha="center", va="bottom", fontsize=8, xytext=(0, 4),
                textcoords="offset points",
            )  # fmt: skip
        names = [f"{row.method} (n={row.n})" for row in rows.itertuples()]
        axis.set_yticks(range(len(rows)), names, fontsize=9)
        axis.set_ylim(len(rows) - 0.4, -0.8)
        axis.margins(x=0.15)
        axis.set(title=pair, xlabel=f"test top-1 (%), {primary} epoch\nbar: ± 1 SD; hollow: without the term")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def write(figure: Figure, path: Path, data: pd.DataFrame | None = None, index: bool = False) -> Path:
    """Write ``path.png``, ``path.svg`` and, with ``data``, ``path.csv``; returns the PNG's path."""
    import io

    import matplotlib
    import matplotlib.pyplot as plt

    plt.close(figure)  # pyplot forgets it: a notebook shows it once, where it is asked for
    # A fixed salt and no date: the same runs give the same bytes, so a figure's diff means something.
    with matplotlib.rc_context({"svg.hashsalt": "ikdlib"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=150, metadata=metadata)
            files.write_bytes(path.with_suffix(f".{kind}"), content.getvalue())
    if data is not None:
        files.write_text(path.with_suffix(".csv"), data.to_csv(index=index, lineterminator="\n"))
    return path.with_suffix(".png")
