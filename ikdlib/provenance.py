"""Where a number came from: code, libraries, machine. No host names, no absolute paths."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ikdlib import __version__

LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "pydantic", "safetensors")


@cache
def started() -> dict[str, Any]:
    """Code and libraries as this process first asked for them: a checkout moves on while it works."""
    return {"git": git_state(), "versions": versions()}


class Origin:
    """Where a run began, and where it went on; ``method``: what the code of its method is known by.

    Attributes:
        process: code, libraries and machine of the process that began the run.
        resumed_at: epoch and step of each resumption, with whatever of ``process`` was no longer the same.
    """

    def __init__(self, device: torch.device, method: str | None = None):
        self.process = {**started(), "method": method, "machine": machine(device)}
        self.resumed_at: list[dict[str, Any]] = []

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"process": self.process, "resumed_at": self.resumed_at}

    def resume(self, facts: dict[str, Any], epoch: int, step: int) -> None:
        """Go on from a checkpoint, on a CPU with the number of threads that a run begun on one began with.

        How many threads share a sum over a batch changes its last bits.
        """
        # A checkpoint of an earlier version does not say where it began: taken to be where it goes on.
        now, self.process = self.process, facts.get("process", self.process)
        if now["machine"]["device"] == self.process["machine"]["device"] == "cpu":
            torch.set_num_threads(min(self.process["machine"]["threads"], usable_cores()))
            now["machine"]["threads"] = torch.get_num_threads()
        if other_code(self.process, now["method"]):
            told = "the method's code is not what this run began with; to begin again, delete its folder"
            warnings.warn(told, stacklevel=2)
        changed = {name: found for name, found in now.items() if found != self.process.get(name, found)}
        self.resumed_at = [*facts.get("resumed_at", []), {"epoch": epoch, "step": step, **changed}]


def other_code(recorded: Mapping[str, Any], method: str | None) -> bool:
    """Whether a provenance names another digest of the method's code than today's (`methods.fingerprint`).

    False where it names none, and across versions of Python, which do not write code down alike.
    """
    python = recorded.get("versions", {}).get("python", "").split(".")[:2]
    alike = python == platform.python_version().split(".")[:2]
    return alike and recorded.get("method") not in (None, method)


def usable_cores() -> int:
    """Those this process may use: of a Slurm job or a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_state() -> dict[str, Any]:
    """Commit of the checkout this package runs from, and whether its code is as committed.

    ``IKDLIB_COMMIT`` and ``IKDLIB_CLEAN`` speak for a copy that came without its ``.git``.
    What a run writes into ``results/`` is not code: it does not make a checkout unclean.
    """
    if "IKDLIB_COMMIT" in os.environ:
        return {"commit": os.environ["IKDLIB_COMMIT"], "clean": os.environ.get("IKDLIB_CLEAN") == "1"}
    root = Path(__file__).parent.parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        tracked = _git(root, "ls-files", "--error-unmatch", "ikdlib/spec.py")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "clean": False}
    return {"commit": commit, "clean": bool(tracked) and not changes}


def machine(device: torch.device) -> dict[str, Any]:
    """Kind of processor or GPU, and how much of it this process uses."""
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if limit := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        facts["instructions up to"] = limit
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def versions() -> dict[str, str]:
    """Versions of everything that has a say in a number."""
    found = {"ikdlib": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        found[library] = metadata.version(library)
    return found


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module knows less, but something
    return platform.processor() or platform.machine()
