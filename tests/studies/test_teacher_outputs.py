"""A teacher's test logits: what its model answers, computed once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ikdlib import models
from ikdlib.studies import teacher_outputs

PAIR = "resnet14/resnet8"


@pytest.fixture
def study(studies):
    return studies.study(methods="kd", teachers=studies.teachers("resnet14"))


def files_of(study):
    return sorted((study.results / "cache" / "teacher_test_logits").iterdir())


def by_hand(study) -> np.ndarray:
    """The same forward pass without a loader."""
    model = models.build("resnet14", 10).eval()
    models.load_weights(model, study.teacher("resnet14").path)
    pixels = study.data.test.images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (study.data.mean, study.data.std))
    with torch.inference_mode():
        return model((pixels - mean) / std).numpy()


def test_they_are_the_models_answers_in_the_order_of_the_images(study):
    found = teacher_outputs.test_logits(study, PAIR)
    assert found.dtype == np.float32 and found.shape == (50, 10)
    np.testing.assert_allclose(found, by_hand(study), atol=1e-4)


def test_they_are_computed_once(study, monkeypatch):
    first = teacher_outputs.test_logits(study, PAIR)
    (path,) = files_of(study)
    teacher = study.teacher("resnet14").sha256
    assert path.name == f"{teacher[:16]}-{study.data.sha256[:16]}.safetensors"
    monkeypatch.setattr(teacher_outputs, "evaluate", None)
    np.testing.assert_array_equal(teacher_outputs.test_logits(study, PAIR), first)


def test_another_teacher_has_its_own(studies, study):
    first = teacher_outputs.test_logits(study, PAIR)
    studies.teachers("resnet20", "resnet14")  # resnet14 from another seed
    other = studies.study(methods="kd", teachers=str(studies.root / "teachers"))
    assert not np.allclose(teacher_outputs.test_logits(other, PAIR), first)
    assert len(files_of(study)) == 2


@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_a_damaged_file_is_computed_again(study, damage):
    first = teacher_outputs.test_logits(study, PAIR)
    (path,) = files_of(study)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if damage == "cut off" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(UserWarning, match="test logits are computed again"):
        np.testing.assert_array_equal(teacher_outputs.test_logits(study, PAIR), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the file is whole again
        np.testing.assert_array_equal(teacher_outputs.test_logits(study, PAIR), first)


def test_without_the_teacher_there_are_none(studies):
    study = studies.study(methods="kd")
    assert teacher_outputs.test_logits(study, PAIR) is None
    assert not (study.results / "cache").exists()
