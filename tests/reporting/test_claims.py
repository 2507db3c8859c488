"""The paper's claims beside what hand-made runs say of them: the page, claims 1 and 2."""

from __future__ import annotations

import random
import shutil

import pandas as pd
import pytest
from claim_pages import GLYPHS, KD, KD_IKD, ON_CIFAR, OTHER, PAIR, WEIGHT, T, page, plus, runs, said
from scipy import stats

from ikdlib.reporting import claims, collect, report, tables
from ikdlib.reporting.statistics import pooled_difference
from ikdlib.studies import protocol
from ikdlib.studies.grids import TEMPERATURES, WEIGHTS

SUITS = {
    (T, "dkd+ikd"): "T = 1.0 suits the term best.", (WEIGHT, "dkd+ikd"): "λ = 6.5 suits DKD+IKD best.",
    (WEIGHT, "nkd+ikd"): "λ = 6.0 suits NKD+IKD best.",
}  # fmt: skip
CURVES = [
    (T, "dkd+ikd", 1.0, TEMPERATURES),
    (WEIGHT, "dkd+ikd", 6.5, WEIGHTS),
    (WEIGHT, "nkd+ikd", 6.0, WEIGHTS),
]
NOISE = ((0.0, 0.02, -0.03), (0.03, -0.01, 0.0), (-0.02, 0.0, 0.03))


def curve_runs(folders, setting, method, best, values, gap=1.0, holdout=50, recorded=True, **more):
    """Three seeds at each value; on held-out images ``best`` is ``gap`` above all, on test ones far below."""
    made = []
    for place, value in enumerate(values):
        plain = setting == WEIGHT and not value  # without the term
        for seed, noise in enumerate(NOISE[place % 3], start=1):
            held_out = {"held_out_top1": 66 + 0.3 * seed + noise + gap * (value == best)} if recorded else {}
            made.append(folders.finished(
                method.removesuffix("+ikd") if plain else method, seed, 70 + noise - 5 * (value == best),
                changes={} if plain else {setting: value}, recorded=held_out, holdout=holdout, **more,
            ))  # fmt: skip
    return made


def test_without_runs_every_claim_has_a_row_that_says_so():
    rows = claims.page([])
    assert len(rows) == 21 and rows["sentence"].is_unique
    assert (
        list(rows["verdict"]) == ["not run"] * 4 + ["not studied"] * 8 + ["not run"] * 7 + ["not studied"] * 2
    )
    assert rows["claim"].value_counts().to_dict() == {"1": 12, "2": 3, "3": 4, "4": 2}
    lines = claims.readable(rows).splitlines()
    assert len(lines) == 21 and lines[0] == f"- **1. {ON_CIFAR}** *not run*"
    assert lines[-1].endswith("class means over an epoch do not.** *not studied*")


def test_only_the_asked_claims():
    assert list(claims.page([], numbers=("2", "4"))["claim"]) == ["2", "2", "2", "4", "4"]


def test_claim_1_is_the_gain_pooled_over_the_pairs(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD), *runs(folders, "kd", KD, pair=OTHER)]
    more = plus(KD, 0.2, 0.6, 0.5)
    found += runs(folders, "kd+ikd", more, pair=OTHER)
    row, *each = said(found, ON_CIFAR).to_dict("records")
    expected = pooled_difference([(KD_IKD, KD), (more, KD)])
    assert row["effect"] == f"{expected.mean:+.2f} [{expected.low:+.2f}, {expected.high:+.2f}] (n=6)"
    both = f"{PAIR}, {OTHER}, top-1 points"
    assert (row["verdict"], row["measured"], row["n"]) == ("supported", both, 6)
    assert [(one["measured"], one["n"]) for one in each] == [
        (f"{PAIR}, top-1 points", 3), (f"{OTHER}, top-1 points", 3),
    ]  # fmt: skip
    assert [one["effect"].split()[0] for one in each] == ["+0.80", "+0.43"]
    assert row["table"] == "cifar100, 3 epochs, fp32, paper protocol"
    others = page(found)
    others = others[(others["claim"] == "1") & (others["sentence"] != ON_CIFAR)]
    on_cifar = others["sentence"].str.endswith(" on CIFAR-100.")
    assert set(others[on_cifar]["verdict"]) == {"not run"}
    assert set(others[~on_cifar]["verdict"]) == {"not studied"}, "those data sets cannot be loaded yet"


def test_claim_1_flips_with_one_changed_result_and_goes_with_its_folder(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    one = claims.readable(said(found, ON_CIFAR))
    low, high = stats.ttest_rel(list(KD_IKD.values()), list(KD.values())).confidence_interval(0.95)
    words = f"    - **supported**: +0.80 [{low:+.2f}, {high:+.2f}] (n=3); resnet56/resnet20, top-1 points; "
    assert f"{words}cifar100" in one
    folders.finished("kd+ikd", 1, 60.0)
    two = claims.readable(said(found, ON_CIFAR))
    assert "**undecided**, more than 30 seeds would tell: -2.83" in two
    for seed, value in plus(KD, -0.8, -0.7, -0.9).items():
        folders.finished("kd+ikd", seed, value)
    assert "**contradicted**: -0.80" in claims.readable(said(found, ON_CIFAR))
    for run in found[3:]:
        shutil.rmtree(run.folder)
    assert claims.readable(said(found, ON_CIFAR)) == f"- **1. {ON_CIFAR}** *not run*"


def test_one_seed_decides_nothing(folders):
    found = [folders.finished("kd", 1, 70.0), folders.finished("kd+ikd", 1, 75.0)]
    (row,) = said(found, ON_CIFAR).to_dict("records")
    assert row["verdict"] == "undecided" and row["effect"] == "+5.00 (n=1, no interval from one seed)"


def test_each_table_is_judged_by_itself(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    found += [*runs(folders, "kd", KD_IKD, epochs=6), *runs(folders, "kd+ikd", KD, epochs=6)]
    rows = said(found, ON_CIFAR)
    assert dict(zip(rows["table"].str[:18], rows["verdict"], strict=True)) == {
        "cifar100, 3 epochs": "supported", "cifar100, 6 epochs": "contradicted",
    }  # fmt: skip


def test_one_number_has_one_verdict_on_the_page_in_the_table_and_in_the_headline(folders):
    """KD's gain alone has p = 0.04; beside DKD's of no effect it is no finding, wherever it stands."""
    four = {**KD, 4: 70.2}
    found = [*runs(folders, "kd", four), *runs(folders, "kd+ikd", plus(four, 0.5, 0.95, 1.2, 0.25))]
    p = stats.ttest_1samp([0.5, 0.95, 1.2, 0.25], 0).pvalue
    assert 0.025 < p < 0.05
    for expected in ("supported", "undecided"):
        ((table,), _) = collect.tables(found)
        rows = tables.study_table(table.cells, protocol.published().head(0), table.primary)
        (cell,) = rows[rows["method"] == "kd+ikd"].to_dict("records")
        (over,) = tables.pooled(table.cells, table.primary).query("method == 'kd'").to_dict("records")
        (claim,) = said(found, ON_CIFAR).to_dict("records")
        (line,) = [x for x in report.headline_words(report.headline([table])).splitlines() if "- kd" in x]
        assert {cell["verdict"], over["verdict"], claim["verdict"]} == {expected}
        why = f" (Holm's p {2 * p:.3f})" if expected == "undecided" else ""
        assert line.endswith(f": {expected}{why}")
        assert f"**{expected}**{why}: +0.7" in claims.readable(said(found, ON_CIFAR)), "an interval off zero"
        assert cell["p_holm"] == over["p_holm"] == pytest.approx(p if expected == "supported" else 2 * p)
        found += runs(folders, "dkd", four) + runs(folders, "dkd+ikd", plus(four, 0.5, -0.5, 0.2, -0.3))


@pytest.mark.parametrize("treated", [KD_IKD, KD, {1: 69.0, 2: 69.3, 3: 68.9}, {1: 70.9}])
def test_drawn_characters_decide_nothing_whatever_was_measured(folders, treated):
    found = [*runs(folders, "kd", KD, **GLYPHS), *runs(folders, "kd+ikd", treated, **GLYPHS)]
    (row,) = said(found, ON_CIFAR).to_dict("records")
    assert row["verdict"] == "demo" and row["n"] == len(treated) and row["table"].startswith("glyphs100")
    assert pd.isna(row["seeds_needed"]) and "seeds would tell" not in claims.readable(page(found))
    assert set(page(found)["verdict"]) == {"demo", "not run", "not studied"}


def test_drawn_characters_decide_nothing_of_a_curve_and_stand_beside_what_does(folders):
    found = curve_runs(folders, T, "dkd+ikd", 1.0, TEMPERATURES, **GLYPHS)
    found += [*runs(folders, "kd", KD, **GLYPHS), *runs(folders, "kd+ikd", KD, **GLYPHS)]
    found += [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD)]
    assert list(said(found, SUITS[T, "dkd+ikd"])["verdict"]) == ["demo"]
    assert sorted(said(found, ON_CIFAR)["verdict"]) == ["demo", "supported"]


def test_the_order_of_runs_changes_nothing(folders):
    found = [*runs(folders, "kd", KD), *runs(folders, "kd+ikd", KD_IKD), folders.diverged("kd+ikd", 4)]
    found += curve_runs(folders, T, "dkd+ikd", 1.0, (0.5, 1.0, 2.0), gap=-1.0)
    found += [folders.unfinished("dkd", 1, holdout=50), folders.finished("ce", 1, 60.0)]
    expected = page(found)
    assert set(expected["verdict"]) == {"supported", "contradicted", "not run", "not studied"}
    for seed in range(3):
        pd.testing.assert_frame_equal(page(random.Random(seed).sample(found, len(found))), expected)


# Claim 2


@pytest.mark.parametrize("setting, method, best, grid", CURVES)
def test_claim_2_is_supported_where_the_whole_grid_is_below_on_held_out_images(
    folders, setting, method, best, grid
):
    found = curve_runs(folders, setting, method, best, grid)
    (row,) = said(found, SUITS[setting, method]).to_dict("records")
    assert row["verdict"] == "supported" and row["effect"].startswith(("+0.9", "+1.0"))
    assert row["measured"].startswith(f"{PAIR} {method}: ") and row["measured"].endswith(", held-out top-1")
    assert f"the best of the {len(grid) - 1} others" in row["measured"] and "without" not in row["measured"]
    assert row["table"].endswith("50 images a class held apart")
    others = page(found, numbers=("2",))
    assert set(others[others["sentence"] != row["sentence"]]["verdict"]) == {"not run"}


@pytest.mark.parametrize("setting, method, best, grid", CURVES)
def test_claim_2_is_undecided_while_a_value_of_the_grid_is_missing_and_names_it(
    folders, setting, method, best, grid
):
    left = [value for value in grid if value not in (4.0, 2.0)]
    (row,) = said(curve_runs(folders, setting, method, best, left), SUITS[setting, method]).to_dict("records")
    assert row["verdict"] == "undecided" and row["measured"].endswith(", without 2, 4, held-out top-1")
    more = curve_runs(folders, setting, method, best, left, gap=-1.0)
    (row,) = said(more, SUITS[setting, method]).to_dict("records")
    assert row["verdict"] == "contradicted", "one value that is better is enough"


@pytest.mark.parametrize("setting, method, best, grid", CURVES)
def test_claim_2_is_not_judged_on_test_images(folders, setting, method, best, grid):
    """The test images would contradict it."""
    whole = curve_runs(folders, setting, method, best, grid, holdout=0, recorded=False)
    assert set(page(whole, numbers=("2",))["verdict"]) == {"not run"}
    unrecorded = curve_runs(folders, setting, method, best, grid, recorded=False)
    assert set(page(unrecorded, numbers=("2",))["verdict"]) == {"not run"}


def test_a_value_without_a_held_out_accuracy_or_a_common_seed_was_not_compared(folders):
    four = [value for value in TEMPERATURES if value != 3.0]
    found = curve_runs(folders, T, "dkd+ikd", 1.0, four)
    more = curve_runs(folders, T, "dkd+ikd", 1.0, (3.0,), recorded=False)
    (row,) = said(found + more, SUITS[T, "dkd+ikd"]).to_dict("records")
    assert row["verdict"] == "undecided" and ", without 3, " in row["measured"]
    found.append(folders.finished(
        "dkd+ikd", 9, 70.0, changes={T: 3.0}, recorded={"held_out_top1": 60.0}, holdout=50
    ))  # fmt: skip
    assert list(said(found, SUITS[T, "dkd+ikd"])["verdict"]) == ["undecided"]


def test_the_tables_own_cells_are_no_curve(folders):
    found = curve_runs(folders, WEIGHT, "dkd+ikd", 6.5, (0.0, 6.5))
    assert list(said(found, SUITS[WEIGHT, "dkd+ikd"])["verdict"]) == ["not run"]
