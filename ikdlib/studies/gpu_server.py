"""Runs that share a GPU at the same instant: NVIDIA's Multi-Process Service, for as long as a pool lasts.

By itself a GPU gives processes turns: packing small networks gains nothing. Behind this server kernels run
side by side, and gain most where each run may use a part of the GPU only: a small kernel that spreads over
all of it keeps the others waiting and is hardly faster. Measured (one H200, resnet8x4 with dkd+ikd, bf16;
images a second of all runs together): one run 49,600, eight 49,000 without the server and 91,400 with it;
compiled, one run 82,200, eight 106,900, and at 50, 25 and 12 per cent of the GPU each 140,800, 156,400 and
131,600.

It comes with the driver. Where it is missing, or does not work (in some containers), runs take turns.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

CONTROL = "nvidia-cuda-mps-control"
SWITCH = "IKDLIB_MPS"
"""Environment: ``off`` lets processes take turns. A user's own server is used as it is."""

PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
PART = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
USERS_OWN = "/tmp/nvidia-mps/control"
"""Where a server that was started without `PIPES` listens."""

PATIENCE = 10
"""Seconds the server waits for clients that are still there, killed ones say, before it ends all the same."""

# It goes when its input ends: with the pool, or with the pool's process, however that died. A signal to all
# of a job's processes is not for it, nor for the server: the runs that it asks to stop still save through it.
KEEPER = f"""
trap '' TERM INT HUP
"$0" -d < /dev/null > /dev/null 2>&1 || exit 1
echo started
read -r line
echo quit -t {PATIENCE} | "$0" > /dev/null 2>&1
rm -rf "${PIPES}"
"""

CLIENT = """
import ctypes
driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
raise SystemExit(driver.cuInit(0) or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
"""


def available() -> bool:
    """Whether runs could share a GPU side by side here: by a server of a pool's own, or by the user's."""
    if os.environ.get(SWITCH) == "off":
        return False
    return users_own() or shutil.which(CONTROL) is not None


def users_own() -> bool:
    """Whether there is a server already: children find it as this process does."""
    return PIPES in os.environ or os.path.exists(USERS_OWN)


def part(runs: int) -> int:
    """Per cent of a GPU's processors for each of so many runs: twice what would be its own."""
    return min(100, -(-200 // runs))


class GpuServer:
    """A server of this process's own for ``runs`` at once; `environment` leads children to it (empty where
    there is none), each to twice its part of a GPU's processors, unless the user has set another."""

    def __init__(self, runs: int) -> None:
        self.environment: dict[str, str] = {}
        self.runs = runs
        self._keeper: subprocess.Popen | None = None
        self._folder = ""
        if users_own() or not available():
            return
        try:
            self._folder = tempfile.mkdtemp(prefix="ikdlib-mps-")
        except OSError:
            return
        if self._starts(self._folder) and self._serves({PIPES: self._folder}):
            self.environment = {PIPES: self._folder}
            self.serve(runs)
        else:
            self.close()

    def serve(self, runs: int) -> None:
        """So many at once from now on: what `environment` gives to the next of them."""
        self.runs = max(1, runs)
        if self.environment:
            self.environment[PART] = os.environ.get(PART, str(part(self.runs)))

    def _starts(self, folder: str) -> bool:
        # It serves all GPUs: a child names its own as this process sees them.
        own = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        try:
            self._keeper = subprocess.Popen(
                ["sh", "-c", KEEPER, shutil.which(CONTROL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**own, PIPES: folder, LOGS: folder}, start_new_session=True,
            )  # fmt: skip
        except OSError:
            return False
        answer = select.poll()
        answer.register(self._keeper.stdout, select.POLLIN)
        return bool(answer.poll(6000 * PATIENCE) and self._keeper.stdout.readline())

    def _serves(self, environment: dict[str, str]) -> bool:
        client = [sys.executable, "-c", CLIENT]
        try:
            done = subprocess.run(client, env={**os.environ, **environment}, timeout=6 * PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def close(self) -> None:
        """End it; its clients are to be gone by then."""
        if self._keeper is not None:
            self._keeper.stdin.close()
            try:
                self._keeper.wait(3 * PATIENCE)
            except subprocess.TimeoutExpired:  # nobody waits for a driver that hangs: it and its shell go
                os.killpg(self._keeper.pid, signal.SIGKILL)
                self._keeper.wait()
            self._keeper.stdout.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._keeper, self._folder, self.environment = None, "", {}


@contextmanager
def shared(runs: int) -> Iterator[dict[str, str]]:
    """What so many children's environment needs to share a GPU side by side, for the time of the block."""
    server = GpuServer(runs) if runs > 1 else None
    try:
        yield server.environment if server else {}
    finally:
        if server:
            server.close()
