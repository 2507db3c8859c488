"""Kernels of our own against torch in float64 and numpy, and where they do not apply."""

from __future__ import annotations

import importlib
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ikdlib.training import channel_sums, compiled, native, processor, weight_gradients

needs_them = pytest.mark.skipif(
    not native.works(), reason="needs a CPU with AVX512_BF16 and without AMX, and a C++ compiler"
)
OWN = "processor : 0 flags : avx512f avx512_bf16"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def drawn(*shape: int, middle: float = 0.0, seed: int = 0) -> Tensor:
    """bf16 noise; what a test expects is found from these very numbers, not from those before rounding."""
    draw = torch.Generator().manual_seed(sum(shape) + seed)
    return (torch.randn(shape, generator=draw) + middle).bfloat16().to(memory_format=torch.channels_last)


def conv_exact(gradient: Tensor, images: Tensor, stride: int) -> Tensor:
    shape = (gradient.shape[1], images.shape[1], 3, 3)
    return nn.grad.conv2d_weight(images.double(), shape, gradient.double(), stride, padding=1)


@needs_them
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("number, channels, outputs, height, width", [
    (2, 16, 16, 1, 1), (6, 16, 48, 9, 7), (8, 48, 16, 6, 10), (10, 64, 32, 32, 32), (16, 32, 64, 2, 3),
])  # fmt: skip
def test_a_weight_gradient_is_torchs(threads, stride, number, channels, outputs, height, width):
    images = drawn(number, channels, height, width)
    gradient = drawn(number, outputs, (height - 1) // stride + 1, (width - 1) // stride + 1, seed=1)
    exact = conv_exact(gradient, images, stride)
    for count in (1, 2, 3):
        threads(count)
        found = native.weight_gradient(gradient, images, stride)
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max() + 1e-5, f"{count} threads"
        assert torch.equal(native.weight_gradient(gradient, images, stride), found), "repeats to the bit"


@needs_them
def test_what_an_earlier_call_left_in_memory_changes_nothing(threads):
    """The packed images' border is zero: a larger call before must not show through it."""
    threads(2)
    native.weight_gradient(drawn(8, 64, 16, 16, middle=50), drawn(8, 64, 16, 16, middle=50), 1)
    images, gradient = drawn(4, 16, 5, 5), drawn(4, 16, 5, 5, seed=1)
    exact = conv_exact(gradient, images, 1)
    assert torch.allclose(native.weight_gradient(gradient, images, 1).double(), exact, rtol=1e-5, atol=1e-4)


@needs_them
def test_tensors_in_another_memory_layout_are_taken_too():
    images, gradient = drawn(4, 16, 6, 6), drawn(4, 32, 6, 6)
    other = images.contiguous(), gradient.contiguous()
    expected = native.weight_gradient(gradient, images, 1)
    assert torch.equal(native.weight_gradient(other[1], other[0], 1), expected)
    for one, two in zip(native.moments(images), native.moments(other[0]), strict=True):
        assert torch.equal(one, two)


@needs_them
@pytest.mark.parametrize("middle", [0.0, 3.0, 200.0, 1e4])
@pytest.mark.parametrize(
    "shape", [(1, 16, 1, 1), (3, 16, 37, 41), (64, 64, 8, 8), (5, 96, 20, 20), (2, 48, 3, 1)]
)
def test_moments_are_numpys(threads, shape, middle):
    images = drawn(*shape, middle=middle)
    pixels = images.double().numpy()
    for count in (1, 2, 3):
        threads(count)
        variance, mean = native.moments(images)
        assert mean.shape == variance.shape == (1, shape[1], 1, 1)
        np.testing.assert_allclose(mean, pixels.mean((0, 2, 3), keepdims=True), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance, pixels.var((0, 2, 3), keepdims=True), rtol=3e-5, atol=1e-9)


@needs_them
@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (3, 16, 37, 41), (64, 64, 8, 8), (5, 96, 20, 20)])
def test_gradient_sums_are_numpys(threads, shape):
    gradient, images, mean = drawn(*shape, seed=1), drawn(*shape, middle=2.0), torch.linspace(-1, 3, shape[1])
    g, x = gradient.double().numpy(), images.double().numpy()
    apart = x - mean.double().numpy()[None, :, None, None]
    for count in (1, 2, 3):
        threads(count)
        total, product = native.gradient_sums(gradient, images, mean.view(1, -1, 1, 1))
        size = np.abs(g).sum((0, 2, 3)), np.abs(g * apart).sum((0, 2, 3))
        assert (np.abs(total.numpy() - g.sum((0, 2, 3))) <= 1e-6 * size[0] + 1e-6).all()
        assert (np.abs(product.numpy() - (g * apart).sum((0, 2, 3))) <= 1e-6 * size[1] + 1e-6).all()


def test_only_what_the_kernel_is_made_for_is_given_to_it():
    def takes(
        images=(4, 16, 8, 8),
        outputs=32,
        size=3,
        stride=1,
        padding=1,
        dilation=1,
        groups=1,
        dtype=torch.bfloat16,
    ):
        weight = torch.empty(outputs, images[1] // groups, size, size)
        given = (torch.empty(images[0], outputs, 8, 8).to(dtype), torch.empty(images).to(dtype), weight)
        return native.takes_convolution(*given, [stride] * 2, [padding] * 2, [dilation] * 2, groups)

    assert takes() and takes(stride=2) and takes(images=(2, 48, 5, 7))
    for other in (
        {"images": (3, 16, 8, 8)}, {"images": (0, 16, 8, 8)}, {"images": (4, 24, 8, 8)}, {"outputs": 24},
        {"size": 1}, {"size": 5}, {"stride": 3}, {"padding": 0}, {"dilation": 2}, {"groups": 2},
        {"dtype": torch.float32}, {"dtype": torch.float16},
    ):  # fmt: skip
        assert not takes(**other), other


@pytest.mark.parametrize(
    "flags", ["", "flags : avx512f avx512_bf16 amx_tile", "flags : avx2", "flags : avx512_bf16x"]
)
def test_another_processor_compiles_nothing(monkeypatch, flags):
    monkeypatch.setattr(processor, "features", lambda: flags)
    monkeypatch.setattr(native, "_kernel", lambda name: pytest.fail("compiled"))
    assert not native.works.__wrapped__()


def test_without_a_compiler_it_says_so_and_torchs_own_are_used(monkeypatch):
    def missing(name):
        raise RuntimeError("no C++ compiler\nand a page of details")

    monkeypatch.setattr(processor, "features", lambda: OWN)
    monkeypatch.setattr(native, "_kernel", missing)
    with pytest.warns(UserWarning, match=r"^runs without kernels of its own: no C\+\+ compiler$"):
        assert not native.works.__wrapped__()
    monkeypatch.setattr(native, "works", lambda: False)
    assert compiled.on_a_cpu("bf16") == {}


def test_fp32_keeps_torchs_own_kernels():
    assert compiled.on_a_cpu("fp32") == {}


@pytest.mark.parametrize("own", [pytest.param(True, marks=needs_them), False])
def test_the_operators_are_torchs_formulas(monkeypatch, own):
    if not own:
        monkeypatch.setattr(native, "works", lambda: False)
    images, gradient = drawn(4, 16, 6, 6, middle=1.0), drawn(4, 16, 6, 6, seed=1)
    variance, mean = torch.var_mean(images.double(), (0, 2, 3), correction=0, keepdim=True)
    found = channel_sums.moments(images)
    assert torch.allclose(found[0].double(), variance) and torch.allclose(found[1].double(), mean)
    given = (gradient, images, mean.float())
    total, product = channel_sums.gradient_sums(*given)
    assert torch.allclose(total.double(), gradient.double().sum((0, 2, 3)), atol=1e-5)
    expected = (gradient.double() * (images.double() - mean)).sum((0, 2, 3))
    assert torch.allclose(product.double(), expected, atol=1e-4)
    torch.library.opcheck(channel_sums.moments, (images,))
    torch.library.opcheck(channel_sums.gradient_sums, given)
    given = (gradient, images, torch.empty(16, 16, 3, 3), [1, 1], [1, 1], [1, 1], 1, torch.float32)
    found = weight_gradients.weight_gradient(*given).double()
    assert torch.allclose(found, conv_exact(gradient, images, 1), rtol=1e-2, atol=0.1 if not own else 1e-4)


def test_a_module_read_again_defines_its_operators_again():
    """As `%autoreload` in a notebook does."""
    before = channel_sums.moments
    again = importlib.reload(channel_sums)
    assert again.moments is not before
    images = drawn(4, 16, 6, 6)
    assert torch.allclose(again.moments(images)[1].double(), images.double().mean((0, 2, 3), keepdim=True))


class Net(nn.Module):
    """A residual block with a strided shortcut: one gradient goes through two batch norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.one, self.one_norm = nn.Conv2d(16, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.two, self.two_norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.short, self.short_norm = nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(images)))
        y = self.two_norm(self.two(F.relu(self.one_norm(self.one(x)))))
        return self.head(F.relu(y + self.short_norm(self.short(x))).mean((2, 3)))


def trained(options: dict, asked: list[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients and running statistics of one step of `Net`, compiled in bf16."""
    torch.manual_seed(5)
    net, images = Net().to(memory_format=torch.channels_last), torch.randn(32, 3, 12, 12)
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=options is not None):
        call = compiled.Compiled(net, (images,), (net,), options) if options is not None else net.double()
        assert options is None or call.works
        if asked is not None:
            asked.clear()
        output = call(images if options is not None else images.double())
    F.cross_entropy(output.double(), torch.arange(32) % 5).backward()
    found = {name: parameter.grad.double() for name, parameter in net.named_parameters()}
    return found, {name: value.double() for name, value in net.named_buffers() if "running" in name}


@needs_them
def test_a_compiled_step_asks_them_and_is_as_near_to_the_exact_one_as_before(monkeypatch):
    asked = []
    inner = {name: getattr(native, name) for name in native.KERNELS}

    def noted(name, *arguments):
        asked.append(name)
        return inner[name](*arguments)

    for name in inner:
        monkeypatch.setattr(native, name, partial(noted, name))
    options = compiled.on_a_cpu("bf16")
    assert options
    (own, own_running), seen = trained(options, asked), asked[:]
    plain, _ = trained({})
    exact, running = trained(None)
    assert sorted(seen) == ["gradient_sums"] * 4 + ["moments"] * 4 + ["weight_gradient"] * 2

    def error(found: dict[str, Tensor], names: list[str]) -> float:
        return float(torch.cat([(found[name] - exact[name]).flatten() for name in names]).norm())

    assert error(own, list(exact)) < 1.2 * error(plain, list(exact))
    for name, value in exact.items():  # one alone may be further off: bf16 rounds each to 8 bits
        assert error(own, [name]) < 2 * error(plain, [name]) + 0.02 * value.norm() + 1e-6, name
    for name, value in running.items():
        assert torch.allclose(own_running[name], value, rtol=2e-2, atol=2e-3), name


@pytest.mark.parametrize("there", [pytest.param(True, marks=needs_them), False])
def test_a_run_says_whether_it_used_them(tiny, tmp_path, monkeypatch, there):
    if not there:
        monkeypatch.setattr(native, "works", lambda: False)
    recipe = tiny.spec().recipe.updated(precision="bf16", epochs=1, warmup=0, milestones=())
    for wanted in ("on", "off"):
        made = tiny.train(
            tmp_path / wanted, tiny.spec("ce", recipe=recipe, deterministic=False), compile=wanted
        )
        assert made.run.provenance["own_kernels"] is (there and wanted == "on")


@needs_them
@pytest.mark.parametrize("middle", [1.0, torch.full((1, 16, 1, 1), 0.5, dtype=torch.bfloat16)])
def test_sums_that_only_look_like_batch_norms_stay_torchs(monkeypatch, middle):
    """A number or a bf16 tensor where the mean would be, and sums that are bf16 themselves."""
    monkeypatch.setattr(native, "gradient_sums", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(native, "moments", lambda *_: pytest.fail("asked"))
    images = drawn(4, 16, 6, 6)

    def function(one: Tensor) -> Tensor:
        product = (one.float() * (one - middle)).sum((0, 2, 3))
        return product + torch.var_mean(one, (0, 2, 3), correction=0)[0]

    fast = compiled.Compiled(function, (images,), (), compiled.on_a_cpu("bf16"))
    assert fast.works
    assert torch.allclose(fast(images), function(images), rtol=1e-2, atol=1.0)
