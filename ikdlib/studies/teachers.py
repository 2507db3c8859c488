"""Finding trained teachers, and keeping the ones trained here.

A teacher is rounded to fp16 and saved when its training ends, and every student uses that file: what
is committed is what taught. ``TEACHERS=DIR`` wins over the project's own.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file, save

from ikdlib import files, models
from ikdlib.errors import IkdError
from ikdlib.runs import Run
from ikdlib.spec import RunSpec
from ikdlib.training.checkpoint import digest

SUFFIXES = (".safetensors", ".pth", ".pt")
ENDINGS = r"\.(safetensors|pth|pt|pth\.tar|tar|bin|ckpt|th|pkl)"
"""How files of weights end, ours and others': a misnamed teacher is looked for among them."""


@dataclass(frozen=True)
class TeacherFile:
    """Weights on disk, and the digest (`checkpoint.digest`) that a spec names them by."""

    path: Path
    sha256: str


def locate(
    architecture: str, num_classes: int, given: Path | None, own: Path, specs: Iterable[RunSpec]
) -> TeacherFile | None:
    """The file of a teacher, or None where it must be trained first.

    ``given`` (TEACHERS) may hold ``resnet56.pth``, ``resnet56.safetensors``, or RepDistiller's
    ``resnet56_vanilla/ckpt_epoch_240.pth``; where it holds none of them, that is said, but a file that seems
    to be meant and has another name is refused: what was named would not be what teaches. ``own``
    (``results/teachers``) holds what was trained here, by run id: the first of ``specs`` that is there.

    Raises:
        IkdError: ``given`` is no folder, its file does not fit the architecture or has another name, two
            files of different weights have the name, or RepDistiller's folder has several epochs and not the
            last.
    """
    if given is not None:
        if not given.is_dir():
            raise IkdError(f"teachers: {given} is not a folder; give one that holds {architecture}.pth")
        found = [_file(path, architecture, num_classes) for path in _given(given, architecture)]
        if len({file.sha256 for file in found}) > 1:
            names = " and ".join(str(file.path.relative_to(given)) for file in found)
            raise IkdError(f"teachers: {given} has {names}, of different weights; keep the one that is meant")
        if found:
            return found[0]
        if given.resolve() != own.resolve():  # there, files are named by their runs
            _refuse_misnamed(given, architecture)
        _say_it_is_missing(given, architecture)
    for candidate in specs:
        path = own / f"{candidate.run_id}.safetensors"
        if path.exists():
            return _file(path, architecture, num_classes)
    return None


def _file(path: Path, architecture: str, num_classes: int) -> TeacherFile:
    return TeacherFile(path, _digest(path, path.stat().st_mtime_ns, architecture, num_classes))


def _given(folder: Path, architecture: str) -> list[Path]:
    """The files that have the name a teacher is to have."""
    paths = [folder / f"{architecture}{suffix}" for suffix in SUFFIXES]
    last = folder / f"{architecture}_vanilla" / "ckpt_epoch_240.pth"
    if any(path.exists() for path in paths):
        return [path for path in (*paths, last) if path.exists()]
    found = [last] if last.exists() else sorted(last.parent.glob("*.pth"))
    if len(found) > 1:  # an epoch before the rate's first decay would teach as readily
        names = ", ".join(path.name for path in found[:6])
        raise IkdError(
            f"teachers: {last.parent} has {names}, and not {last.name}; keep the one that is meant"
        )
    return found


def _refuse_misnamed(folder: Path, architecture: str) -> None:
    """`ResNet20.pth`, `resnet20_best.pth` and `resnet20.pth.tar` are meant to be a resnet20."""
    spelt = "[-_]?".join(re.findall(r"[a-z]+|[0-9]+", architecture.lower()))
    meant = re.compile(rf"{spelt}([^a-z0-9].*)?{ENDINGS}", re.IGNORECASE)
    if near := [name for name in sorted(os.listdir(folder)) if meant.fullmatch(name)]:
        suffix = ".safetensors" if near[0].endswith(".safetensors") else ".pth"
        raise IkdError(
            f"teachers: {folder} has no {architecture}{suffix}, but {', '.join(near[:6])}; if it is meant, "
            f"rename it to {architecture}{suffix}, else move it away"
        )


@lru_cache  # a study asks again and again
def _say_it_is_missing(folder: Path, architecture: str) -> None:
    names = ", ".join(sorted(os.listdir(folder))[:6]) or "nothing"
    words = f"TEACHERS has no {architecture}.pth ({folder} holds {names}): one trained here is used"
    warnings.warn(words, stacklevel=3)


def keep(run: Run, own: Path, num_classes: int) -> Path:
    """Save a finished teacher run's weights as fp16 in ``own``, with a card beside them.

    Raises:
        IkdError: the run is not finished, or diverged; or its weights are gone.
    """
    path = own / f"{run.spec.run_id}.safetensors"
    if not path.exists():
        if run.status != "finished":
            raise IkdError(f"{run.spec.run_id}: {run.status}, so there is no teacher to keep")
        if not run.weights.exists():
            raise IkdError(f"{run.weights}: is gone; delete {run.folder} to train the teacher again")
        weights = load_file(run.weights)
        half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        model = models.build(run.spec.student, num_classes)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in half.items()})
        card = {
            "architecture": run.spec.student,
            "run_id": run.spec.run_id,
            "spec": json.loads(run.spec.model_dump_json()),
            "accuracy of the run, before rounding to fp16": {k: run.result[k] for k in ("last", "best")},
            "sha256": digest(model.state_dict()),
        }
        files.write_json(path.with_suffix(".json"), card)  # first: where the weights are, it is there too
        files.write_bytes(path, save(half))
    return path


@lru_cache
def _digest(path: Path, modified: int, architecture: str, num_classes: int) -> str:
    model = models.load_weights(models.build(architecture, num_classes), path)
    return digest(model.state_dict())
