"""Kernels of our own, for bf16 on a CPU with AVX512_BF16, where torch's are far from what it can do.

Measured on two cores of an EPYC (Zen 4), batch 64, with memory that is in no cache: the weight gradients of
resnet20 and resnet8x4 run at 130 to 400 GFLOP/s in oneDNN and at 270 to 430 here (its forward convolutions at
230 to 470); what batch norm sums takes a quarter of the time of the compiler's own loops. Sums are made in
fp32, as theirs are; a weight gradient comes back in fp32 without oneDNN's rounding to bf16 in between.

`weight_gradient.cpp` and `channel_sums.cpp` are compiled, and kept, as torch.compile's own code is.
Tensors are [N, C, H, W] in channels-last memory, with C a multiple of 16.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ikdlib.errors import first_line
from ikdlib.training import processor

LANES = 16  # of a register: channels come in as many
KERNELS = {
    "weight_gradient": ("weight_gradient.cpp", 3, 7),
    "moments": ("channel_sums.cpp", 3, 3),
    "gradient_sums": ("channel_sums.cpp", 5, 3),
}
"""Each with its source, and how many tensors and sizes it takes."""


@functools.cache
def works() -> bool:
    """Whether processor and compiler can; warns where only the latter cannot. With AMX oneDNN is faster."""
    names = processor.features().split()
    if "avx512_bf16" not in names or "amx_tile" in names:
        return False
    try:
        return all(map(_kernel, KERNELS))
    except Exception as error:  # the compiler's own errors share no other base
        warnings.warn(f"runs without kernels of its own: {first_line(error)[:200]}", stacklevel=3)
        return False


@functools.cache
def _kernel(name: str) -> Callable[..., None]:
    from torch._inductor.codecache import CppCodeCache

    source, tensors, sizes = KERNELS[name]
    function = getattr(CppCodeCache.load(Path(__file__).with_name(source).read_text()), name)
    function.argtypes, function.restype = [ctypes.c_void_p] * tensors + [ctypes.c_int64] * sizes, None
    return function


def takes(*tensors: Tensor) -> bool:
    """Whether kernels are made for such images: bf16 on a CPU, whole registers of channels, a row or more."""
    return all(
        (one.device.type, one.dtype, one.dim()) == ("cpu", torch.bfloat16, 4)
        and one.shape[1] % LANES == 0
        and one.numel() > 0
        for one in tensors
    )


def takes_convolution(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether `weight_gradient` is made for such a convolution: 3x3, padding 1, an even number of images."""
    return (
        takes(gradient, images)
        and tuple(weight.shape[2:]) == (3, 3)
        and len(images) % 2 == 0
        and list(stride) in ([1, 1], [2, 2])
        and list(padding) == list(dilation) == [1, 1]
        and groups == 1
    )


def weight_gradient(gradient: Tensor, images: Tensor, stride: int) -> Tensor:
    """Float32 [K, C, 3, 3] in channels-last memory, of bf16 [N, K, H', W'] and [N, C, H, W]."""
    gradient, images = _in_rows(gradient), _in_rows(images)
    (number, channels, height, width), outputs = images.shape, gradient.shape[1]
    found = torch.empty((outputs, channels, 3, 3), memory_format=torch.channels_last)
    sizes = (number, height, width, channels, outputs, stride, torch.get_num_threads())
    _call("weight_gradient", (images, gradient, found), sizes)
    return found


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (over n) and mean of each channel of bf16 [N, C, H, W], float32 [1, C, 1, 1] each."""
    images = _in_rows(images)
    channels = images.shape[1]
    mean, variance = torch.empty((1, channels, 1, 1)), torch.empty((1, channels, 1, 1))
    _call("moments", (images, mean, variance), _rows(images))
    return variance, mean


def gradient_sums(gradient: Tensor, images: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel the sums of g and of g * (x - mean), float32 [C], for g and x bf16 [N, C, H, W]."""
    gradient, images, mean = _in_rows(gradient), _in_rows(images), mean.contiguous()
    total, product = torch.empty(images.shape[1]), torch.empty(images.shape[1])
    _call("gradient_sums", (gradient, images, mean, total, product), _rows(images))
    return total, product


def _in_rows(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _rows(images: Tensor) -> tuple[int, int, int]:
    channels = images.shape[1]
    return images.numel() // channels, channels, torch.get_num_threads()


def _call(name: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
    _kernel(name)(*(one.data_ptr() for one in tensors), *sizes)
