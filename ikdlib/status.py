"""What a training tells the command that started its process: through a file named in the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ikdlib import files

FILE = "IKDLIB_STATUS_FILE"
"""Environment: the file. Where it is set, progress bars are quiet: somebody else shows how far it is."""
GPU_SHARE = "IKDLIB_GPU_SHARE"
"""Environment: the part of a GPU's memory that is this process's own, where several share one."""


def tell(run: Path | None = None, warning: str = "") -> None:
    """Say at which run this process is, whose folder says how far; or pass a warning on, once."""
    if FILE not in os.environ:
        return
    path = Path(os.environ[FILE])
    state = read(path)
    if run is not None:
        state["run"] = str(run.resolve())
    if warning and warning not in state["warnings"]:
        state["warnings"].append(warning)
    files.write_json(path, state)


def read(path: Path) -> dict[str, Any]:
    """``run`` (a folder, or None) and ``warnings`` as far as they were told."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {"run": None, "warnings": []}
