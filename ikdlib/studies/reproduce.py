"""From one command to a table or an ablation: the notebooks, one after another.

This is what ``make demo``, ``reproduce-cifar``, ``teachers`` and ``ablations`` call. Nothing is
trained here: the notebooks do, through `pool.run_all`, so the same cells run by hand and by command.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ikdlib.errors import WARNING
from ikdlib.studies import plan
from ikdlib.studies.notebook import execute
from ikdlib.studies.study import Study, StudySettings


def reproduce(settings: StudySettings) -> list[Path]:
    """Train what is missing and write the tables; returns the tables' Markdown files."""
    written = []
    for notebook, study in plan.studies(settings).items():
        train_teachers([study])
        chosen = {"pairs": study.settings.pairs, "methods": settings.methods}
        written.append(_run(notebook, study, settings, chosen))
    return written


def ablate(settings: StudySettings, only: str = "") -> list[Path]:
    """Train what the ablations miss and write their tables; returns the tables' Markdown files."""
    written = []
    for notebook, found in plan.ablation_studies(settings, only).items():
        train_teachers(found)
        chosen = {"pairs": settings.pairs, "methods": settings.methods}
        written.append(_run(notebook, found[0], found[0].settings, chosen))
    return written


def train_teachers(found: Iterable[Study]) -> list[Path]:
    """Train the teachers that are not there, a notebook each; returns the executed notebooks."""
    written = []
    for study in found:
        for architecture in study.missing_teachers():
            output = study.folder / "notebooks" / f"10_train_teacher-{architecture}.ipynb"
            parameters = {**_shared(study.settings), "holdout": 0, "architecture": architecture}
            with progress(f"teacher {architecture}") as status:
                written.append(execute("10_train_teacher", output, parameters, status))
    return written


def _run(notebook: str, study: Study, settings: StudySettings, chosen: dict[str, str]) -> Path:
    output = study.folder / "notebooks" / f"{notebook}{plan.suffix(study)}.ipynb"
    with progress(notebook) as status:
        execute(notebook, output, {**_shared(settings), **chosen, "seeds": settings.seeds}, status)
    return plan.table_path(study, notebook).with_suffix(".md")


@contextmanager
def progress(title: str) -> Iterator[Path]:
    """A bar with an ETA, fed by the pool inside a notebook through the file this yields."""
    from tqdm import tqdm

    with TemporaryDirectory() as folder:
        status, over, complete = Path(folder) / "status.json", threading.Event(), threading.Event()

        def show() -> None:
            layout = "{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}, {remaining} left {postfix}"
            heard = 0
            with tqdm(total=1, desc=title, bar_format=layout) as bar:
                ended = False
                while not ended:
                    # A log file wants a line now and then, a terminal wants to see it move.
                    ended = over.wait(1.0 if sys.stderr.isatty() else 30.0)
                    try:
                        state = json.loads(status.read_text())
                    except (OSError, ValueError):
                        continue
                    bar.total, bar.n = max(state["total"], 1), round(state["done"], 2)
                    bar.set_postfix_str("; ".join(state["running"]))
                    for warning in state["warnings"][heard:]:
                        bar.write(WARNING + warning, file=sys.stderr)
                    heard = len(state["warnings"])
                if complete.is_set():
                    bar.n = bar.total
                bar.set_postfix_str("")

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield status
            complete.set()
        finally:
            over.set()
            thread.join()


def _shared(settings: StudySettings) -> dict:
    """What every notebook takes: all settings but those that choose cells."""
    return {name: value for name, value in settings if name not in ("pairs", "methods", "seeds")}
