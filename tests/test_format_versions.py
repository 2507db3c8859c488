"""Folders and checkpoints of every version ever written stay readable; later ones are refused clearly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ikdlib import runs
from ikdlib.data import DataSet, ImageSet
from ikdlib.errors import IkdError
from ikdlib.runs import Run
from ikdlib.spec import IKDSettings, MethodSpec, Recipe, RunSpec
from ikdlib.training import checkpoint
from ikdlib.training.trainer import Trainer, student_weights

HOME = Path(__file__).parent / "fixtures" / "v1"
FINISHED = HOME / "finished" / "resnet8-resnet8-dkd+ikd-seed1-2891baad37"
UNFINISHED = HOME / "unfinished" / "resnet8-resnet8-dkd+ikd-seed2-57dc5b18ad"


def _pictures(count: int) -> ImageSet:
    pixels = torch.arange(count * 8 * 8 * 3, dtype=torch.int64) * 2654435761 // 65536 % 256
    return ImageSet(pixels.to(torch.uint8).view(count, 8, 8, 3), torch.arange(count) % 10)


DATA = DataSet(
    name="cifar100", classes=tuple("abcdefghij"), train=_pictures(150), test=_pictures(50), held_out=None,
    sha256="0" * 64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
)  # fmt: skip


def make_spec(seed: int) -> RunSpec:
    return RunSpec(
        data="cifar100", data_sha256="0" * 64, student="resnet8", teacher="resnet8", teacher_sha256="9" * 64,
        method=MethodSpec(name="dkd", ikd=IKDSettings()), recipe=Recipe().scaled(2), seed=seed,
        deterministic=True,
    )  # fmt: skip


def test_a_finished_run_of_version_1():
    run = runs.read(FINISHED)
    assert run.status == "finished" and run.folder == FINISHED, "its id is still its folder's name"
    assert run.spec == make_spec(1) and run.spec.method.ikd.weight == 6.5
    assert runs.damaged_files(run) == []
    history, result = run.history, run.result
    assert history["epoch"].tolist() == [1, 2]
    columns = {"learning_rate", "train_top1", "train_loss", "test_loss", "test_top1", "test_top5", "seconds"}
    assert columns | {"part_ce", "part_tckd", "part_nckd", "part_ikd"} <= set(history)
    assert result["last"]["top1"] == history["test_top1"][1] and result["epochs"] == 2
    assert result["weights_sha256"] == "528a5eba24703b11af1ae8a99ede9ffc8e87c01b758dd63b3640d0015777ffb9"
    assert run.provenance["machine"]["device"] == "cpu"
    logits = load_file(run.folder / "test_logits.safetensors")["logits"]
    assert logits.shape == (50, 10)
    assert list(runs.find(FINISHED.parent)) == [run]


def test_an_unfinished_run_of_version_1_goes_on(tmp_path):
    shutil.copytree(UNFINISHED, tmp_path / UNFINISHED.name)
    run = runs.read(tmp_path / UNFINISHED.name)
    assert run.status == "unfinished" and run.spec == make_spec(2)
    tensors, facts = checkpoint.read(run.checkpoint)
    assert (facts["epoch"], facts["step"], len(facts["history"])) == (2, 1, 1)
    assert tensors["method.ikd.counts"].tolist() == [15] * 10
    result = Trainer(run, DATA, student_weights("resnet8", 10, 99), torch.device("cpu")).train()
    assert result["status"] == "finished" and result["epochs"] == 2
    assert run.history["train_loss"][0] == facts["history"][0]["train_loss"]
    assert run.provenance["resumed_at"] == [{"epoch": 2, "step": 1}]


@pytest.mark.parametrize("version", [2, 0, -1, None, "1", 1.0])
def test_a_folder_of_another_version_is_refused(tmp_path, version):
    content = json.loads((FINISHED / "spec.json").read_text())
    assert content["format_version"] == 1
    (tmp_path / "spec.json").write_text(json.dumps({**content, "format_version": version}))
    with pytest.raises(IkdError, match=f"format version {version}, .*reads up to 1; update it") as caught:
        runs.read(tmp_path)
    assert str(tmp_path / "spec.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path):
    shutil.copytree(UNFINISHED, tmp_path / UNFINISHED.name)
    run = Run(tmp_path, make_spec(2))
    tensors, facts = checkpoint.read(run.checkpoint)
    checkpoint.write(run.checkpoint, tensors, {**facts, "format_version": 2})
    teacher = student_weights("resnet8", 10, 99)
    with pytest.raises(IkdError, match="version 2"):
        Trainer(run, DATA, teacher, torch.device("cpu")).train()


def test_the_fixtures_are_small():
    sizes = {path: path.stat().st_size for path in HOME.rglob("*") if path.is_file()}
    assert sizes and max(sizes.values()) < 800_000
