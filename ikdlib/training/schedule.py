"""The learning rate of an epoch, and how far its steps are in the whole training."""

from __future__ import annotations

import torch
from torch import Tensor

from ikdlib.spec import Recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of an epoch; epochs count from 1, the rate is constant within one.

    ``epoch / warmup`` of the full rate while ``epoch < warmup``; then ``plateau`` of it; after each
    milestone, ``decay`` of the full rate once more. The released code sets no rate at the epoch that
    ends the warm-up, so it stays at 19/20 until the first decay: protocol ``released`` has plateau 0.95.
    """
    decays = sum(epoch > milestone for milestone in recipe.milestones)
    if decays:
        return recipe.learning_rate * recipe.decay**decays
    if not recipe.warmup:
        return recipe.learning_rate
    return recipe.learning_rate * min(epoch / recipe.warmup, recipe.plateau)


def progress_of(recipe: Recipe, epoch: int, steps: int) -> Tensor:
    """fp32 [steps, 2], a row for each step of an epoch: its number, and how much of the training is done."""
    done = (torch.arange(steps) + (epoch - 1) * steps).double() / (recipe.epochs * steps)
    return torch.stack([torch.full_like(done, epoch), done], 1).float()
