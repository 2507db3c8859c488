"""How many runs fit into this machine's memory."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

CHILD_MIB = {"cpu": 1200, "cuda": 4700}
"""Peak of one run with its compiler, CIFAR-100 in memory included: 1.1 GiB measured on a CPU, 4.4 GiB beside
a GPU (the largest of the compiler's helpers counted)."""

CHILD_GPU_MIB = 4096
"""Room on a GPU for one run (counted): 2.3 GiB for 500 images of ResNet50 in fp32, the largest model here,
its weights and the images; and `CONTEXT_GPU_MIB`. Eight of resnet56/resnet20 took 1.5 GiB each (measured)."""

CONTEXT_GPU_MIB = 600
"""What a process takes of a GPU before its first tensor (an estimate); no allocator counts it."""


def available_mib() -> float:
    """Memory that new processes can have: what Linux calls available, less where a container sets a limit."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return float("inf")  # not Linux: nothing is known, so nothing is forbidden
    found = int(re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)[1]) / 1024
    return min([found, *(_left_mib(*group) for group in _groups())])


# Where control groups lie, by version, and what they call their limit, their use, and files read into memory.
VERSION_2 = ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
VERSION_1 = (
    "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)  # fmt: skip


def _groups() -> Iterator[tuple[str, ...]]:
    """The control groups that hold this process: its own (a Slurm step's, say), and all above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", "1:memory:/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root, *names = VERSION_1 if controllers else VERSION_2
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield f"{root}{group}", *names


def _left_mib(group: str, limit: str, used: str, read: str) -> float:
    try:
        left = int(Path(f"{group}/{limit}").read_text()) - int(Path(f"{group}/{used}").read_text())
        # Files that were read count as used until somebody wants the room.
        files = re.search(rf"^{read} (\d+)$", Path(f"{group}/memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # there is no such group, or it has no limit ("max")
        return float("inf")
    return (left + (int(files[1]) if files else 0)) / 2**20


def gpu_free_mib(device: torch.device) -> float:
    """Memory of a GPU that nobody has taken."""
    return torch.cuda.mem_get_info(device)[0] / 2**20


def gpu_share(workers: int, device: torch.device) -> float:
    """The part of a GPU's memory that torch may use in each of ``workers`` processes."""
    if device.type != "cuda" or workers == 1:
        return 1 / workers
    total = torch.cuda.get_device_properties(device).total_memory / 2**20
    return max(1 - workers * CONTEXT_GPU_MIB / total, 0.1) / workers


def fitting(workers: int, device: torch.device, gpus: int = 1) -> int:
    """``workers``, or as many as memory allows (at least one), with one warning when those are fewer.

    ``gpus``: of ``device``'s kind, which share the workers; the memory beside them is one for all.
    """
    room, each, where = available_mib(), CHILD_MIB[device.type], "memory"
    most = min(workers, room / each)
    if device.type == "cuda":
        free = gpu_free_mib(device)
        on_gpus = gpus * int(min(workers, free / CHILD_GPU_MIB))
        if on_gpus < most:
            room, each, where, most = gpus * free, CHILD_GPU_MIB, "GPU memory", on_gpus
    fit = max(1, int(most))
    if fit < workers:
        warnings.warn(
            f"jobs: {workers} runs at once need about {workers * each / 1024:.0f} GiB of {where}, and "
            f"{room / 1024:.0f} GiB are free: {fit} at once",
            stacklevel=3,
        )
    return fit
