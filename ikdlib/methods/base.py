"""What every distillation method is: a pure loss function, and a module that holds its settings."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ikdlib.data.loader import Batch
from ikdlib.errors import IkdError
from ikdlib.models import Outputs
from ikdlib.spec import Settings

REGISTRY: dict[str, type[Method]] = {}
RESERVED = ("ikd", "loss", "hits")
"""What the trainer adds to a method's parts: the term, their sum, and the images that are right."""


class Method(nn.Module):
    """A loss made of named scalar parts.

    A subclass says in `needs` what it asks of the teacher (``"logits"``, ``"features"``,
    ``"embedding"``, ``"index"``), declares a `Settings` class, and returns its parts from
    `forward`, each already weighted: the trainer adds them up and logs them one by one.
    A class with a ``name`` is registered under it; another class of that name is refused.
    Adapters with weights of their own are made in `prepare`, and train with the student.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    class Settings(Settings):
        """The method's own settings; each with its default."""

    def __init__(self, settings: Settings, num_classes: int):
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            return
        other = REGISTRY.get(cls.name, cls)
        # The same class once more is a notebook's cell, or a module, that was executed again.
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            taken = f"{other.__module__}.{other.__qualname__}"
            raise IkdError(f'{cls.__qualname__}: the name "{cls.name}" is that of {taken}; choose another')
        REGISTRY[cls.name] = cls

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Make adapters from one example of both models' outputs; called once, before training."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Named scalar parts of the loss, fp32, differentiable in the student's outputs."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """What `forward` returns, checked: shapes and names are known before any number is.

        Raises:
            IkdError: it is no dict of scalars, or a part has one of the names in `RESERVED`.
        """
        found, name = self(student, teacher, batch), type(self).__name__
        if not isinstance(found, dict) or not found:
            raise IkdError(f'{name}: forward returned no dict of named parts, like {{"own": loss}}')
        for part, value in found.items():
            if part in RESERVED:
                raise IkdError(f'{name}: "{part}" is a name of the trainer\'s; call that part something else')
            if not isinstance(value, Tensor) or value.ndim:
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise IkdError(f'{name}: part "{part}" is {shape}, not a scalar; average it over the batch')
        return found

    @property
    def survey(self) -> Literal["clean", "all_views"] | None:
        """The pass of the teacher over all training images that the method wants before epoch 1, if any.

        ``clean``: each image once, as it is; ``all_views``: each in every view.
        """
        return None

    def take_survey(self, sums: Tensor, counts: Tensor) -> None:
        """Called with what `survey` asked for before the first step (again, where a run stops before that).

        ``sums``: the teacher's logits added up over each class, float64 [C, C] on the CPU; ``counts``: how
        many were added, int64 [C]. What is made of them belongs in buffers: a resumed run is not told again.
        """
        raise TypeError(f"{type(self).__name__} asks for a survey and does not define take_survey")

    @property
    def phase(self) -> Hashable:
        """Which computation `forward` does in this epoch; a captured step is used in its own phase only."""
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of each epoch, and again when a run resumes inside one."""

    def end_epoch(self, epoch: int) -> None:
        """Called after the last step of each epoch; epochs count from 1."""


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy with the labels: ``logits`` [N, C], ``target`` [N] -> scalar."""
    return F.cross_entropy(logits, target)


def kl_divergence(teacher_log_probability: Tensor, student_log_probability: Tensor) -> Tensor:
    """KL(teacher || student), summed over classes, averaged over the batch: [N, C] twice -> scalar.

    "batchmean" of the field's code; both arguments are log-probabilities, so no log of a zero.
    """
    return F.kl_div(student_log_probability, teacher_log_probability, reduction="batchmean", log_target=True)


def non_target(logits: Tensor, target: Tensor) -> Tensor:
    """The logits of all classes but the target's: [N, C], [N] -> [N, C - 1], in class order.

    Leaving the target out is exact, where the common ``logits - 1000 * mask`` is a large number's
    trick; a gather with computed indices, unlike a boolean mask, needs no word from the device.
    """
    count, classes = logits.shape
    index = torch.arange(classes - 1, device=target.device).expand(count, -1)
    return logits.gather(1, index + (index >= target[:, None]))
