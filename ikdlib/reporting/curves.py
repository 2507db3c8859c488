"""Pictures of effects: curves over a setting, and the gains of the IKD term with their intervals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ikdlib.reporting.ablations import AXES, MEASURES
from ikdlib.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"kd": "o", "dkd": "s", "nkd": "^", "wttm": "D", "ce": "v"}


def setting_curve(
    found: pd.DataFrame,
    setting: str,
    measures: Sequence[str],
    title: str,
    optimum: dict[str, float] | None = None,
) -> Figure:
    """The measures side by side over a setting: mean over seeds, one standard deviation as a bar.

    The legend says of how many seeds; a point of one has no bar, and a base method's level none either.

    Args:
        found: `ablations.points`, of one pair or several (a row of panels each).
        measures: names of `ablations.MEASURES`; one that no run recorded has an empty panel that says so.
        optimum: series to the value the paper names, drawn as a vertical line; None for no line.
    """
    import matplotlib.pyplot as plt

    pairs = list(found["pair"].unique()) or ["no finished run"]
    size = (4.8 * len(measures), 3.6 * len(pairs) + 0.4)
    figure, axes = plt.subplots(len(pairs), len(measures), figsize=size, squeeze=False)
    for row, pair in zip(axes, pairs, strict=True):
        for axis, measure in zip(row, measures, strict=True):
            here = found[(found["pair"] == pair) & found[measure].notna()] if len(found) else found
            _panel(axis, here, measure, optimum or {})
            axis.set(title=pair, xlabel=AXES[setting], ylabel=MEASURES[measure])
            if setting == "recipe.batch_size":
                axis.set_xscale("log", base=2)
            values = sorted(here["value"].dropna().unique())
            if 1 < len(values) < 7:
                axis.set_xticks(values, [f"{value:g}" for value in values])
                axis.minorticks_off()
    figure.suptitle(title)
    figure.supxlabel("mean over n seeds; bar: ± 1 standard deviation (none of one seed)", fontsize=8)
    figure.tight_layout()
    return figure


def _panel(axis: Axes, here: pd.DataFrame, measure: str, optimum: dict[str, float]) -> None:
    for series, part in here.groupby("series"):
        by_value = part.groupby("value")[measure]
        mean, std, look = by_value.mean(), by_value.std(ddof=1), style(str(series))
        if mean.empty:  # a base method without the setting: its level
            axis.axhline(part[measure].mean(), label=_label(series, [len(part)]), **look)
            continue
        marker, label = MARKERS.get(str(series).removesuffix("+ikd"), "o"), _label(series, by_value.size())
        axis.errorbar(mean.index, mean, yerr=std, capsize=3, marker=marker, label=label, **look)
        if series in optimum:
            axis.axvline(
                optimum[str(series)], color=look["color"], linestyle=":", linewidth=1,
                label=f"the paper's best for {series}: {optimum[str(series)]:g}",
            )  # fmt: skip
    axis.grid(alpha=0.3)
    if here.empty:
        axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)
    else:
        axis.legend(frameon=False, fontsize=8)


def _label(series: object, counts: Collection[int]) -> str:
    """``kd (n=3)``, or ``kd (n=1 to 3)`` where points have different numbers of seeds."""
    least, most = min(counts), max(counts)
    return f"{series} (n={least})" if least == most else f"{series} (n={least} to {most})"


def forest(rows: pd.DataFrame, title: str, unit: str = "points of test top-1") -> Figure:
    """Differences with their 95 % intervals, a line each; zero is marked. What is undecided has a hollow dot.

    ``rows``: columns name, method, gain, gain_low, gain_high, gain_n, verdict; ``method`` gives the colour. A
    row without a gain is left out. ``reason`` (of `Difference`), if there, tells why one is undecided whose
    interval leaves zero out.
    """
    import matplotlib.pyplot as plt

    rows = rows[rows["gain"].notna()]
    figure, axis = plt.subplots(figsize=(9, 0.42 * max(len(rows), 1) + 1.5))
    axis.axvline(0, color="#666666", linewidth=1)
    for place, row in enumerate(rows.itertuples()):
        base = str(row.method).partition(",")[0].removesuffix("+ikd")
        colour = style(base)["color"]
        if pd.notna(row.gain_low):
            axis.plot([row.gain_low, row.gain_high], [place, place], color=colour, linewidth=2)
        axis.plot(
            row.gain, place, marker=MARKERS.get(base, "o"), color=colour, markersize=7,
            markerfacecolor="white" if row.verdict == "undecided" else colour,
        )  # fmt: skip
        told = f"{row.gain:+.2f} (n={int(row.gain_n)})"
        off_zero = pd.notna(row.gain_low) and row.gain_low * row.gain_high > 0
        if row.verdict == "undecided" and off_zero and (why := getattr(row, "reason", "")):
            told += f"\n{why.strip(' ()')}"
        axis.annotate(told, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), list(rows["name"]) if len(rows) else [], fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set(xlabel=f"{unit}; line: 95 % interval (none of one seed), hollow: undecided", title=title)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    if rows.empty:
        axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)
    figure.tight_layout()
    return figure
