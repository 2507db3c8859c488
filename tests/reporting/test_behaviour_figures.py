"""Pictures of two runs' answers: what they show is what `behaviour` measures."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ikdlib.data import groups  # noqa: E402
from ikdlib.reporting import behaviour, figures  # noqa: E402
from ikdlib.reporting import behaviour_figures as drawn  # noqa: E402
from ikdlib.reporting.kept import Predictions  # noqa: E402
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec  # noqa: E402

KINDS = ("confidence", "reliability", "confusion", "class_gains", "spread", "plane")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def answers(data: str, ikd: bool, seed: int) -> Predictions:
    labels = groups.test_labels(data)
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (len(labels), 100)) + 3 * np.eye(100)[labels]
    method = MethodSpec(name="dkd", ikd=IKDSettings() if ikd else None)
    spec = RunSpec(
        data=data, data_sha256="0" * 64, student="resnet8", teacher="resnet14", teacher_sha256="1" * 64,
        method=method, recipe=Recipe().scaled(3), seed=1,
    )  # fmt: skip
    return Predictions(spec, logits.astype(np.float32), labels)


@pytest.fixture(scope="module")
def both():
    return answers("glyphs100", False, 0), answers("glyphs100", True, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_names_its_runs_and_is_written_twice_alike(kind, both, tmp_path):
    for name in ("one", "two"):
        figure, rows = getattr(drawn, kind)(*both)
        assert "dkd and dkd+ikd, resnet14/resnet8, glyphs100, 3 epochs" in figure.get_suptitle()
        assert figure.get_suptitle().endswith("seed 1: n = 1 seed")
        assert len(rows) and rows.index.is_unique
        figures.write(figure, tmp_path / name, rows)
    for ending in (".png", ".svg", ".csv"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_answer_alike_can_be_drawn(kind, both):
    """As after one epoch, when there is no term yet."""
    base, treated = both
    figure, _ = getattr(drawn, kind)(base, Predictions(treated.spec, base.logits, base.labels))
    figure.canvas.draw()


def test_of_cifar100_too():
    """A class name with a blank, groups with a dash."""
    figure, rows = drawn.confusion(answers("cifar100", False, 0), answers("cifar100", True, 1))
    assert "large man-made outdoor things" in [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(rows) == 21 and rows["group"].iloc[0] == "all"


def test_confidence_is_a_share_of_all_images(both):
    _, rows = drawn.confidence(*both)
    np.testing.assert_allclose(rows[["dkd, % of images", "dkd+ikd, % of images"]].sum(), 100)


def test_confusion_in_all_is_the_mean_of_the_groups(both):
    _, rows = drawn.confusion(*both)
    column = "dkd+ikd, inside, % of images"
    assert rows[column].iloc[0] == pytest.approx(rows[column].iloc[1:].mean())
    assert rows[column].iloc[0] == behaviour.confusion(
        both[1].logits, both[1].labels, both[1].groups
    ).loc["inside", "of_images"]  # fmt: skip


def test_gains_are_sorted_and_add_up(both):
    figure, rows = drawn.class_gains(*both)
    base, treated = (behaviour.accuracy(run.logits, run.labels) for run in both)
    assert rows["gain"].is_monotonic_increasing and rows["gain"].mean() == pytest.approx(treated - base)
    np.testing.assert_allclose(rows["gain"], rows["+ikd"] - rows["base"], atol=1e-9)
    np.testing.assert_allclose(rows["noise"], 196 * np.sqrt(rows["gained"] + rows["lost"]) / 20)
    named = [text.get_text() for text in figure.axes[0].texts]
    short = dict(zip(both[0].classes, both[0].short_names, strict=True))
    assert named == [short[name] for name in (*rows["class"].head(6), *rows["class"].tail(6))]


def test_the_classes_outside_the_grey_are_counted(both):
    """Those that McNemar's statistic, without a correction, has beyond 1.96: (b - c)^2 / (b + c)."""
    base, treated = both
    better = treated.logits.copy()
    better[np.isin(base.labels, (3, 7, 8)), base.labels[np.isin(base.labels, (3, 7, 8))]] += 50
    worse = np.eye(100)[(base.labels + 1) % 100] * (base.labels == 11)[:, None] * 50
    treated = Predictions(treated.spec, (better + worse).astype(np.float32), base.labels)
    right = [run.logits.argmax(1) == run.labels for run in (base, treated)]
    b, c = (np.array([(one & ~other)[base.labels == k].sum() for k in range(100)]) for one, other in
            (right, right[::-1]))  # fmt: skip
    outside = ((b - c) ** 2 > 1.96**2 * (b + c)).sum()
    assert outside >= 3
    (axis,) = drawn.class_gains(base, treated)[0].axes
    assert axis.get_xlabel().endswith(f"; {outside} leave the grey, where about 5 would by chance")
    assert "accuracy of a class (points)" in axis.get_ylabel()


def test_spread_is_that_of_each_class(both):
    _, rows = drawn.spread(*both)
    for run, name in zip(both, ("base", "+ikd"), strict=True):
        expected = behaviour.spread(run.logits, run.labels)
        np.testing.assert_array_equal(rows[f"squared, {name}"], expected["squared"])
        np.testing.assert_array_equal(rows[f"kl, {name}"], expected["kl"])


def test_the_plane_shows_the_group_that_is_confused_most(both):
    base, treated = both
    names = np.asarray(base.groups)
    rings = np.flatnonzero(names == "rings")
    confused = base.logits.copy()
    for number, other in zip(rings, np.roll(rings, 1), strict=True):
        confused[base.labels == number, other] += 20
    first = Predictions(base.spec, confused, base.labels)
    assert drawn.most_confused(first, treated) == "rings"
    _, rows = drawn.plane(first, treated)
    assert set(rows["class"]) == {base.classes[number] for number in rings} and len(rows) == 2 * 5 * 20
    _, asked = drawn.plane(first, treated, "bars")
    assert set(asked["class"]) == {base.classes[number] for number in np.flatnonzero(names == "bars")}
