"""A teacher's own answers to the test images, which a student's are laid beside."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ikdlib import models
from ikdlib.data.loader import Loader
from ikdlib.data.views import Views
from ikdlib.errors import IkdError
from ikdlib.studies import protocol
from ikdlib.studies.study import Study
from ikdlib.studies.teachers import TeacherFile
from ikdlib.training import checkpoint
from ikdlib.training.evaluate import evaluate
from ikdlib.training.job import choose_device


def test_logits(study: Study, pair: str) -> np.ndarray | None:
    """The logits of a pair's teacher on the study's test images: float32 [N, C], in canonical order.

    They are computed once, in fp32 as every evaluation, and kept under ``results/cache``, named by teacher
    and data; a damaged file is computed again. None where the teacher is still to be trained.

    Raises:
        IkdError: the pair is none, or the teacher's file does not fit its architecture.
    """
    architecture, _ = protocol.split_pair(pair)
    teacher = study.teacher(architecture)
    if teacher is None:
        return None
    facts = {"teacher": teacher.sha256, "data": study.data.sha256}
    path = _path(study, teacher)
    if path.exists():
        try:
            tensors, stored = checkpoint.read(path)
            if stored == facts:
                return tensors["logits"].numpy()
        except IkdError as error:
            warnings.warn(f"the teacher's test logits are computed again: {error}", stacklevel=2)
    logits = _computed(study, architecture, teacher)
    checkpoint.write(path, {"logits": logits}, facts)
    return logits.numpy()


def _path(study: Study, teacher: TeacherFile) -> Path:
    name = f"{teacher.sha256[:16]}-{study.data.sha256[:16]}.safetensors"
    return study.results / "cache" / "teacher_test_logits" / name


def _computed(study: Study, architecture: str, teacher: TeacherFile):
    data, device = study.data, choose_device(study.settings.device)
    views = Views(data.padding, *data.test.images.shape[1:3], data.mean, data.std, device)
    # A loader of the test images: those of the training would only fill the device's memory.
    loader = Loader(data.test, views, batch_size=1, seed=0, device=device)
    model = models.load_weights(models.build(architecture, data.num_classes), teacher.path).to(device)
    return evaluate(model, loader, loader.images)[1].cpu()
