"""The IKD term: *Debiased Distillation for Consistency Regularization*, AAAI 2025, Algorithm 1.

In the first epoch the teacher's logits are summed class by class, on the augmented images the
student trains on. Their mean is one [C] vector a class: what the teacher says of a class when the
accidents of the single image are averaged out. From the second epoch on, each student output is
also drawn towards the mean of its class::

    lambda * T^2 * KL( softmax(mean[y] / T) || softmax(student / T) ),   mean over the batch

The term goes on top of any method that reads logits; the method itself is left as it is. A study may have
it pull towards something else (`controls`), or take the means from other images (`WithIKD`).
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from ikdlib.data.loader import Batch
from ikdlib.errors import IkdError
from ikdlib.methods.base import Method
from ikdlib.methods.controls import TARGETS
from ikdlib.models import Outputs
from ikdlib.spec import IKDSettings, known


def ikd_loss(
    student: Tensor, means: Tensor, seen: Tensor, target: Tensor, temperature: float = 1.0
) -> Tensor:
    """``T^2 * KL(softmax(means[target]/T) || softmax(student/T))``, mean over the batch.

    ``student``: logits [N, C]; ``means``: class means [C, C]; ``seen``: bool [C], False where the first
    epoch had no image of a class (its images add nothing); ``target`` [N] -> scalar.
    """
    log_mean = (means[target] / temperature).log_softmax(1)
    log_student = (student / temperature).log_softmax(1)
    divergence = (log_mean.exp() * (log_mean - log_student)).sum(1)
    return temperature**2 * (divergence * seen[target]).mean()


class IKD(nn.Module):
    """Class means of the teacher's logits, and the loss towards them.

    Call `observe` with every batch of the first epoch, `finish` once after it, then the module
    itself. Sums and counts are buffers: a checkpoint carries them (`state_dict`), and a resumed run has the
    same means. Under ``torch.distributed`` `finish` adds them up across processes.

    ``target`` names what takes the place of the means (`controls.TARGETS`); `means` then holds that.

    Raises:
        IkdError: an unknown ``target``, a negative ``weight``, a ``temperature`` that is not above 0, one of
            them no finite number; or the loss is asked for before there are means.
    """

    sums: Tensor
    counts: Tensor
    means: Tensor
    seen: Tensor

    def __init__(
        self, num_classes: int, weight: float = 6.5, temperature: float = 1.0, target: str = "means"
    ):
        super().__init__()
        self.control = TARGETS[known(target, tuple(TARGETS), "target", "target of the IKD term")]
        checked = IKDSettings(weight=weight, temperature=temperature)
        self.weight, self.temperature, self.target = checked.weight, checked.temperature, target
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(num_classes, num_classes))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self._has_means = False
        self.register_load_state_dict_post_hook(IKD._look)

    def extra_repr(self) -> str:
        settings = f"weight={self.weight:g}, temperature={self.temperature:g}, target={self.target!r}"
        return f"num_classes={len(self.counts)}, {settings}"

    @staticmethod
    def _look(loaded: IKD, keys: object) -> None:
        # Here, so that no training step has to wait for the answer, or be compiled anew when it is there.
        loaded._has_means = bool(loaded.seen.any())

    @torch.no_grad()
    def observe(self, teacher_logits: Tensor, target: Tensor) -> None:
        """Add a batch to the sums: ``teacher_logits`` [N, C], ``target`` [N]. Nothing leaves the device."""
        self.sums.index_add_(0, target, teacher_logits.to(self.sums.dtype))
        self.counts.index_add_(0, target, torch.ones_like(target))

    @torch.no_grad()
    def finish(self) -> None:
        """Turn sums into means; more may be observed after it. Warns once of classes nobody saw."""
        sums, counts, first = self.sums, self.counts, not self.seen.any()
        if distributed.is_available() and distributed.is_initialized():
            sums, counts = sums.clone(), counts.clone()  # each process goes on with its own
            distributed.all_reduce(sums)
            distributed.all_reduce(counts)
        self.seen.copy_(counts > 0)
        self.means.copy_(self.control(sums / counts.clamp(min=1)[:, None], self.temperature))
        self._has_means = bool(self.seen.any())
        unseen = (~self.seen).nonzero().flatten().tolist()
        if unseen and first:
            warnings.warn(f"no image of classes {unseen} was seen: they get no IKD term", stacklevel=2)

    def forward(self, student_logits: Tensor, target: Tensor) -> Tensor:
        """The weighted term: ``student_logits`` [N, C], ``target`` [N] -> scalar."""
        if not self._has_means and not self.seen.any():  # it would be 0, and the run one without the term
            raise IkdError("IKD: no class means yet; finish() after the first epoch, or load its state_dict")
        self._has_means = True  # sent by another process
        return self.weight * ikd_loss(student_logits, self.means, self.seen, target, self.temperature)


class WithIKD(Method):
    """A method and the IKD term on top: the part ``ikd`` is there from epoch 2 on.

    ``source`` says which of the teacher's logits the means are made of: those of epoch 1 (``views``, the
    paper), of all epochs so far (``running``, new means after each), or a survey of all training images
    before epoch 1, as they are (``clean``) or in every view (``all_views``).

    Attributes:
        observes: the logits of this epoch go into the sums.
        pulls: the term is there: from epoch 2 on for every source, so that nothing else differs.
    """

    def __init__(
        self, method: Method, ikd: IKD, source: Literal["views", "clean", "running", "all_views"] = "views"
    ):
        super().__init__(method.settings, method.num_classes)
        self.method = method
        self.ikd = ikd
        self.source = source
        self.begin_epoch(1)

    @property
    def needs(self) -> frozenset[str]:
        return self.method.needs | {"logits"}

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        self.method.prepare(student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        parts = self.method.parts(student, teacher, batch)
        if self.observes:
            self.ikd.observe(teacher.logits, batch.target)
        if self.pulls:
            parts["ikd"] = self.ikd(student.logits, batch.target)
        return parts

    def parts(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        return self(student, teacher, batch)  # the method's are checked, and the term's is called "ikd"

    @property
    def survey(self) -> Literal["clean", "all_views"] | None:
        return self.source if self.source in ("clean", "all_views") else None

    def take_survey(self, sums: Tensor, counts: Tensor) -> None:
        self.ikd.sums.copy_(sums)
        self.ikd.counts.copy_(counts)
        self.ikd.finish()

    @property
    def phase(self) -> Hashable:
        does = [word for word, done in (("observe", self.observes), ("pull", self.pulls)) if done]
        return "+".join(does), self.method.phase

    def begin_epoch(self, epoch: int) -> None:
        # What `forward` reads is yes or no: code compiled for "epoch 2" would be compiled anew in epoch 3.
        self.observes = self.source == "running" or (self.source == "views" and epoch == 1)
        self.pulls = epoch > 1
        self.method.begin_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        self.method.end_epoch(epoch)
        if self.observes:
            self.ikd.finish()
