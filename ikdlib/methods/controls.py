"""What the IKD term pulls towards instead of the class means: is it their structure, or something simpler?

A class mean says three things at once: which class it is, how sure to be of it, and which other classes are
near. Each control keeps some of that and drops the rest. It gives logits [C, C] in the place of the means, so
that the term stays the paper's equation (`ikd.ikd_loss`), with the same lambda and T:

    control     class   entropy   target's probability   other classes
    means       yes     own       own                    own                   the paper
    permuted    yes     same      same                   own, in wrong places
    even_rest   yes     other     same                   all alike
    smoothed    yes     same      other                  all alike
    one_hot     yes     none      1                      none

Every function takes ``means`` [C, C], row c the class mean of class c, and ``T``, the term's temperature; it
returns logits of the same shape, dtype and device. A row of a class that nobody saw (zeros) gives finite
logits: its images have no term anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ikdlib.data.loader import generator

LOG_OF_NOTHING = -1000.0
"""A log-probability whose exponential is 0 in fp32 and fp64, and which times 0 is still 0."""

LOG_OF_LEAST = -745.0
"""exp of it is the smallest number above 0 in fp64."""

BISECTIONS = 64
"""745 halved 64 times is below the spacing of fp64 numbers near log eps."""


def unchanged(means: Tensor, T: float) -> Tensor:
    """The class means themselves: the paper's term."""
    return means


def one_hot(means: Tensor, T: float) -> Tensor:
    """``softmax(logits[c] / T)`` is 1 at c and exactly 0 elsewhere: just more cross-entropy?

    The term becomes ``lambda * T^2 * CE(softmax(student / T), y)``, because a one-hot target has no entropy.
    """
    logits = torch.full_like(means, T * LOG_OF_NOTHING)
    return logits.fill_diagonal_(0.0)


def permuted(means: Tensor, T: float) -> Tensor:
    """Row by row the entries of the other classes change places: is it WHICH classes are near?

    ``logits[c, j] = means[c, pi_c(j)]`` with ``pi_c(c) = c``: the same entropy and the same probability of
    the target, while the other classes' probabilities belong to wrong classes. The permutations are one set
    for all runs, whatever their seed (`permutation`).
    """
    columns = torch.stack([permutation(len(means), label) for label in range(len(means))])
    return means.gather(1, columns.to(means.device))


def permutation(classes: int, label: int) -> Tensor:
    """pi of a row: int64 [C], from a generator of the row's own; never the identity where C > 2."""
    draw, stay = generator("permuted class means", 0, label), torch.arange(classes - 1)
    order = torch.randperm(classes - 1, generator=draw)
    while classes > 2 and torch.equal(order, stay):
        order = torch.randperm(classes - 1, generator=draw)
    columns = torch.arange(classes)
    others = columns[columns != label]
    columns[others] = others[order]
    return columns


def even_rest(means: Tensor, T: float) -> Tensor:
    """What the class mean leaves to the other classes, spread evenly: does *any* structure matter?

    ``p = softmax(means[c] / T)[c]`` at c and ``(1 - p) / (C - 1)`` elsewhere; logits are ``T log`` of it. As
    sure of the class as the class mean, image by image, while no other class is nearer than the next.
    """
    log_p = (means.double() / T).log_softmax(1)
    own, others = log_p.diagonal(), log_p.clone().fill_diagonal_(-torch.inf)
    each = others.logsumexp(1) - math.log(means.shape[1] - 1)  # log(1 - p), exact for p next to 1 too
    return _others_alike(own, each, T).to(means)


def smoothed(means: Tensor, T: float) -> Tensor:
    """Label smoothing of the class mean's entropy: is a soft label of that class all it takes?

    ``p = 1 - eps`` at c and ``eps / (C - 1)`` elsewhere, with eps in [0, (C-1)/C] such that
    ``H(p) = H(softmax(means[c] / T))``; logits are ``T log p``. The target's probability is another than
    the class mean's, unless the other classes are alike there too.
    """
    others = means.shape[1] - 1
    log_mean = (means.double().cpu() / T).log_softmax(1)
    entropy = -(log_mean.exp() * log_mean).sum(1)
    # H rises with eps there. Halving log eps, not eps, is as exact for a teacher that is certain.
    low = torch.full_like(entropy, LOG_OF_LEAST)
    high = torch.full_like(entropy, math.log(others / (others + 1)))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = _entropy(middle, others) > entropy
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    log_eps = (low + high) / 2
    return _others_alike(torch.log1p(-log_eps.exp()), log_eps - math.log(others), T).to(means)


def _others_alike(log_own: Tensor, log_other: Tensor, T: float) -> Tensor:
    """Logits [C, C] of a log-probability a class, [C], and that of each other class beside it, [C]."""
    logits = log_other[:, None].repeat(1, len(log_own))
    logits.diagonal().copy_(log_own)
    return T * logits


def _entropy(log_eps: Tensor, others: int) -> Tensor:
    """Of label smoothing, in nats: ``-(1 - eps) log(1 - eps) - eps log(eps / (C - 1))``."""
    eps = log_eps.exp()
    return -(1 - eps) * torch.log1p(-eps) - eps * (log_eps - math.log(others))


TARGETS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "means": unchanged,
    "one_hot": one_hot,
    "permuted": permuted,
    "even_rest": even_rest,
    "smoothed": smoothed,
}
