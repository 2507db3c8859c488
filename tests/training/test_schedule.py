"""The learning rate of every epoch against the reference README's table, written out by hand; progress."""

from __future__ import annotations

import pytest

from ikdlib.spec import Recipe
from ikdlib.training.schedule import learning_rate, progress_of


def rates(recipe: Recipe) -> list[float]:
    return [learning_rate(recipe, epoch) for epoch in range(1, recipe.epochs + 1)]


def after_the_plateau(rate: float) -> list[float]:
    """Epochs 151 to 240: x0.1 when epoch > 150, 180, 210."""
    return [rate / 10] * 30 + [rate / 100] * 30 + [rate / 1000] * 30


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_the_paper_protocol(rate):
    """Linear over 20 epochs, full rate from epoch 20 to 150."""
    table = [rate * n / 20 for n in range(1, 20)] + [rate] * 131 + after_the_plateau(rate)
    assert len(table) == 240
    assert rates(Recipe(learning_rate=rate)) == pytest.approx(table, rel=1e-12)


@pytest.mark.parametrize(("rate", "plateau"), [(0.05, 0.0475), (0.01, 0.0095)])
def test_the_released_protocol(rate, plateau):
    """Epoch 19 has 19/20 of the rate, and there it stays through epoch 150; then the full rate's tenth."""
    table = [rate * n / 20 for n in range(1, 19)] + [plateau] * 132 + after_the_plateau(rate)
    assert len(table) == 240
    assert rates(Recipe(learning_rate=rate, plateau=0.95)) == pytest.approx(table, rel=1e-12)


def test_a_teacher_has_no_warm_up():
    table = [0.05] * 150 + after_the_plateau(0.05)
    assert rates(Recipe(warmup=0)) == pytest.approx(table, rel=1e-12)


def test_the_boundaries_by_number():
    recipe = Recipe()
    expected = {1: 0.0025, 10: 0.025, 19: 0.0475, 20: 0.05, 150: 0.05, 151: 0.005, 180: 0.005}
    expected |= {181: 0.0005, 210: 0.0005, 211: 0.00005, 240: 0.00005}
    assert {epoch: learning_rate(recipe, epoch) for epoch in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epochs", "warmup", "milestones"),
    [
        (240, 20, (150, 180, 210)),
        (48, 4, (30, 36, 42)),
        (24, 2, (15, 18, 21)),
        (12, 1, (8, 9, 11)),  # 7.5 and 10.5 are rounded up, not to the even number
        (6, 1, (4, 5, 5)),  # 0.5, 3.75, 4.5, 5.25
        (4, 1, (3, 3, 4)),
        (1, 1, (1, 1, 1)),  # 0.083, 0.625, 0.75, 0.875: the warm-up is at least 1
        (480, 40, (300, 360, 420)),
    ],
)
def test_another_length_keeps_the_proportions(epochs, warmup, milestones):
    recipe = Recipe(learning_rate=0.01, plateau=0.95).scaled(epochs)
    assert (recipe.epochs, recipe.warmup, recipe.milestones) == (epochs, warmup, milestones)
    assert (recipe.learning_rate, recipe.plateau) == (0.01, 0.95), "nothing else changes"


def test_no_warm_up_stays_none_at_any_length():
    assert Recipe(warmup=0).scaled(48).warmup == 0


def test_48_epochs_of_the_released_protocol():
    """4 epochs of warm-up: 1/4, 2/4, 3/4, then 0.95 through epoch 30."""
    table = [0.0125, 0.025, 0.0375] + [0.0475] * 27 + [0.005] * 6 + [0.0005] * 6 + [0.00005] * 6
    assert rates(Recipe(plateau=0.95).scaled(48)) == pytest.approx(table, rel=1e-12)


def test_one_epoch_has_the_full_rate():
    assert rates(Recipe().scaled(1)) == [0.05]


def test_progress_is_the_epochs_number_and_the_part_that_is_done():
    """Two epochs of four steps: eighths."""
    recipe = Recipe().scaled(2)
    assert progress_of(recipe, 1, 4).tolist() == [[1, 0], [1, 0.125], [1, 0.25], [1, 0.375]]
    assert progress_of(recipe, 2, 4).tolist() == [[2, 0.5], [2, 0.625], [2, 0.75], [2, 0.875]]
