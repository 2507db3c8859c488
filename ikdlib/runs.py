"""A run folder: written once, read many times.

``<results>/<profile>/runs/<run id>/`` holds ``spec.json``, ``provenance.json``, ``history.csv`` (a row an
epoch, every loss part), for one run of a cell ``test_logits.safetensors``, and ``result.json``, which is
written last: a run without it is not finished. Weights and checkpoint lie beside it and stay out of git.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from ikdlib import files
from ikdlib.errors import IkdError
from ikdlib.spec import RunSpec

FORMAT_VERSION = 1
"""How to read a run folder and a checkpoint; every version ever written stays readable."""


@dataclass(frozen=True)
class Run:
    """The folder of one spec below ``root``, whether it exists yet or not."""

    root: Path
    spec: RunSpec

    @property
    def folder(self) -> Path:
        return self.root / self.spec.run_id

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def status(self) -> str:
        """``missing``, ``unfinished``, ``finished`` or ``diverged``."""
        if (self.folder / "result.json").exists():
            return self.result["status"]
        return "unfinished" if self.checkpoint.exists() else "missing"

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not: a table shows a run that diverged as such."""
        return self.status in ("finished", "diverged")

    @property
    def result(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return _read_json(self.folder / "result.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """The content of ``provenance.json``."""
        return _read_json(self.folder / "provenance.json")

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch: learning rate, loss parts, training and test accuracy (%), seconds."""
        path = self.folder / "history.csv"
        try:
            # Python's float() reads what was written to the bit; pandas' own reader may be one unit off.
            return pd.read_csv(path, dtype=str).map(float).astype({"epoch": int})
        except (OSError, ValueError) as error:
            raise IkdError(
                f"{path}: no readable history ({error}); delete the folder to run it again"
            ) from None

    @property
    def progress(self) -> dict[str, Any] | None:
        """What a running training last said of itself, or None."""
        try:
            return json.loads((self.folder / "progress.json").read_text())
        except (OSError, ValueError):
            return None

    def lock(
        self, wait: bool = True, say: Callable[[str], None] = print, stop: Callable[[], bool] = lambda: False
    ) -> FileLock | None:
        """The lock that makes a run one process's own; says so when it has to wait for another's.

        None where ``stop``, asked each second, was true before the other was done. Raises `IkdError` where
        the lock is another's and ``wait`` is false.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / f"{self.spec.run_id}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise IkdError(f"{self.spec.run_id}: another process is at this run; wait for it") from None
            say(f"{self.spec.run_id}: another process is at this run; waiting for it")
        while not lock.is_locked:
            if stop():
                return None
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=1)
        files.tidy(self.folder)  # nobody else is at it
        return lock

    def begin(self) -> None:
        """Write ``spec.json``; a folder that holds another spec is refused."""
        path = self.folder / "spec.json"
        if path.exists():
            if read(self.folder).spec != self.spec:
                raise IkdError(f"{path}: another spec lies in this folder; move it away")
            return
        spec = {"format_version": FORMAT_VERSION, **json.loads(self.spec.model_dump_json())}
        files.write_json(path, spec)

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Replace ``history.csv``; numbers are written so that they read back to the bit."""
        text = io.StringIO()
        pd.DataFrame(rows).to_csv(text, index=False, lineterminator="\n")
        files.write_text(self.folder / "history.csv", text.getvalue())

    def finish(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, last, with the sha256 of every other file that stays in the folder."""
        kept = ("spec.json", "provenance.json", "history.csv", "test_logits.safetensors")
        digests = {name: files.sha256(self.folder / name) for name in kept if (self.folder / name).exists()}
        content = {"format_version": FORMAT_VERSION, **result, "files_sha256": digests}
        files.write_json(self.folder / "result.json", content)
        (self.folder / "progress.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the trials of one spec. ``method`` is its name with whatever is changed in it."""

    pair: str
    method: str
    runs: tuple[Run, ...]


def read(folder: Path) -> Run:
    """The run in a folder; raises `IkdError` where there is none, or one of a later format."""
    content = _read_json(folder / "spec.json")
    check_format(folder / "spec.json", content.pop("format_version", None))
    return Run(folder.parent, RunSpec.from_json(json.dumps(content)))


def check_format(path: Path, version: Any) -> None:
    """Refuse what a later version of the package wrote."""
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise IkdError(
            f"{path}: format version {version}, but this ikdlib reads up to {FORMAT_VERSION}; update it"
        )


def find(root: Path) -> Iterator[Run]:
    """All runs below ``root``, finished or not, in the order of their names."""
    for path in sorted(root.glob("*/spec.json")):
        yield read(path.parent)


def damaged_files(run: Run) -> list[str]:
    """Names of the files whose content is no longer what ``result.json`` says."""
    recorded = run.result["files_sha256"]
    return [
        name
        for name, digest in recorded.items()
        if not (run.folder / name).exists() or files.sha256(run.folder / name) != digest
    ]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return content
    except FileNotFoundError:
        raise IkdError(f"{path}: there is no such file; the run has not come that far") from None
    except (OSError, ValueError) as error:
        raise IkdError(f"{path}: cannot be read ({error}); delete the run's folder to run it again") from None
