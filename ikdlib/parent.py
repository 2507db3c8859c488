"""A process that ends with the one that started it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

PARENT = "IKDLIB_PARENT"
"""Environment: the process whose end is a child's end. It may be gone before the child can ask who it was."""


def end_with_parent(parent: int, at_end: Callable[[], None], every: float = 0.5) -> None:
    """Call ``at_end``, from a thread of its own, when this process is no longer a child of ``parent``."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        at_end()

    threading.Thread(target=watch, daemon=True).start()
