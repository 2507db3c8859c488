"""bf16 against fp32: which runs are compared, and that the verdict is what two one-sided tests say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ikdlib import __main__
from ikdlib.reporting import equivalence as reporting
from ikdlib.runs import Run
from ikdlib.studies import equivalence
from ikdlib.studies.study import StudySettings

SIXTEEN = list(range(1, 17))


@pytest.fixture
def settings(studies) -> StudySettings:
    """Of a results folder that has the fp32 teacher; all else in them is for another study."""
    wanted = studies.settings(methods="ce,kd", seeds="5", epochs=3, pairs="resnet14/resnet8")
    job = equivalence.teacher_job(wanted)
    assert studies.train(job) == 0
    equivalence.study(wanted, "fp32").keep_teacher(job)
    return wanted


def specs(settings: StudySettings) -> list:
    return [job.spec for job in equivalence.jobs(settings)]


def finish(run: Run, top1: float, status: str = "finished") -> None:
    """A run folder made by hand; the best epoch is another number than the last."""
    run.begin()
    scores = {"last": {"epoch": 8, "top1": top1, "top5": 99.0}, "best": {"epoch": 2, "top1": 97.0}}
    run.finish({"status": status, "epochs": 8, **(scores if status == "finished" else {})})


# Which runs


def test_what_was_fixed_before_the_first_run():
    """Numbers that may not move once a result is known."""
    assert (equivalence.PAIR, equivalence.METHOD) == ("resnet8/resnet8", "dkd+ikd")
    assert equivalence.EPOCHS == 8 and list(equivalence.SEEDS) == SIXTEEN and equivalence.MARGIN == 0.5


def test_runs_come_seed_by_seed_fp32_then_bf16(settings):
    """So that whatever is finished when it stops comes in pairs."""
    order = [(spec.seed, spec.recipe.precision) for spec in specs(settings)]
    assert order == [(seed, precision) for seed in SIXTEEN for precision in ("fp32", "bf16")]
    for spec in specs(settings):
        assert spec.pair == "resnet8/resnet8" and str(spec.method) == "dkd+ikd"
        assert spec.recipe.epochs == 8 and spec.data == "cifar100" and spec.protocol == "paper"


def test_the_two_of_a_pair_differ_in_precision_alone(settings):
    every = specs(settings)
    for exact, rounded in zip(every[0::2], every[1::2], strict=True):
        assert exact.run_id != rounded.run_id
        assert rounded.updated(recipe=rounded.recipe.updated(precision="fp32")) == exact
    assert len({spec.run_id for spec in every}) == 32


def test_one_teacher_trained_in_fp32_teaches_all(settings):
    """Its weights as they lie in the one file there is, named by their digest in every spec."""
    (file,) = Path(settings.results, "teachers").glob("*.safetensors")
    jobs = equivalence.jobs(settings)
    assert {job.teacher for job in jobs} == {str(file)}
    assert len({job.spec.teacher_sha256 for job in jobs}) == 1
    trained = equivalence.study(settings, "fp32").teacher_job("resnet8").spec
    assert file.stem == trained.run_id
    assert trained.recipe.precision == "fp32" and trained.recipe.epochs == 8


def test_a_teacher_trained_in_bf16_changes_nothing(studies, settings):
    """Another study may leave one: then each arm would have a teacher of its own, and the pairs would differ
    in more than their precision."""
    before = specs(settings)
    other = equivalence.study(settings, "bf16")
    job = other.teacher_job("resnet8")
    assert job.spec.recipe.precision == "bf16" and studies.train(job) == 0
    other.keep_teacher(job)
    assert len(list(Path(settings.results, "teachers").glob("*.safetensors"))) == 2
    after = specs(settings)
    assert len({spec.teacher_sha256 for spec in after}) == 1
    assert [spec.run_id for spec in after] == [spec.run_id for spec in before]


def test_a_teacher_trained_in_bf16_is_not_the_fp32_teacher(studies):
    """Where it is the only one there is, the one that was planned is still to be trained."""
    wanted = studies.settings()
    other = equivalence.study(wanted, "bf16")
    job = other.teacher_job("resnet8")
    assert studies.train(job) == 0
    other.keep_teacher(job)
    missing = equivalence.teacher_job(wanted)
    assert missing is not None and missing.spec.recipe.precision == "fp32"


def test_the_teacher_is_asked_for_once(studies):
    wanted = studies.settings()
    assert equivalence.jobs(wanted) == [] and equivalence.runs(wanted) == ([], [])
    job = equivalence.teacher_job(wanted)
    assert job.spec.student == "resnet8" and str(job.spec.method) == "ce"
    assert job.spec.recipe.precision == "fp32" and job.spec.recipe.epochs == 8
    assert studies.train(job) == 0
    equivalence.study(wanted, "fp32").keep_teacher(job)
    assert equivalence.teacher_job(wanted) is None
    assert len(equivalence.jobs(wanted)) == 32


def test_settings_say_where_things_lie_and_nothing_more(settings):
    jobs = equivalence.jobs(settings)
    assert {job.device for job in jobs} == {"cpu"} and not any(job.keep_logits for job in jobs)
    assert {Path(job.runs) for job in jobs} == {Path(settings.results, "short", "runs")}
    changed = settings.updated(methods="kd", seeds="9", epochs=1, pairs="", profile="paper", precision="bf16")
    assert specs(changed) == specs(settings)


def test_runs_are_those_of_the_jobs_apart_by_precision(settings):
    exact, rounded = equivalence.runs(settings)
    assert [run.spec.seed for run in exact] == SIXTEEN == [run.spec.seed for run in rounded]
    assert {run.spec.recipe.precision for run in exact} == {"fp32"}
    assert {run.spec.recipe.precision for run in rounded} == {"bf16"}


# The table


def test_a_row_a_seed_that_both_have_finished(settings):
    """Unfinished, diverged and unpaired runs are left out; the last epoch counts, not the best."""
    exact, rounded = equivalence.runs(settings)
    for number in (0, 1, 2, 4, 5):
        finish(exact[number], 50.0 + number)
    for number in (0, 1, 3, 5):
        finish(rounded[number], 50.25 - number)
    finish(rounded[4], 0.0, "diverged")
    rounded[2].begin()
    rounded[2].checkpoint.write_bytes(b"half")
    table = reporting.table(reversed(exact), rounded)
    assert table.drop(columns="runs").to_dict("records") == [
        {"seed": 1, "fp32": 50.0, "bf16": 50.25, "difference": 0.25},
        {"seed": 2, "fp32": 51.0, "bf16": 49.25, "difference": -1.75},
        {"seed": 6, "fp32": 55.0, "bf16": 45.25, "difference": -9.75},
    ]
    for row, number in zip(table.itertuples(), (0, 1, 5), strict=True):
        assert row.runs.split() == [exact[number].spec.run_id, rounded[number].spec.run_id]


def test_nothing_finished_is_an_empty_table(settings):
    table = reporting.table(*equivalence.runs(settings))
    assert len(table) == 0 and list(table.columns) == ["seed", "fp32", "bf16", "difference", "runs"]


# The verdict


def rows(fp32, bf16) -> pd.DataFrame:
    """A table as `table` makes it, with seeds from 1."""
    fp32, bf16 = np.asarray(fp32, float), np.asarray(bf16, float)
    seeds = np.arange(1, len(fp32) + 1)
    return pd.DataFrame(
        {"seed": seeds, "fp32": fp32, "bf16": bf16, "difference": bf16 - fp32, "runs": "one other"}
    )


def draws(n: int, gain: float, spread: float, seed: int = 0):
    """Accuracies of n seeds: what the seed does is common to both, ``spread`` is of the difference."""
    rng = np.random.default_rng(seed)
    base = 40 + 2 * rng.normal(size=n)
    return base, base + gain + spread * rng.normal(size=n)


def interval(fp32, bf16) -> tuple[float, float]:
    low, high = stats.ttest_rel(bf16, fp32).confidence_interval(0.90)
    return float(low), float(high)


def judged(sentence: str) -> str:
    """``equivalent``, ``not equivalent`` or nothing."""
    found = re.search(r": ((?:not )?equivalent) within \+-0\.5 points$", sentence)
    return found[1] if found else ""


@pytest.mark.parametrize(
    "gain, spread", [(0.0, 0.3), (0.02, 0.6), (-0.1, 0.5), (0.3, 0.9), (2.0, 0.1), (-0.7, 0.4)]
)
def test_the_sentence_has_scipys_numbers_and_the_verdict_follows_from_them(gain, spread):
    fp32, bf16 = draws(16, gain, spread)
    low, high = interval(fp32, bf16)
    said = reporting.verdict(rows(fp32, bf16), 16, 0.5)
    numbers = re.search(r"fp32: (\S+) points, 90 % interval \[(\S+), (\S+)\] \((\d+) of 16 pairs\)", said)
    assert [float(text) for text in numbers.groups()] == pytest.approx(
        [(bf16 - fp32).mean(), low, high, 16], abs=0.0051
    )
    assert judged(said) == ("equivalent" if -0.5 < low and high < 0.5 else "not equivalent")


@pytest.mark.parametrize("sign", [1, -1])
def test_the_verdict_flips_where_the_interval_touches_the_margin(sign):
    """The same differences, shifted until the interval ends a thousandth of a point before it, and beyond."""
    fp32, bf16 = draws(16, 0.0, 0.4)
    low, high = interval(fp32, bf16)
    room = 0.5 - high if sign > 0 else low + 0.5
    for beyond, wanted in ((-0.001, "equivalent"), (0.001, "not equivalent")):
        shifted = bf16 + sign * (room + beyond)
        assert judged(reporting.verdict(rows(fp32, shifted), 16, 0.5)) == wanted


def test_a_planted_difference_of_six_tenths_is_not_equivalent():
    """Negative control: whole accuracies that scatter little around it, in either direction."""
    fp32, bf16 = draws(16, 0.0, 0.2)
    centred = bf16 - (bf16 - fp32).mean()
    assert judged(reporting.verdict(rows(fp32, centred), 16, 0.5)) == "equivalent"
    for planted in (0.6, -0.6):
        assert judged(reporting.verdict(rows(fp32, centred + planted), 16, 0.5)) == "not equivalent"


def test_a_small_difference_that_scatters_widely_is_not_equivalent():
    """Not knowing is not the same as knowing that there is none."""
    fp32, bf16 = draws(16, 0.0, 3.0)
    assert judged(reporting.verdict(rows(fp32, bf16), 16, 0.5)) == "not equivalent"


def test_pairs_are_joined_by_seed_not_by_size():
    """The same accuracies with the seeds exchanged in one precision: as far apart as seeds are."""
    fp32, bf16 = draws(16, 0.0, 0.05)
    crossed = np.roll(bf16, 1)
    assert judged(reporting.verdict(rows(fp32, bf16), 16, 0.5)) == "equivalent"
    assert judged(reporting.verdict(rows(fp32, crossed), 16, 0.5)) == "not equivalent"
    shuffled = rows(fp32, bf16).sample(frac=1, random_state=0)
    assert reporting.verdict(shuffled, 16, 0.5) == reporting.verdict(rows(fp32, bf16), 16, 0.5)


def test_accuracies_that_tie_are_pairs_like_any_other():
    """CIFAR-100 has 10,000 test images: accuracies are hundredths, and some are equal."""
    fp32 = np.round(np.linspace(40, 41, 16), 2)
    bf16 = fp32 + np.tile([0.01, -0.01, 0.0, 0.02], 4)
    low, high = interval(fp32, bf16)
    said = reporting.verdict(rows(fp32, bf16), 16, 0.5)
    assert judged(said) == "equivalent" and "(16 of 16 pairs)" in said
    assert f"[{low:+.2f}, {high:+.2f}]" in said


@pytest.mark.parametrize("n", [0, 1, 2, 8, 15])
@pytest.mark.parametrize("gain", [0.0, 5.0])
def test_before_all_planned_pairs_are_there_is_no_verdict(n, gain):
    """Whoever looks early may not stop where it looks well."""
    fp32, bf16 = draws(n, gain, 0.01)
    said = reporting.verdict(rows(fp32, bf16), 16, 0.5)
    assert "no verdict" in said and "equivalent" not in said and f"{n} of 16 pairs" in said


@pytest.mark.parametrize("truth", [0.5, -0.5])
def test_five_in_a_hundred_studies_are_wrong_at_the_margin(truth):
    """What a test at 5 % promises: the true difference is the margin itself, and 2,000 studies of 16 pairs
    are drawn whose differences scatter by half a point. The share is within four of its standard errors."""
    rng = np.random.default_rng(11)
    base = 40 + 2 * rng.normal(size=(2000, 16))
    bf16 = base + truth + 0.5 * rng.normal(size=(2000, 16))
    said = [
        judged(reporting.verdict(rows(one, other), 16, 0.5)) for one, other in zip(base, bf16, strict=True)
    ]
    assert "" not in said
    assert 0.03 < said.count("equivalent") / 2000 < 0.07


# What is left of it


def test_what_is_written_reads_back(tmp_path):
    fp32, bf16 = draws(4, 0.1, 0.2)
    path = tmp_path / "tables" / "equivalence-bf16"
    reporting.write(rows(fp32, bf16), "A sentence", "What was trained", path)
    lines = (tmp_path / "tables" / "equivalence-bf16.csv").read_text().splitlines()
    assert lines[0] == "seed,fp32,bf16,difference,runs" and len(lines) == 5
    read = [[float(cell) for cell in line.split(",")[1:4]] for line in lines[1:]]
    assert read == [[a, b, b - a] for a, b in zip(fp32, bf16, strict=True)], "to the bit"
    text = (tmp_path / "tables" / "equivalence-bf16.md").read_text()
    assert text.startswith("A sentence.\n\nWhat was trained.\n\n")
    first = [float(cell) for cell in text.splitlines()[6].strip("|").split("|")]
    assert first == pytest.approx([1, fp32[0], bf16[0], bf16[0] - fp32[0]], abs=0.0051)


def test_the_command_trains_what_is_missing_and_says_what_it_found(studies, monkeypatch, capsys):
    """The pool is replaced: the teacher is trained here, and the students' accuracies are planted."""
    options = ["equivalence", "--results", str(studies.results), "--device", "cpu"]
    path = studies.results / "short" / "tables" / "equivalence-bf16"
    handed: list[tuple[int, int]] = []

    def pretend(jobs, workers=0):
        handed.append((len(jobs), workers))
        for job in jobs:
            if job.spec.teacher is None:
                assert studies.train(job) == 0
            elif job.spec.seed < 16 or len(handed) > 2:  # the last pair is missing at first
                planted = 0.6 if job.spec.recipe.precision == "bf16" else 0.0
                finish(job.run, 40 + job.spec.seed + planted + 0.01 * (job.spec.seed % 3) * planted)

    monkeypatch.setattr("ikdlib.studies.pool.run_all", pretend)
    assert __main__.main([*options, "--dry"]) == 0
    assert capsys.readouterr().out.startswith("0 of 16 pairs finished: no verdict yet\n") and handed == []

    assert __main__.main([*options, "--jobs", "3"]) == 0
    assert handed == [(1, 1), (32, 3)]
    sentence, where = capsys.readouterr().out.splitlines()
    assert "15 of 16 pairs" in sentence and "no verdict" in sentence and where == f"{path}.csv, .md"
    assert len(pd.read_csv(f"{path}.csv")) == 15

    assert __main__.main(options) == 0
    assert handed[2:] == [(32, 0)], "the teacher is there"
    sentence = capsys.readouterr().out.splitlines()[0]
    assert judged(sentence) == "not equivalent" and "+0.61 points" in sentence
    assert Path(f"{path}.md").read_text().startswith(sentence)
    assert len(pd.read_csv(f"{path}.csv")) == 16

    before = len(handed)
    assert __main__.main([*options, "--dry"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == sentence and len(handed) == before
