"""Weights from a file, as people have them, into a model, or one line that says why not.

Published checkpoints differ in their wrapping only: bare or under a key, with `module.` in front, with a
training script's options beside them. The wrapping is taken off here; then keys and shapes must fit exactly.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ikdlib.errors import IkdError
from ikdlib.models.base import build, names

_WRAPPERS = ("model", "state_dict", "net", "model_state_dict")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile
_COUNTER = "num_batches_tracked"  # unused at a fixed momentum, and absent from old files

FilePath = str | os.PathLike[str]
Module = TypeVar("Module", bound=nn.Module)


def read_state_dict(path: FilePath) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a `.pth`/`.pt` checkpoint, on the CPU, in the file's order.

    A checkpoint may be the state dict itself or hold it under `model`, `state_dict`, `net` or
    `model_state_dict`. Nothing but tensors, plain values, `argparse.Namespace` and numpy scalars is ever
    unpickled. Raises IkdError for a file that is not there or may not be read, that is damaged or no weights
    file, or that holds other Python objects.
    """
    file = Path(path)
    _check_readable(file, path)
    try:
        content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    except pickle.UnpicklingError as error:
        raise IkdError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged file can raise nearly anything: all of it means the same
        raise IkdError(_damaged(path, _brief(error))) from error
    return _without_prefixes(_unwrapped(content, path))


def load_weights(model: Module, path: FilePath) -> Module:
    """Load `path` into `model`, in place, and return it; all of it or, on an error, nothing.

    Strict: every weight must be there with its shape, and no other. Batch norm's step counters may be missing
    (they start at 0); weights of another float type are cast to the model's; MobileNetV2's classifier may be
    called `classifier.*` or `classifier.0.*`; one prefix before all keys, as `backbone.`, is left out
    where the model's own keys follow it. Raises IkdError for what `read_state_dict` refuses, for weights
    of another architecture (which one, if it is registered) or class count, and for NaN or infinite weights.
    """
    wanted = model.state_dict()
    found = _without_owner(read_state_dict(path), wanted)
    _rename_classifier(found, wanted)
    for key, value in wanted.items():
        if key.endswith(_COUNTER):
            found.setdefault(key, torch.zeros_like(value, device="cpu"))
    _check_fit(model, found, wanted, path)
    found = {key: value.to(wanted[key].dtype) for key, value in found.items()}
    broken = [key for key, value in found.items() if not torch.isfinite(value).all()]
    if broken:
        raise IkdError(
            f"{path} holds NaN or infinite weights ({_first(broken)}): its training failed; name another file"
        )
    model.load_state_dict(found)
    return model


def _check_readable(file: Path, path: FilePath) -> None:
    """First, and apart from the reading: a cut-off archive makes torch raise an OSError too."""
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IkdError(f"there is no weights file {path}; check the path") from error
    except IsADirectoryError as error:
        raise IkdError(f"{path} is a folder, not a weights file; name the file in it") from error
    except OSError as error:
        raise IkdError(f"cannot read {path} ({_brief(error)}); check the file and its rights") from error


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(file, device="cpu")


def _read_pickle(file: Path) -> Any:
    """Only ever weights_only: a checkpoint from outside must not run code."""
    with torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _numpy_scalars() -> list[Any]:
    """What unpickling a numpy number needs: old scripts saved the accuracy as one.

    The function that makes it has two names: numpy 2 moved it, and old files ask for the old one.
    """
    import numpy as np

    make = np.float64(0).__reduce__()[0]
    kinds = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
    return [
        (make, "numpy.core.multiarray.scalar"),
        (make, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]


def _refusal(path: FilePath, message: str) -> str:
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused:
        return (
            f"{path} holds a Python object ({refused[1]}) that is not unpickled, as it could run code; "
            "save its state dict alone, best as .safetensors"
        )
    return _damaged(path, "its pickle cannot be read")


def _damaged(path: FilePath, why: str) -> str:
    return f"{path} is cut off or not a weights file ({why}); fetch it again, or name another file"


def _unwrapped(content: Any, path: FilePath) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise IkdError(f"{path} holds {kind}, not a model's weights; save model.state_dict()")
    alien = [str(key) for key, value in content.items() if not (isinstance(key, str) and _is_dense(value))]
    if alien:
        wrappers = ", ".join(map(repr, _WRAPPERS))
        raise IkdError(
            f"{path} holds more than weights ({_first(alien)}) and none under {wrappers}; "
            "save model.state_dict()"
        )
    return dict(content)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _without_owner(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a class around the network calls it (`model.`, `net.backbone.`), if all keys begin so.

    Nothing is guessed by it: the keys that are left must still be the model's, each and no other.
    """
    left = state
    while not any(key in wanted for key in left):
        prefixes = {"".join(key.partition(".")[:2]) for key in left}
        if len(prefixes) > 1 or not (prefix := prefixes.pop()).endswith("."):
            return state
        left = {key.removeprefix(prefix): value for key, value in left.items()}
    return left


def _rename_classifier(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for part in ("weight", "bias"):
        plain, nested = f"classifier.{part}", f"classifier.0.{part}"
        if nested in wanted and nested not in found and plain in found:
            found[nested] = found.pop(plain)


def _check_fit(
    model: nn.Module, found: dict[str, Tensor], wanted: Mapping[str, Tensor], path: FilePath
) -> None:
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    clash = [key for key in wanted if key in found and not _alike(found[key], wanted[key])]
    if not (missing or unknown or clash):
        return
    name = getattr(model, "name", "") or type(model).__name__
    head = _head(wanted)
    if not missing and not unknown and set(clash) <= {head, head.replace("weight", "bias")}:
        if found[head].ndim == 2 and found[head].shape[1:] == wanted[head].shape[1:]:
            theirs, ours = len(found[head]), len(wanted[head])
            raise IkdError(
                f"{path} classifies into {theirs} classes, but this {name} into {ours}; "
                f"build it with num_classes={theirs}, or name weights of {ours} classes"
            )
    facts = []
    if missing:
        facts.append(f"{len(missing)} missing ({_first(missing)})")
    if unknown:
        facts.append(f"{len(unknown)} unknown ({_first(unknown)})")
    if clash:
        key = clash[0]
        theirs, ours = _kind(found[key]), _kind(wanted[key])
        facts.append(f"{len(clash)} of another shape or type ({key}: {theirs}, not {ours})")
    other = _recognise(found)
    known = other is not None and other != name
    mend = f"these look like {other}: build that model" if known else "build the model they were trained in"
    raise IkdError(f"{path} does not fit {name}: {', '.join(facts)}; {mend}, or name another file")


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and theirs.is_floating_point() == ours.is_floating_point()


def _head(state: Mapping[str, Tensor]) -> str:
    """The classifier's weight: in every family here the last matrix, and the only one."""
    return next((key for key in reversed(list(state)) if state[key].ndim == 2), "")


def _recognise(found: Mapping[str, Tensor]) -> str | None:
    """The registered model whose keys and shapes these are, whatever their class count and order."""
    if not (head := _head(found)):
        return None
    theirs = {key: value.shape for key, value in found.items() if not key.endswith(_COUNTER)}
    for name in names():
        with torch.device("meta"):  # shapes only: nothing is allocated and no random number drawn
            candidate = build(name, max(1, len(found[head]))).state_dict()
        ours = {key: value.shape for key, value in candidate.items() if not key.endswith(_COUNTER)}
        if ours == theirs:
            return name
    return None


def _kind(value: Tensor) -> str:
    return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"


def _first(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]}, ..."


def _brief(error: Exception) -> str:
    """The first words of a library's message: the whole may run over many lines."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100]}" if lines else type(error).__name__
