"""Files that are whole or absent: written under a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

UMASK = os.umask(0o077)
"""Read once: it can only be read by setting it, for all threads of the process."""
os.umask(UMASK)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp's 0600 would hide results from colleagues
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as indented JSON; NaN is refused, because other readers refuse it too."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def tidy(folder: Path, name: str = "") -> None:
    """Remove what a process that was killed had half written in a folder, of one file or of all.

    The caller holds the lock of whatever writes there.
    """
    for path in folder.glob(f".{name or '*'}.*.tmp"):
        with contextlib.suppress(OSError):  # it is in nobody's way
            path.unlink()


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
