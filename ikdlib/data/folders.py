"""Class folders: `root/train/<class>/<image>` and `root/test/<class>/<image>`, any image format PIL reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ikdlib.data.base import Decoded, ImageSet, canonical, decoded
from ikdlib.errors import IkdError
from ikdlib.provenance import usable_cores

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "test")
SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".bmp", ".ppm", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Listing:
    """The files of a class-folder root, without opening one.

    Attributes:
        classes: sorted folder names.
        files: split -> [(class number, path)] sorted by class and name.
        key: sha256 over root, names, sizes and times of change: cheap, and other when a file is.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[int, Path]]]
    key: str


def is_root(root: Path) -> bool:
    """Whether `root` looks like class folders: it has a `train` or a `test` folder."""
    return any((root / split).is_dir() for split in SPLITS)


def scan(root: str | Path) -> Listing:
    """List a class-folder root.

    Raises:
        IkdError: no such folder, a split missing or empty, a class without images, or a class that only one
            of the splits has.
        PermissionError: of a folder or file that may not be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise IkdError(f"{root} is not a folder; name one that holds train/<class>/ and test/<class>/ images")
    found: dict[str, dict[str, list[os.DirEntry[str]]]] = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            raise IkdError(f"{root} has no {split}/; it should hold train/<class>/ and test/<class>/ images")
        with os.scandir(root / split) as entries:
            folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        if not folders:
            raise IkdError(f"{root / split} is empty; it should hold one folder of images for each class")
        found[split] = {name: _images(root / split / name, f"{split}/{name}") for name in folders}
    for here, there in (SPLITS, SPLITS[::-1]):
        for name in found[here]:
            if name not in found[there]:
                raise IkdError(
                    f"class {name!r} is in {here}/ but not in {there}/ of {root}: both need the same class "
                    "folders; unpack the missing one, or remove this one"
                )
    classes = tuple(found["train"])
    sha = hashlib.sha256(os.fsencode(root.resolve()))
    files: dict[str, list[tuple[int, Path]]] = {}
    for split in SPLITS:
        files[split] = []
        for label, name in enumerate(classes):
            for entry in found[split][name]:
                stat = entry.stat()
                facts = f"\n{split}/{name}/{entry.name}\t{stat.st_size}\t{stat.st_mtime_ns}"
                sha.update(os.fsencode(facts))
                files[split].append((label, Path(entry.path)))
    return Listing(root, classes, files, sha.hexdigest())


def decode(listing: Listing) -> Decoded:
    """Decode every image of a listing, in threads (PIL decodes outside the interpreter's lock).

    Raises:
        IkdError: an image that cannot be decoded, or of another size than the first; its name in the root.
        PermissionError: of an image that may not be read.
    """
    splits = {split: _decode_split(listing, split) for split in SPLITS}
    return decoded(listing.classes, splits["train"], splits["test"])


def size(listing: Listing) -> str:
    """Width and height of the first training image, as ``32x32``; `decode` refuses any other beside it."""
    return _size(_pixels(_first(listing), listing.root).shape)


def _first(listing: Listing) -> Path:
    return listing.files[SPLITS[0]][0][1]


def _images(folder: Path, where: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    images = [entry for entry in visible if os.path.splitext(entry.name)[1].lower() in SUFFIXES]
    if not images:
        known = ", ".join(sorted(SUFFIXES))
        raise IkdError(f"{where} has no images ({known}); unpack it again, or remove the folder")
    return sorted(images, key=lambda entry: entry.name)


def _decode_split(listing: Listing, split: str) -> ImageSet:
    import numpy as np
    from tqdm.auto import tqdm

    files = listing.files[split]
    like = _first(listing)
    first = _pixels(like, listing.root)
    images = np.empty((len(files), *first.shape), np.uint8)

    def fill(start: int) -> int:
        stop = min(start + 64, len(files))
        for i in range(start, stop):
            path = files[i][1]
            pixels = _pixels(path, listing.root)
            if pixels.shape != first.shape:
                raise IkdError(
                    f"{path.relative_to(listing.root)} is {_size(pixels.shape)} pixels, but "
                    f"{like.relative_to(listing.root)} is {_size(first.shape)}: all images of a data "
                    "set need one size; resize or remove it"
                )
            images[i] = pixels
        return stop - start

    with tqdm(total=len(files), desc=f"decoding {split}", unit="image", disable=None, leave=False) as bar:
        _each(fill, range(0, len(files), 64), bar.update)
    targets = torch.tensor([label for label, _ in files], dtype=torch.int64)
    return canonical(torch.from_numpy(images), targets, [path.stem for _, path in files])


def _each(work: Callable[[int], int], items: Sequence[int], done: Callable[[int], object]) -> None:
    """Run `work` over `items` in threads; the first error ends it without waiting for the rest."""
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for result in pool.map(work, items):
            done(result)
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(path: Path, root: Path) -> np.ndarray:
    """uint8 [H, W, 3] of one file; grey-scale and palettes become RGB."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode[0] not in "IF":  # grey of 16 or 32 bits PIL would clip, to white as a rule
                return np.asarray(image.convert("RGB"))
    except PermissionError:
        raise
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ... by format
        raise IkdError(
            f"{path.relative_to(root)} cannot be read as an image (truncated or damaged?): unpack it again"
        ) from error
    raise IkdError(f"{path.relative_to(root)} is grey of more than 8 bits; convert it to 8")


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
