"""Weights as people have them load; weights that do not fit are refused in one line, and change nothing."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ikdlib.errors import IkdError
from ikdlib.models import CifarModel, build, load_weights, read_state_dict

State = dict[str, Tensor]


def trained(name: str, num_classes: int = 100) -> CifarModel:
    """A model whose statistics and counters are not those of a fresh one."""
    torch.manual_seed(11)
    model = build(name, num_classes).train()
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    return model


def as_pth(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def equal(model: nn.Module, state: State, counters: bool = True) -> bool:
    own = model.state_dict()
    return set(own) == set(state) and all(
        torch.equal(own[key], state[key]) for key in own if counters or not key.endswith("tracked")
    )


FORMS: dict[str, Callable[[State], object]] = {
    "bare": lambda state: state,
    "model": lambda state: {"epoch": 240, "model": state, "best_acc": 72.3},
    "state_dict": lambda state: {"state_dict": state, "acc": torch.tensor(0.7)},
    "net": lambda state: {"net": state, "acc": 71.5, "epoch": 199},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "of a class around it": lambda state: {f"backbone.{key}": value for key, value in state.items()},
    "of two around it": lambda state: {
        "state_dict": {f"module.model.net.{key}": value for key, value in state.items()}
    },
    "module prefix": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "compiled, wrapped": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "namespace": lambda state: {"opt": argparse.Namespace(lr=0.05, model="resnet8"), "model": state},
    "numpy float64": lambda state: {"model": state, "accuracy": np.float64(72.25)},
    "numpy float32": lambda state: {"model": state, "accuracy": np.float32(72.25)},
    "numpy int and bool": lambda state: {"model": state, "epoch": np.int64(3), "best": np.bool_(True)},
    "optimiser": lambda state: {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "model": state},
    "parameters": lambda state: {
        key: nn.Parameter(value) if value.is_floating_point() else value for key, value in state.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_checkpoints_load_in_every_form(form: str, suffix: str, tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    path = as_pth(FORMS[form](state), tmp_path / f"weights{suffix}")
    model = build("resnet8")
    assert load_weights(model, path) is model
    assert equal(model, state)


def test_safetensors_load(tmp_path: Path) -> None:
    state = trained("wrn_16_1").state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    assert equal(load_weights(build("wrn_16_1"), str(tmp_path / "weights.safetensors")), state)


def test_the_old_format_loads(tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    torch.save({"model": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert equal(load_weights(build("resnet8"), tmp_path / "w.pth"), state)


def test_numpy_numbers_saved_before_numpy_2_load(tmp_path: Path) -> None:
    """Old files name numpy.core.multiarray.scalar; this numpy writes the new one, so it is patched in."""
    state = trained("resnet8").state_dict()
    path = tmp_path / "w.pth"
    torch.save({"model": state, "acc": np.float64(70.5)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old = content.replace(b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n")
    path.write_bytes(old)
    assert b"numpy.core.multiarray" in old and b"numpy._core" not in old
    assert equal(load_weights(build("resnet8"), path), state)


def test_weights_saved_on_a_gpu_load_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tensor lay is a word in the file; here it says a GPU that no machine has."""
    state = trained("resnet8").state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:63")
        path = as_pth({"model": state}, tmp_path / "w.pth")
    with pytest.raises(RuntimeError, match="(?i)cuda"):
        torch.load(path, weights_only=True)
    assert {value.device.type for value in read_state_dict(path).values()} == {"cpu"}
    assert equal(load_weights(build("resnet8"), path), state)


@pytest.mark.parametrize("saved_as", ["classifier", "classifier.0"])
def test_mobilenet_classifier_loads_under_both_names(saved_as: str, tmp_path: Path) -> None:
    state = trained("MobileNetV2").state_dict()
    renamed = {re.sub(r"^classifier\.0", saved_as, key): value for key, value in state.items()}
    assert f"{saved_as}.weight" in renamed
    assert equal(load_weights(build("MobileNetV2"), as_pth(renamed, tmp_path / "w.pth")), state)


def test_a_prefix_before_some_keys_or_other_keys_is_not_left_out(tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    mixed = {key if key == "fc.bias" else f"net.{key}": value for key, value in state.items()}
    assert "unknown (net.conv1.weight, ...)" in refused(build("resnet8"), as_pth(mixed, tmp_path / "w.pth"))
    more = {f"net.{key}": value for key, value in {**state, "head.weight": state["fc.weight"]}.items()}
    assert "1 unknown (head.weight)" in refused(build("resnet8"), as_pth(more, tmp_path / "w.pth"))
    head = {key: value for key, value in state.items() if key.startswith("fc.")}
    assert "missing (conv1.weight" in refused(build("resnet8"), as_pth(head, tmp_path / "w.pth"))
    apart = {f"{key.partition('.')[0]}.": value for key, value in state.items()}
    assert "missing" in refused(build("resnet8"), as_pth(apart, tmp_path / "w.pth"))


def test_another_architecture_behind_a_prefix_is_recognised(tmp_path: Path) -> None:
    state = {f"backbone.{key}": value for key, value in trained("resnet20").state_dict().items()}
    assert "look like resnet20:" in refused(build("resnet56"), as_pth(state, tmp_path / "w.pth"))


def test_a_model_of_one_part_keeps_its_prefix(tmp_path: Path) -> None:
    model = nn.Sequential(build("resnet8"))
    path = as_pth(nn.Sequential(trained("resnet8")).state_dict(), tmp_path / "w.pth")
    assert equal(load_weights(model, path)[0], trained("resnet8").state_dict())


def test_step_counters_may_be_missing(tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    fewer = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(fewer) < len(state)
    model = load_weights(trained("resnet8"), as_pth(fewer, tmp_path / "w.pth"))
    assert equal(model, state, counters=False)
    assert int(model.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    model = load_weights(build("resnet8"), as_pth(cast, tmp_path / "w.pth"))
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert equal(model, {key: value.to(state[key].dtype) for key, value in cast.items()})


def refused(model: nn.Module, path: Path) -> str:
    """The message; it is one line, and the model is as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(IkdError) as caught:
        load_weights(model, path)
    assert equal(model, before)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "there is no weights file" in refused(build("resnet8"), tmp_path / "gone.pth")
    assert "is a folder" in refused(build("resnet8"), tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = as_pth({}, tmp_path / "w.pth")
    path.chmod(0)
    assert "check the file and its rights" in refused(build("resnet8"), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>404: Not Found</html>", b"PK\x03\x04", bytes(64), b"\x80\x02}q\x00."]
)
def test_what_is_no_weights_file(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert re.search(r"cut off or not a weights file|not a model's weights", refused(build("resnet8"), path))


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_a_file_that_was_cut_off(kind: str, part: float, tmp_path: Path) -> None:
    state, path = trained("resnet8").state_dict(), tmp_path / "w.pth"
    if kind == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert "is cut off or not a weights file" in refused(build("resnet8"), path)


class Trap:
    """Unpickled carelessly, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("new", [True, False])
def test_no_code_is_run(new: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    torch.save(
        {"model": trained("resnet8").state_dict(), "trap": Trap(mark)},
        path,
        _use_new_zipfile_serialization=new,
    )
    text = refused(build("resnet8"), path)
    assert re.search(r"Python object \((posix|nt)\.mkdir\).*could run code", text)
    assert not mark.exists()


def test_other_objects_are_named(tmp_path: Path) -> None:
    path = as_pth({"model": {}, "date": datetime.date(2024, 1, 1)}, tmp_path / "w.pth")
    assert "datetime.date" in refused(build("resnet8"), path)


def test_allowing_a_namespace_ends_with_the_load(tmp_path: Path) -> None:
    path = as_pth(FORMS["namespace"](trained("resnet8").state_dict()), tmp_path / "w.pth")
    load_weights(build("resnet8"), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds nothing"),
        ({"model": {}}, "holds nothing"),
        ({"net": {}}, "holds nothing"),
        ({"epoch": 3, "ema": {}}, r"more than weights \(epoch, ...\).*'net', 'model_state_dict'; save"),
        (torch.zeros(3), "holds a Tensor"),
        ({"model": {"conv1.weight": [1.0]}}, "more than weights"),
        ({1: torch.zeros(1)}, "more than weights"),
    ],
)
def test_a_file_without_weights(content: object, said: str, tmp_path: Path) -> None:
    assert re.search(said, refused(build("resnet8"), as_pth(content, tmp_path / "w.pth")))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("resnet20", "resnet56"), ("wrn_16_1", "wrn_16_2"), ("vgg8", "resnet8"), ("vgg11", "vgg8")],
)
def test_another_architecture_is_recognised(theirs: str, ours: str, tmp_path: Path) -> None:
    path = as_pth({"model": trained(theirs, 10).state_dict()}, tmp_path / "w.pth")
    text = refused(build(ours), path)
    assert f"does not fit {ours}" in text and f"these look like {theirs}:" in text


def test_another_architecture_without_counters_is_recognised(tmp_path: Path) -> None:
    state = trained("ShuffleV1").state_dict()
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert "these look like ShuffleV1:" in refused(build("ShuffleV2"), as_pth(state, tmp_path / "w.pth"))


def test_an_unknown_architecture_is_described(tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    state["extra.weight"] = state.pop("bn1.weight")
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    text = refused(build("resnet8"), as_pth(state, tmp_path / "w.pth"))
    assert "1 missing (bn1.weight), 1 unknown (extra.weight)" in text
    assert "(conv1.weight: 16x1x3x3 float32, not 16x3x3x3 float32)" in text
    assert "look like" not in text


def test_whole_numbers_are_not_weights(tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    state["conv1.weight"] = state["conv1.weight"].long()
    text = refused(build("resnet8"), as_pth(state, tmp_path / "w.pth"))
    assert "16x3x3x3 int64, not 16x3x3x3 float32" in text


@pytest.mark.parametrize("name", ["resnet8", "MobileNetV2", "vgg8"])
def test_another_class_count(name: str, tmp_path: Path) -> None:
    text = refused(build(name, 100), as_pth(trained(name, 10).state_dict(), tmp_path / "w.pth"))
    assert f"into 10 classes, but this {name} into 100" in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layer2.0.bn1.running_var", "fc.bias"])
def test_broken_numbers(bad: float, key: str, tmp_path: Path) -> None:
    state = trained("resnet8").state_dict()
    state[key][3] = bad
    assert f"NaN or infinite weights ({key})" in refused(build("resnet8"), as_pth(state, tmp_path / "w.pth"))


def test_a_number_too_large_for_the_model(tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in trained("resnet8").state_dict().items()}
    state["fc.bias"] = torch.full((100,), 1e300, dtype=torch.float64)
    assert "(fc.bias)" in refused(build("resnet8"), as_pth(state, tmp_path / "w.pth"))


@pytest.mark.shared
def test_a_published_teacher_loads(shared: Path) -> None:
    """A ResNet-56 that somebody trained with the published code: CUDA tensors under `state_dict`."""
    path = shared / "teachers" / "resnet56.pth"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == "1dc5624cc23157c5689bea36911ee71a589c45d9d18aeacba027f73be57574ab"
    model = load_weights(build("resnet56"), path)
    raw = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert equal(model, {key.removeprefix("module."): value for key, value in raw.items()}, counters=False)
    assert "these look like resnet56" in refused(build("resnet20"), path)
