"""Kept logits are read if they are the run's own, and two runs' make a summary."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from ikdlib.data import groups
from ikdlib.errors import IkdError
from ikdlib.reporting import behaviour, kept
from ikdlib.runs import Run
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec


class Keeping:
    """Writes finished runs on glyphs100 that kept their logits."""

    def __init__(self, root):
        self.root = root
        self.labels = groups.test_labels("glyphs100")

    def logits(self, seed: int = 0, strength: float = 3.0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.normal(0, 1, (len(self.labels), 100)) + strength * np.eye(100)[self.labels]

    def run(self, method: str = "kd", seed: int = 1) -> Run:
        base, _, ikd = method.partition("+")
        own = MethodSpec(name=base, ikd=IKDSettings() if ikd else None)
        asked = {"teacher": "resnet14", "teacher_sha256": "1" * 64} if own.needs_teacher else {}
        spec = RunSpec(
            data="glyphs100", data_sha256="0" * 64, student="resnet8", method=own, seed=seed,
            recipe=Recipe().scaled(3), **asked,
        )  # fmt: skip
        return Run(self.root, spec)

    def finished(
        self, logits: np.ndarray | None, method: str = "kd", top1: float | None = None, **more
    ) -> Run:
        run = self.run(method, **more)
        run.begin()
        if logits is not None:
            half = {"logits": logits.astype(np.float16)}
            save_file(half, run.folder / kept.FILE)
            if top1 is None:
                top1 = 100 * float((logits.argmax(axis=1) == self.labels).mean())
        scores = {"epoch": 3, "top1": top1, "top5": 99.0}
        run.finish({"status": "finished", "epochs": 3, "last": scores, "best": scores, "teacher": None})
        return run


@pytest.fixture
def keeping(tmp_path) -> Keeping:
    return Keeping(tmp_path / "runs")


def test_kept_logits_are_those_of_the_run(keeping):
    logits = keeping.logits()
    found = kept.kept_logits(keeping.finished(logits))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logits.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("ahead, top1", [(1e-5, 100.0), (-1e-5, 95.0)])
def test_ties_that_fp16_makes_are_no_error(keeping, ahead, top1):
    """Two logits that fp16 does not tell apart: the run knew which was larger, and here either may be."""
    logits = keeping.logits(strength=30.0)
    first = np.arange(100)
    logits[first, :] = 0
    logits[first, (keeping.labels[:100] + 50) % 100] = 20.0
    logits[first, keeping.labels[:100]] = 20.0 + ahead
    run = keeping.finished(logits)
    assert run.result["last"]["top1"] == top1 and kept.kept_logits(run).shape == (2000, 100)


@pytest.mark.parametrize("off", [-0.05, 0.05])
def test_another_accuracy_than_the_runs_own_is_refused(keeping, off):
    """One image of 2000, where no two logits of an image are equal."""
    logits = keeping.logits().argsort(axis=1).argsort(axis=1).astype(float)
    true = 100 * float((logits.argmax(axis=1) == keeping.labels).mean())
    run = keeping.finished(logits, top1=true + off)
    with pytest.raises(IkdError, match=f"{run.spec.run_id.replace('+', '.')}: .*result.json states"):
        kept.kept_logits(run)


def test_images_in_another_order_are_noticed(keeping):
    logits = keeping.logits()
    shuffled = logits[np.random.default_rng(1).permutation(len(logits))]
    true = 100 * float((logits.argmax(axis=1) == keeping.labels).mean())
    with pytest.raises(IkdError, match="images in another order"):
        kept.kept_logits(keeping.finished(shuffled, top1=true))


def test_an_edited_or_missing_file_is_refused(keeping):
    run = keeping.finished(keeping.logits())
    save_file({"logits": keeping.logits(seed=5).astype(np.float16)}, run.folder / kept.FILE)
    with pytest.raises(IkdError, match="missing or edited since the run"):
        kept.kept_logits(run)
    (run.folder / kept.FILE).unlink()
    with pytest.raises(IkdError, match="missing or edited since the run"):
        kept.kept_logits(run)


def test_a_run_that_kept_none_and_one_that_is_not_finished(keeping):
    with pytest.raises(IkdError, match="it kept no test logits, which the lowest seed of a cell does"):
        kept.kept_logits(keeping.finished(None, top1=50.0))
    with pytest.raises(IkdError, match="missing, so there are no test logits"):
        kept.kept_logits(keeping.run(seed=7))


@pytest.mark.parametrize("wrong", ["shape", "finite", "name"])
def test_what_is_no_stack_of_logits_is_refused(keeping, wrong):
    logits = keeping.logits()
    if wrong == "finite":
        logits[3, 4] = np.nan
    run = keeping.run()
    run.begin()
    content = {"outputs" if wrong == "name" else "logits": logits[:, : 99 if wrong == "shape" else 100]}
    save_file({name: np.ascontiguousarray(z.astype(np.float16)) for name, z in content.items()},
              run.folder / kept.FILE)  # fmt: skip
    scores = {"epoch": 3, "top1": 90.0, "top5": 99.0}
    run.finish({"status": "finished", "epochs": 3, "last": scores, "best": scores, "teacher": None})
    with pytest.raises(IkdError, match="cannot be read" if wrong == "name" else "not .2000, 100. finite"):
        kept.kept_logits(run)


def test_the_message_is_one_line_that_names_the_run(keeping):
    run = keeping.finished(keeping.logits()[:, :50], top1=1.0)
    with pytest.raises(IkdError) as error:
        kept.kept_logits(run)
    assert "\n" not in str(error.value) and run.spec.run_id in str(error.value)


@pytest.fixture
def both(keeping):
    pair = (
        keeping.finished(keeping.logits(0, 3.0), "kd"),
        keeping.finished(keeping.logits(1, 4.0), "kd+ikd"),
    )
    return tuple(kept.predictions(run) for run in pair)


def test_summary_has_a_row_a_measure(both):
    base, treated = both
    teacher = base.logits + treated.logits
    table = behaviour.summary(base, treated, teacher).set_index("measure")
    assert list(table.index) == list(behaviour.MEASURES)
    assert list(table.columns) == ["unit", "paper", "base", "+ikd", "difference"]
    np.testing.assert_allclose(table["difference"], table["+ikd"] - table["base"])
    for name, run in (("base", base), ("+ikd", treated)):
        confidence = behaviour.target_confidence(run.logits, run.labels)
        errors = behaviour.confusion(run.logits, run.labels, run.groups)
        assert table.loc["accuracy (top-1)", name] == behaviour.accuracy(run.logits, run.labels)
        assert table.loc["confidence of the target class, median", name] == np.median(confidence)
        assert table.loc["taken for a class of its own group", name] == errors.loc["inside", "of_images"]
        assert table.loc["same answer as the teacher", name] == behaviour.fidelity(run.logits, teacher)[0]
        calibration = behaviour.expected_calibration_error(run.logits, run.labels)
        assert table.loc["calibration error (ECE)", name] == calibration


def test_what_cannot_be_measured_has_no_row(both, monkeypatch):
    table = behaviour.summary(*both)
    assert len(table) == len(behaviour.MEASURES) - 2
    assert not table["measure"].str.contains("teacher").any()
    monkeypatch.setattr("ikdlib.data.groups._GROUPS", {})
    assert not behaviour.summary(*both)["measure"].str.contains("group").any()
    with pytest.raises(IkdError, match="glyphs100 has no groups of classes"):
        _ = both[0].groups


def test_two_runs_that_are_no_pair_are_refused(keeping, both):
    base, treated = both
    other = kept.predictions(keeping.finished(keeping.logits(2), "kd+ikd", seed=2))
    for one, two in ((treated, base), (base, base), (base, other)):
        with pytest.raises(IkdError, match="with the IKD term alone added"):
            behaviour.summary(one, two)


def test_cross_entropy_has_no_teacher_and_is_the_base_of_its_own(keeping):
    treated = kept.predictions(keeping.finished(keeping.logits(1), "ce+ikd"))
    plain = keeping.finished(keeping.logits(0), "ce")
    assert plain.spec.teacher is None and treated.spec.teacher == "resnet14"
    assert len(behaviour.summary(kept.predictions(plain), treated)) == len(behaviour.MEASURES) - 2


def test_the_verdict_is_one_undecided_sentence_with_the_measured_numbers(both, tmp_path):
    table = behaviour.summary(*both)
    said = behaviour.verdict(table, both[0])
    assert said.startswith("resnet14/resnet8, seed 1, kd+ikd minus kd: ") and said.endswith(": undecided")
    claimed = table[table["paper"] != ""]
    assert len(claimed) == said.count("the paper:") == 7
    spread = claimed.set_index("measure").loc["spread of predictions within a class", "difference"]
    assert f"within a class {spread:+.2f} points (the paper: lower)" in said
    claimed = claimed.set_index("measure")["difference"]
    readings = [name for name in claimed.index if name.startswith(("spread", "KL", "variance"))]
    assert f"; {(claimed[readings] < 0).sum()} of the 4 readings of consistency fell; one seed" in said
    text = behaviour.write(table, "a caption", tmp_path / "table")
    assert text.startswith("a caption\n\n| measure") and (tmp_path / "table.md").read_text() == text
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv").fillna({"paper": ""}), table)


def test_measures_of_a_run(keeping, monkeypatch):
    logits = keeping.logits()
    run = keeping.finished(logits)
    half = logits.astype(np.float16).astype(np.float32)
    expected = behaviour.spread(half, keeping.labels)["squared"].mean()
    assert behaviour.spread_of_run(run) == pytest.approx(expected)
    names = list(groups.groups("glyphs100").values())
    inside = behaviour.confusion(half, keeping.labels, names).loc["inside", "of_images"]
    assert behaviour.confusion_of_run(run) == inside > 0
    monkeypatch.setattr("ikdlib.data.groups._GROUPS", {})
    with pytest.raises(IkdError, match="no groups"):
        behaviour.confusion_of_run(run)
