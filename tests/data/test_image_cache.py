"""The cache of decoded images: a hit equals a miss, damage is noticed, no folder is needed."""

from __future__ import annotations

import tempfile
import threading
import warnings
from pathlib import Path

import pytest
import torch

from ikdlib.data import cache
from ikdlib.data.base import Decoded, ImageSet, decoded


def made(seed: int = 0) -> Decoded:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randint(0, 256, (6, 4, 4, 3), generator=generator, dtype=torch.uint8)
    test = torch.randint(0, 256, (2, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return decoded(("a", "ü"), ImageSet(train, torch.arange(6) // 3), ImageSet(test, torch.arange(2)))


class Maker:
    def __init__(self, seed: int = 0) -> None:
        self.seed, self.calls = seed, 0

    def __call__(self) -> Decoded:
        self.calls += 1
        return made(self.seed)


def equal(a: Decoded, b: Decoded) -> bool:
    pairs = [(a.train, b.train), (a.test, b.test)]
    return (
        a.classes == b.classes
        and a.sha256 == b.sha256
        and all(torch.equal(x.images, y.images) and torch.equal(x.targets, y.targets) for x, y in pairs)
    )


@pytest.fixture(autouse=True)
def fresh_warnings(monkeypatch):
    monkeypatch.setattr(cache, "_warned", set())


def test_a_hit_equals_a_miss(tmp_path):
    make = Maker()
    miss = cache.fetch("set", "key", make, tmp_path / "deep" / "cache")
    hit = cache.fetch("set", "key", make, tmp_path / "deep" / "cache")
    assert make.calls == 1 and equal(miss, hit) and equal(hit, made())
    left = sorted(path.name for path in (tmp_path / "deep" / "cache").iterdir())
    assert [name for name in left if not name.endswith(".lock")] == ["set.safetensors"]


def test_another_key_is_made_again(tmp_path):
    cache.fetch("set", "old", Maker(0), tmp_path)
    assert equal(cache.fetch("set", "new", Maker(1), tmp_path), made(1))
    never = Maker(2)
    assert equal(cache.fetch("set", "new", never, tmp_path), made(1)) and never.calls == 0


def test_every_damaged_byte_is_noticed(tmp_path):
    """Header, metadata, pixels, labels: with one bit changed, it is made again or still says the same."""
    path = tmp_path / "set.safetensors"
    cache.write(path, "key", made())
    raw = path.read_bytes()
    for place in range(0, len(raw), 3):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = cache.read(path, "key")
        assert found is None or equal(found, made()), place
    for place in range(-20, -1):  # pixels for sure
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 or None :])
        with pytest.warns(UserWarning, match="set.safetensors were damaged"):
            assert cache.read(path, "key") is None


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_made_again(tmp_path, keep):
    path = tmp_path / "set.safetensors"
    cache.write(path, "key", made())
    path.write_bytes(path.read_bytes()[:keep])
    make = Maker()
    with pytest.warns(UserWarning, match="damaged"):
        assert equal(cache.fetch("set", "key", make, tmp_path), made())
    assert make.calls == 1
    assert equal(cache.read(path, "key"), made())


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    make = Maker()
    with pytest.warns(UserWarning, match="cannot be written .* decoded anew") as caught:
        for _ in range(3):
            assert equal(cache.fetch("set", "key", make, tmp_path / "file"), made())
    assert make.calls == 3 and len(caught) == 1


def test_a_folder_that_may_not_be_entered_costs_one_warning(tmp_path, monkeypatch):
    """Somebody else's home, as in a container that is run under a user of its own."""

    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    monkeypatch.setattr(Path, "mkdir", lambda self, **_: forbidden(self))
    make = Maker()
    with pytest.warns(UserWarning, match="cannot be written .Permission denied"):
        assert equal(cache.fetch("set", "key", make, tmp_path / "closed"), made())
    assert make.calls == 1


def test_a_full_disk_costs_one_warning_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.files, "write_bytes", full)
    with pytest.warns(UserWarning, match="No space left on device") as caught:
        assert equal(cache.fetch("set", "key", Maker(), tmp_path), made())
        assert equal(cache.fetch("set", "key", Maker(), tmp_path), made())
    assert len(caught) == 1
    assert not (tmp_path / "set.safetensors").exists()


def test_one_decodes_and_the_others_read(tmp_path):
    """Threads hold the lock as processes do: each has a lock object of its own."""
    make, start, found = Maker(), threading.Barrier(4), []

    def work() -> None:
        start.wait()
        found.append(cache.fetch("set", "key", make, tmp_path))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert make.calls == 1 and len(found) == 4 and all(equal(one, made()) for one in found)


def test_an_error_while_decoding_releases_the_lock(tmp_path):
    def broken() -> Decoded:
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        cache.fetch("set", "key", broken, tmp_path)
    assert equal(cache.fetch("set", "key", Maker(), tmp_path), made())


def test_the_default_folder_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "ikdlib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.default_folder() == tmp_path / "home" / ".cache" / "ikdlib"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", homeless)  # neither HOME nor an entry in the list of users
    assert cache.default_folder() == Path(tempfile.gettempdir()) / "ikdlib"
