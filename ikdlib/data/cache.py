"""Decode once: a data set as one safetensors file, noticed when stale or damaged, never trusted blindly.

A cache that cannot be written (read-only, full, a file in the way) costs time, not the run: one warning, and
the images are decoded again next time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from ikdlib import files
from ikdlib.data.base import Decoded, ImageSet, digest

_warned: set[str] = set()


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/ikdlib`, or `~/.cache/ikdlib`; of a user without a home a temporary folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "ikdlib"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "ikdlib"


def fetch(stem: str, key: str, make: Callable[[], Decoded], folder: str | Path | None = None) -> Decoded:
    """Read `<folder>/<stem>.safetensors` if it was made from `key` and is whole; else make it and write it.

    Args:
        stem: one per source (data set and place), so that a changed source replaces its file.
        key: says from what the file was made; another key is another content.
        make: decodes. Called at most once, and by one process at a time where the folder can be written.
        folder: the cache folder; None for `default_folder()`.
    """
    from filelock import FileLock

    folder = default_folder() if folder is None else Path(folder)
    path = folder / f"{stem}.safetensors"
    lock = FileLock(str(path) + ".lock")
    try:
        if (found := read(path, key)) is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _warn_once(folder, error)
        return make()
    try:
        # Another process may have written it while this one waited for the lock.
        if (found := read(path, key)) is not None:
            return found
        made = make()
        try:
            write(path, key, made)
        except OSError as error:
            _warn_once(folder, error)
        return made
    finally:
        lock.release()


def read(path: Path, key: str) -> Decoded | None:
    """The file's content, or None: not there, made from something else, or damaged (a warning says so)."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        classes = tuple(json.loads(meta["classes"]))
        train = ImageSet(tensors["train_images"], tensors["train_targets"])
        test = ImageSet(tensors["test_images"], tensors["test_targets"])
        sha256 = digest(len(classes), train, test)
        whole = meta["seal"] == _seal(key, meta["classes"], sha256)
    except Exception:  # whatever a damaged file can make a reader raise
        whole = False
    if not whole:
        warnings.warn(f"the cached images {path.name} were damaged and are made again", stacklevel=3)
        return None
    return Decoded(classes, train, test, sha256)


def write(path: Path, key: str, made: Decoded) -> None:
    """Write through a temporary name: a reader sees the old file or the new one, never a part of it."""
    from safetensors.torch import save

    classes = json.dumps(made.classes)
    meta = {"key": key, "classes": classes, "seal": _seal(key, classes, made.sha256)}
    tensors = {
        "train_images": made.train.images,
        "train_targets": made.train.targets,
        "test_images": made.test.images,
        "test_targets": made.test.targets,
    }
    files.write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, meta))


def _seal(key: str, classes: str, sha256: str) -> str:
    """Covers the metadata too; the images' digest is taken anew from what was read."""
    return hashlib.sha256(f"{key}\n{classes}\n{sha256}".encode()).hexdigest()


def _warn_once(folder: Path, error: BaseException) -> None:
    if str(folder) in _warned:
        return
    _warned.add(str(folder))
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    warnings.warn(
        f"the cache folder {folder} cannot be written ({reason}), so images are decoded anew each time; "
        "name another with cache=DIR",
        stacklevel=3,
    )
