"""Weight gradients on a stream of their own: the same numbers, found by torch's own autograd in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ikdlib.training import compiled, weight_gradients
from ikdlib.training.compiled import Compiled

CPU = torch.device("cpu")


class Net(nn.Module):
    """Convolutions of all kinds: strided, grouped, dilated, with a bias, one pixel wide, one used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(8, 8, 1, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.strided(F.relu(self.first(images)))
        x = F.relu(self.norm(self.grouped(x)) + self.narrow(x))
        x = self.twice(F.relu(self.twice(F.relu(self.dilated(x)))))
        return self.head(x.mean((2, 3)))


def gradients(net: nn.Module, call, images: Tensor) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    target = torch.arange(len(images), device=images.device) % 5
    F.cross_entropy(call(images).float(), target).backward()
    weight_gradients.join()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def made(device: torch.device = CPU) -> tuple[Net, Tensor]:
    torch.manual_seed(3)
    net = Net().to(device, memory_format=torch.channels_last)
    images = torch.randn(6, 3, 10, 10, device=device).to(memory_format=torch.channels_last)
    return net, images


def split(net: nn.Module, images: Tensor) -> Compiled:
    return Compiled(net, (images,), (net,), compiled.on_a_gpu())


def exact(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """By autograd, eager, in float64."""
    twin = copy.deepcopy(net).cpu().double()
    with torch.autocast("cuda", enabled=False):
        return gradients(twin, twin, images.cpu().double())


@pytest.fixture
def asked(monkeypatch):
    """Shapes of the weights whose gradients were made apart."""
    shapes, inner = [], weight_gradients._computed

    def noted(gradient, images, weight, *rest):
        shapes.append(tuple(weight.shape))
        return inner(gradient, images, weight, *rest)

    monkeypatch.setattr(weight_gradients, "_computed", noted)
    return shapes


def test_a_split_backward_has_the_gradients_of_autograd(asked):
    net, images = made()
    call = split(net, images)
    assert call.works
    asked.clear()
    found = gradients(net, call, images)
    # Not the first, which nothing follows, and not the one whose two gradients are added up.
    assert sorted(asked) == [(8, 1, 3, 3), (8, 8, 1, 1), (8, 8, 3, 3), (8, 8, 3, 3)]
    for name, expected in exact(net, images).items():
        assert torch.allclose(found[name].double(), expected, rtol=1e-4, atol=1e-6), name
        assert found[name].stride() == net.get_parameter(name).stride(), f"{name}: another memory layout"


def test_under_autocast_the_weights_gradients_come_back_in_their_own_dtype(asked):
    net, images = made()
    with torch.autocast("cpu", torch.bfloat16):
        call = split(net, images)
        asked.clear()
        found = gradients(net, call, images)
        plain = gradients(net, Compiled(net, (images,), (net,)), images)
    assert len(asked) == 4
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, plain[name]), f"{name}: the same convolution, asked for by another name"
        assert value.stride() == plain[name].stride() == net.get_parameter(name).stride(), name


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_operator_is_torchs_own_formula(stride, groups):
    draw = torch.Generator().manual_seed(4)
    images = torch.randn(3, 8, 9, 9, generator=draw)
    weight = torch.randn(12, 8 // groups, 3, 3, generator=draw)
    shape = ([stride] * 2, [1, 1], [1, 1], groups)
    output = F.conv2d(images, weight, None, *shape)
    gradient = torch.randn(output.shape, generator=draw)
    expected = nn.grad.conv2d_weight(images, weight.shape, gradient, *shape)
    given = (gradient, images, weight, *shape, torch.float32)
    assert torch.allclose(weight_gradients.weight_gradient(*given), expected, rtol=1e-4, atol=1e-5)
    torch.library.opcheck(weight_gradients.weight_gradient, given)


class Stream:
    """As much of a stream as waiting takes."""

    def __init__(self, device=None):
        self.device, self.waited_for = device, []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


def test_the_step_waits_for_what_was_started_and_for_nothing_else(monkeypatch):
    """However the device was called ("cuda", "cuda:0"): it is the tensors' own name that counts."""
    main = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: main)
    monkeypatch.setattr(weight_gradients, "_streams", {})
    weight_gradients.join()
    assert main.waited_for == []
    monkeypatch.setattr(weight_gradients, "_busy", {torch.device("cuda:0")})
    weight_gradients.join()
    weight_gradients.join()
    assert [stream.device for stream in main.waited_for] == [torch.device("cuda:0")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_nothing_is_used_or_overwritten_before_the_second_stream_is_done(monkeypatch, precision):
    """The second stream sleeps before each of its convolutions: whoever does not wait has other numbers."""
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16")
    close = {"rtol": 1e-2, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 2e-2}
    device, inner, slept = torch.device("cuda:0"), weight_gradients._computed, []

    def late(*arguments) -> Tensor:
        slept.append(torch.cuda.current_stream(device))
        torch.cuda._sleep(20_000_000)  # some 10 ms
        return inner(*arguments)

    net, images = made(device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream), autocast:
        call = split(net, images)
        monkeypatch.setattr(weight_gradients, "_computed", late)
        for _ in range(3):
            same(gradients(net, call, images), exact(net, images), close)
    assert len(slept) == 12 and set(slept) == {weight_gradients._stream(device)}

    graph, places = torch.cuda.CUDAGraph(), images.clone()
    target = torch.arange(len(images), device=device) % 5
    net.zero_grad(set_to_none=True)
    with autocast, torch.cuda.graph(graph, stream=stream):
        F.cross_entropy(call(places).float(), target).backward()
        weight_gradients.join()
        kept = {name: parameter.grad * 1 for name, parameter in net.named_parameters()}
    for scale in (1.0, -0.5, 2.0):
        places.copy_(images * scale)
        graph.replay()
        torch.cuda.synchronize()
        same(kept, exact(net, images * scale), close)


def same(found: dict[str, Tensor], expected: dict[str, Tensor], close: dict[str, float]) -> None:
    for name, value in expected.items():
        assert torch.allclose(found[name].cpu().double(), value, **close), name
