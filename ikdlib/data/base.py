"""What a data set is here: two stacks of uint8 images in one canonical order, and a name by content.

Two sources of the same pictures (an archive, a folder of class folders) list them in different orders. A seed
that draws "image 17" must mean one picture wherever it came from, so everything is sorted by class, then by
file name without its suffix, before it gets a number; the sha256 of the result names the data set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ikdlib.errors import IkdError

# The held-out images are the same for every run, whatever its seed: they are drawn from this constant.
HOLDOUT_SEED = 20250225


@dataclass(frozen=True)
class ImageSet:
    """Images and their classes.

    Attributes:
        images: uint8 [N, H, W, 3], RGB.
        targets: int64 [N], class numbers from 0.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.targets.shape[0]

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set with both tensors on `device`."""
        return ImageSet(self.images.to(device), self.targets.to(device))

    def take(self, index: Tensor) -> ImageSet:
        """The images numbered `index` (int64 [n]), in that order, copied."""
        return ImageSet(self.images.index_select(0, index), self.targets.index_select(0, index))


@dataclass(frozen=True)
class DataSet:
    """A data set, decoded.

    Attributes:
        classes: class names; a class's number is its place here.
        train, test: in canonical order (see `canonical`), less what is held out.
        held_out: training images kept apart for choosing hyper-parameters, or None.
        sha256: of the whole data set (see `digest`); does not depend on what is held out.
        mean, std: per channel, of pixels scaled to 0..1; the published constants, not a measurement.
        padding: zero pixels on each side before a random crop.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    held_out: ImageSet | None
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: int = 4

    @property
    def num_classes(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Decoded:
    """What a source yields and the cache keeps: classes, both splits, and the sha256 that names them."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    sha256: str


def decoded(classes: Sequence[str], train: ImageSet, test: ImageSet) -> Decoded:
    """`Decoded` of splits that are in canonical order already, with its digest."""
    return Decoded(tuple(classes), train, test, digest(len(classes), train, test))


def canonical(images: Tensor, targets: Tensor, names: Sequence[str]) -> ImageSet:
    """Sort a split by class, then by name, then (where names repeat within a class) by pixels.

    Args:
        images: uint8 [N, H, W, 3].
        targets: int64 [N].
        names: N file names without folder and suffix.
    """
    keys = list(zip(targets.tolist(), names, strict=True))
    repeated = {key for key, count in Counter(keys).items() if count > 1}

    def order(i: int) -> tuple[int, str, bytes]:
        key = keys[i]
        return (*key, images[i].numpy().tobytes() if key in repeated else b"")

    index = sorted(range(len(keys)), key=order)
    if index == list(range(len(keys))):
        return ImageSet(images, targets)
    return ImageSet(images, targets).take(torch.tensor(index))


def digest(num_classes: int, train: ImageSet, test: ImageSet) -> str:
    """sha256 (hex) over the number of classes, then shape, pixels and labels of train and of test."""
    sha = hashlib.sha256(f"ikdlib data 1, {num_classes} classes".encode())
    for split in (train, test):
        sha.update(f"\n{tuple(split.images.shape)}\n".encode())
        sha.update(split.images.contiguous().numpy())
        sha.update(split.targets.to(torch.int64).contiguous().numpy().astype("<i8", copy=False))
    return sha.hexdigest()


def hold_out(train: ImageSet, classes: Sequence[str], n: int) -> tuple[ImageSet, ImageSet | None]:
    """Move n images of every class apart: (what is left, what is held out), both in canonical order.

    One generator, seeded by `HOLDOUT_SEED` and nothing else, permutes each class in turn; the first n of each
    permutation are held out. So the choice is one for all runs, and n = 10 is a part of n = 50.

    Raises:
        IkdError: n is negative, or not smaller than the smallest class.
    """
    if n == 0:
        return train, None
    counts = torch.bincount(train.targets, minlength=len(classes))
    smallest = int(counts.argmin())
    if not 0 < n < int(counts[smallest]):
        raise IkdError(
            f"holdout = {n} cannot be kept apart: class {classes[smallest]!r} has {int(counts[smallest])} "
            f"training images; choose holdout from 0 to {int(counts[smallest]) - 1}"
        )
    generator = torch.Generator().manual_seed(HOLDOUT_SEED)
    apart = torch.zeros(len(train), dtype=torch.bool)
    for label in range(len(classes)):
        members = (train.targets == label).nonzero().flatten()
        apart[members[torch.randperm(len(members), generator=generator)[:n]]] = True
    return train.take((~apart).nonzero().flatten()), train.take(apart.nonzero().flatten())
