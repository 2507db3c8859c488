"""Pictures of how a base method and its ``+ikd`` answer the same test images: `behaviour`, drawn.

Each function takes the two runs' `Predictions` and returns the figure and the rows behind it. A method keeps
its colour; the base is dashed, hatched or hollow, the IKD term solid or filled, so that no picture needs
colours to be read. Every title ends in the number of seeds, which is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ikdlib.reporting import behaviour
from ikdlib.reporting.behaviour import Predictions
from ikdlib.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#767676"
EXTREMES = 6  # classes named at each end of a row of a hundred
# Okabe and Ito's again, for the classes of one group; each has a marker of its own besides.
CLASS_LOOKS = (("#0072B2", "o"), ("#E69F00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#000000", "v"))
MINUS = "\N{MINUS SIGN}"
NO_CHANGE = "where 95 % of the classes would end if both runs were equally good at them"


def confidence(base: Predictions, treated: Predictions) -> tuple[Figure, pd.DataFrame]:
    """Probability of the target class over the test images: histogram and cumulative curve."""
    import matplotlib.pyplot as plt

    edges = np.linspace(0, 100, 21)
    data = pd.DataFrame({"low": edges[:-1], "high": edges[1:]})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9))
    for run in (base, treated):
        look, values = style(run.method), behaviour.target_confidence(run.logits, run.labels)
        share = 100 * np.histogram(values, edges)[0] / len(values)
        data[f"{run.method}, % of images"] = share
        if run is treated:
            left.stairs(share, edges, fill=True, alpha=0.25, color=look["color"], lw=0)
        left.stairs(share, edges, lw=1.8, **look)
        label = f"{run.method}: mean {values.mean():.1f} %, median {np.median(values):.1f} %"
        right.plot(np.sort(values), np.linspace(0, 100, len(values)), lw=1.8, label=label, **look)
    left.set(xlabel="probability of the target class (%)", ylabel="test images (%) in each step of 5 %")
    right.set(xlabel="probability of the target class (%)", ylabel="test images below (%)", ylim=(0, 100))
    for axis in (left, right):
        axis.set_xlim(0, 100)
        axis.grid(alpha=0.3)
    right.legend(frameon=False, loc="upper left")
    return _finished(figure, "Confidence of the target class", base), data


def reliability(base: Predictions, treated: Predictions) -> tuple[Figure, pd.DataFrame]:
    """Accuracy against confidence in 15 bins (Guo et al. 2017, figure 1), and each bin's share of images."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, 2, figsize=(8.6, 5.6), sharex=True, sharey="row", gridspec_kw={"height_ratios": (3, 1)}
    )
    tables = []
    for column, run in enumerate((base, treated)):
        table = behaviour.reliability(run.logits, run.labels)
        tables.append(table.assign(method=run.method))
        error = behaviour.expected_calibration_error(run.logits, run.labels)
        _gaps(axes[0, column], table, style(run.method)["color"])
        axes[0, column].set_title(f"{run.method}: ECE {error:.2f} %", fontsize=10)
        share = 100 * table["count"] / table["count"].sum()
        axes[1, column].bar(
            table["low"], share, table["high"] - table["low"], align="edge", color=GREY, ec="white"
        )
        axes[1, column].set(xlabel="confidence: probability of the answer (%)")
    axes[0, 0].set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
    axes[1, 0].set(ylabel="images (%)")
    axes[0, 0].legend(frameon=False, loc="upper left", fontsize=9)
    rows = pd.concat(tables, ignore_index=True)
    return _finished(figure, "Reliability: is an answer right as often as it is sure?", base), rows


def confusion(base: Predictions, treated: Predictions) -> tuple[Figure, pd.DataFrame]:
    """Errors inside and outside the target's group, in all and for each group."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 5.4), width_ratios=(1, 1.5))
    groups = np.asarray(base.groups)
    names = sorted(set(groups))
    data = pd.DataFrame({"group": ["all", *names]})
    for place, run in enumerate((base, treated)):
        look, hatch = style(run.method)["color"], "" if run is treated else "///"
        tables = [behaviour.confusion(run.logits, run.labels, groups)]
        for name in names:
            own = groups[run.labels] == name
            tables.append(behaviour.confusion(run.logits[own], run.labels[own], groups))
        for where in ("inside", "outside"):
            data[f"{run.method}, {where}, % of images"] = [table.loc[where, "of_images"] for table in tables]
        whole = tables[0]
        spots = np.arange(2) + 0.4 * (place - 0.5)
        bars = left.bar(
            spots, whole["of_images"], 0.38, color=look, hatch=hatch, ec="white", label=run.method
        )
        left.bar_label(bars, [f"{value:.2f}" for value in whole["of_images"]], fontsize=9, padding=2)
        chance = whole["by_chance"] * whole["of_images"].sum() / 100
        label = "if wrong answers fell on all\nother classes alike" if run is base else None
        left.hlines(chance, spots - 0.19, spots + 0.19, color="black", lw=1.6, label=label)
    left.set_xticks([0, 1], ["another class\nof its group", "a class\noutside of it"])
    left.set(ylabel="test images (%)", title="wrong answers", ylim=(0, 1.2 * left.get_ylim()[1]))
    left.legend(frameon=False, loc="upper left", fontsize=9)
    _by_group(right, data, base, treated)
    return _finished(figure, "Confusion inside and outside of groups of similar classes", base), data


def class_gains(base: Predictions, treated: Predictions) -> tuple[Figure, pd.DataFrame]:
    """Accuracy of each class with the term minus without, sorted; the extremes are named.

    The grey bars span 1.96 standard errors of a class that both runs are equally good at: of the images that
    one run has right and the other wrong, each is then one or the other with equal chance (McNemar, 1947).
    """
    import matplotlib.pyplot as plt

    right = [run.logits.argmax(axis=1) == run.labels for run in (base, treated)]
    classes = pd.Index(base.classes, name="class")
    count = np.bincount(base.labels, minlength=len(classes))
    gained, lost = (
        np.bincount(base.labels, weights=one & ~other, minlength=len(classes)).astype(int)
        for one, other in (right[::-1], right)
    )
    data = pd.DataFrame(
        {
            "base": behaviour.class_accuracy(base.logits, base.labels),
            "+ikd": behaviour.class_accuracy(treated.logits, treated.labels),
            "gained": gained, "lost": lost, "gain": 100 * (gained - lost) / count,
            "noise": 196 * np.sqrt(gained + lost) / count,
        },
        index=classes,
    ).sort_values(["gain", "base"], kind="stable")  # fmt: skip
    figure, axis = plt.subplots(figsize=(11.5, 4.9))
    place, colour = np.arange(len(data)), style(base.method)["color"]
    axis.bar(place, 2 * data["noise"], 0.9, bottom=-data["noise"], color="#DDDDDD", label=NO_CHANGE)
    axis.vlines(place, 0, data["gain"], color=colour, lw=1.5)
    up, down = data["gain"] > 0, data["gain"] < 0
    for which, marker in ((up, "^"), (down, "v"), (~(up | down), "o")):
        axis.plot(place[which], data["gain"][which], marker, color=colour, ms=5)
    axis.axhline(0, color="black", lw=0.8)
    _name_extremes(axis, data["gain"], dict(zip(base.classes, base.short_names, strict=True)))
    outside = (data["gain"].abs() > data["noise"]).sum()
    words = f"{outside} leave the grey, where about {len(data) / 20:.0f} would by chance"
    gained_by = f"{treated.method} {MINUS} {base.method}"
    axis.set(xlim=(-1, len(data)), ylabel=f"accuracy of a class (points):\n{gained_by}")
    axis.set_xlabel(f"the {len(data)} classes, by their gain: {up.sum()} rise, {down.sum()} fall; {words}")
    axis.set_xticks([])
    axis.legend(frameon=False, loc="lower right")
    return _finished(figure, "What each class gains", base), data.reset_index()


def spread(base: Predictions, treated: Predictions) -> tuple[Figure, pd.DataFrame]:
    """Spread of the predictions within each class, without and with the term: both of `behaviour.spread`."""
    import matplotlib.pyplot as plt

    tables = [behaviour.spread(run.logits, run.labels) for run in (base, treated)]
    data = pd.DataFrame({"class": base.classes})
    figure, axes = plt.subplots(1, 2, figsize=(10.0, 6.0))
    titles = {"squared": "squared distance to the class's mean (%)", "kl": "KL to the class's mean (nats)"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        x, y = (table[name].to_numpy() for table in tables)
        data[f"{name}, base"], data[f"{name}, +ikd"] = x, y
        top = 1.08 * max(x.max(), y.max())
        axis.plot([0, top], [0, top], color=GREY, lw=1, ls=":")
        axis.fill_between([0, top], [0, top], color="#EEEEEE", lw=0)
        axis.plot(x, y, "o", ms=5, mew=0.5, mec="white", color=style(base.method)["color"])
        axis.plot(x.mean(), y.mean(), "P", ms=11, mec="white", color="black", label="mean of the classes")
        _name_points(axis, x, y, base.short_names)
        axis.set(xlim=(0, top), ylim=(0, top), aspect="equal", xlabel=base.method, ylabel=treated.method)
        axis.set_title(f"{title}:\n{(y < x).sum()} of {len(x)} classes below the line", fontsize=10)
        told = "closer together, or only less sure"
        axis.text(0.97, 0.03, told, transform=axis.transAxes, ha="right", fontsize=9)
        axis.legend(frameon=False, loc="upper left", fontsize=9)
    return _finished(figure, "Spread of predictions within a class", base), data


def plane(base: Predictions, treated: Predictions, group: str = "") -> tuple[Figure, pd.DataFrame]:
    """The images of one group in two dimensions, both runs on the same axes (`behaviour.plane`).

    Of their logits those of the group's own classes: they say which look-alike an image is taken for. All
    of them together vary in too many ways for two axes.

    Args:
        group: by default that in which both runs together confuse most images.
    """
    import matplotlib.pyplot as plt

    groups = np.asarray(base.groups)
    group = group or most_confused(base, treated)
    shown = groups[base.labels] == group
    labels, classes = base.labels[shown], np.flatnonzero(groups == group)
    *points, share = behaviour.plane(*(run.logits[shown][:, classes] for run in (base, treated)))
    wide, high = 1.08 * np.abs(np.concatenate(points)).max(axis=0)
    wide, high = max(wide, high), max(0.6 * wide, high)
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 1.7 + 4 * high / wide), sharex=True, sharey=True)
    tables = []
    for axis, run, at in zip(axes, (base, treated), points, strict=True):
        right = run.logits.argmax(axis=1)[shown] == labels
        for number, (colour, marker) in zip(classes, CLASS_LOOKS, strict=False):
            own = labels == number
            look = {"marker": marker, "color": colour, "label": base.short_names[number]}
            axis.scatter(*at[own].T, s=22, alpha=0.55, lw=0, **look)
        for number, (colour, marker) in zip(classes, CLASS_LOOKS, strict=False):
            middle = at[labels == number].mean(axis=0)
            axis.plot(*middle, marker, ms=12, color=colour, mec="white", mew=1.8)
        axis.set_title(f"{run.method}: {100 * right.mean():.1f} % of them right", fontsize=10)
        axis.set(xlabel=f"first component ({share[0]:.0f} % of the variance)", aspect="equal")
        axis.set(xlim=(-wide, wide), ylim=(-high, high))
        axis.locator_params(nbins=6)
        axis.grid(alpha=0.3)
        names = np.asarray(base.classes)[labels]
        tables.append(
            pd.DataFrame({"method": run.method, "class": names, "first": at[:, 0], "second": at[:, 1]})
        )
    axes[0].set_ylabel(f"second component ({share[1]:.0f} %)")
    axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    title = f"Test images of {group.replace('_', ' ')} by the logits of these classes; large: a class's mean"
    return _finished(figure, title, base), pd.concat(tables, ignore_index=True)


def most_confused(base: Predictions, treated: Predictions) -> str:
    """The group with most answers inside it but wrong, both runs together; of equals the first by name."""
    groups = np.asarray(base.groups)
    found: dict[str, int] = dict.fromkeys(sorted(set(groups)), 0)
    for run in (base, treated):
        answer = run.logits.argmax(axis=1)
        inside = (answer != run.labels) & (groups[answer] == groups[run.labels])
        for name, count in zip(*np.unique(groups[run.labels[inside]], return_counts=True), strict=True):
            found[str(name)] += int(count)
    return max(found, key=lambda name: found[name])


def _finished(figure: Figure, title: str, base: Predictions) -> Figure:
    figure.suptitle(f"{title}\n{base.method} and {base.method}+ikd, {base.about}: n = 1 seed", fontsize=11)
    figure.tight_layout()
    return figure


def _gaps(axis: Axes, table: pd.DataFrame, colour: str) -> None:
    full = table.dropna()
    width, middle = full["high"] - full["low"], (full["low"] + full["high"]) / 2
    axis.bar(middle, full["accuracy"], width, color=colour, ec="white", label="accuracy")
    gap = full["confidence"] - full["accuracy"]
    axis.bar(
        middle, gap, width, bottom=full["accuracy"], fill=False, ec="black", hatch="////", lw=0.6,
        label=f"confidence {MINUS} accuracy",
    )  # fmt: skip
    axis.plot([0, 100], [0, 100], color="black", ls=":", lw=1.2)
    axis.grid(alpha=0.3)


def _by_group(axis: Axes, data: pd.DataFrame, base: Predictions, treated: Predictions) -> None:
    columns = [f"{run.method}, inside, % of images" for run in (base, treated)]
    rows = data.iloc[1:].sort_values(columns[0])
    place, colour = np.arange(len(rows)), style(base.method)["color"]
    axis.hlines(place, *(rows[column] for column in columns), color=colour, lw=1.5)
    looks: tuple[dict[str, Any], ...] = ({"mfc": "white"}, {"mfc": colour})
    for run, column, look in zip((base, treated), columns, looks, strict=True):
        axis.plot(rows[column], place, "o", ms=7, mec=colour, mew=1.5, label=run.method, **look)
    axis.set_yticks(place, [name.replace("_", " ") for name in rows["group"]], fontsize=8)
    axis.set(
        xlabel="test images of the group (%)", title="taken for another class of its group", xlim=(0, None)
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right", fontsize=9)


def _name_extremes(axis: Axes, gain: pd.Series, short: dict[str, str]) -> None:
    for places, side in ((range(EXTREMES), -1), (range(len(gain) - EXTREMES, len(gain)), 1)):
        for place in (place for place in places if gain.iloc[place]):
            axis.annotate(
                short[str(gain.index[place])], (place, gain.iloc[place]), xytext=(0, 8 * side),
                textcoords="offset points", rotation=90, fontsize=8, ha="center", parse_math=False,
                va="bottom" if side > 0 else "top",
            )  # fmt: skip
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.25 * (high - low), high + 0.25 * (high - low))


def _name_points(axis: Axes, x: np.ndarray, y: np.ndarray, names: tuple[str, ...]) -> None:
    """The three classes farthest from the line on either side, on a slope beside it, so no leader crosses."""
    order = np.argsort(y - x)[np.sort(y - x) != 0]
    for places, left, bottom, end in ((order[-3:], 0.05, 0.6, 0.0), (order[:3], 0.52, 0.18, 1.0)):
        for step, place in enumerate(sorted(places, key=lambda place: x[place])):
            axis.annotate(
                names[place], (x[place], y[place]), xytext=(left + 0.13 * step, bottom + 0.08 * step),
                textcoords="axes fraction", fontsize=9, va="center", parse_math=False,
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": GREY, "shrinkA": 0, "relpos": (0.5, end)},
            )  # fmt: skip
