"""The order of an epoch, and its batches."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from ikdlib.data.base import ImageSet
from ikdlib.data.loader import Batch, Epoch, Loader, generator
from ikdlib.data.views import Views
from ikdlib.errors import IkdError

N = 75


def images(n: int = N) -> ImageSet:
    made = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (n, 8, 6, 3), generator=made, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(n) % 10)


def loader(seed: int = 0, batch_size: int = 16, n: int = N) -> Loader:
    return Loader(images(n), Views(4, 8, 6, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), batch_size, seed)


def same(a: Batch, b: Batch) -> bool:
    tensors = ((a.images, b.images), (a.target, b.target), (a.index, b.index))
    return a.rows == b.rows and all(torch.equal(x, y) for x, y in tensors)


def test_a_generator_is_named_by_purpose_seed_and_epoch():
    head = int.from_bytes(hashlib.sha256(b"order/3/7").digest()[:8], "big")
    assert generator("order", 3, 7).initial_seed() == head
    names = [("order", 3, 7), ("views", 3, 7), ("order", 4, 7), ("order", 3, 8), ("order", 3)]
    assert len({generator(*name).initial_seed() for name in names}) == 5


def test_an_epoch_follows_from_its_seed_and_number():
    torch.manual_seed(1)
    first = loader(seed=3).epoch(2)
    torch.manual_seed(2)  # the global generator has no say
    again = loader(seed=3, batch_size=5).epoch(2)
    assert torch.equal(first.index, again.index) and torch.equal(first.views, again.views)
    assert first.fingerprint == again.fingerprint
    for other in (loader(seed=4).epoch(2), loader(seed=3).epoch(3)):
        assert not torch.equal(first.index, other.index)
        assert not torch.equal(first.views, other.views)
        assert first.fingerprint != other.fingerprint


def test_an_epoch_asked_for_again_is_the_same():
    made = loader()
    first, second = made.epoch(1), made.epoch(2)
    assert made.epoch(2) is second, "drawn once"
    again = made.epoch(1)
    assert again.number == 1 and again.fingerprint == first.fingerprint != second.fingerprint


def test_the_fingerprint_is_the_sha256_of_order_and_views():
    epoch = loader().epoch(1)
    raw = epoch.index.numpy().astype("<i8").tobytes() + epoch.views.numpy().astype("<i8").tobytes()
    assert epoch.fingerprint == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("batch_size", [1, 16, 25, 75, 100])
def test_every_sample_comes_once_and_the_short_batch_is_kept(batch_size):
    made = loader(batch_size=batch_size)
    batches = list(made.batches(made.epoch(0)))
    assert len(batches) == made.steps == -(-N // batch_size)
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(N))
    assert [b.rows.start for b in batches] == list(range(0, N, batch_size))
    assert batches[-1].rows.stop == N and len(batches[-1].target) == (N - 1) % batch_size + 1
    assert all(len(b.target) == batch_size for b in batches[:-1])


def test_cifar_has_782_steps_of_64_and_the_last_has_16():
    n = 50_000
    blank = ImageSet(torch.zeros(n, 1, 1, 3, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))
    made = Loader(blank, Views(0, 1, 1, (0.5,) * 3, (0.5,) * 3), 64, 0)
    assert made.steps == 782
    (last,) = made.batches(made.epoch(0), start=781)
    assert len(last.target) == 16


def test_a_batch_shows_its_samples_in_their_views():
    made = loader()
    epoch = made.epoch(4)
    for batch in made.batches(epoch):
        assert torch.equal(batch.index, epoch.index[batch.rows])
        assert torch.equal(batch.target, made.images.targets[batch.index])
        want = made.views.apply(made.images.images[batch.index], epoch.views[batch.rows])
        assert torch.equal(batch.images, want)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.progress is None


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 5))
def test_a_start_in_the_middle_goes_on_exactly(start):
    made = loader()
    epoch = made.epoch(1)
    rest = list(made.batches(epoch, start=start))
    assert len(rest) == 5 - start
    assert all(same(a, b) for a, b in zip(list(made.batches(epoch))[start:], rest, strict=True))


def test_the_teacher_is_asked_about_the_same_pictures():
    made = loader()
    epoch = made.epoch(1)
    shown = torch.cat([b.images for b in made.batches(epoch)])
    asked = list(made.questions(epoch, 50))
    assert [b.rows for b in asked] == [slice(0, 50), slice(50, N)]
    assert torch.equal(torch.cat([b.images for b in asked]), shown)
    assert torch.equal(torch.cat([b.index for b in asked]), epoch.index)


def test_evaluation_shows_the_set_as_it_is():
    made, test = loader(), images(23)
    batches = list(made.evaluation_batches(test, 10))
    assert [b.rows for b in batches] == [slice(0, 10), slice(10, 20), slice(20, 23)]
    assert torch.equal(torch.cat([b.target for b in batches]), test.targets)
    assert torch.cat([b.index for b in batches]).tolist() == list(range(23))
    assert torch.equal(torch.cat([b.images for b in batches]), made.views.normalise(test.images))


def test_what_cannot_be_batched_is_refused():
    shown = Views(4, 32, 32, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(IkdError, match="8x6 .* 32x32"):
        Loader(images(), shown, 64, 0)
    with pytest.raises(IkdError, match="batches of 0"):
        loader(batch_size=0)
    with pytest.raises(IkdError, match="from 0 images"):
        loader(n=0)


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", None])
def test_a_gpu_without_a_number_is_the_one_its_tensors_are_on(asked):
    """A pretended GPU: "cuda" and "cuda:0" are not equal, though they are the same."""
    with FakeTensorMode():
        shown = Views(4, 8, 8, (0.5,) * 3, (0.5,) * 3, "cuda")
        pixels, targets = torch.zeros(10, 8, 8, 3, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
        made = Loader(ImageSet(pixels, targets), shown, 4, 0, asked)
        order = torch.zeros(10, dtype=torch.int64)
        epoch = Epoch(1, order.to("cuda"), order.to("cuda"), order, "x")
        assert [b.images.device.type for b in made.batches(epoch)] == ["cuda"] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_epoch():
    here = loader()
    there = Loader(images(), here.views, 16, 0, "cuda")
    assert here.epoch(1).fingerprint == there.epoch(1).fingerprint
    for a, b in zip(here.batches(here.epoch(1)), there.batches(there.epoch(1)), strict=True):
        assert b.images.is_cuda
        assert same(a, Batch(b.images.cpu(), b.target.cpu(), b.index.cpu(), b.rows))


# Images that do not fit the device


@pytest.fixture
def full(monkeypatch) -> list[torch.Tensor]:
    """No device has room for images; the tensors that are pinned, to be uploaded, one by one."""
    pinned: list[torch.Tensor] = []

    def refuse(image_set, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 147 MiB.\nA page of advice.")

    def pin(tensor, *_):  # the real one needs a GPU
        assert tensor.device == torch.device("cpu")
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(ImageSet, "to", refuse)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return pinned


def of_a_gpu() -> Epoch:
    """An epoch on a pretended GPU (`FakeTensorMode`): tensors with a device and no content, which
    refuse to be mixed with those of another device as a GPU's do."""
    there = torch.zeros(N, dtype=torch.int64, device="cuda")
    return Epoch(1, there, there, torch.zeros(N, dtype=torch.int64), "")


def test_images_that_do_not_fit_stay_with_one_warning_of_one_line(full):
    with pytest.warns(UserWarning) as said:
        made = loader(n=30_000)
    (warning,) = said
    text = str(warning.message)
    assert "\n" not in text and "cpu has no room" in text and "host memory" in text
    assert "4 MiB" in text, "30,000 images of 8 x 6 pixels with 3 bytes each are 4.1 MiB"
    assert len(made.images) == 30_000


@pytest.mark.filterwarnings("ignore:.*has no room")
def test_batches_of_images_that_did_not_fit_are_the_same_to_the_bit(monkeypatch, full):
    """Of a training epoch, from its start and from its middle, and of the teacher's questions."""
    there = loader(seed=3)
    monkeypatch.undo()
    here = loader(seed=3)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    order = there.epoch(2)
    assert order.fingerprint == here.epoch(2).fingerprint
    for start in (0, 2):
        batches = list(there.batches(order, start=start))
        assert len(batches) == 5 - start
        assert all(same(a, b) for a, b in zip(here.batches(here.epoch(2), start), batches, strict=True))
    asked = zip(here.questions(here.epoch(2), 50), there.questions(order, 50), strict=True)
    assert all(same(a, b) for a, b in asked)
    tested = (made.evaluation_batches(images(23), 10) for made in (here, there))
    assert all(same(a, b) for a, b in zip(*tested, strict=True))


@pytest.mark.filterwarnings("ignore:.*has no room")
def test_a_batch_goes_up_at_a_time_not_the_set(full):
    """Torch's ``meta`` plays the device: what was sent there is gone, and what was sent is noted."""
    made = Loader(images(), Views(4, 8, 6, (0.5,) * 3, (0.2,) * 3, "meta"), 16, 0, "meta")
    numbers = torch.randperm(N, generator=generator("order", 0, 2))
    sent = 0
    for batch in made.batches(made.epoch(2), start=1):
        assert {x.device.type for x in (batch.images, batch.target, batch.index)} == {"meta"}
        pixels, target = full[sent:]
        assert torch.equal(pixels, images().images[numbers[batch.rows]])
        assert torch.equal(target, images().targets[numbers[batch.rows]])
        sent = len(full)
    assert sent == 2 * 4


def test_images_that_fit_are_taken_from_where_they_lie(monkeypatch):
    """No batch is uploaded, also where the GPU is named without its number, which a tensor's device has."""

    def refuse(tensor, *_):
        raise AssertionError("uploaded again")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    for name in ("cuda", "cuda:0"):
        with FakeTensorMode():
            made = Loader(images(), Views(4, 8, 6, (0.5,) * 3, (0.2,) * 3, name), 16, 0, name)
            assert made.images.images.device == torch.device("cuda:0")
            batches = list(made.batches(of_a_gpu()))
        assert len(batches) == 5
        for batch in batches:
            devices = {batch.images.device, batch.target.device, batch.index.device}
            assert devices == {torch.device("cuda:0")}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_without_room_sees_the_same_epoch(monkeypatch):
    def refuse(image_set, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    here = loader()
    monkeypatch.setattr(ImageSet, "to", refuse)
    with pytest.warns(UserWarning, match="no room"):
        there = Loader(images(), here.views, 16, 0, "cuda")
    for a, b in zip(here.batches(here.epoch(1)), there.batches(there.epoch(1)), strict=True):
        assert b.images.is_cuda
        assert same(a, Batch(b.images.cpu(), b.target.cpu(), b.index.cpu(), b.rows))
