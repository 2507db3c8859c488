"""A processor that promises more than it keeps: bf16 is tried once, before a run is lost to it.

Some virtual machines name the AMX instructions but hide the table (CPUID leaf 0x1D) that says how large
their tiles are. oneDNN, torch's library for CPUs, then sets up tiles of no size, and the first bf16 product
ends the process with SIGILL. Only a try tells; the answer is kept, because a try takes two seconds.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from ikdlib import files
from ikdlib.data.cache import default_folder

LIMIT = "ONEDNN_MAX_CPU_ISA"
"""Environment: the highest instruction set oneDNN uses; read at its first operation, and by children."""

WITHOUT_AMX = "AVX512_CORE_FP16"
TRY = "import torch; torch.ones(64, 64).bfloat16() @ torch.ones(64, 64).bfloat16()"


def guard() -> None:
    """Set `LIMIT` for this process and its children where AMX is named but does not work.

    Does nothing where the user has set it, or where the processor names no AMX.
    """
    named = features()
    if LIMIT in os.environ or "amx_tile" not in named.split():
        return
    key = hashlib.sha256(f"{named} {torch.__version__}".encode()).hexdigest()[:16]
    try:
        kept = default_folder() / f"amx-{key}.txt"
    except RuntimeError:  # a user without a home
        kept = Path(os.devnull) / "nowhere"
    try:
        works = kept.read_text() == "works"
    except OSError:
        works = _try()
        try:
            files.write_text(kept, "works" if works else "fails")
        except OSError:
            pass  # a cache that cannot be written costs two seconds, not the run
    if not works:
        os.environ[LIMIT] = WITHOUT_AMX


def _try() -> bool:
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True)
    return done.returncode >= 0  # below 0: ended by a signal


def features() -> str:
    """Model and instruction sets of the processor, as Linux tells them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return " ".join(line for line in lines[:40] if line.startswith(("model name", "flags")))
