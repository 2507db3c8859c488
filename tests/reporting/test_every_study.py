"""Every study builds its table, its figure and its verdict from whatever lies in the run folders."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, replace

import matplotlib
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ikdlib.reporting import ablations, curves, figures, tables  # noqa: E402
from ikdlib.studies import ablations as studies  # noqa: E402
from ikdlib.studies import protocol  # noqa: E402
from ikdlib.studies.grids import questions  # noqa: E402
from ikdlib.studies.variants import Variant  # noqa: E402

METHODS = [Variant(name) for name in ("ce", "kd", "kd+ikd", "dkd", "dkd+ikd", "nkd", "nkd+ikd", "wttm")]


@dataclass(frozen=True)
class Built:
    """What a study shows."""

    shown: dict  # label of the first pair's cell -> its text
    figure: plt.Figure
    sentences: list[str]


def main_study(cells) -> Built:
    table = tables.study_table(cells, protocol.published(), "last")
    sentences = tables.verdicts(table, tables.pooled(cells, "last"))
    return Built(text_of(table), figures.accuracy_dots(table, "last", "A title"), sentences)


def curve_study(setting, series, value, symbol):
    def build(cells) -> Built:
        found = ablations.points(cells, setting)
        said = [ablations.optimum(found, cells[0].pair, series, value, "held_out", symbol)]
        figure = curves.setting_curve(found, setting, ["held_out", "test"], "A title", {series: value})
        return Built(text_of(tables.study_table(cells, protocol.published().head(0), "last")), figure, said)

    return build


def controls_study(cells) -> Built:
    compared = ablations.against(cells, questions("dkd+ikd"), "last")
    said = [f"{row.name}: {row.effect}" for row in compared.itertuples(index=False)]
    table = tables.study_table(cells, protocol.published().head(0), "last")
    return Built(text_of(table), curves.forest(compared, "A title"), said)


def gains_study(setting):
    def build(cells) -> Built:
        found = ablations.points(cells, setting)
        gained = ablations.gains(found, "test")
        said = [f"{row.series} at {row.value:g}: {row.effect}" for row in gained.itertuples()]
        figure = curves.setting_curve(found, setting, ["test", "confidence"], "A title")
        return Built(text_of(tables.study_table(cells, protocol.published().head(0), "last")), figure, said)

    return build


def text_of(table) -> dict:
    first = table[table["pair"] == table["pair"][0]]
    shown = tables.readable(first, "last", "../runs")
    return dict(zip(shown["method"], shown["top-1 % (last epoch)"], strict=True))


@dataclass(frozen=True)
class Case:
    build: object
    pairs: tuple[str, ...]
    variants: list[Variant]
    victim: Variant  # the cell on which the verdict hangs


SAME, DIFFERENT = protocol.SAME_ARCHITECTURE[2:4], protocol.DIFFERENT_ARCHITECTURE[:2]
DKD_IKD = Variant("dkd+ikd")
CASES = {
    "same architecture": Case(main_study, SAME, METHODS, Variant("kd+ikd")),
    "different architecture": Case(main_study, DIFFERENT, METHODS, Variant("kd+ikd")),
    "temperature of the term": Case(
        curve_study("ikd.temperature", "dkd+ikd", 1.0, "T"),
        studies.PAIR,
        studies.term_temperatures(),
        DKD_IKD,
    ),
    "weight of the term": Case(
        curve_study("ikd.weight", "dkd+ikd", 6.5, "λ"), studies.PAIR, studies.weights("dkd+ikd"), DKD_IKD
    ),
    "what the term is": Case(controls_study, studies.PAIR, studies.what_the_term_is(), DKD_IKD),
    "batch size": Case(
        gains_study("recipe.batch_size"), studies.PAIR, studies.batch_sizes(), studies.batch_sizes()[5]
    ),
    "KD temperature": Case(
        gains_study("temperature"), studies.PAIR, studies.kd_temperatures(), studies.kd_temperatures()[4]
    ),
}


def score(variant: Variant, seed: int) -> float:
    """The method as the paper has it is two points above its base, a changed one is one point above."""
    effect = 0 if not variant.method.endswith("+ikd") else 1 if variant.changes else 2
    return 70 + effect + 0.4 * seed + 0.03 * (len(variant.label) * seed % 5)


class Scene:
    """A study's folders: of each pair every cell, the last three missing, half-finished and diverged."""

    def __init__(self, folders, case: Case):
        self.folders, self.case, self.cells = folders, case, []
        for pair in case.pairs:
            *done, missing, half, diverged = [v for v in case.variants if v.label != case.victim.label]
            for variant in [case.victim, *done]:
                runs = [self.finish(variant, seed, score(variant, seed), pair) for seed in (1, 2, 3)]
                self.cells.append(folders.cell(variant.label, *runs, pair=pair))
            for variant, make in (
                (missing, folders.run), (half, folders.unfinished), (diverged, folders.diverged),
            ):  # fmt: skip
                run = make(variant.method, 1, pair=pair, changes=variant.changes)
                self.cells.append(folders.cell(variant.label, run, pair=pair))

    def finish(self, variant, seed, top1, pair):
        recorded = {"held_out_top1": top1 - 1, "test_confidence": top1 - 20}
        return self.folders.finished(
            variant.method, seed, top1, pair=pair, changes=variant.changes, recorded=recorded
        )

    def build(self) -> Built:
        return self.case.build(self.cells)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(params=CASES)
def scene(request, folders) -> Scene:
    return Scene(folders, CASES[request.param])


def test_it_has_a_table_a_figure_and_a_verdict(scene):
    built = scene.build()
    assert list(built.shown) == [cell.method for cell in scene.cells if cell.pair == scene.case.pairs[0]]
    *done, missing, half, diverged = built.shown.values()
    assert (missing, half, diverged) == ("not run", "not run", "1 diverged")
    assert all(text.endswith("(n=3)") for text in done)
    assert ": supported" in str(built.sentences[0])
    picture = io.BytesIO()
    built.figure.savefig(picture, format="png", dpi=40)
    assert picture.getvalue().startswith(b"\x89PNG")


def test_one_changed_result_flips_its_verdict(scene):
    before = [str(line) for line in scene.build().sentences]
    for pair in scene.case.pairs:
        scene.finish(scene.case.victim, 1, 40.0, pair)
    after = [str(line) for line in scene.build().sentences]
    assert len(before) == len(after)
    assert ": supported" in before[0] and ": undecided" in after[0]
    for pair in scene.case.pairs:
        for seed in (2, 3):
            scene.finish(scene.case.victim, seed, 40.0 + 0.4 * seed, pair)
        scene.finish(scene.case.victim, 1, 40.4, pair)
    assert ": contradicted" in str(scene.build().sentences[0])


def test_without_its_folders_a_cell_is_not_run(scene):
    before = scene.build()
    for cell in scene.cells:
        if cell.method == scene.case.victim.label:
            for run in cell.runs:
                shutil.rmtree(run.folder)
    after = scene.build()
    label = scene.case.victim.label
    assert after.shown == {**before.shown, label: "not run"} != before.shown
    assert str(before.sentences[0]) not in map(str, after.sentences), "what hung on it is not said any more"


def test_without_any_run_it_still_says_so(scene):
    shutil.rmtree(scene.folders.root)
    built = scene.build()
    assert set(built.shown.values()) == {"not run"}
    built.figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert not any("supported" in str(line) for line in built.sentences)


def test_the_order_of_the_runs_changes_nothing(scene):
    before = scene.build()
    scene.cells = [replace(cell, runs=cell.runs[::-1]) for cell in scene.cells]
    after = scene.build()
    assert list(map(str, before.sentences)) == list(map(str, after.sentences)) and before.shown == after.shown
