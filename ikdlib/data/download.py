"""Fetch the official CIFAR-100 archive: resumed when it was cut off, verified before anything reads it."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from ikdlib.data import cifar100
from ikdlib.errors import IkdError

TIMEOUT = 10  # seconds to connect, and without a byte
ATTEMPTS = 3  # a body that is cut off is continued this often before giving up
CHUNK = 1 << 18


class _CutOff(Exception):
    """The connection ended, or went silent, before the body did; what came is kept."""


def download(
    url: str,
    path: str | Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    timeout: float = TIMEOUT,
) -> Path:
    """Download `url` to `path`, unless a file with the right checksum is there.

    The body grows in `<path>.part`, which the next attempt (or call) continues with an HTTP Range request; a
    server that ignores it sends the whole again. `path` appears only after the checksum is right.

    Args:
        md5, sha256: hex; every one given is checked.
        timeout: seconds to connect, and to wait for the next bytes.

    Raises:
        IkdError: no connection, an HTTP error, a body that stays cut off (kept, to be continued), a wrong
            checksum (deleted), or a disk that refuses. Each says how to mend it, if need be by hand.
    """
    from filelock import FileLock

    path = Path(path)
    part = path.with_name(path.name + ".part")
    by_hand = f"or get {url} on another machine, put it at {path}, and run the same command again"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.is_file() and _mismatch(path, md5, sha256) is None:
                return path
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    _fetch(url, part, timeout)
                    break
                except _CutOff as error:
                    if attempt == ATTEMPTS:
                        size = part.stat().st_size if part.exists() else 0
                        raise IkdError(
                            f"the download of {url} was cut off {ATTEMPTS} times ({error}); {size:,} bytes "
                            f"are kept in {part} and the same command goes on from there, {by_hand}"
                        ) from error
            if wrong := _mismatch(part, md5, sha256):
                part.unlink()
                raise IkdError(
                    f"what {url} sent is not the expected file ({wrong}) and was deleted; run the same "
                    f"command once more, {by_hand}"
                )
            os.replace(part, path)
            return path
    except urllib.error.HTTPError as error:
        raise IkdError(f"{url} answered {error.code} {error.reason}; try again later, {by_hand}") from error
    except urllib.error.URLError as error:
        raise IkdError(f"{url} cannot be reached ({error.reason}); check the network, {by_hand}") from error
    except OSError as error:
        reason = error.strerror or error
        raise IkdError(f"{path} cannot be written ({reason}); make room, or name another folder") from error


def fetch_cifar100(root: str | Path | None = None) -> Path:
    """Download, verify and unpack CIFAR-100 into `root/cifar-100-python`; returns that folder.

    What is there already, and whole, is left alone. `root` None means `data/`.

    Raises:
        IkdError: as `download`; or the archive cannot be unpacked, or does not hold the official files.
    """
    root = cifar100.ROOT if root is None else Path(root)
    target = root / cifar100.FOLDER
    if cifar100.official_files_are_whole(target):
        return target
    archive = download(official_url(), root / cifar100.ARCHIVE, md5=cifar100.checksums()[cifar100.ARCHIVE])
    staging = root / f"{cifar100.FOLDER}.{os.getpid()}.tmp"
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(staging, filter="data")  # refuses links and paths that lead out of the folder
        if not cifar100.official_files_are_whole(staging / cifar100.FOLDER):
            raise IkdError(f"{archive} does not hold the official files; delete it and run `make data` again")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging / cifar100.FOLDER, target)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # not the archive's fault: its md5 was right
            raise IkdError(f"{target} cannot be written ({error.strerror}); the archive is kept") from error
        raise IkdError(f"{archive} cannot be unpacked ({error}); delete it and try again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def official_url() -> str:
    """Where torchvision gets CIFAR-100 from."""
    from torchvision.datasets import CIFAR100

    return CIFAR100.url


def _fetch(url: str, part: Path, timeout: float) -> None:
    """Append what is missing of `url` to `part`."""
    from tqdm.auto import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return  # it was all there; the checksum has the last word
        part.unlink()
        raise _CutOff("the part that was kept did not fit") from error
    except urllib.error.URLError:
        raise
    except (OSError, http.client.HTTPException) as error:  # connected, but no answer
        raise _CutOff(str(error) or type(error).__name__) from error
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise _CutOff("the server continued at another place")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            while chunk := _read(response):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise _CutOff(f"{have:,} of {total:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; a connection that breaks is a `_CutOff`, and cannot be taken for a full disk."""
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOff(str(error) or type(error).__name__) from error


def _mismatch(path: Path, md5: str | None, sha256: str | None) -> str | None:
    """What is wrong with the file's checksums, or None."""
    for name, want in (("md5", md5), ("sha256", sha256)):
        if want is None:
            continue
        with open(path, "rb") as file:
            new = functools.partial(hashlib.new, name, usedforsecurity=False)
            got = hashlib.file_digest(file, new).hexdigest()
        if got != want.lower():
            return f"its {name} is {got}, not {want}"
    return None
