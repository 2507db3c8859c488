"""A small executed notebook with one of everything that a page must show, or must leave out."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)  # fmt: skip

TABLES, PICTURES = 3, 2
HIDDEN = ("secret_name", "HiddenOutput", "epoch/s", "written to stderr", "2026-11-24", "/tmp/", "\x1b", "31m")
WIDE_TABLE = pd.DataFrame(
    {
        "pair": ["resnet56/resnet20", "vgg13/MobileNetV2"],
        "top-1": [71.25, 68.5],
        "run folder": [
            '<a href="short/runs/resnet56-resnet20-dkd+ikd-seed1-a792957ac2">' + "dkd+ikd " * 12 + "</a>"
        ]
        * 2,
        **{f"a column with a long name {i}": ["a value that is not short"] * 2 for i in range(6)},
    }
)


@functools.cache
def png(width: int = 400, height: int = 250) -> str:
    """A matplotlib figure of that many pixels, in base64, in lines, as the kernel writes it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(width / 100, height / 100), dpi=100)
    axis.plot([0, 1], [1, 0])
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    plt.close(figure)
    return base64.encodebytes(content.getvalue()).decode()


def shown(data: dict[str, str], **metadata) -> nbformat.NotebookNode:
    return new_output("display_data", data={"text/plain": "<HiddenOutput object>", **data}, metadata=metadata)


def cells() -> list[nbformat.NotebookNode]:
    bars = ("10%|#   | 1/10 [00:01<00:09, 1.0epoch/s]", "100%|####| 10/10 [00:10<00:00, 1.0epoch/s]")
    progress = "".join(f"\r {bar}" for bar in bars) + "\n"
    coloured = "\x1b[31mred\x1b[0m at /tmp/somewhere/run-7/weights.bin\n"
    words = {"image/png": {"alt": "Own words"}}
    table = WIDE_TABLE.to_html(escape=False)
    quiet = new_code_cell("5", outputs=[new_output("stream", name="stdout", text="HiddenOutput")])
    quiet.metadata["tags"] = ["no-report"]
    return [
        new_markdown_cell("# The report\n\n`Code` and a [link](../README.md), also [here](#The-table)."),
        new_code_cell(
            "secret_name = 1",
            outputs=[
                new_output("stream", name="stdout", text=coloured),
                new_output("stream", name="stderr", text=f"written to stderr{progress}"),
                new_output("stream", name="stdout", text=f"{progress}done & <well>\n"),
            ],
            metadata={"execution": {"iopub.execute_input": "2026-11-24T05:18:01"}},
        ),
        new_markdown_cell("## The table\n\n### Twice\n\n### Twice"),
        new_code_cell("2", outputs=[shown({"text/html": table})]),
        new_code_cell(
            "3", outputs=[shown({"text/markdown": "A caption.\n\n| x | note |\n|:-:|:--|\n| 1.5 | = |\n"})]
        ),
        new_markdown_cell("| in | Markdown |\n|---|---|\n| yes | no |"),
        new_markdown_cell("## Pictures"),
        new_code_cell("4", outputs=[shown({"image/png": png()})]),
        new_code_cell("4", outputs=[shown({"image/png": png(900, 300)}, **words)]),
        quiet,
        new_code_cell(
            "6",
            outputs=[
                shown({"application/vnd.jupyter.widget-view+json": {"model_id": "HiddenOutput"}}),
                new_output("execute_result", data={"text/plain": "\x1b[1m42\x1b[0m"}, execution_count=6),
            ],
        ),
    ]  # fmt: skip


def write(path: Path, *more: nbformat.NotebookNode) -> Path:
    """The notebook, with further cells at its end; ids are fixed, so that it is the same each time."""
    notebook = new_notebook(cells=[*cells(), *more], metadata={"papermill": {"start_time": "2026-11-24T05"}})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path
