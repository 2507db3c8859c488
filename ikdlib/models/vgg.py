"""VGG with batch norm and one linear layer: Simonyan and Zisserman (arXiv:1409.1556), cut to CIFAR size.

Five blocks of 3x3 convolutions, and max pools between them. Key names follow RepDistiller (arXiv:1910.10699).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ikdlib.models.base import (
    CifarModel,
    Outputs,
    global_average,
    init_classifier,
    init_convolutions,
    register,
)

_WIDTHS = (64, 128, 256, 512, 512)
_POOL_AGAIN = 64  # the height of images that get a fourth max pool, as in the published code


@fx.wrap  # a frozen teacher is traced, and a tracer cannot follow an `if`
def _pooled_again(stage: Tensor, images: Tensor) -> Tensor:
    return F.max_pool2d(stage, 2) if images.shape[2] == _POOL_AGAIN else stage


def _block(convolutions: int, inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, norm, ReLU, ... without the last ReLU, which the model applies."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers.append(nn.Conv2d(inputs if index == 0 else outputs, outputs, 3, padding=1))
        layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers[:-1])


@register(
    {
        "vgg8": {"convolutions": (1, 1, 1, 1, 1)},
        "vgg11": {"convolutions": (1, 1, 2, 2, 2)},
        "vgg13": {"convolutions": (2, 2, 2, 2, 2)},
        "vgg16": {"convolutions": (2, 2, 3, 3, 3)},
        "vgg19": {"convolutions": (2, 2, 4, 4, 4)},
    }
)
class VGG(CifarModel):
    """The first block is the stem; the other four are the stages: 16, 8, 4 and 4 pixels wide at 32 x 32.

    Images 64 pixels high are pooled once more before the last block, so the stages are 32, 16, 8 and 4 wide.
    """

    def __init__(self, num_classes: int, *, convolutions: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        inputs = (3, *_WIDTHS[:-1])
        for index, (count, before, after) in enumerate(zip(convolutions, inputs, _WIDTHS, strict=True)):
            self.add_module(f"block{index}", _block(count, before, after))
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        init_convolutions(self)
        init_classifier(self.classifier)

    def features(self, images: Tensor) -> Outputs:
        stem = F.relu(self.block0(images))
        norm1 = self.block1(F.max_pool2d(stem, 2))
        stage1 = F.relu(norm1)
        norm2 = self.block2(F.max_pool2d(stage1, 2))
        stage2 = F.relu(norm2)
        norm3 = self.block3(F.max_pool2d(stage2, 2))
        stage3 = F.relu(norm3)
        norm4 = self.block4(_pooled_again(stage3, images))
        stage4 = F.relu(norm4)
        embedding = global_average(stage4)
        return Outputs(
            stem=stem,
            stages=(stage1, stage2, stage3, stage4),
            pre_activations=(norm1, norm2, norm3, norm4),
            embedding=embedding,
            logits=self.classifier(embedding),
        )
