"""A frozen teacher with its batch norms folded says what it said before; every published architecture."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from ikdlib import models
from ikdlib.training.teacher import folded


def with_statistics(model):
    """Batch norms as a training leaves them: not 0 and 1."""
    draw = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
    return model


@pytest.mark.parametrize("name", models.names())
def test_a_folded_model_gives_the_same_logits(name):
    """In float64, so that nothing but a mistake could differ; for images of both sizes."""
    torch.manual_seed(0)
    model = with_statistics(models.build(name, 10)).double().eval()
    fast = folded(model)
    assert isinstance(fast, fx.GraphModule), "torch.fx could follow it"
    left, before = (sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (fast, model))
    # Of a wide ResNet every other batch norm comes before its convolution, behind a sum: those stay.
    assert left < before / 2 + 2 if name.startswith("wrn") else left == 0
    for size in (32, 64):
        images = torch.randn(2, 3, size, size, dtype=torch.float64)
        with torch.inference_mode():
            expected, found = model(images), fast(images)
        assert expected.std() > 1e-3
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_a_model_that_cannot_be_traced_is_used_as_it_is():
    class Asks(models.CifarModel):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def features(self, images):
            means = images.mean((2, 3))
            return models.Outputs(logits=self.linear(means if means.sum() > 0 else -means))

    model = Asks().eval()
    assert folded(model) is model
