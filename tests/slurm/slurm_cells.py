"""Cells for the tests. Workers import this file, as they import the package when the sweep's cells run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

TRAINING = """
import signal, sys, time
def save(*_):
    time.sleep(4)
    print(sys.argv[1], "saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print(sys.argv[1], "began", flush=True)
time.sleep(300)
"""


def where(seconds: float) -> dict[str, str]:
    """What a cell sees of its job, after some work."""
    time.sleep(seconds)
    names = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: os.environ.get(name, "") for name in names} | {"python": sys.executable}


def train(log: str) -> str:
    """As our cells: a child trains and, on SIGTERM, saves; the next attempt finds that and goes on."""
    job = os.environ["SLURM_JOB_ID"]
    if not Path(log).exists():
        with open(log, "w") as out:
            subprocess.run([sys.executable, "-c", TRAINING, job], stdout=out, check=True)
    return job
