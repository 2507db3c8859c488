"""The registry, the canonical order, the digest and the held-out images."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikdlib import data
from ikdlib.data.base import ImageSet, canonical, digest, hold_out
from ikdlib.errors import IkdError


def image_set(per_class: int, classes: int = 4, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (per_class * classes, 3, 5, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(classes).repeat_interleave(per_class))


def test_an_unknown_name_is_answered_with_close_ones():
    assert data.names() == ("cifar100", "glyphs100")
    with pytest.raises(IkdError, match="'cifar10'.*did you mean cifar100"):
        data.load("cifar10")
    with pytest.raises(IkdError, match="did you mean glyphs100"):
        data.load("Glyphs-100")


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(12)), duplicates=st.booleans())
def test_canonical_order_does_not_depend_on_the_order_of_arrival(order, duplicates):
    """Also where names repeat within a class: then the pixels decide."""
    split = image_set(3)
    names = ["same"] * 12 if duplicates else ["b", "a", "c"] * 4
    reference = canonical(split.images, split.targets, names)
    index = torch.tensor(order)
    other = canonical(split.images[index], split.targets[index], [names[i] for i in order])
    assert torch.equal(reference.images, other.images)
    assert torch.equal(reference.targets, other.targets)


def test_canonical_order_is_class_then_name():
    split = image_set(3, classes=2)
    shuffled = ImageSet(split.images.flip(0), split.targets.flip(0))  # classes 1, 1, 1, 0, 0, 0
    got = canonical(shuffled.images, shuffled.targets, ["b", "c", "a", "y", "z", "x"])
    assert got.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(got.images, shuffled.images[torch.tensor([5, 3, 4, 2, 0, 1])])


def test_digest_is_the_documented_sha256_and_sees_every_change():
    train, test = image_set(2), image_set(1, seed=1)
    raw = b"ikdlib data 1, 4 classes"
    for split in (train, test):
        raw += f"\n{tuple(split.images.shape)}\n".encode() + split.images.numpy().tobytes()
        raw += b"".join(int(t).to_bytes(8, "little") for t in split.targets)
    assert digest(4, train, test) == hashlib.sha256(raw).hexdigest()
    pixel = train.images.clone()
    pixel[0, 0, 0, 0] ^= 1
    label = train.targets.clone()
    label[0] = 3
    changed = [
        digest(5, train, test),
        digest(4, ImageSet(pixel, train.targets), test),
        digest(4, ImageSet(train.images, label), test),
        digest(4, ImageSet(train.images.reshape(8, 5, 3, 3), train.targets), test),
        digest(4, test, train),
    ]
    assert len({digest(4, train, test), *changed}) == 6


def test_holdout_moves_n_images_of_each_class_by_a_fixed_rule():
    split = image_set(7)
    names = ("a", "b", "c", "d")
    kept, apart = hold_out(split, names, 2)
    assert torch.bincount(apart.targets).tolist() == [2] * 4
    assert torch.bincount(kept.targets).tolist() == [5] * 4
    pixels = {image.numpy().tobytes() for image in split.images}
    assert {i.numpy().tobytes() for i in kept.images} | {i.numpy().tobytes() for i in apart.images} == pixels
    torch.manual_seed(123)  # no training seed has a say
    again_kept, again = hold_out(split, names, 2)
    assert torch.equal(again.images, apart.images) and torch.equal(again_kept.images, kept.images)
    fewer = {i.numpy().tobytes() for i in hold_out(split, names, 1)[1].images}
    assert fewer < {i.numpy().tobytes() for i in apart.images}
    assert hold_out(split, names, 0) == (split, None)


@pytest.mark.parametrize("n", [-1, 7, 8])
def test_a_holdout_that_does_not_fit_is_refused(n):
    split = image_set(7)
    with pytest.raises(IkdError, match=rf"holdout = {n} .*'a' has 7 .*from 0 to 6"):
        hold_out(split, ("a", "b", "c", "d"), n)
