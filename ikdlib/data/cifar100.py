"""CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in 100 classes.

It is read from class folders, or from the official archive, unpacked or not. Both give one data set with one
sha256: the class names, sorted, are the official fine labels, and the archive carries the file names too.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ikdlib.data import cache as caching
from ikdlib.data import folders
from ikdlib.data.base import Decoded, ImageSet, canonical, decoded
from ikdlib.errors import IkdError

# The constants of RepDistiller and of the released code; the measured ones differ in the fourth digit.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
PADDING = 4

ROOT = Path("data")
FOLDER = "cifar-100-python"
ARCHIVE = "cifar-100-python.tar.gz"
CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
    orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
    raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
    streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
    turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
PER_CLASS = {"train": 500, "test": 100}
SIDE = 32


def checksums() -> dict[str, str]:
    """md5 of the official files (train, test, meta) and of the archive, as torchvision states them."""
    from torchvision.datasets import CIFAR100

    files = dict([*CIFAR100.train_list, *CIFAR100.test_list])
    return {**files, CIFAR100.meta["filename"]: CIFAR100.meta["md5"], ARCHIVE: CIFAR100.tgz_md5}


def shape() -> tuple[int, int, int, int]:
    """Classes, height, width, training images."""
    return len(CLASSES), SIDE, SIDE, len(CLASSES) * PER_CLASS["train"]


def decode(root: str | Path | None = None, cache: str | Path | None = None) -> Decoded:
    """CIFAR-100 from `root`, in canonical order.

    Args:
        root: class folders (`train/<class>/`, `test/<class>/`), or a folder that holds `cifar-100-python/`
            or the archive `cifar-100-python.tar.gz`, or one of these two itself; None for `data/`.
        cache: folder for images decoded from class folders; None for the user's. The official files are an
            array each and are read as they are.

    Raises:
        IkdError: nothing of this is there, or it may not be read, is damaged, incomplete or another data set.
    """
    try:
        return _decode(ROOT if root is None else Path(root), cache)
    except PermissionError as error:  # told to delete it, as what is missing or damaged, one would lose it
        raise IkdError(f"{error.filename} may not be read; change its permissions") from error


def _decode(root: Path, cache: str | Path | None) -> Decoded:
    if folders.is_root(root) and (root / "train").is_dir():
        return _from_folders(root, cache)
    for folder in (root / FOLDER, root):
        if (folder / "train").is_file() or (folder / "meta").is_file():
            return _official(_reader(folder), str(folder))
    for archive in (root / ARCHIVE, root):
        if archive.is_file():
            return _from_archive(archive)
    if folders.is_root(root):
        return _from_folders(root, cache)  # it has only test/, which scan() says
    raise IkdError(
        f"CIFAR-100 was not found in {_shown(root)}; `make data` downloads it, or DATA=DIR names a folder "
        f"with {FOLDER}/, {ARCHIVE} or class folders train/<class>/ and test/<class>/"
    )


def official_files_are_whole(folder: Path) -> bool:
    """Whether `folder` holds the three official files with their checksums."""
    want = checksums()
    return all(
        (folder / name).is_file() and _md5((folder / name).read_bytes()) == want[name]
        for name in ("train", "test", "meta")
    )


class RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays, lists, dicts and bytes, and refuses every other name.

    The checksum says that a file is the published one; this, that even another file could only make arrays.
    """

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            # The archive says numpy.core; asking numpy 2 for that name would work, with a warning.
            return getattr(np, "_core", np).multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def _from_folders(root: Path, cache: str | Path | None) -> Decoded:
    listing = folders.scan(root)
    if listing.classes != CLASSES:
        missing = sorted(set(CLASSES) - set(listing.classes))
        unknown = sorted(set(listing.classes) - set(CLASSES))
        told = "; ".join(
            f"{what} {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}"
            for what, classes in (("missing:", missing), ("not one of them:", unknown))
            if classes
        )
        raise IkdError(
            f"the class folders of {root} are not CIFAR-100's ({told}); unpack all of it into one folder"
        )
    for split, wanted in PER_CLASS.items():
        counts = Counter(CLASSES[label] for label, _ in listing.files[split])
        for name in CLASSES:
            if counts[name] != wanted:  # a part of it would train and be judged on fewer images, unnoticed
                raise IkdError(
                    f"{split}/{name} of {root} has {counts[name]} images and CIFAR-100 {wanted}; "
                    "unpack all of it into one folder, each image once"
                )
    if (size := folders.size(listing)) != f"{SIDE}x{SIDE}":  # the others are compared with it
        raise IkdError(f"{root}: images of {size} pixels; those of CIFAR-100 have {SIDE}x{SIDE}")
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    return caching.fetch(f"cifar100-{place}", listing.key, lambda: folders.decode(listing), cache)


def _from_archive(archive: Path) -> Decoded:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder == FOLDER and member.isfile() and name in ("train", "test", "meta"):
                    files[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except PermissionError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise IkdError(
            f"{archive} cannot be unpacked ({error}): the download was cut off or is another file; delete it "
            "and run `make data`"
        ) from error
    return _official(files.__getitem__, str(archive))


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def _official(read: Callable[[str], bytes], where: str) -> Decoded:
    """Decode the official files; nothing is unpickled before its checksum is right."""
    content: dict[str, dict[bytes, Any]] = {}
    want = checksums()
    for name in ("meta", "train", "test"):
        try:
            raw = read(name)
        except PermissionError:
            raise
        except (OSError, KeyError) as error:
            raise IkdError(f"{where} has no file {name!r}; delete it and run `make data`") from error
        if _md5(raw) != want[name]:
            raise IkdError(
                f"the file {name!r} of {where} is truncated or changed (its md5 is {_md5(raw)}, the official "
                f"one {want[name]}); delete it and run `make data`"
            )
        try:
            content[name] = RestrictedUnpickler(io.BytesIO(raw), encoding="bytes").load()
        except pickle.UnpicklingError as error:
            raise IkdError(f"file {name!r} of {where} was refused: {error}; use the official one") from error
    classes = [name.decode() for name in content["meta"][b"fine_label_names"]]
    return decoded(classes, _split(content["train"]), _split(content["test"]))


def _split(entry: dict[bytes, Any]) -> ImageSet:
    """The official layout: data uint8 [N, 3 * H * W] with the channels outermost, labels, file names."""
    data = torch.from_numpy(entry[b"data"])
    side = round((data.shape[1] / 3) ** 0.5)
    images = data.view(-1, 3, side, side).permute(0, 2, 3, 1).contiguous()
    names = [name.decode().rpartition(".")[0] for name in entry[b"filenames"]]
    return canonical(images, torch.tensor(entry[b"fine_labels"], dtype=torch.int64), names)


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


def _shown(root: Path) -> str:
    return f"{root}/" if not root.exists() or root.is_dir() else str(root)
