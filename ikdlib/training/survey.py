"""What a teacher says of each class before anything is trained: its logits, added up over chosen views.

`IKDSettings.source` asks for it: ``clean`` is every training image as it is, ``all_views`` every image in
every view (162 of them, where the padding is 4: the teacher answers as often as in 162 epochs). The sums are
those of one teacher on one data set, so all runs of all seeds share them: one small file beside the slabs.

It is done view by view. The answers are rounded as slabs are, a view's are added up in fp64 on the CPU in the
order of the images, and the views' sums are added up in the order of their numbers. So a survey that was
stopped after any view goes on to the same bits, and its file is at the same time its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ikdlib.data.loader import Epoch, Loader
from ikdlib.errors import IkdError
from ikdlib.training import checkpoint
from ikdlib.training.teacher import TeacherLogits

SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Survey:
    """Logits added up over the views that are done.

    Attributes:
        sums: float64 [C, C] on the CPU, row c over all images of class c.
        counts: int64 [C], how many were added: images of the class times views.
        done: number of views.
    """

    sums: Tensor
    counts: Tensor
    done: int = 0

    @classmethod
    def begun(cls, classes: int) -> Survey:
        sums = torch.zeros(classes, classes, dtype=torch.float64)
        return cls(sums, torch.zeros(classes, dtype=torch.int64))

    def plus(self, answers: Tensor, target: Tensor) -> Survey:
        """With one view more: ``answers`` [N, C], ``target`` [N], both on the CPU."""
        sums = torch.zeros_like(self.sums).index_add_(0, target, answers.double())
        counts = torch.bincount(target, minlength=len(self.counts))
        return Survey(self.sums + sums, self.counts + counts, self.done + 1)


def take(
    logits: TeacherLogits,
    loader: Loader,
    kind: Literal["clean", "all_views"],
    check: Callable[[], None] = lambda: None,
) -> Survey:
    """The survey of a teacher on the loader's images: read, taken up where it was stopped, or begun.

    ``check`` runs between batches and may raise: the views done until then are kept. A damaged file costs a
    warning and is computed again; where nothing can be written it is kept nowhere.
    """
    views = [loader.views.identity] if kind == "clean" else range(loader.views.count)
    begun = Survey.begun(logits.data.num_classes)
    if logits.folder is None:
        return _go_on(begun, logits, loader, views, check, keep=lambda survey: None)
    facts = _facts(logits, loader, kind)
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = logits.folder / "surveys" / f"{kind}-{name}.safetensors"

    def keep(survey: Survey) -> None:
        tensors = {"sums": survey.sums, "counts": survey.counts}
        logits.store(path, tensors, {**facts, "done": survey.done})

    with logits.locked(path, check):
        return _go_on(_read(path, facts) or begun, logits, loader, views, check, keep)


def _go_on(
    survey: Survey,
    logits: TeacherLogits,
    loader: Loader,
    views: Sequence[int],
    check: Callable[[], None],
    keep: Callable[[Survey], None],
) -> Survey:
    target = loader.images.targets.cpu()
    kept, saved = survey.done, time.monotonic()
    try:
        for view in views[survey.done :]:
            answers = logits.teacher.logits(loader, _in_view(loader, view), check)
            survey = survey.plus(answers.to(logits.dtype).cpu(), target)
            if time.monotonic() - saved >= SAVE_SECONDS:
                keep(survey)
                kept, saved = survey.done, time.monotonic()
    finally:  # its end, a stop, an error: the views that are done are done
        if survey.done > kept:
            keep(survey)
    return survey


def _in_view(loader: Loader, view: int) -> Epoch:
    """All images in their own order, each in the same view."""
    index = torch.arange(len(loader.images))
    views = torch.full_like(index, view)
    return Epoch(0, index.to(loader.device), views.to(loader.device), index, f"view {view}")


def _facts(logits: TeacherLogits, loader: Loader, kind: str) -> dict[str, Any]:
    """All that the sums depend on."""
    data, held_out = logits.data, logits.data.held_out
    return {
        "kind": kind, "teacher": logits.teacher.sha256, "data": data.sha256,
        # How many of each class are held out says which: they are the same for all runs (`data.base`).
        "holdout": 0 if held_out is None else len(held_out) // data.num_classes,
        "images": len(loader.images), "padding": loader.views.padding,
        "normalisation": [list(loader.views.mean), list(loader.views.std)],
        "precision": logits.teacher.precision, "dtype": str(logits.dtype),
    }  # fmt: skip


def _read(path: Path, facts: dict[str, Any]) -> Survey | None:
    if not path.exists():
        return None
    try:
        tensors, stored = checkpoint.read(path)
    except IkdError as error:
        warnings.warn(f"the teacher's class sums are computed again: {error}", stacklevel=4)
        return None
    done = stored.pop("done", 0)
    return Survey(tensors["sums"], tensors["counts"], done) if stored == facts else None
