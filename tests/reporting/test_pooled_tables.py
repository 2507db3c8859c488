"""Gains pooled over pairs and judged together, published numbers and links, in tables of hand-made runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ikdlib.reporting import tables
from ikdlib.reporting.collect import by_seed
from ikdlib.reporting.statistics import corrected, paired_difference, pooled_difference
from ikdlib.studies import protocol

NOBODY = protocol.published().head(0)
PAIRS = ("resnet56/resnet20", "resnet110/resnet32", "vgg13/vgg8")


def pair_of_cells(folders, pair, differences, method="kd", **more):
    base = {seed: 70 + 0.3 * seed for seed in range(1, len(differences) + 1)}
    treated = {seed: base[seed] + d for seed, d in enumerate(differences, start=1)}
    names = (method, f"{method}+ikd")
    return [folders.changed(n, {}, v, pair=pair, **more) for n, v in zip(names, (base, treated), strict=True)]


GAINS = ([0.6, 0.8, 0.75], [0.35, 0.6, 0.5, 0.45], [-0.1, 0.6])


@pytest.fixture
def cells(folders):
    """kd with and without the term on three pairs, dkd on the first with one seed, nkd not run."""
    made = [
        cell
        for pair, values in zip(PAIRS, GAINS, strict=True)
        for cell in pair_of_cells(folders, pair, values)
    ]
    made += pair_of_cells(folders, PAIRS[0], [0.3], "dkd")
    return [
        *made,
        folders.cell("nkd", folders.run("nkd", 1)),
        folders.cell("nkd+ikd", folders.run("nkd+ikd", 1)),
    ]


def test_a_studys_gains_are_judged_together(cells):
    table = tables.study_table(cells, NOBODY, "last")
    gained = table[table["gain"].notna()].set_index(["pair", "method"])
    assert len(gained) == 4
    ps = [stats.ttest_1samp(values, 0).pvalue for values in GAINS]
    kd = gained.loc[[(pair, "kd+ikd") for pair in PAIRS]]
    np.testing.assert_allclose(kd["p"].astype(float), ps, rtol=1e-6)
    first, second, third = sorted(ps)
    steps = [3 * first, max(3 * first, 2 * second), max(3 * first, 2 * second, third)]
    assert sorted(kd["p_holm"]) == pytest.approx(steps)
    assert list(kd["verdict"]) == ["supported", "supported", "undecided"]
    assert pd.isna(gained.loc[(PAIRS[0], "dkd+ikd"), "p_holm"]), "one seed has no p and counts for nothing"


def test_more_cells_can_take_a_verdict_away(folders):
    """p = 0.04 alone; beside another of no effect it is no finding."""
    few = pair_of_cells(folders, PAIRS[0], [0.5, 0.95, 1.2, 0.25])
    (alone,) = tables.verdicts(tables.study_table(few, NOBODY, "last"))
    more = pair_of_cells(folders, PAIRS[1], [0.5, -0.5, 0.2, -0.3])
    beside = tables.verdicts(tables.study_table(few + more, NOBODY, "last"))[0]
    assert alone.endswith(": supported") and ": undecided (Holm's p 0.0" in beside


def test_cells_with_changed_settings_are_a_family_of_their_own(folders, cells):
    """However many variants were run, they take no verdict from the methods as they are; nor the reverse."""
    plain = tables.study_table(cells, NOBODY, "last").set_index(["pair", "method"])
    values = {1: 71.2, 2: 71.1, 3: 71.6}
    changed = [folders.changed("kd+ikd", {"ikd.temperature": t}, values) for t in (2.0, 3.0, 4.0)]
    both = tables.study_table([*cells, *changed], NOBODY, "last").set_index(["pair", "method"])
    pd.testing.assert_series_equal(both["p_holm"].loc[plain.index], plain["p_holm"])
    assert both["verdict"].loc[plain.index].equals(plain["verdict"])
    base = [70 + 0.3 * seed for seed in (1, 2, 3)]
    p = stats.ttest_rel(list(values.values()), base).pvalue
    those = both.loc[[(PAIRS[0], cell.method) for cell in changed]]
    assert list(those["p_holm"]) == pytest.approx([3 * p] * 3)


def test_over_one_pair_it_is_that_cells_own_gain_judged_among_all_cells(folders):
    """Of kd two pairs are pooled; dkd's one pair is one of three tests, and nkd's one seed is none."""
    made = pair_of_cells(folders, PAIRS[0], GAINS[0]) + pair_of_cells(folders, PAIRS[1], GAINS[1])
    made += pair_of_cells(folders, PAIRS[0], [0.5, 0.95, 1.2, 0.25], "dkd")
    made += pair_of_cells(folders, PAIRS[0], [0.3], "nkd")
    rows = tables.pooled(made, "last").set_index("method")
    ps = [stats.ttest_1samp(v, 0).pvalue for v in (GAINS[0], GAINS[1], [0.5, 0.95, 1.2, 0.25])]
    assert ps[2] == max(ps) and rows.loc["dkd", "p"] == pytest.approx(ps[2])
    first, second, third = sorted(ps)
    assert rows.loc["dkd", "p_holm"] == pytest.approx(max(3 * first, 2 * second, third))
    assert pd.isna(rows.loc["nkd", "p_holm"])
    assert rows.loc["kd", "p_holm"] == rows.loc["kd", "p"], "kd is no single cell, and alone over pairs"
    assert rows["pairs"].to_dict() == {"kd": 2, "dkd": 1, "nkd": 1}
    table = tables.study_table(made, NOBODY, "last").set_index("method")
    for name in ("dkd", "nkd"):
        cell, over = table.loc[f"{name}+ikd"], rows.loc[name]
        for column in ("gain", "gain_low", "gain_high", "gain_n", "p", "p_holm", "verdict", "seeds_needed"):
            assert cell[column] == over[column] or (pd.isna(cell[column]) and pd.isna(over[column])), column


@pytest.mark.parametrize(
    "gains, verdict", [((0.5, 0.95, 1.2, 0.25), "undecided"), ((1, 1.1, 1.05), "supported")]
)
def test_one_pairs_pooled_verdict_goes_with_the_cells_beside_it(folders, gains, verdict):
    few = pair_of_cells(folders, PAIRS[0], gains)
    assert list(tables.pooled(few, "last")["verdict"]) == ["supported"]
    more = pair_of_cells(folders, PAIRS[0], [0.5, -0.5, 0.2, -0.3], "dkd")
    assert list(tables.pooled(few + more, "last")["verdict"]) == [verdict, "undecided"]


def test_a_pair_of_one_seed_stays_out_where_others_have_more(folders):
    """Its effect is as uncertain as theirs are not; it has a row of its own."""
    made = pair_of_cells(folders, PAIRS[0], GAINS[0]) + pair_of_cells(folders, PAIRS[1], [-5.0])
    (row,) = tables.pooled(made, "last").to_dict("records")
    assert (row["pairs"], row["over"], row["gain_n"]) == (1, PAIRS[0], 3)
    assert row["gain"] == pytest.approx(np.mean(GAINS[0])) and row["verdict"] == "supported"
    single = tables.by_pair(made, "last").set_index("over")
    assert single.loc[PAIRS[1], "gain"] == pytest.approx(-5.0)
    assert list(single["verdict"]) == ["supported", "undecided"]
    made += pair_of_cells(folders, PAIRS[2], GAINS[2])
    (row,) = tables.pooled(made, "last").to_dict("records")
    assert row["over"] == f"{PAIRS[0]}, {PAIRS[2]}"
    assert row["gain_n"] == len(GAINS[0]) + len(GAINS[2])
    ones = pair_of_cells(folders, PAIRS[0], [1.0], "dkd") + pair_of_cells(folders, PAIRS[1], [-3.0], "dkd")
    (row,) = tables.pooled(ones, "last").to_dict("records")
    assert (row["gain"], row["gain_n"], row["verdict"]) == (pytest.approx(-1.0), 2, "undecided")


def test_rows_of_several_pairs_are_judged_together_and_named_while_they_are_few(folders):
    made = pair_of_cells(folders, PAIRS[0], GAINS[0]) + pair_of_cells(folders, PAIRS[1], GAINS[1])
    weak = [[0.5, 0.9, 0.0], [0.4, -0.2, 0.5]]
    for pair, values in zip(PAIRS, weak, strict=False):
        made += pair_of_cells(folders, pair, values, "dkd")
    rows = tables.pooled(made, "last").set_index("method")
    assert list(rows["over"]) == [f"{PAIRS[0]}, {PAIRS[1]}"] * 2
    assert rows.loc["kd", "p"] < rows.loc["dkd", "p"]
    assert rows.loc["kd", "p_holm"] == pytest.approx(2 * rows.loc["kd", "p"])
    assert rows.loc["dkd", "p_holm"] == pytest.approx(rows.loc["dkd", "p"])
    more = ["resnet56/resnet20", "resnet110/resnet20", "resnet110/resnet32", "vgg13/vgg8"]
    many = [cell for pair in more for cell in pair_of_cells(folders, pair, GAINS[0], "nkd")]
    assert list(tables.pooled(many, "last")["over"]) == ["4 pairs"]


def test_pairs_that_disagree_give_no_verdict_over_them(folders):
    made = pair_of_cells(folders, PAIRS[0], [3.3, 3.5, 3.1, 3.6, 2.9]) + pair_of_cells(
        folders, PAIRS[1], [-1.5, -1.6]
    )
    table, over = tables.study_table(made, NOBODY, "last"), tables.pooled(made, "last")
    first, helps, harms = tables.verdicts(table, over)
    assert over["gain_low"][0] > 0 and first.endswith("(n=7): undecided (the pairs disagree)")
    assert helps.endswith(": supported") and not harms.endswith(": supported")


def test_cross_entropy_is_pooled_over_no_more_than_one_pair(folders):
    """Its runs are those of the student, the same beside every teacher."""
    base, treated = (
        folders.changed(name, {}, {1: 70.0 + more, 2: 70.3 + more, 3: 70.1 + 2 * more}, pair=PAIRS[0])
        for name, more in (("ce", 0.0), ("ce+ikd", 0.4))
    )
    (row,) = tables.pooled([base, treated], "last").to_dict("records")
    assert (row["method"], row["pairs"], row["gain_n"]) == ("ce", 1, 3)
    other = "resnet110/resnet20"
    twice = [base, treated, *(folders.cell(cell.method, *cell.runs, pair=other) for cell in (base, treated))]
    assert tables.pooled(twice, "last").empty


def test_a_row_makes_its_difference_again(cells, folders):
    cells += pair_of_cells(folders, PAIRS[1], [0.5, -0.5, 0.2, -0.3], "dkd")
    by_name = {(cell.pair, cell.method): by_seed(cell.runs, "last") for cell in cells}
    table = tables.study_table(cells, NOBODY, "last")
    found = {(row["pair"], row["method"]): tables.difference_of(row)
             for _, row in table[table["gain"].notna()].iterrows()}  # fmt: skip
    names = list(found)
    expected = corrected([paired_difference(by_name[p, m], by_name[p, m[:-4]]) for p, m in names])
    assert list(found.values()) == [replace(d, correlation=None) for d in expected] and len(found) == 5
    assert [str(d) for d in found.values()] == [str(d) for d in expected]
    over = tables.pooled(cells[:6] + cells[-2:], "last")
    kd, dkd = (tables.difference_of(row) for row in over.to_dict("records"))
    pairs = [(by_name[pair, "kd+ikd"], by_name[pair, "kd"]) for pair in PAIRS]
    assert kd == replace(pooled_difference(pairs), holm=kd.p)
    assert dkd == replace(expected[names.index((PAIRS[1], "dkd+ikd"))], correlation=None)


def test_the_pooled_gain_is_that_of_the_pairs_differences(cells):
    """That `pooled_difference` is a linear model's is test_pooling's to prove."""
    rows = tables.pooled(cells, "last").set_index("method")
    expected = pooled_difference([(dict(enumerate(v)), dict.fromkeys(range(9), 0.0)) for v in GAINS])
    kd = rows.loc["kd"]
    found = kd[["gain", "gain_low", "gain_high", "p"]].astype(float)
    np.testing.assert_allclose(found, (expected.mean, expected.low, expected.high, expected.p), rtol=1e-6)
    assert expected.mean == pytest.approx(np.mean([np.mean(values) for values in GAINS]))
    assert (kd["pairs"], kd["gain_n"], kd["verdict"]) == (3, 9, "supported")
    assert rows.loc["dkd", "pairs"] == 1 and rows.loc["dkd", "verdict"] == "undecided"
    assert list(rows.index) == ["kd", "dkd"], "nkd was not run"


def test_pooled_leaves_out_changed_settings_and_pairs_with_one_side(folders, cells):
    expected = tables.pooled(cells, "last")
    other = folders.changed("kd+ikd", {"ikd.temperature": 2.0}, {1: 10.0, 2: 11.0})
    lonely = folders.changed("kd+ikd", {}, {1: 10.0, 2: 11.0}, pair="resnet32x4/resnet8x4")
    pd.testing.assert_frame_equal(tables.pooled([*cells, other, lonely], "last"), expected)
    none = tables.pooled([], "last")
    assert tables.pooled(cells[-2:], "last").empty and none.empty and list(none) == list(expected)


def test_verdicts_begin_with_what_holds_over_the_pairs(cells):
    table, over = tables.study_table(cells, NOBODY, "last"), tables.pooled(cells, "last")
    lines = tables.verdicts(table, over)
    assert lines[0].startswith(f"over {', '.join(PAIRS)}: kd+ikd minus kd: +0.4")
    assert lines[0].endswith("(n=9): supported")
    assert lines[1:] == tables.verdicts(table) and len(lines) == 5, "dkd has one pair, and no line over pairs"
    assert lines[1].startswith(f"{PAIRS[0]}: kd+ikd minus kd: +0.72")


def test_one_changed_result_flips_a_sentence(folders, cells):
    before = tables.verdicts(tables.study_table(cells, NOBODY, "last"), tables.pooled(cells, "last"))
    cells[1] = folders.changed("kd+ikd", {}, {1: 40.0, 2: 71.4, 3: 71.6})
    after = tables.verdicts(tables.study_table(cells, NOBODY, "last"), tables.pooled(cells, "last"))
    assert ": supported" in before[0] and ": supported" in before[1]
    assert ": undecided" in after[0] and ": undecided" in after[1] and before[2:] == after[2:]


def test_ours_minus_published_stays_within_one_convention(folders):
    published = pd.DataFrame(
        [("resnet56", "resnet20", method, 70.0, how, 72.0, "somewhere") for method, how in
         (("kd", "last"), ("dkd", "best"), ("nkd", "not stated"), ("wttm", "last"))],
        columns=["teacher", "student", "method", "top1", "convention", "teacher_top1", "source"],
    )  # fmt: skip
    made = [folders.changed(name, {}, {1: 71.0, 2: 72.0}) for name in ("kd", "dkd", "nkd", "kd+ikd")]
    table = tables.study_table([*made, folders.cell("wttm", folders.run("wttm", 1))], published, "last")
    found = table.set_index("method")["minus_published"]
    assert (found["kd"], found["dkd"]) == (1.5, 2.5), "the best epoch is a point more"
    assert found[["nkd", "kd+ikd", "wttm"]].isna().all()
    shown = tables.readable(table, "last").set_index("method")["ours minus published"]
    ours = " (our teacher +5.50)"
    assert list(shown) == [f"+1.50{ours}", f"+2.50{ours}", "", "", ""], "77.5 where the published had 72"
    same = tables.study_table(made, published.assign(teacher_top1=77.5), "last")
    shown = tables.readable(same, "last").set_index("method")["ours minus published"]
    assert (shown["kd"], shown["dkd"]) == ("+1.50", "+2.50")


@pytest.mark.parametrize("folders_at", ["../runs", "by id"])
def test_cells_link_their_runs_by_seed(folders, folders_at):
    made = [folders.changed("kd+ikd", {}, {1: 70.0, 12: 71.0}), folders.cell("dkd", folders.run("dkd", 1))]
    ids = [run.spec.run_id for run in made[0].runs]
    ways = dict(zip(ids, ("short/runs", "paper/runs"), strict=True))
    table = tables.study_table(made, NOBODY, "last")
    shown = tables.readable(table, "last", ways if folders_at == "by id" else folders_at)["seeds"]
    roots = list(ways.values()) if folders_at == "by id" else [folders_at] * 2
    ids = [run_id.replace("+", "%2B") for run_id in ids]
    assert shown[0] == f"[1]({roots[0]}/{ids[0]}/) [12]({roots[1]}/{ids[1]}/)" and shown[1] == ""
    assert not {"runs", "seeds"} & set(tables.readable(table, "last"))
