"""torch.compile where it pays for itself: in a training long enough.

The compiler fuses batch norm, ReLU and additions, which are a quarter to a half of a step on a CPU (measured,
two threads, fp32: resnet8x4 1.18, resnet20 1.11, ShuffleV1 1.19, MobileNetV2 1.02 times as fast; one
thread, resnet8: 1.3). It costs 20 to 65 s once on a machine, then about 5 s a run from its cache on disk.
On a GPU it makes 137 kernels of 330, losses included (one H200, bf16, resnet8x4 with dkd+ikd, in a graph as
`graphs.py` captures it: 0.78 ms a step instead of 1.30, and 0.69 with weight gradients on a stream of their
own, `weight_gradients.py`), at 14 to 33 s once (8 helpers), then 5 to 7 s a run.
Results differ as those of two libraries do: by the rounding of reordered sums.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import nn

from ikdlib.data.cache import default_folder
from ikdlib.errors import first_line

PAYS_FROM_STEPS = {"cpu": 5000, "cuda": 60_000}
"""Training steps of a run, or as many batches of a teacher: a part of them takes as long as compiling. On a
GPU that is 77 epochs of CIFAR-100: eight runs side by side gain 0.7 s in each, and compile for half a minute
(with 8 helpers; with fewer nobody has measured it)."""

HELPERS = 8
"""Processes at most that compile a GPU run's hundred kernels, one a thread of the run. They may outlive a run
that is killed by a minute; on a CPU, which has fewer kernels, a process compiles for itself."""


def on_a_gpu() -> dict[str, Any]:
    """Options there: small kernels that do not depend on each other, of which a step has many, become one."""
    from ikdlib.training import weight_gradients  # asks for the compiler's modules, which take seconds

    helpers = min(HELPERS, torch.get_num_threads())
    return {"combo_kernels": True, "compile_threads": helpers, **weight_gradients.BESIDE}


def on_a_cpu(precision: str) -> dict[str, Any]:
    """Options there: the kernels of `native.py` and what suits them, where this machine can run them."""
    if precision != "bf16":
        return {}
    from ikdlib.training import channel_sums, native, weight_gradients

    keep_cache()  # theirs too
    if not native.works():
        return {}
    return {
        "post_grad_custom_pre_pass": channel_sums.ChannelSums(),
        "post_grad_custom_post_pass": weight_gradients.Apart(native.takes_convolution),
        # Rows of 16 channels are half a register: the compiler loads and stores whole ones under a mask. In
        # place, each load covers bytes that the store before it may have written, and waits for it. A step
        # of resnet20 is 1.04 times as fast without (24 rounds, 1.02 to 1.07), one of resnet8x4 as before.
        "inplace_buffers": False,
    }


def pays(wanted: str, deterministic: bool, steps: int, device: torch.device) -> bool:
    """Whether a run of so many steps compiles; ``wanted`` is ``on``, ``off`` or ``auto``."""
    long = wanted == "on" or steps >= PAYS_FROM_STEPS[device.type]
    return long and wanted != "off" and not deterministic


class Compiled:
    """A function of tensors, compiled for one batch size; others, like an epoch's last, run it as it stands.

    Args:
        function: a model (in channels-last memory, in the mode it will be used in), or a method of a step.
        example: arguments of the size it is compiled for, the first [n, ...]; made in the context of its use.
        modules: what the function may change buffers of; they are left as they were, and without gradients.
        options: of the compiler.

    Where it cannot compile (no C++ compiler, say) it warns once and runs the function as it stands.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        example: Sequence[Any],
        modules: Sequence[nn.Module],
        options: dict[str, Any] | None = None,
    ):
        keep_cache()
        self.function, self.size = function, len(example[0])
        chosen = {"compile_threads": 1, **(options or {})}
        if "TORCHINDUCTOR_COMPILE_THREADS" in os.environ:
            chosen.pop("compile_threads")
        own = function if "freezing" in chosen else _with_code_of_its_own(function)
        self._fast = torch.compile(own, dynamic=False, options=chosen)
        try:
            with warnings.catch_warnings():  # fp32 is meant to be fp32
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
                self._try(example, modules)
        except Exception as error:  # the compiler's own errors share no other base
            warnings.warn(f"runs without torch.compile: {first_line(error)[:200]}", stacklevel=3)
            self._fast = None

    @property
    def works(self) -> bool:
        return self._fast is not None

    def __call__(self, *arguments: Any) -> Any:
        if self._fast is None or len(arguments[0]) != self.size:
            return self.function(*arguments)
        return self._fast(*arguments)

    def _try(self, example: Sequence[Any], modules: Sequence[nn.Module]) -> None:
        """Compile now, both ways where gradients are asked for, and leave the modules as they were."""
        before = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
        try:
            # The backward too is compiled now, in the thread that signals reach, not in autograd's own.
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                output = self._fast(*example)
            output = output[0] if isinstance(output, tuple) else output
            if output.requires_grad:
                output.float().sum().backward()
        finally:
            for buffer, value in before:
                buffer.copy_(value)
            for module in modules:
                module.zero_grad(set_to_none=True)


def keep_cache() -> None:
    """Compiled code is kept in this package's cache, unless the user names another folder.

    torch names one of its own below the folder for temporary files as soon as it is asked for one; that
    serves where this package's cannot be written.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        # Code is made for the processors a process may use, which the compiler does not tell files by.
        part = os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "")
        folder = default_folder() / "compiled" / part
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function behind a new code object.

    torch counts what it compiled by code object, and from the ninth on runs them as they stand: the ninth
    run of one process would silently not be compiled.
    """

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
