"""How many runs fit into this machine's memory."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

CHILD_MIB = 1200
"""Peak of one run with its compiler on a CPU: 1.1 GiB measured, CIFAR-100 in memory included."""

CHILD_GPU_MIB = 4096
"""Room on a GPU for one run (counted, not measured): 2.3 GiB for 500 images of ResNet50 in fp32, the largest
model here, its weights and the images; and `CONTEXT_GPU_MIB`."""

CONTEXT_GPU_MIB = 600
"""What a process takes of a GPU before its first tensor (an estimate); no allocator counts it."""


def available_mib() -> float:
    """Memory that new processes can have: what Linux calls available, less where a container sets a limit."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return float("inf")  # not Linux: nothing is known, so nothing is forbidden
    found = int(re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)[1]) / 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        # Files that were read count as used until somebody wants the room.
        files = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no group of our own, or "max"
        return found
    return min(found, (limit - used + (int(files[1]) if files else 0)) / 2**20)


def gpu_free_mib(device: torch.device) -> float:
    """Memory of a GPU that nobody has taken."""
    return torch.cuda.mem_get_info(device)[0] / 2**20


def gpu_share(workers: int, device: torch.device) -> float:
    """The part of a GPU's memory that torch may use in each of ``workers`` processes."""
    if device.type != "cuda" or workers == 1:
        return 1 / workers
    total = torch.cuda.get_device_properties(device).total_memory / 2**20
    return max(1 - workers * CONTEXT_GPU_MIB / total, 0.1) / workers


def fitting(workers: int, device: torch.device) -> int:
    """``workers``, or as many as memory allows (at least one), with one warning when those are fewer."""
    room, each, where = available_mib(), CHILD_MIB, "memory"
    if device.type == "cuda":
        on_gpu = gpu_free_mib(device)
        if on_gpu / CHILD_GPU_MIB < room / each:
            room, each, where = on_gpu, CHILD_GPU_MIB, "GPU memory"
    fit = max(1, int(min(workers, room / each)))
    if fit < workers:
        warnings.warn(
            f"jobs: {workers} runs at once need about {workers * each / 1024:.0f} GiB of {where}, and "
            f"{room / 1024:.0f} GiB are free: {fit} at once",
            stacklevel=3,
        )
    return fit
