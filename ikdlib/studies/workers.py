"""What a Dask worker does for a `cluster.Cluster`, which asks by name: it needs the package, and no more."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ikdlib
from ikdlib.studies import children
from ikdlib.studies.cell import code_digest

RESOURCE = "GPU"
"""Name of the resource that a worker with GPUs offers: ``dask worker --resources GPU=1``."""
DATA_SECONDS = 600
"""How long it may take to load the data set, which the first time it decodes."""


class Call:
    """A call that happens where its pickle is loaded."""

    def __init__(self, *parts: Any):
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return work, self._parts


def work(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Call a function; where the worker has several GPUs, its children go round them."""
    from distributed import get_worker

    if (count := int(get_worker().state.total_resources.get(RESOURCE, 0))) > 1:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        children.gpus = tuple(visible or map(str, range(count)))
    return function(*arguments, **named)


def inspect(token: str) -> dict[str, str]:
    """What the worker has of what cells need."""
    path = Path(token)
    return {
        "version": ikdlib.__version__, "code": code_digest(), "host": socket.gethostname(),
        "folder": os.getcwd(), "token": path.read_text() if path.exists() else "",
    }  # fmt: skip


async def digest_of(data: str, folder: str) -> str:
    """The data set's sha256, or why there is none.

    torch is loaded in a process that ends; the worker goes on meanwhile.
    """
    program = (
        "import sys; from ikdlib import data, errors\n"
        "try: print(data.load(sys.argv[1], sys.argv[2] or None).sha256)\n"
        "except errors.IkdError as error: print(error)"
    )
    command = [sys.executable, "-c", program, data, folder]
    load = lambda: subprocess.run(command, capture_output=True, text=True, timeout=DATA_SECONDS)  # noqa: E731
    done = await asyncio.to_thread(load)
    return ((done.stdout.strip() or done.stderr.strip()).splitlines() or ["it printed nothing"])[-1]
