"""The kernel of a cell: reached by files instead of ports, and gone when the process that started it is.

papermill's own kernels listen on TCP ports that are picked first and bound later, so of several started at
once two may pick the same; they read the user's start-up files; and what a notebook started outlives them.
``python -m ikdlib.studies.kernel -f FILE`` is the kernel's process.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from ikdlib import status
from ikdlib.parent import end_with_parent
from ikdlib.studies.children import stay_nice

# The user's start-up files stay out of a reproduction, and only errors speak.
CONFIG = "c.IPKernelApp.log_level = 40\n"
GRACE = 3.0
"""Seconds for an orphaned kernel to save what it is at: dead within five of its parent, whatever it does."""
LONGEST_SOCKET = 90
"""Bytes of a Unix socket's path (108 on Linux, 104 on macOS), less the part the kernel's own name takes."""


_folders: list[str] = []
_managers: list[Any] = []
"""Of the kernels that run now, for `send`."""


@contextmanager
def fresh() -> Iterator[dict[str, Any]]:
    """papermill's options for one kernel; whatever it and its notebook started is gone afterwards.

    ``IPYTHONDIR`` is an empty folder that lasts as long: many kernels at once share no history or settings.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    with TemporaryDirectory(dir=_short_folder(), prefix="ikd") as folder:
        _folders.append(folder)
        (Path(folder) / "profile_default").mkdir()
        (Path(folder) / "profile_default" / "ipython_kernel_config.py").write_text(CONFIG)

        class Kernel(AsyncKernelManager):
            def __init__(self, **settings: Any):
                files = {"connection_file": f"{folder}/kernel.json", "ip": f"{folder}/socket"}
                super().__init__(**settings, transport="ipc", **files)
                _managers.append(self)

            def client(self, **settings: Any) -> Any:
                client = super().client(**settings)
                client.context.rcvhwm = 0  # else ZeroMQ drops outputs that come faster than they are written
                return client

            @property
            def kernel_spec(self) -> KernelSpec:
                # Of all kernels called python3 on a machine this one has the package: the interpreter's own.
                command = [sys.executable, "-m", "ikdlib.studies.kernel", "-f", "{connection_file}"]
                return KernelSpec(argv=command, display_name="Python 3", language="python")

        try:
            # The kernel inherits it. A cell that has a status file keeps its own.
            quiet = {status.FILE: os.environ.get(status.FILE, f"{folder}/status.json")}
            with _environment({"IPYTHONDIR": folder, **quiet}):
                yield {"kernel_name": "python3", "language": "python", "kernel_manager_class": Kernel}
        finally:
            send(signal.SIGKILL)
            _managers.clear()


def send(number: int) -> None:
    """A signal to this process's kernels and to all that their notebooks started: a session of its own."""
    for manager in _managers:
        try:
            if pid := getattr(manager.provisioner, "pid", None):  # None before it started
                os.killpg(pid, number)
        except ProcessLookupError:
            pass  # it went before


def end() -> None:
    """The kernels of this process, which is going to leave no time for more."""
    send(signal.SIGKILL)
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str | None:
    """Where sockets may lie: a path that is too long for one cannot be bound."""
    return None if len(os.fsencode(gettempdir())) < LONGEST_SOCKET - 20 else "/tmp"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _orphaned() -> None:
    """A training saves on SIGINT; then the whole group ends, with whatever else the notebook started."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    shutil.rmtree(os.environ["IPYTHONDIR"], ignore_errors=True)  # who would do it was killed
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Be a kernel (ipykernel's own), until it is told to end or its parent is gone."""
    end_with_parent(int(os.environ["JPY_PARENT_PID"]), _orphaned)
    # ipykernel's own watch would end the process at once, before anything is saved: process 1 it lets be.
    os.environ["JPY_PARENT_PID"] = "1"
    stay_nice()
    # A code.py or random.py in the folder it works in is not what a kernel means by that name (ipykernel's
    # own launcher does the same). For the notebook, IPython puts the folder back.
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    from ipykernel.kernelapp import IPKernelApp

    class Lossless(IPKernelApp):
        def init_iopub(self, context: Any) -> None:
            context.sndhwm = 0  # as in `fresh`
            super().init_iopub(context)

    Lossless.launch_instance()


if __name__ == "__main__":
    main()
