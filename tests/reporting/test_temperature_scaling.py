"""Temperature scaling against its closed form, and another library's optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from ikdlib.reporting import temperature_scaling


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Answers of a student that is twice as sure as it should be: labels drawn from softmax(logits / 2)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4000, 10))
    chances = special.softmax(logits / 2, axis=1).cumsum(axis=1)
    return logits.astype(np.float32), (rng.random((4000, 1)) > chances).sum(axis=1)


@pytest.mark.parametrize("size", [0.5, 4.0])
@pytest.mark.parametrize("right", [60, 90, 99])
def test_two_logits_have_a_best_temperature_in_closed_form(size, right):
    """All answers are equally sure: the likelihood is greatest where that is how often they are right."""
    logits = np.tile([size, 0.0], (100, 1))
    labels = np.array([0] * right + [1] * (100 - right))
    expected = size / special.logit(right / 100)
    assert temperature_scaling.best_temperature(logits, labels) == pytest.approx(expected, rel=1e-3)


def test_it_is_what_another_optimiser_finds_and_what_the_labels_were_drawn_with(drawn):
    logits, labels = drawn
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_t], line_search_fn="strong_wolfe", max_iter=100)

    def nats():
        optimiser.zero_grad()
        z = torch.from_numpy(logits).double() / log_t.exp()
        loss = torch.nn.functional.cross_entropy(z, torch.from_numpy(labels))
        loss.backward()
        return loss

    optimiser.step(nats)
    found = temperature_scaling.best_temperature(logits, labels)
    assert found == pytest.approx(log_t.exp().item(), rel=1e-3) == pytest.approx(2.0, rel=0.05)


def test_scaled_logits_forget_how_sure_the_student_was(drawn):
    logits, labels = drawn
    scaled = temperature_scaling.scaled(logits, labels)
    np.testing.assert_allclose(temperature_scaling.scaled(7 * logits, labels), scaled, rtol=1e-3, atol=1e-3)
    assert temperature_scaling.best_temperature(scaled, labels) == pytest.approx(1.0, abs=0.02)


def test_no_image_tells_its_own_temperature(drawn):
    """The images of a class go to the halves by turns; a louder one moves the half that is not its own."""
    logits, labels = drawn
    before = temperature_scaling.scaled(logits, labels)
    first, *others = np.flatnonzero(labels == 3)
    logits[first] *= 50
    moved = ~np.isclose(temperature_scaling.scaled(logits, labels), before, rtol=1e-9, atol=0).all(axis=1)
    assert moved[others].tolist() == [turn % 2 == 0 for turn in range(len(others))]
