"""Data sets by name, as uint8 images in memory.

One file per data set: it has the functions `decode(root, cache) -> Decoded` and `shape()`, the constants
MEAN, STD and PADDING, and one row in `_MODULES`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ikdlib.data.base import DataSet, ImageSet, hold_out
from ikdlib.spec import known

__all__ = ["DataSet", "ImageSet", "load", "names", "shape"]

_MODULES = {"cifar100": "ikdlib.data.cifar100", "glyphs100": "ikdlib.data.glyphs"}


def names() -> tuple[str, ...]:
    """The names `load` knows."""
    return tuple(_MODULES)


def shape(name: str) -> tuple[int, int, int, int]:
    """Classes, height, width and number of training images of a data set, without loading it."""
    known(name, names(), "data", "data set")
    return import_module(_MODULES[name]).shape()


def load(
    name: str, root: str | Path | None = None, cache: str | Path | None = None, holdout: int = 0
) -> DataSet:
    """A data set, decoded or read from the cache.

    Args:
        name: one of `names()`.
        root: where the data lies; None for `data/` under the current directory. Glyphs-100 draws itself.
        cache: folder for decoded images; None for the user's cache folder.
        holdout: training images per class to keep apart (`DataSet.held_out`), the same for every seed.

    Raises:
        IkdError: an unknown name, data that is missing or damaged, or a holdout too large.
    """
    known(name, names(), "data", "data set")
    module = import_module(_MODULES[name])
    whole = module.decode(root, cache)
    train, held_out = hold_out(whole.train, whole.classes, holdout)
    return DataSet(
        name=name,
        classes=whole.classes,
        train=train,
        test=whole.test,
        held_out=held_out,
        sha256=whole.sha256,
        mean=module.MEAN,
        std=module.STD,
        padding=module.PADDING,
    )
