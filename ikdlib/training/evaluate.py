"""Accuracy in fp32: the number is that of the stored weights, and anybody can compute it again.

On a GPU a bf16 run rounds inputs in all epochs but the last (``rounded``): 37 ms instead of 132 (one H200,
resnet8x4, 10,000 images), where training takes half a second an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ikdlib.data import ImageSet
from ikdlib.data.loader import Loader
from ikdlib.models import CifarModel


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in ``fp32`` (does nothing) or ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def exact_fp32() -> None:
    """Tell torch, for this process, that fp32 is fp32: on a GPU its default rounds convolutions' inputs."""
    torch.backends.cudnn.allow_tf32 = False  # of 23 bits it would leave 10
    torch.set_float32_matmul_precision("highest")


@contextmanager
def algorithms(tried: bool) -> Iterator[None]:
    """cuDNN tries its algorithms, which takes seconds, in the block only where it would and ``tried``."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and tried
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _fp32(rounded: bool) -> Iterator[None]:
    """fp32 is fp32 in the block, or TF32 on a GPU."""
    torch.backends.cudnn.allow_tf32 = rounded
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    try:
        yield
    finally:
        exact_fp32()


def settle(device: torch.device) -> None:
    """Wait for a GPU, which works on while Python runs ahead; a CPU is always done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def evaluate(
    model: CifarModel, loader: Loader, images: ImageSet, rounded: bool = False
) -> tuple[dict[str, float], Tensor]:
    """Accuracy and loss of a model on images that are not augmented.

    ``rounded``: a GPU may round the inputs of convolutions and products to TF32, 10 bits of fp32's 23.

    Returns ``{"loss": nats, "top1": %, "top5": %, "confidence": %}`` (the last one the mean probability of
    the target class) and the logits, fp32 [N, C], on the device.
    The model is put into evaluation mode for the time, and back into the mode it was in.
    """
    training = model.training
    model.eval()
    # Of ResNet50, 500 images take 2.3 GiB. Not the teacher's number: cuDNN keeps what it chose by size.
    size = 100 if loader.device.type == "cpu" else 400
    logits, hits1, hits5, loss, confidence = [], 0, 0, 0.0, 0.0
    with _fp32(rounded), algorithms(tried=False):  # trying takes longer than a short run's evaluations
        for batch in loader.evaluation_batches(images, size):
            output = model(batch.images).float()
            logits.append(output)
            ranked = output.topk(min(5, output.shape[1]), dim=1).indices == batch.target[:, None]
            hits1 = hits1 + ranked[:, 0].sum()
            hits5 = hits5 + ranked.sum()
            nats = F.cross_entropy(output, batch.target, reduction="none")
            loss = loss + nats.sum()
            confidence = confidence + nats.neg().exp().sum()
    model.train(training)
    count = len(images)
    scores = {
        "loss": float(loss) / count,
        "top1": 100 * float(hits1) / count,
        "top5": 100 * float(hits5) / count,
        "confidence": 100 * float(confidence) / count,
    }
    return scores, torch.cat(logits)


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """What ``result.json`` keeps of an epoch's row of history."""
    return {"epoch": row["epoch"], "top1": row["test_top1"], "top5": row["test_top5"]}
