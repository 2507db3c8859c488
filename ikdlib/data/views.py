"""Pad, crop and flip as numbered views: what torchvision's transforms give, to the bit, a batch at a time.

Padding an image by p zero pixels and cropping it back to its size has (2p + 1)^2 outcomes, times 2 for the
flip: 162 for p = 4. A view id names one of them,

    id = ((dy * (2p + 1)) + dx) * 2 + flip,    0 <= dy, dx <= 2p,

so one int64 per image says which augmented copy was shown, and a run and its teacher can agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def count(padding: int = 4) -> int:
    """The number of views."""
    return (2 * padding + 1) ** 2 * 2


def sample(generator: torch.Generator, n: int, padding: int = 4) -> Tensor:
    """n view ids, int64 [n] on the CPU, each of the `count(padding)` equally likely."""
    return torch.randint(count(padding), (n,), generator=generator)


def parts(ids: Tensor, padding: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """(dy, dx, flip) of view ids, each int64 and of the shape of `ids`."""
    offset = torch.div(ids, 2, rounding_mode="floor")
    side = 2 * padding + 1
    return torch.div(offset, side, rounding_mode="floor"), offset % side, ids % 2


class Views:
    """The views of images of one size, and their normalisation.

    Its tables live on `device`; `apply` and `normalise` launch work there and never wait for it, so both may
    be captured in a CUDA graph.

    Args:
        padding: zero pixels on each side before the crop.
        height, width: of the images.
        mean, std: per channel, of pixels scaled to 0..1.
    """

    def __init__(
        self,
        padding: int,
        height: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.padding, self.height, self.width = padding, height, width
        self.mean, self.std = tuple(mean), tuple(std)
        self.count = count(padding)
        self.identity = (padding * (2 * padding + 1) + padding) * 2  # the unshifted, unflipped image
        self._pixels = _pixel_table(padding, height, width).to(device)
        # The operations of ToTensor and Normalize, in their order, once per value: [3 * 256].
        values = torch.arange(256, dtype=torch.float32) / 255
        means, stds = torch.tensor(self.mean), torch.tensor(self.std)
        table = (values[None] - means[:, None]) / stds[:, None]
        self._table = table.flatten().to(device)
        self._channel = torch.tensor([0, 256, 512], dtype=torch.int32, device=device)
        # Repeated along a row, so that the CPU works on rows of 3 * width values rather than on triples.
        self._row_mean, self._row_std = means.repeat(width).to(device), stds.repeat(width).to(device)

    @property
    def device(self) -> torch.device:
        return self._table.device

    def to(self, device: torch.device | str) -> Views:
        """The same views with their tables on `device`."""
        return Views(self.padding, self.height, self.width, self.mean, self.std, device)

    def sample(self, generator: torch.Generator, n: int) -> Tensor:
        """n view ids, int64 [n] on the CPU."""
        return sample(generator, n, self.padding)

    def apply(self, images: Tensor, ids: Tensor) -> Tensor:
        """Show every image in its view.

        Args:
            images: uint8 [n, height, width, 3] on `device`.
            ids: int64 [n] on `device`.

        Returns:
            float32 [n, 3, height, width] in channels-last memory: to the bit what torchvision's pad, crop at
            (dy, dx), hflip, to_tensor and normalize give. The padding is black BEFORE normalising.
        """
        n, p = ids.shape[0], self.padding
        tall, wide = self.height + 2 * p, self.width + 2 * p
        padded = images.new_zeros(n, tall, wide, 3)
        padded[:, p : p + self.height, p : p + self.width] = images
        first = torch.arange(n, device=ids.device) * (tall * wide)
        index = self._pixels.index_select(0, ids) + first[:, None]
        return self._normalised(padded.view(-1, 3).index_select(0, index.view(-1)), n)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] -> float32 [n, 3, height, width], as `apply` shows view `identity`."""
        return self._normalised(images, images.shape[0])

    def black(self, n: int) -> Tensor:
        """n black images as `apply` shows them: what a model is compiled for."""
        shape = (n, self.height, self.width, 3)
        return self.normalise(torch.zeros(shape, dtype=torch.uint8, device=self.device))

    def _normalised(self, pixels: Tensor, n: int) -> Tensor:
        if pixels.is_cuda:
            # Division on a GPU may round differently (by a reciprocal, in a fused kernel); a look-up cannot.
            index = pixels.reshape(-1, 3) + self._channel
            values = self._table.index_select(0, index.view(-1))
        else:
            # The same three operations, vectorised: half the time of the look-up on a CPU.
            rows = pixels.reshape(-1, 3 * self.width).to(torch.float32)
            values = rows.div_(255).sub_(self._row_mean).div_(self._row_std)
        return values.view(n, self.height, self.width, 3).permute(0, 3, 1, 2)


def _pixel_table(padding: int, height: int, width: int) -> Tensor:
    """int64 [views, height * width]: which pixel of the padded image each pixel of each view shows."""
    dy, dx, flip = parts(torch.arange(count(padding)), padding)
    rows = dy[:, None] + torch.arange(height)
    across = torch.arange(width)
    columns = dx[:, None] + torch.where(flip[:, None] == 1, width - 1 - across, across)
    return (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).flatten(1)
