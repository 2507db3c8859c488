"""What every model here has in common: its outputs, its registry, and three small tools.

A family's file declares one class and the published names it answers to; `build` makes a model from a name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ikdlib.errors import IkdError
from ikdlib.spec import known


@dataclass(kw_only=True)
class Outputs:
    """What a model computes for a batch of N images; `Outputs(logits=...)` is enough for a logit method.

    stem             [N, C0, H0, W0]: what the first stage receives
    stages           one [N, Ck, Hk, Wk] per stage, as the next stage receives it
    pre_activations  one per stage, of the same shape: the stage before its last activation
    embedding        [N, D]: the globally averaged features, which the classifier receives
    logits           [N, num_classes]: before any softmax
    """

    stem: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    pre_activations: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None
    logits: Tensor


class CifarModel(nn.Module, ABC):
    """A classifier of [N, 3, H, W] images; made for 32 x 32, and 64 x 64 works with the same weights.

    `name` is the registered name, set by `build`; `num_classes` the width of the logits.
    """

    name: str = ""
    num_classes: int

    @abstractmethod
    def features(self, images: Tensor) -> Outputs:
        """Run the network once, on [N, 3, H, W] normalised images, and keep what distillation may ask for."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] normalised images -> [N, num_classes] logits."""
        return self.features(images).logits


Model = TypeVar("Model", bound=CifarModel)
_REGISTRY: dict[str, Callable[[int], CifarModel]] = {}


def register(variants: Mapping[str, Mapping[str, Any]]) -> Callable[[type[Model]], type[Model]]:
    """Class decorator: `variants` maps a published name to the keyword settings that make that model.

    The class is called as `cls(num_classes, **settings)`. A name that is taken is a programmer's ValueError.
    """

    def note(cls: type[Model]) -> type[Model]:
        for name, settings in variants.items():
            if name in _REGISTRY:
                raise ValueError(f"two models are called {name}")
            _REGISTRY[name] = partial(cls, **settings)
        return cls

    return note


def names() -> tuple[str, ...]:
    """Every registered model, in the order of the families' files."""
    return tuple(_REGISTRY)


def build(name: str, num_classes: int = 100) -> CifarModel:
    """A freshly initialised model, its weights drawn from torch's global generator.

    Raises IkdError for a name that is not registered (with the close ones) and for an impossible class count.
    """
    known(name, names(), "model", "model")
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise IkdError(f"num_classes of {name} is {num_classes!r}; give a whole number, 1 or more")
    model = _REGISTRY[name](num_classes)
    model.name, model.num_classes = name, num_classes
    return model


def through(blocks: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """Run residual blocks that leave their last ReLU to the caller; return the last sum and its ReLU.

    [N, C, H, W] -> two [N, C', H', W']. The sum stays intact (no in-place ReLU): some methods distil it.
    """
    before = x
    for block in blocks:
        before = block(x)
        x = F.relu(before)
    return before, x


def global_average(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C], for any H and W and any memory format."""
    return x.mean(dim=(2, 3))


def init_convolutions(model: nn.Module) -> None:
    """He et al. 2015 (arXiv:1502.01852), fan-out form: std sqrt(2 / (k * k * out channels)); biases 0.

    Depthwise convolutions count all their output channels, as the published code does. Batch norms need
    nothing: PyTorch starts them at weight 1 and bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(linear: nn.Linear) -> None:
    """VGG's and MobileNetV2's last layer: weights normal with std 0.01, bias 0."""
    nn.init.normal_(linear.weight, 0.0, 0.01)
    nn.init.zeros_(linear.bias)
