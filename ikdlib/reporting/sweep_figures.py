"""Each outcome of a sweep drawn against each parameter that was swept."""

from __future__ import annotations

import math
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd

from ikdlib.reporting import figures
from ikdlib.reporting.statistics import mean_and_std
from ikdlib.reporting.sweep_cells import Sweep, is_number, results_of, text_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 8
"""Lines in one plot: more would not be read."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#7F7F7F")
MARKERS = "os^DvPX*"


def points(sweep: Sweep, outcome: str, parameter: str) -> pd.DataFrame:
    """What a plot shows: columns series, value, mean, std (none for n = 1) and n, in grid order.

    A series is a combination of the other swept parameters, and n counts its seeds. Of more than `LINES`
    combinations there is one series, their mean: n then counts combinations, each the mean over its seeds.
    """
    found: dict[tuple[str, ...], dict[Any, list[float]]] = {}
    for key, cells in sweep.groups(sweep.others(parameter)).items():
        for cell in cells:
            found.setdefault(key, {}).setdefault(cell[parameter], []).extend(results_of([cell], outcome))
    if len(found) > LINES:
        means: dict[Any, list[float]] = {}
        for value, results in ((v, r) for part in found.values() for v, r in part.items() if r):
            means.setdefault(value, []).append(mean_and_std(results)[0])
        found = {("mean",): means}
    rows = [
        (", ".join(key), value, *mean_and_std(results), len(results))
        for key, part in found.items() for value, results in part.items() if results
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["series", "value", "mean", "std", "n"], dtype=object)
    return frame.astype({"series": str, "mean": float, "std": float, "n": int})


def caption(sweep: Sweep, outcome: str, parameter: str) -> str:
    """What the points and bars of `figure` are."""
    n, others = points(sweep, outcome, parameter)["n"], ", ".join(sweep.others(parameter))
    many = len(sweep.groups(sweep.others(parameter))) > LINES
    text = f"{outcome} against {parameter}" + (f", for each {others}" if others and not many else "")
    if not many and ("seed" not in sweep.swept or parameter == "seed"):
        return f"{text}: a point is a cell."
    over = f"combinations of {others}" if many else "seeds"
    each = ", each the mean over its seeds" if many and "seed" in sweep.swept else ""
    count = f"n = {n.min()}" if n.min() == n.max() else f"n = {n.min()} to {n.max()}"
    count += "; no bar where n = 1" if n.min() == 1 else ""
    return f"{text}: mean over {over}{each}; bars: one standard deviation over them ({count})."


def figure(sweep: Sweep, outcome: str, parameter: str) -> Figure:
    """The outcome against a swept parameter: `points`, with one standard deviation as a bar.

    Its title names the notebook and what all cells have in common: a picture is passed on without its page.
    Categories whose names do not fit side by side stand below each other, the outcome along the x axis.
    """
    from matplotlib.figure import Figure

    found, order = points(sweep, outcome, parameter), list(dict.fromkeys(sweep.frame[parameter]))
    others = ", ".join(sweep.others(parameter))
    names = [", ".join(key) for key in sweep.groups(sweep.others(parameter))]
    names = names if len(names) <= LINES else ["mean"]
    labels, ticks = _shortened(names), _shortened(list(map(text_of, order)))
    numeric, widest = all(map(is_number, order)), max(map(len, ticks))
    below = not numeric and 0.075 * (widest + 2) * len(ticks) > 4
    a, b = "yx" if below else "xy"  # the parameter's axis, the outcome's
    height = min(12, max(3.4, (0.2 + 0.06 * len(names)) * len(order) + 0.7)) if below else 3.4
    legend = 0.065 * max(map(len, [others, *labels])) + 0.5 if others and names != ["mean"] else 0
    width = 4.8 + legend + 0.05 * widest * below
    title = _title(sweep, width)
    height += 0.15 * len(title)
    picture = Figure((width, height), layout="constrained")
    picture.suptitle("\n".join(title), fontsize=8)
    axis = picture.add_subplot()
    # A method keeps the colour it has elsewhere, and its IKD term the solid line.
    known = others == "method" and all(name.removesuffix("+ikd") in figures.COLOURS for name in names)
    for place, (name, label) in enumerate(zip(names, labels, strict=True)):
        part = found[found["series"] == name]
        if part.empty:
            continue
        look = figures.style(name) if known else {"color": COLOURS[place], "linestyle": "-"}
        look |= {"markerfacecolor": "white" if look["linestyle"] == "--" else look["color"]}
        if numeric:
            part = part.sort_values("value")
            at = part["value"].astype(float)
        else:  # side by side, so that bars of one category are told apart
            at = part["value"].map(order.index) + (place - (len(names) - 1) / 2) * 0.6 / len(names)
            look["linestyle"] = "none"
        look |= {a: at, b: part["mean"], f"{b}err": part["std"] if part["std"].notna().any() else None}
        look |= {"marker": MARKERS[place], "markersize": 5 if len(part) < 60 else 2}
        axis.errorbar(**look, linewidth=1.4, elinewidth=1, capsize=3, label=label)
    if numeric:
        places = sorted(order)
        if places[0] > 0 and places[-1] / places[0] >= 100:
            axis.set_xscale("log")
            places = [math.log(value) for value in places]
        room = (0.02 * widest + 0.03) * (places[-1] - places[0])
        if all(right - left > room for left, right in pairwise(places)):  # or their names would overlap
            axis.set_xticks([float(value) for value in order], ticks)
            axis.minorticks_off()
    else:
        step = -(-len(order) // 80)  # of more names there is no room for each
        axis.set(**{f"{a}ticks": range(0, len(order), step), f"{a}ticklabels": ticks[::step]})
        axis.set(**{f"{a}lim": sorted((-0.6, len(order) - 0.4), reverse=below)})
        axis.tick_params(a, labelsize=8)
    axis.set(**{f"{a}label": _shortened([parameter])[0], f"{b}label": _shortened([outcome])[0]})
    axis.ticklabel_format(axis=b, useOffset=False)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:  # beside the axes: never over a point, nor over the title
        place, (head,) = "outside right center", _shortened([others])
        picture.legend(loc=place, frameon=False, fontsize=8, title=head, title_fontsize=8)
    return picture


def _title(sweep: Sweep, width: float) -> list[str]:
    """Lines that fit a picture so many inches wide."""
    letters = int(width / 0.07)
    common = ", ".join(sweep.fixed)
    lines = [sweep.notebook, *textwrap.wrap(common, letters, max_lines=3, placeholder=" …")]
    return [_drawn(line) for line in lines]


def _shortened(texts: list[str]) -> list[str]:
    """For a picture: cut in the middle, unless two would look alike; matplotlib reads `$` and a first `_`."""
    for width in (32, 48, 200):
        cut = [t if len(t) <= width else f"{t[: width // 2]}…{t[1 - width // 2 :]}" for t in texts]
        if len(set(cut)) == len(set(texts)):
            break
    return [" " * text.startswith("_") + _drawn(text) for text in cut]


def _drawn(text: str) -> str:
    return " ".join(text.split()).replace("$", r"\$")
