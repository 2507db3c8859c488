"""Batches from images that already lie on the device, in an order that is known before the epoch starts.

The order of an epoch and its views are drawn on the CPU from generators of their own, so they depend on seed
and epoch alone: not on the device, the model or the method. Runs that share a seed see the same pictures.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ikdlib.data.base import ImageSet
from ikdlib.data.views import Views
from ikdlib.errors import IkdError


@dataclass
class Batch:
    """A batch on the device.

    Attributes:
        images: float32 [n, 3, H, W] in channels-last memory, normalised.
        target: int64 [n], class numbers.
        index: int64 [n], the samples' numbers in their `ImageSet`.
        rows: the batch's place in the order of the epoch (or in the set, in evaluation).
        progress: float [2], epoch number and fraction of the whole training; a training step sets it.
    """

    images: Tensor
    target: Tensor
    index: Tensor
    rows: slice | None = None
    progress: Tensor | None = None


@dataclass(frozen=True)
class Stored:
    """A batch before it is shown: pixels uint8 [n, H, W, 3] and views int64 [n]; the rest as in `Batch`."""

    pixels: Tensor
    views: Tensor
    target: Tensor
    index: Tensor
    rows: slice


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        number: of the epoch.
        index: int64 [N] on the loader's device, a permutation of the samples' numbers.
        views: int64 [N] on the loader's device, the view of each, in the same order.
        on_host: `index` on the CPU, for a loader whose images stay there.
        fingerprint: sha256 (hex) of both, so that two runs can tell whether they saw the same.
    """

    number: int
    index: Tensor
    views: Tensor
    on_host: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return self.index.shape[0]


def generator(purpose: str, seed: int, epoch: int = 0) -> torch.Generator:
    """A CPU generator for this (purpose, seed, epoch), seeded by the first 8 bytes of their sha256."""
    head = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(head, "big"))


class Loader:
    """Batches of `images`, shown in random views, in a random order; both follow from `seed`.

    Args:
        images: moved to `device` once, here; kept in host memory, with one warning, where they do not fit.
        views: how they are shown.
        batch_size: images a step; the last batch of an epoch is shorter if it must be, and is kept.
        seed: of the order and of the views.
        device: where batches are made; None for where `views` lives.

    Raises:
        IkdError: no images, a batch size below 1, or images of another size than the views'.
    """

    def __init__(
        self,
        images: ImageSet,
        views: Views,
        batch_size: int,
        seed: int,
        device: torch.device | str | None = None,
    ) -> None:
        if len(images) == 0 or batch_size < 1:
            raise IkdError(f"cannot make batches of {batch_size} from {len(images)} images; use 1 or more")
        size = tuple(images.images.shape[1:3])
        if size != (views.height, views.width):
            raise IkdError(
                f"the images are {size[0]}x{size[1]} (height x width) but the views were made for "
                f"{views.height}x{views.width}; build Views with the images' size"
            )
        self.views = views.to(views.device if device is None else device)
        self.device = self.views.device  # a tensor's: "cuda:0" where "cuda" was asked for, and the two differ
        try:
            self.images = images.to(self.device)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"{self.device} has no room for {images.images.nbytes >> 20} MiB of images: they stay in "
                "host memory, and each batch is uploaded",
                stacklevel=2,
            )
            self.images = images
        self.batch_size, self.seed = batch_size, seed
        self._drawn: Epoch | None = None

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return -(-len(self.images) // self.batch_size)

    def epoch(self, number: int) -> Epoch:
        """The order and the views of epoch `number`, uploaded; those asked for last are kept."""
        if self._drawn is not None and self._drawn.number == number:
            return self._drawn
        n = len(self.images)
        index = torch.randperm(n, generator=generator("order", self.seed, number))
        views = self.views.sample(generator("views", self.seed, number), n)
        sha = hashlib.sha256(index.numpy().astype("<i8", copy=False))
        sha.update(views.numpy().astype("<i8", copy=False))
        self._drawn = Epoch(number, index.to(self.device), views.to(self.device), index, sha.hexdigest())
        return self._drawn

    def stored(self, epoch: Epoch, start: int = 0, batch_size: int | None = None) -> Iterator[Stored]:
        """The epoch's batches, not yet shown, from batch number `start` on."""
        size = batch_size or self.batch_size
        for first in range(start * size, len(epoch), size):
            rows = slice(first, min(first + size, len(epoch)))
            index = epoch.index[rows]
            here = index if self.images.images.device == index.device else epoch.on_host[rows]
            pixels = self._upload(self.images.images.index_select(0, here))
            target = self._upload(self.images.targets.index_select(0, here))
            yield Stored(pixels, epoch.views[rows], target, index, rows)

    def batches(self, epoch: Epoch, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches, from batch number `start` on: a resumed run goes on where it stopped."""
        return map(self._show, self.stored(epoch, start))

    def questions(self, epoch: Epoch, batch_size: int) -> Iterator[Batch]:
        """The same images in the same order and views, in batches of another size, for the teacher."""
        return map(self._show, self.stored(epoch, 0, batch_size))

    def evaluation_batches(self, image_set: ImageSet, batch_size: int) -> Iterator[Batch]:
        """`image_set` in its own order, normalised but not augmented."""
        for first in range(0, len(image_set), batch_size):
            rows = slice(first, min(first + batch_size, len(image_set)))
            images = image_set.images[rows].to(self.device, non_blocking=True)
            target = image_set.targets[rows].to(self.device, non_blocking=True)
            index = torch.arange(rows.start, rows.stop, device=self.device)
            yield Batch(self.views.normalise(images), target, index, rows)

    def _show(self, stored: Stored) -> Batch:
        images = self.views.apply(stored.pixels, stored.views)
        return Batch(images, stored.target, stored.index, stored.rows)

    def _upload(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == self.device.type:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)
