"""Views against torchvision's own transforms, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import Normalize, ToTensor
from torchvision.transforms import functional as tv

from ikdlib.data import views
from ikdlib.data.views import Views

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def pictures(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), generator=generator, dtype=torch.uint8)


def by_torchvision(image: Tensor, padding: int, dy: int, dx: int, flip: bool) -> Tensor:
    height, width = image.shape[:2]
    picture = tv.pad(Image.fromarray(image.numpy()), padding, fill=0)
    picture = tv.crop(picture, dy, dx, height, width)
    picture = tv.hflip(picture) if flip else picture
    return Normalize(MEAN, STD)(ToTensor()(picture))


def test_every_view_is_torchvisions_to_the_bit():
    shown = Views(4, 32, 32, MEAN, STD)
    every = [(dy, dx, flip) for dy in range(9) for dx in range(9) for flip in (False, True)]
    assert shown.count == views.count(4) == len(every) == 162
    for seed in range(3):
        images = pictures(162, 32, 32, seed)
        got = shown.apply(images, torch.arange(162))
        want = torch.stack([by_torchvision(images[k], 4, *view) for k, view in enumerate(every)])
        assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got, want)


def test_every_pixel_value_is_normalised_to_the_bit():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    shown = Views(4, 16, 16, MEAN, STD)
    want = Normalize(MEAN, STD)(ToTensor()(Image.fromarray(images[0].numpy())))
    assert torch.equal(shown.normalise(images)[0], want)
    # The look-up that a GPU uses, here on the CPU.
    table = shown._table.view(3, 256)
    assert torch.equal(table.view(3, 16, 16), want)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    padding=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
def test_any_size_and_padding(height, width, padding, seed):
    shown = Views(padding, height, width, MEAN, STD)
    ids = shown.sample(torch.Generator().manual_seed(seed), 3)
    images = pictures(3, height, width, seed)
    got = shown.apply(images, ids)
    for k, (dy, dx, flip) in enumerate(torch.stack(views.parts(ids, padding), 1).tolist()):
        assert torch.equal(got[k], by_torchvision(images[k], padding, dy, dx, bool(flip)))


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (64, 4), (64, 8)])
def test_identity_is_the_normalised_image(size, padding):
    shown = Views(padding, size, size, MEAN, STD)
    images = pictures(5, size, size)
    plain = shown.normalise(images)
    assert torch.equal(shown.apply(images, torch.full((5,), shown.identity)), plain)
    assert torch.equal(plain[2], by_torchvision(images[2], 0, 0, 0, False))
    assert plain.is_contiguous(memory_format=torch.channels_last)


def test_black_images_lie_in_memory_as_shown_ones_do():
    shown = Views(4, 6, 9, MEAN, STD)
    black, real = shown.black(3), shown.apply(pictures(3, 6, 9), torch.arange(3))
    want = Normalize(MEAN, STD)(ToTensor()(Image.new("RGB", (9, 6))))
    assert torch.equal(black, want.expand(3, 3, 6, 9))
    assert (black.dtype, black.stride()) == (real.dtype, real.stride())


def test_a_part_of_a_batch_is_shown_alike():
    """A row does not depend on its neighbours: the last, short batch and the teacher's large ones agree."""
    shown = Views(4, 32, 32, MEAN, STD)
    images, ids = pictures(20, 32, 32), torch.arange(20) * 7
    whole = shown.apply(images, ids)
    assert torch.equal(shown.apply(images[13:], ids[13:]), whole[13:])
    assert torch.equal(shown.apply(images[::2], ids[::2]), whole[::2])


def test_views_are_equally_likely():
    ids = views.sample(torch.Generator().manual_seed(7), 162_000)
    assert ids.dtype == torch.int64 and ids.device.type == "cpu"
    counts = torch.bincount(ids, minlength=162)
    assert len(counts) == 162
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_apply_leaves_its_input_alone():
    shown = Views(4, 8, 8, MEAN, STD)
    images = pictures(2, 8, 8)
    before = images.clone()
    shown.apply(images, torch.tensor([0, 80]))
    shown.normalise(images)
    assert torch.equal(images, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_shows_the_same_bits():
    shown = Views(4, 32, 32, MEAN, STD)
    images, ids = pictures(162, 32, 32), torch.arange(162)
    there = shown.to("cuda")
    assert torch.equal(there.apply(images.cuda(), ids.cuda()).cpu(), shown.apply(images, ids))
    assert torch.equal(there.normalise(images.cuda()).cpu(), shown.normalise(images))
