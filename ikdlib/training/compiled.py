"""torch.compile where it pays for itself: on a CPU, in a training long enough.

The compiler fuses batch norm, ReLU and additions, which are a quarter to a half of a step there (measured,
two threads, fp32: resnet8x4 1.18, resnet20 1.11, ShuffleV1 1.19, MobileNetV2 1.02 times as fast; one
thread, resnet8: 1.3). It costs 20 to 65 s once on a machine, then about 5 s a run from its cache on disk.
A GPU has graphs instead (`graphs.py`). Results differ as those of two libraries do: by the rounding of
reordered sums.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from ikdlib.data.cache import default_folder
from ikdlib.models import CifarModel
from ikdlib.training.evaluate import autocast

PAYS_FROM_STEPS = 5000
"""Training steps of a run, or as many batches of a teacher: a tenth of them takes as long as compiling."""


class Compiled:
    """``model(images)`` from compiled code for one batch size; others, like an epoch's last, as they stand.

    Args:
        model: in channels-last memory, in the mode (training or evaluation) it will be used in.
        shape: of the images, [n, 3, H, W].
        precision: ``fp32`` or ``bf16``, of the autocast context it will be called in.
        options: of the compiler.

    Where it cannot compile (no C++ compiler, say) it warns once and runs the model as it stands.
    """

    def __init__(
        self,
        model: CifarModel | torch.fx.GraphModule,
        shape: tuple[int, ...],
        precision: str,
        options: dict[str, Any] | None = None,
    ):
        # Compiler helpers would outlive a run that is killed; one process compiles for itself.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_folder() / "compiled"))
        self.model, self.size = model, shape[0]
        self._fast = torch.compile(model, dynamic=False, options=options)
        try:
            self._try(shape, precision)
        except Exception as error:  # the compiler's own errors share no other base
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"runs without torch.compile: {first[:200]}", stacklevel=3)
            self._fast = None

    @property
    def works(self) -> bool:
        return self._fast is not None

    def __call__(self, images: Tensor) -> Tensor:
        if self._fast is None or images.shape[0] != self.size:
            return self.model(images)
        return self._fast(images)

    def _try(self, shape: tuple[int, ...], precision: str) -> None:
        """Compile now, both ways where gradients are asked for, and leave the model as it was."""
        before = {name: value.clone() for name, value in self.model.named_buffers()}
        device = next(self.model.parameters()).device
        images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            output = self._fast(images)
        if output.requires_grad:
            output.float().sum().backward()
        for name, value in self.model.named_buffers():
            value.copy_(before[name])
        self.model.zero_grad(set_to_none=True)
