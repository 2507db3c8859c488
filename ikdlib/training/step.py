"""One step of training, in place: views -> student -> method's parts -> loss -> SGD.

Nothing in it waits for the device and nothing leaves it: losses and hits are added up where they are made.
So the same step runs as it stands on a CPU, and is captured as a CUDA graph on a GPU (`graphs.py`), compiled
first where a run is long enough (`compiled.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ikdlib import models
from ikdlib.data.loader import Batch, generator
from ikdlib.data.views import Views
from ikdlib.errors import IkdError
from ikdlib.methods.base import Method
from ikdlib.models import CifarModel, Outputs
from ikdlib.spec import Recipe
from ikdlib.training.compiled import Compiled, on_a_cpu, on_a_gpu
from ikdlib.training.evaluate import autocast, exact_fp32


def set_switches(deterministic: bool) -> None:
    """torch's switches for this process: repeatable to the bit, or the fastest algorithms; fp32 is fp32."""
    if deterministic:  # torch refuses cuBLAS without it: a workspace of its own for each stream (CUDA only)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    exact_fp32()


def student_weights(spec_student: str, num_classes: int, seed: int) -> CifarModel:
    """The student a seed starts from: its own generator, untouched by method, settings or device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("student", seed).initial_seed())
        return models.build(spec_student, num_classes)


class Inputs(NamedTuple):
    """What one step is made from, all on the device.

    Attributes:
        pixels: uint8 [n, H, W, 3], the images as they are stored.
        target: int64 [n].
        index: int64 [n], the samples' numbers.
        views: int64 [n], how each image is shown.
        progress: float32 [2], epoch number and fraction of the whole training.
        teacher: logits [n, C] for exactly these views, in the slab's dtype; None without a teacher.
    """

    pixels: Tensor
    target: Tensor
    index: Tensor
    views: Tensor
    progress: Tensor
    teacher: Tensor | None


class TrainStep:
    """Student, method and optimiser as one function of a batch, and the sums of an epoch.

    Args:
        student: the model that learns, on its device.
        method: its loss.
        recipe: momentum, weight decay and precision.
        views: how images are shown.
        device: where all of it lives.

    Raises:
        IkdError: the method asks for more of the models than their logits.
    """

    def __init__(
        self,
        student: CifarModel,
        method: Method,
        recipe: Recipe,
        views: Views,
        device: torch.device,
    ):
        if more := ", ".join(sorted(method.needs - {"logits", "index"})):
            raise IkdError(
                f"{type(method).__name__} needs {more}, but the trainer gives a method logits alone so far"
            )
        self.student, self.method, self.views, self.device = student, method, views, device
        self.precision, self.batch_size = recipe.precision, recipe.batch_size
        self.forward: Callable[[Tensor], Tensor] = student
        self._compiled: Compiled | None = None
        self._own_kernels = False
        self._join: Callable[[], None] = lambda: None
        # A captured step reads the rate from the device: a number would be the captured epoch's for ever.
        rate = recipe.learning_rate
        self.optimizer = torch.optim.SGD(
            self.parameters(),
            lr=torch.tensor(rate, device=device) if device.type == "cuda" else rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.sums: dict[str, Tensor] = {}
        self._sums_of: dict[Hashable, dict[str, Tensor]] = {}

    def compile_student(self) -> None:
        """Compile the student alone, now: what a CPU gains from; nothing that a step changes is changed."""
        images, options = (self.views.black(self.batch_size),), on_a_cpu(self.precision)
        with autocast(self.device, self.precision):
            self.forward = Compiled(self.student.train(), images, (self.student,), options)
        self._own_kernels = bool(options) and self.forward.works

    def compile(self, inputs: Inputs) -> None:
        """Compile `losses` for batches like this one and the method's phase; nothing is changed.

        All of them, on a GPU: there the number of kernels is what counts, and half of them are the losses'.
        """
        from ikdlib.training import weight_gradients  # here, because it asks for the compiler's modules

        self._compiled = Compiled(self.losses, inputs, (self.student, self.method), on_a_gpu())
        self._join = weight_gradients.join
        self._join()  # compiling ran them once

    @property
    def is_compiled(self) -> bool:
        return any(isinstance(one, Compiled) and one.works for one in (self.forward, self._compiled))

    @property
    def made_of(self) -> dict[str, bool]:
        """What a run's record says of the code that its steps ran: each has roundings of its own."""
        return {"compiled": self.is_compiled, "own_kernels": self._own_kernels}

    def parameters(self) -> list[Tensor]:
        """The student's, then those of the method's adapters: the order checkpoints number momenta by."""
        return [*self.student.parameters(), *self.method.parameters()]

    def begin_epoch(self, epoch: int, rate: float, sums: Mapping[str, Tensor] | None = None) -> None:
        """Set the learning rate and empty the sums, or take up those of a run resumed inside the epoch."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self.student.train()
        self.method.train()
        self.method.begin_epoch(epoch)
        # A graph adds to the tensors it was captured with: they are emptied, never replaced.
        self.sums = self._sums_of.setdefault(self.method.phase, {})
        for total in self.sums.values():
            total.zero_()
        for name, value in (sums or {}).items():
            self._total(name).copy_(value)

    def __call__(self, inputs: Inputs) -> None:
        """Train on one batch and add its losses (times its size) and hits to `sums`."""
        try:
            loss, additions = (self._compiled or self.losses)(*inputs)
        except (AttributeError, TypeError) as error:
            if inputs.teacher is None and "NoneType" in str(error):
                told = f"{type(self.method).__name__}: {error}; it was given no teacher"
                mend = 'if that None is the teacher\'s, its class has to say needs = frozenset({"logits"})'
                raise IkdError(f"{told}: {mend}") from error
            raise
        loss.backward()
        self._join()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_add_([self._total(name) for name in additions], list(additions.values()))

    def join(self) -> None:
        """Nothing: a step as it stands runs on the current stream, unlike a `GraphedStep`."""

    def losses(
        self,
        pixels: Tensor,
        target: Tensor,
        index: Tensor,
        views: Tensor,
        progress: Tensor,
        teacher: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (see `Inputs`), and what it adds to `sums`: float64, without gradients."""
        images = self.views.apply(pixels, views)
        batch = Batch(images, target, index, progress=progress)
        with autocast(self.device, self.precision):
            student = Outputs(logits=self.forward(images))
        # Losses and class sums are fp32, outside autocast: a bf16 softmax over 100 classes is noise.
        student.logits = student.logits.float()
        answers = Outputs(logits=None if teacher is None else teacher.float())
        parts = self.method.parts(student, answers, batch)
        loss = torch.stack(list(parts.values())).sum()
        additions = {name: value.detach() * len(target) for name, value in {**parts, "loss": loss}.items()}
        additions["hits"] = (student.logits.detach().argmax(1) == target).sum()
        return loss, {name: value.double() for name, value in additions.items()}

    def _total(self, name: str) -> Tensor:
        if name not in self.sums:
            self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
        return self.sums[name]

    def state(self) -> dict[str, Tensor]:
        """All that a step changes, by name, as a checkpoint holds it."""
        tensors = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        tensors.update({f"method.{name}": value for name, value in self.method.state_dict().items()})
        for number, parameter in enumerate(self.parameters()):
            if parameter in self.optimizer.state:
                tensors[f"momentum.{number}"] = self.optimizer.state[parameter]["momentum_buffer"]
        tensors.update({f"sums.{name}": value for name, value in self.sums.items()})
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up `state`, before the first step; the sums go to `begin_epoch`: they belong to an epoch."""
        self.student.load_state_dict(below(tensors, "student"))
        self.method.load_state_dict(below(tensors, "method"))
        # Into the parameter's own memory layout: fused SGD walks raw memory, and a momentum that lies
        # [N, C, H, W] beside a channels-last weight would be added to the wrong elements.
        parameters = self.parameters()
        for number, value in below(tensors, "momentum").items():
            parameter = parameters[int(number)]
            self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(value)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix.``, without it."""
    return {
        name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")
    }
