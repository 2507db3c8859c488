"""CIFAR-100 from class folders and from the official files, whole and damaged."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ikdlib import data
from ikdlib.data import cifar100, folders
from ikdlib.errors import IkdError

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": 4, "test": 2}


def pictures() -> dict[str, list[tuple[int, str, np.ndarray]]]:
    """split -> (class, name without suffix, uint8 [32, 32, 3]), in an order that is not canonical."""
    rng = np.random.default_rng(0)
    made = {}
    for split, count in COUNTS.items():
        rows = [
            (label, f"{'zyxw'[k]}_{CLASSES[2 - label]}_{k}", rng.integers(0, 256, (32, 32, 3), np.uint8))
            for label in range(3)
            for k in range(count)
        ]
        made[split] = [rows[i] for i in rng.permutation(len(rows))]
    return made


def write_folders(root: Path, suffix: str = ".png") -> Path:
    for split, rows in pictures().items():
        for label, name, pixels in rows:
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            options = {"lossless": True} if suffix == ".webp" else {}
            Image.fromarray(pixels).save(folder / f"{name}{suffix}", **options)
    return root


def write_official(root: Path) -> Path:
    """The official layout: bytes keys, channels outermost, `filenames` with a suffix."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    content = {"meta": {b"fine_label_names": [name.encode() for name in CLASSES]}}
    for split, rows in pictures().items():
        content[split] = {
            b"data": np.stack([pixels.transpose(2, 0, 1).reshape(-1) for _, _, pixels in rows]),
            b"fine_labels": [label for label, _, _ in rows],
            b"filenames": [f"{name}.png".encode() for _, name, _ in rows],
        }
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value, protocol=4))
    return folder


def bless(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the files of `folder` be the official ones."""
    md5 = {name: cifar100._md5((folder / name).read_bytes()) for name in ("train", "test", "meta")}
    monkeypatch.setattr(cifar100, "checksums", lambda: md5)


@pytest.fixture(autouse=True)
def three_classes(monkeypatch):
    monkeypatch.setattr(cifar100, "CLASSES", CLASSES)
    monkeypatch.setattr(cifar100, "PER_CLASS", COUNTS)


@pytest.fixture
def load(tmp_path):
    return lambda root: data.load("cifar100", root, cache=tmp_path / "cache")


def test_class_folders_are_read_in_canonical_order(tmp_path, load):
    got = load(write_folders(tmp_path / "set"))
    assert got.classes == CLASSES and got.num_classes == 3 and got.held_out is None
    for split, images in (("train", got.train), ("test", got.test)):
        want = sorted(pictures()[split], key=lambda row: row[:2])
        assert images.targets.tolist() == [label for label, _, _ in want]
        assert np.array_equal(images.images.numpy(), np.stack([pixels for _, _, pixels in want]))
        assert images.images.dtype == torch.uint8 and images.targets.dtype == torch.int64
    assert got.mean == (0.5071, 0.4867, 0.4408) and got.std == (0.2675, 0.2565, 0.2761) and got.padding == 4


def test_every_source_is_one_data_set(tmp_path, load, monkeypatch):
    official = write_official(tmp_path / "official")
    bless(monkeypatch, official)
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(official, "cifar-100-python")
    roots = [
        write_folders(tmp_path / "png"),
        write_folders(tmp_path / "webp", ".webp"),
        tmp_path / "official",
        official,
        packed,
        packed / "cifar-100-python.tar.gz",
    ]
    sets = [load(root) for root in roots]
    assert {one.sha256 for one in sets} == {sets[0].sha256}
    assert {one.classes for one in sets} == {CLASSES}
    for one in sets:
        assert torch.equal(one.train.images, sets[0].train.images)
        assert torch.equal(one.test.targets, sets[0].test.targets)


def test_grey_and_palette_images_become_rgb(tmp_path, load):
    root = write_folders(tmp_path / "set")
    path = sorted((root / "train/ant").iterdir())[0]
    grey = Image.open(path).convert("L")
    grey.save(path)
    got = load(root).train.images[0]
    assert np.array_equal(got.numpy(), np.stack([np.asarray(grey)] * 3, -1))


def test_the_sha256_does_not_depend_on_the_holdout(tmp_path):
    root = write_folders(tmp_path / "set")
    whole = data.load("cifar100", root, tmp_path / "cache")
    less = data.load("cifar100", root, tmp_path / "cache", holdout=1)
    assert less.sha256 == whole.sha256
    assert len(less.held_out) == 3 and len(less.train) == 9 and len(less.test) == 6


def test_python_2_pickles_are_read():
    """The archive was pickled by Python 2: its strings are SHORT_BINSTRING, its arrays named numpy.core."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x02K\x03tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06abcdeftb"
    )
    file = io.BytesIO(b"\x80\x02}U\x04data" + array + b"s.")
    got = cifar100.RestrictedUnpickler(file, encoding="bytes").load()
    assert got[b"data"].tolist() == [[97, 98, 99], [100, 101, 102]] and got[b"data"].dtype == np.uint8


class Evil:
    def __reduce__(self):
        return os.system, ("echo owned",)


@pytest.mark.parametrize(
    "value", [Evil(), os.system, eval, np.load], ids=["reduce", "system", "eval", "load"]
)
def test_the_unpickler_refuses_everything_but_arrays(tmp_path, load, monkeypatch, value, capfd):
    folder = write_official(tmp_path)
    (folder / "train").write_bytes(pickle.dumps({b"data": value}))
    bless(monkeypatch, folder)
    with pytest.raises(IkdError, match="'train' of .* was refused: .* is not allowed"):
        load(tmp_path)
    assert "owned" not in capfd.readouterr().out


def test_nothing_is_unpickled_before_its_checksum_is_right(tmp_path, load, monkeypatch):
    folder = write_official(tmp_path)
    bless(monkeypatch, folder)
    raw = (folder / "test").read_bytes()
    (folder / "test").write_bytes(raw[:-20])
    monkeypatch.setattr(cifar100.RestrictedUnpickler, "find_class", None)  # would fail in another way
    (folder / "meta").write_bytes((folder / "meta").read_bytes() + b"x")
    with pytest.raises(IkdError, match="'meta' of .* truncated or changed .* delete it and run `make data`"):
        load(tmp_path)


def test_the_official_checksums_are_torchvisions():
    assert cifar100.checksums() == {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    }


def test_an_incomplete_official_folder_is_named(tmp_path, load, monkeypatch):
    folder = write_official(tmp_path)
    bless(monkeypatch, folder)
    (folder / "test").unlink()
    with pytest.raises(IkdError, match="cifar-100-python has no file 'test'"):
        load(tmp_path)


def archived(tmp_path, monkeypatch) -> Path:
    """The archive of official files, as it is downloaded."""
    folder = write_official(tmp_path / "official")
    bless(monkeypatch, folder)
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-100-python")
    return archive


def test_a_truncated_archive_is_named(tmp_path, load, monkeypatch):
    archive = archived(tmp_path, monkeypatch)
    archive.write_bytes(archive.read_bytes()[:4000])
    with pytest.raises(IkdError, match=r"cifar-100-python.tar.gz cannot be unpacked .* `make data`"):
        load(tmp_path)


def test_an_archive_damaged_in_the_middle_is_named(tmp_path, load, monkeypatch):
    """Wherever the damage is: zlib, tarfile or the checksums notice, each with errors of its own."""
    archive = archived(tmp_path, monkeypatch)
    whole = archive.read_bytes()
    for place in range(20, len(whole) - 64, len(whole) // 24):
        archive.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
        with pytest.raises(IkdError, match="cifar-100-python.tar.gz"):
            load(tmp_path)


def test_missing_data_says_how_to_get_it(tmp_path, load, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IkdError, match="not found in data/; `make data` downloads it, or DATA=DIR names"):
        load(None)
    (tmp_path / "data").mkdir()
    with pytest.raises(IkdError, match="CIFAR-100 was not found in data/"):
        load(None)
    write_folders(tmp_path / "data")
    assert len(load(None).train) == 12


def _drop(path: Path) -> None:
    shutil.rmtree(path)


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "where", "words"),
    [
        (_drop, "test", r"has no test/"),
        (_drop, "train", r"has no train/"),
        (_empty, "train", r"train is empty"),
        (_empty, "train/bee", r"train/bee has no images"),
        (_drop, "test/cat", r"class 'cat' is in train/ but not in test/"),
        (_drop, "train/ant", r"class 'ant' is in test/ but not in train/"),
    ],
)
def test_a_hole_in_the_folders_is_named(tmp_path, load, harm, where, words):
    root = write_folders(tmp_path / "set")
    harm(root / where)
    with pytest.raises(IkdError, match=words):
        load(root)


def test_a_class_that_is_missing_from_both_splits_is_named(tmp_path, load):
    root = write_folders(tmp_path / "set")
    for split in COUNTS:
        shutil.rmtree(root / split / "bee")
    with pytest.raises(IkdError, match=r"are not CIFAR-100's \(missing: bee\); unpack all"):
        load(root)


def test_classes_of_other_names_are_refused(tmp_path, load):
    """As numbers their order would be another: 0, 1, 10, 11, ..., and groups of similar classes would lie."""
    root = write_folders(tmp_path / "set")
    for split in COUNTS:
        for number, name in enumerate(CLASSES):
            (root / split / name).rename(root / split / str(number))
    with pytest.raises(IkdError, match=r"\(missing: ant, bee, cat; not one of them: 0, 1, 2\)"):
        load(root)


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_part_of_the_images_or_one_twice_is_refused(tmp_path, load, split, more):
    """One of four archives left out would train on 37,500 images, and be told from the others by nothing."""
    root = write_folders(tmp_path / "set")
    path = sorted((root / split / "cat").iterdir())[0]
    if more < 0:
        path.unlink()
    else:
        shutil.copy(path, path.with_name("again.png"))
    count = COUNTS[split] + more
    with pytest.raises(IkdError, match=f"{split}/cat of .* has {count} images and CIFAR-100 {COUNTS[split]}"):
        load(root)


def test_the_numbers_of_the_real_set(monkeypatch):
    monkeypatch.undo()
    assert len(cifar100.CLASSES) == 100 and cifar100.PER_CLASS == {"train": 500, "test": 100}
    assert cifar100.shape() == (100, 32, 32, 50_000)


@pytest.mark.parametrize("splits", [("train", "test"), ("test",)])
def test_images_of_another_size_are_refused(tmp_path, load, splits):
    root = write_folders(tmp_path / "set")
    for split in splits:
        for path in (root / split).glob("*/*"):
            Image.new("RGB", (24, 20)).save(path)
    both = "images of 24x20 pixels; those of CIFAR-100 have 32x32"
    alone = "test/ant/.* is 24x20 pixels, but train/ant/.* is 32x32"
    with pytest.raises(IkdError, match=both if len(splits) == 2 else alone):
        load(root)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_an_image_of_16_bits_is_refused(tmp_path, load):
    """Pillow's own conversion clips: of these values all but the first would be white."""
    root = write_folders(tmp_path / "set")
    path = sorted((root / "train/ant").iterdir())[0]
    Image.fromarray((np.arange(1024, dtype=np.uint16) * 60).reshape(32, 32)).save(path)
    with pytest.raises(IkdError, match=f"train/ant/{path.name} is grey of more than 8 bits"):
        load(root)


def test_what_may_not_be_read_is_not_called_missing(tmp_path, load, monkeypatch):
    """Who is told to delete it loses a good file. (As root everything may be read, so it is only said.)"""

    def refuses(path, *given, **more):
        raise PermissionError(13, "Permission denied", str(path))

    root = write_folders(tmp_path / "set")
    with monkeypatch.context() as denied:
        denied.setattr(Image, "open", refuses)
        with pytest.raises(IkdError, match="^.*train/ant/.* may not be read; change its permissions$"):
            load(root)
    with monkeypatch.context() as denied:
        denied.setattr(os, "scandir", refuses)
        with pytest.raises(IkdError, match="^.*set/train may not be read"):
            load(root)
    with monkeypatch.context() as denied:
        denied.setattr(Path, "is_dir", refuses)
        with pytest.raises(IkdError, match="^.*set/train may not be read"):
            load(root)
    official = write_official(tmp_path / "official")
    bless(monkeypatch, official)
    with monkeypatch.context() as denied:
        denied.setattr(Path, "read_bytes", refuses)
        with pytest.raises(IkdError, match="^.*cifar-100-python/meta may not be read"):
            load(official)
    (tmp_path / "cifar-100-python.tar.gz").touch()
    with monkeypatch.context() as denied:
        denied.setattr(tarfile, "open", refuses)
        with pytest.raises(IkdError, match="^.*tar.gz may not be read"):
            load(tmp_path / "cifar-100-python.tar.gz")


def test_a_file_name_that_is_not_utf_8(tmp_path, load):
    root = write_folders(tmp_path / "set")
    path = sorted((root / "train/ant").iterdir())[0]
    os.rename(path, os.fsencode(path.parent) + b"/caf\xe9.png")
    assert len(load(root).train) == 12
    moved = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.rename(root, moved)
    assert len(load(Path(moved)).train) == 12


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_a_truncated_image_is_named(tmp_path, load, suffix, keep):
    root = write_folders(tmp_path / "set", suffix)
    path = sorted((root / "test/cat").iterdir())[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IkdError, match=rf"^test/cat/{path.name} cannot be read as an image"):
        load(root)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_images_of_two_sizes_are_named(tmp_path, load):
    root = write_folders(tmp_path / "set")
    path = sorted((root / "train/cat").iterdir())[0]
    Image.new("RGB", (20, 32)).save(path)
    with pytest.raises(IkdError, match=rf"train/cat/{path.name} is 20x32 pixels, but train/ant/.* is 32x32"):
        load(root)


def test_a_changed_folder_is_noticed(tmp_path, load):
    root = write_folders(tmp_path / "set")
    before = load(root)
    path = sorted((root / "train/ant").iterdir())[0]
    Image.new("RGB", (32, 32), "red").save(path)
    after = load(root)
    assert after.sha256 != before.sha256
    assert after.train.images[0].unique(dim=0).shape[0] == 1
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1  # it replaced its own file
    assert folders.scan(root).key == folders.scan(root).key


@pytest.mark.shared
def test_the_real_folders(cifar_folder, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real class names
    listing = folders.scan(cifar_folder)
    assert listing.classes == cifar100.CLASSES
    got = data.load("cifar100", cifar_folder, tmp_path)
    assert got.train.images.shape == (50_000, 32, 32, 3) and got.test.images.shape == (10_000, 32, 32, 3)
    assert torch.bincount(got.train.targets).tolist() == [500] * 100
    assert torch.bincount(got.test.targets).tolist() == [100] * 100
    pixels = got.train.images.numpy().reshape(-1, 3)
    assert np.round(pixels.mean(0) / 255, 4).tolist() == [0.5071, 0.4865, 0.4409]
    assert np.round(pixels.std(0) / 255, 4).tolist() == [0.2673, 0.2564, 0.2762]
    again = data.load("cifar100", cifar_folder, tmp_path, holdout=50)
    assert again.sha256 == got.sha256 == REAL_SHA256
    assert len(again.train) == 45_000 and torch.bincount(again.held_out.targets).tolist() == [50] * 100


# What `digest` gave for the unpacked class folders: changing the canonical order or the digest would orphan
# every recorded run.
REAL_SHA256 = "4259d1eb46e44f2cc7db1cb638f64b54126488377a8b038d4c0318d4d780dcf4"
