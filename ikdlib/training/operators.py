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
_libraries: dict[str, torch.library.Library] = {}


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Make a function an operator of CPU and GPU; what it returns shares no memory with what it is given.

    Args:
        schema: name, arguments and results, as in ``moments(Tensor images) -> (Tensor, Tensor)``.
        fake: what the results look like: shape, type and memory layout.
    """
    name, _, _ = schema.partition("(")

    def define(function: Callable[..., Any]) -> torch._ops.OpOverload:
        if name in _libraries:  # the module is read again, as a notebook does with what was edited
            _libraries.pop(name)._destroy()
        library = _libraries[name] = torch.library.Library(SPACE, "FRAGMENT")
        library.define(schema, tags=(torch.Tag.flexible_layout,))
        for device in ("CPU", "CUDA"):
            library.impl(name, function, device)
        torch.library.register_fake(f"{SPACE}::{name}", fake, lib=library)
        return getattr(getattr(torch.ops, SPACE), name).default

    return define
