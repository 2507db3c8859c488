"""Whatever lies in a results folder, every frame and sentence of the report is made (notebook 90)."""

from __future__ import annotations

import numpy as np
import pytest

from ikdlib.reporting import behaviour, claims, collect, report, tables
from ikdlib.reporting.card import card
from ikdlib.studies import protocol

T, BATCH, KD_T = "ikd.temperature", "recipe.batch_size", "temperature"
GLYPHS = {"data": "glyphs100", "data_sha256": "5" * 64, "pair": "resnet20/resnet8"}
SCORES = {1: 70.1, 2: 70.4}


def several(folders, *names, changes=None, **more):
    for name in names:
        for seed, top1 in SCORES.items():
            folders.finished(name, seed, top1, changes=changes, **more)


def nothing(folders):
    folders.root.mkdir()


def only_cross_entropy(folders):
    several(folders, "ce")
    folders.finished("ce", 1, 60.0, pair="vgg13/vgg8")


def only_cross_entropy_and_its_term(folders):
    several(folders, "ce", "ce+ikd")


def only_teachers(folders):
    for student in ("resnet56", "vgg13"):
        folders.finished("ce", 0, 72.0, pair=f"-/{student}")


def no_logits(folders):
    several(folders, "ce", "kd", "kd+ikd", "dkd", "dkd+ikd")
    for value in (0.5, 2.0):
        several(folders, "dkd+ikd", changes={T: value})
    several(folders, "dkd+ikd", changes={"ikd.target": "one_hot"})
    for method in ("kd", "kd+ikd"):
        several(folders, method, changes={KD_T: 8.0})


def logits_of_one_side(folders):
    logits = 8 * np.eye(100)[np.repeat(np.arange(100), 100)]
    folders.finished("kd", 1, 100.0, logits=logits)
    folders.finished("kd+ikd", 1, 70.0)


def logits_of_other_weights(folders):
    for method in ("kd", "kd+ikd"):
        folders.finished(method, 1, 12.0, logits=8 * np.eye(100)[np.repeat(np.arange(100), 100)])


def nothing_finished(folders):
    folders.unfinished("kd", 1)
    folders.diverged("kd+ikd", 1)
    folders.diverged("dkd+ikd", 1, changes={"ikd.target": "one_hot"})


def only_changed_settings(folders):
    several(folders, "kd+ikd", changes={BATCH: 128})


def only_drawn_characters(folders):
    several(folders, "kd", "kd+ikd", **GLYPHS)


def only_damaged_folders(folders):
    run = folders.finished("kd", 1, 70.0)
    (run.folder / "history.csv").unlink()


def everything_of(folders):
    """As the cells of notebook 90, without pictures: (claims, frames, sentences)."""
    found, left_out = collect.everything(folders.root.parent)
    measured, more = collect.tables(found)
    runs = report.counted(measured)
    ways = report.links(runs, folders.root.parent)
    gains, page = report.headline(measured), claims.page(measured)
    changes = report.behaviours(measured)
    frames = [report.overview(runs), report.teachers(runs), gains, page, changes, card(runs)]
    words = [report.headline_words(gains), claims.readable(page), *left_out, *more]
    for _, rows in changes.groupby(["table", "pair", "method", "seed"], sort=False):
        frames.append(behaviour.readable(rows.drop(columns=["table", "pair", "method", "seed"])))
    for table in measured:
        every = tables.study_table(report.cells_of(table), protocol.published(), table.primary)
        over = tables.pooled(table.cells, table.primary)
        changed = report.changed(every)
        frames += [
            every,
            over,
            changed,
            *(tables.readable(part, table.primary, ways) for part in (every, changed)),
        ]
        words += tables.verdicts(every, over)
        frames += [points for _, points, _ in report.curves_of(table)]
        frames += [compared for _, compared in report.controls_of(table)]
    return page, frames, words


FOLDERS = (
    nothing, only_cross_entropy, only_cross_entropy_and_its_term, only_teachers, no_logits,
    logits_of_one_side, logits_of_other_weights, nothing_finished, only_changed_settings,
    only_drawn_characters, only_damaged_folders,
)  # fmt: skip


@pytest.mark.parametrize("make", FOLDERS, ids=[make.__name__ for make in FOLDERS])
def test_every_frame_and_sentence_is_made(folders, make):
    make(folders)
    page, frames, words = everything_of(folders)
    assert page["sentence"].nunique() == 21
    assert all(list(frame) for frame in frames), "an empty frame has its columns too"
    assert all(isinstance(report.nothing(frame), str) for frame in frames) and all(words)


@pytest.mark.parametrize(
    "make",
    [
        nothing,
        only_cross_entropy,
        only_teachers,
        nothing_finished,
        only_changed_settings,
        only_damaged_folders,
    ],
)
def test_where_no_pair_has_both_sides_every_claim_and_the_headline_are_not_run(folders, make):
    make(folders)
    page, _, words = everything_of(folders)
    apart = (page["claim"] == "4") | page["sentence"].str.contains("ImageNet")
    assert set(page[apart]["verdict"]) == {"not studied"}
    assert set(page[~apart]["verdict"]) == {"not run"}
    assert len(page) == 21
    assert "**not run**" in words[0] and not any("supported" in line for line in words)


def test_without_logits_the_claims_that_need_them_are_not_run_and_the_others_are(folders):
    no_logits(folders)
    page, _, _ = everything_of(folders)
    by_sentence = page.groupby("sentence")["verdict"].agg(set)
    for text in ("Predictions within a class become more consistent.", "Similar samples are less confused."):
        assert by_sentence[text] == {"not run"}
    assert "not run" not in by_sentence["Adding the IKD term raises top-1 accuracy over KD on CIFAR-100."]
