"""The controls of the IKD term against scipy, by hand, and against what each of them promises."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import entropy
from torch.nn import functional as F

from ikdlib.methods import controls
from ikdlib.methods.ikd import IKD, ikd_loss

C, N = 20, 50
LN2 = math.log(2)
CONTROLS = ("one_hot", "permuted", "even_rest", "smoothed")


def class_means(seed: int = 0, classes: int = C) -> np.ndarray:
    """[C, C] in fp64: sure of some classes, unsure of others, and mistaken in a few."""
    draw = np.random.default_rng(seed)
    scale = np.linspace(0.1, 4, classes)[:, None]
    return scale * draw.normal(size=(classes, classes)) + np.diag(draw.uniform(0, 6, classes))


def made(name: str, means: np.ndarray, T: float = 1.0, dtype=torch.float64) -> np.ndarray:
    result = controls.TARGETS[name](torch.tensor(means, dtype=dtype), T)
    assert result.dtype == dtype and result.shape == means.shape
    return result.numpy()


def students(classes: int = C):
    """Student logits [N, C] and targets [N] that show every class."""
    draw = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(N, classes, dtype=torch.float64, generator=draw)
    return logits, torch.arange(N) % classes


def loss_of(target_logits: np.ndarray, student: torch.Tensor, y: torch.Tensor, T: float) -> torch.Tensor:
    means = torch.tensor(target_logits, dtype=student.dtype)
    return ikd_loss(student, means, torch.ones(len(means), dtype=torch.bool), y, T)


# By hand, three classes

MEANS = np.array([[2 * LN2, LN2, LN2], [LN2, 0, 0], [5.0, 5.0, 5.0]])
"""Softmax at T = 1: row 0 (1/2, 1/4, 1/4), row 1 (1/2, 1/4, 1/4), row 2 (1/3, 1/3, 1/3)."""


def test_one_hot_by_hand():
    np.testing.assert_array_equal(softmax(made("one_hot", MEANS), 1), np.eye(3))


def test_permuted_by_hand():
    """Two other classes can only change places."""
    numbers = np.arange(1.0, 10.0).reshape(3, 3)
    np.testing.assert_array_equal(made("permuted", numbers), [[1, 3, 2], [6, 5, 4], [8, 7, 9]])


def test_smoothed_by_hand():
    """Row 0 is label smoothing already, eps = 1/2; row 1 has the same entropy, 3/2 ln 2; row 2 is flat."""
    expected = [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(softmax(made("smoothed", MEANS), 1), expected, rtol=1e-7)
    half = 0.5 * MEANS  # at T = 1/2 they are what MEANS is at T = 1
    np.testing.assert_allclose(softmax(made("smoothed", half, 0.5) / 0.5, 1), expected, rtol=1e-7)


# One-hot targets: cross-entropy


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_is_cross_entropy(T, dtype):
    """Value and gradient of T^2 CE(student / T); torch's own softmax is one-hot to the bit."""
    target = torch.tensor(made("one_hot", class_means(), T, dtype))
    assert torch.equal((target / T).softmax(1), torch.eye(C, dtype=dtype))
    student, y = students()
    ours, theirs = (student.to(dtype).clone().requires_grad_() for _ in range(2))
    loss, expected = loss_of(target.numpy(), ours, y, T), T**2 * F.cross_entropy(theirs / T, y)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, theirs)[0])
    by_hand = T * (softmax(student.numpy() / T, 1) - np.eye(C)[y.numpy()]) / N
    np.testing.assert_allclose(gradient.double().numpy(), by_hand, rtol=1e-5, atol=1e-7)


def test_one_hot_asks_the_means_nothing():
    np.testing.assert_array_equal(made("one_hot", class_means(1)), made("one_hot", class_means(2)))


# Permuted class means: no structure


@pytest.mark.parametrize("classes", [3, 4, C, 100])
def test_permuted_keeps_everything_but_the_places(classes):
    means = class_means(4, classes)
    result = made("permuted", means)
    np.testing.assert_array_equal(np.diag(result), np.diag(means))
    np.testing.assert_array_equal(np.sort(result, 1), np.sort(means, 1))
    assert (result != means).any(1).all(), "in every row something moved"
    for T in (0.5, 1.0, 4.0):
        before, after = softmax(means / T, 1), softmax(result / T, 1)
        np.testing.assert_allclose(np.diag(after), np.diag(before), rtol=1e-12)
        np.testing.assert_allclose(entropy(after, axis=1), entropy(before, axis=1), rtol=1e-12)


def test_permuted_leaves_no_structure():
    """Classes in groups of 10 that are near each other: afterwards the groups cannot be found."""
    group = np.arange(100) // 10
    near = (group[:, None] == group[None]) * 3.0 + np.random.default_rng(5).normal(size=(100, 100)) * 0.1
    others, inside = ~np.eye(100, dtype=bool), group[:, None] == group[None]
    result = made("permuted", near)
    assert near[inside & others].mean() > 2.9
    assert result[inside & others].mean() == pytest.approx(near[others].mean(), abs=0.15)


@pytest.mark.parametrize("classes", [3, 5, 100])
def test_the_permutations_are_those_of_the_documented_generators(classes):
    """sha256 of purpose/seed/class seeds torch's own generator; drawn again while nothing moves."""
    redrawn, means = 0, class_means(6, classes)
    result = made("permuted", means)
    for label in range(classes):
        seed = hashlib.sha256(f"permuted class means/0/{label}".encode()).digest()[:8]
        draw = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        order = torch.randperm(classes - 1, generator=draw).tolist()
        while order == sorted(order):
            order, redrawn = torch.randperm(classes - 1, generator=draw).tolist(), redrawn + 1
        others = [name for name in range(classes) if name != label]
        for place, source in zip(others, order, strict=True):
            assert result[label, place] == means[label, others[source]]
    assert redrawn or classes > 3, "with two others about every second draw moves nothing"


def test_two_classes_leave_nothing_to_permute():
    np.testing.assert_array_equal(made("permuted", MEANS[:2, :2]), MEANS[:2, :2])


# The same confidence, the rest spread evenly


def test_even_rest_by_hand():
    """Row 0 is spread evenly already; in row 1 a class leaves 1/8 + 3/8 to the others, so 1/4 to each."""
    means = np.log([[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 2, 3 / 8], [1 / 6, 1 / 6, 2 / 3]])
    expected = [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 6, 1 / 6, 2 / 3]]
    np.testing.assert_allclose(softmax(made("even_rest", means), 1), expected, rtol=1e-12)
    np.testing.assert_allclose(softmax(made("even_rest", 3 * means, 3.0) / 3, 1), expected, rtol=1e-12)


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 3, C, 100])
def test_even_rest_is_as_sure_of_the_class_and_prefers_no_other(T, classes):
    means = class_means(11, classes)
    p, q = softmax(made("even_rest", means, T) / T, 1), softmax(means / T, 1)
    expected = np.repeat((1 - np.diag(q))[:, None] / (classes - 1), classes, axis=1)
    np.fill_diagonal(expected, np.diag(q))
    np.testing.assert_allclose(p, expected, rtol=1e-9)


def test_even_rest_of_a_teacher_that_is_nearly_certain():
    """1 - p is 1e-20 there: in fp64 subtraction it would be 0."""
    means = np.array([[np.log(1e20), 0.0, np.log(3.0)], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(softmax(made("even_rest", means), 1)[0], [1, 2e-20, 2e-20], rtol=1e-12)


# Label smoothing of equal entropy


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 3, C, 100])
def test_smoothed_has_the_means_entropy_and_the_form_of_label_smoothing(T, classes):
    means = class_means(7, classes)
    p = softmax(made("smoothed", means, T) / T, 1)
    np.testing.assert_allclose(entropy(p, axis=1), entropy(softmax(means / T, 1), axis=1), rtol=1e-9)
    for label, row in enumerate(p):
        others = np.delete(row, label)
        np.testing.assert_allclose(others, others[0], rtol=1e-12)
        assert row[label] >= others[0] * (1 - 1e-7)


def test_smoothed_against_a_root_finder():
    """scipy's brentq on eps itself, with the entropy from scipy."""
    means = class_means(8)
    p = softmax(made("smoothed", means), 1)
    for label in range(C):
        wanted = entropy(softmax(means[label]))

        def too_much(eps, wanted=wanted):
            return entropy([1 - eps, *[eps / (C - 1)] * (C - 1)]) - wanted

        eps = brentq(too_much, 0, (C - 1) / C, xtol=1e-15)
        assert 1 - p[label, label] == pytest.approx(eps, rel=1e-6)


def test_smoothed_is_not_the_means_confidence():
    """That is what sets it apart from `permuted`."""
    means = class_means(9)
    p, q = softmax(made("smoothed", means), 1), softmax(means, 1)
    assert np.abs(np.diag(p) - np.diag(q)).max() > 0.05


# All of them


@pytest.mark.parametrize("T", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("size", [1e-6, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("name", CONTROLS)
def test_extreme_means_give_numbers(name, size, T):
    """fp32, as in a run; the loss and its gradient too."""
    means = size * class_means(10) / np.abs(class_means(10)).max()
    result = made(name, means, T, torch.float32)
    assert np.isfinite(result).all()
    student, y = students()
    student = (100 * student).float().requires_grad_()
    loss = loss_of(result, student, y, T)
    (gradient,) = torch.autograd.grad(loss, student)
    assert math.isfinite(loss.item()) and bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", CONTROLS)
def test_a_class_nobody_saw_has_no_term(name):
    student, y = students()
    teacher, seen = 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(1)), y != 4
    ikd = IKD(C, 2.0, 1.0, name)
    ikd.observe(teacher[seen], y[seen])
    with pytest.warns(UserWarning, match=r"classes \[4\]"):
        ikd.finish()
    assert bool(ikd.means.isfinite().all())
    student = student.float().requires_grad_()
    loss = ikd(student, y)
    (gradient,) = torch.autograd.grad(loss, student)
    assert math.isfinite(loss.item()) and bool((gradient[~seen] == 0).all())
    assert bool((gradient[seen] != 0).any(1).all())


@pytest.mark.parametrize("T", [1.0, 2.0])
@pytest.mark.parametrize("name", CONTROLS)
def test_the_term_pulls_towards_the_control(name, T):
    """lambda T^2 KL in numpy, with the target's distribution from what the control promises."""
    student, y = students()
    teacher = 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(2))
    ikd = IKD(C, 6.5, T, name)
    ikd.observe(teacher, y)
    ikd.finish()
    means = np.stack([teacher.double().numpy()[y.numpy() == label].mean(0) for label in range(C)])
    p = np.clip(softmax(made(name, means, T) / T, 1), 1e-300, 1)[y.numpy()]
    log_q = np.log(softmax(student.numpy() / T, 1))
    expected = 6.5 * T**2 * (p * (np.log(p) - log_q)).sum(1).mean()
    assert float(ikd(student.float(), y)) == pytest.approx(expected, rel=1e-4)
    paper = IKD(C, 6.5, T)
    paper.observe(teacher, y)
    paper.finish()
    np.testing.assert_allclose(paper.means, means, rtol=1e-5, atol=1e-6)
    assert float(paper(student.float(), y)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_checkpoint_holds_the_same_names(name):
    """Those of checkpoints that were written before there were controls."""
    ikd, other = IKD(C, target=name), IKD(C)
    assert list(ikd.state_dict()) == list(other.state_dict()) == ["sums", "counts", "means", "seen"]
