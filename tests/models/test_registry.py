"""Names, refusals, and the first weights: their spread, and that the seed alone decides them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from ikdlib.errors import IkdError
from ikdlib.models import build, names, register

HE_NORMAL = ("resnet20", "resnet8x4", "ResNet50", "wrn_16_2", "vgg8", "MobileNetV2")


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("resnet50", "ResNet50"),
        ("wrn-40-2", "wrn_40_2"),
        ("mobilenetv2", "MobileNetV2"),
        ("resnet32X4", "resnet32x4"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(asked: str, offered: str) -> None:
    with pytest.raises(IkdError, match=rf"unknown model '{asked}'.*{offered}") as caught:
        build(asked)
    assert "\n" not in str(caught.value)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(IkdError) as caught:
        build("transformer")
    assert all(name in str(caught.value) for name in names())


@pytest.mark.parametrize("count", [0, -1, 2.0, "100", True, None])
def test_an_impossible_class_count_is_refused(count: object) -> None:
    with pytest.raises(IkdError, match="num_classes of resnet8"):
        build("resnet8", count)  # type: ignore[arg-type]


def test_a_model_knows_its_name_and_class_count() -> None:
    model = build("vgg8", 7)
    assert (model.name, model.num_classes) == ("vgg8", 7)
    assert "name" not in model.state_dict()


def test_a_taken_name_cannot_be_registered_again() -> None:
    with pytest.raises(ValueError, match="resnet8"):
        register({"resnet8": {}})(nn.Module)  # type: ignore[type-var]
    assert build("resnet8").num_classes == 100


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_the_seed_decides_the_first_weights(name: str) -> None:
    def first(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(build(name).parameters())

    one, again, other = first(1), first(1), first(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def spread(values: torch.Tensor, std: float) -> float:
    """How far a sample's standard deviation is from `std`, in standard errors: std / sqrt(2n), if normal."""
    return abs(values.pow(2).mean().sqrt().item() - std) / (std / math.sqrt(2 * values.numel()))


@pytest.mark.parametrize("name", HE_NORMAL)
def test_convolutions_start_normal_with_fan_out(name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            assert spread(module.weight.detach(), std) < 5, key
            if module.weight.numel() > 1000:  # more than sqrt(3) std: a uniform of the same spread has none
                assert (module.weight.abs() > 2 * std).any(), key
            if module.bias is not None:
                assert not module.bias.any(), key


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_shufflenets_start_as_pytorch_does(name: str) -> None:
    """U(-b, b) with b = 1 / sqrt(fan in), of a group."""
    torch.manual_seed(0)
    for key, module in build(name).named_modules():
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.abs().max() <= bound, key
            if module.weight.numel() > 1000:
                assert module.weight.abs().max() > 0.98 * bound, key


@pytest.mark.parametrize("name", names())
def test_norms_start_at_one_and_zero(name: str) -> None:
    norms = [module for module in build(name).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def classifier(name: str) -> nn.Linear:
    torch.manual_seed(0)
    (found,) = (module for module in build(name).modules() if isinstance(module, nn.Linear))
    return found


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV2"])
def test_vgg_and_mobilenet_start_with_a_small_classifier(name: str) -> None:
    assert spread(classifier(name).weight.detach(), 0.01) < 5
    assert not classifier(name).bias.any()


@pytest.mark.parametrize(
    ("name", "bias"), [("resnet8", True), ("ResNet50", True), ("ShuffleV1", True), ("wrn_16_2", False)]
)
def test_the_other_classifiers_start_as_pytorch_does(name: str, bias: bool) -> None:
    """Wide ResNets alone set the bias to zero."""
    layer = classifier(name)
    bound = 1 / math.sqrt(layer.in_features)
    assert 0.98 * bound < layer.weight.abs().max() <= bound
    assert layer.bias.any().item() is bias


def test_importing_the_models_stays_light() -> None:
    """torch alone: not torchvision, pandas, safetensors or anything that draws."""
    heavy = ("torchvision", "pandas", "safetensors", "matplotlib", "papermill", "dask")
    code = f"import sys, ikdlib.models; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
