"""Operators that a compiled graph calls by name, as light as torch lets them be.

`torch.library.custom_op` wraps each call in checks, and in an autograd function that nobody asks for here:
the graph has a backward of its own. A step of resnet20 makes sixty calls, in which the other core waits: they
took 1.4 ms longer, of 60 (two cores of an EPYC).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SPACE = "ikdlib"


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Make a function an operator of CPU and GPU; what it returns shares no memory with what it is given.

    Args:
        schema: name, arguments and results, as in ``moments(Tensor images) -> (Tensor, Tensor)``.
        fake: what the results look like: shape, type and memory layout.
    """
    name, bracket, rest = schema.partition("(")

    def define(function: Callable[..., Any]) -> torch._ops.OpOverload:
        whole = f"{SPACE}::{name}"
        torch.library.define(whole, bracket + rest, tags=(torch.Tag.flexible_layout,))
        torch.library.impl(whole, ("cpu", "cuda"), function)
        torch.library.register_fake(whole, fake)
        return getattr(getattr(torch.ops, SPACE), name).default

    return define
