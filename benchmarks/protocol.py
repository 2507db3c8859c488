"""What the measured programs share: the images, and rounds that run when the driver says so.

Speed does not depend on what the images show, so they are noise in CIFAR-100's shape: no data set is needed.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def noise(count: int, classes: int) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 32, 32, 3], and targets [N] in which every class turns up equally often."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % classes


def serve(work: Callable[[], dict[str, float]]) -> None:
    """A round for each line read; what it measured and the peak memory (MiB) as a line of JSON."""
    for _ in sys.stdin:
        measured = work()
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        helpers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(json.dumps({**measured, "peak_mib": (own + helpers) / 1024}), flush=True)
