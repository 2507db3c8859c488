"""What is kept of an executed notebook: no path of this machine, no more than fits, and its outcome."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ikdlib
from ikdlib.errors import IkdError

PROJECT = Path(ikdlib.__file__).parent.parent
"""The folder of the checkout."""
LARGEST = 1_000_000
"""Bytes of an executed notebook; what is over it is cut from the longest outputs."""
KEPT_OF_AN_OUTPUT = 10_000
"""Characters kept of a text that is cut, half of its beginning and half of its end."""
LONGEST_REASON = 500
"""Characters of an error's text that are shown in one line."""


def outcome_of(notebook: Any) -> dict[str, float | None]:
    """What the cell tagged ``outcome`` showed: numbers by name (a lone number is called ``outcome``).

    One that is not finite is None.

    Raises:
        IkdError: it showed something else.
    """
    tagged = [cell for cell in notebook["cells"] if "outcome" in cell["metadata"].get("tags", [])]
    shown = [
        output["data"]["text/plain"]
        for cell in tagged
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result" and "text/plain" in output["data"]
    ]
    if not shown:
        return {}
    text = "".join(shown[-1])
    try:
        # numpy writes its numbers as np.float64(0.5); a float that is none, as nan, inf or -inf.
        plain = re.sub(r"\bnp\.\w+\(([^()]*)\)", r"\1", text)
        value = ast.literal_eval(re.sub(r"(?<![\w'\"])-?(nan|inf)(?![\w'\"])", "1e999", plain))
    except (ValueError, SyntaxError):
        value = None
    numbers = value if isinstance(value, dict) else {"outcome": value}
    if not numbers or not all(isinstance(number, int | float) for number in numbers.values()):
        raise IkdError(f"outcome: {one_line(text)[:80]!r} is neither a number nor a dict of numbers by name")
    return {str(name): number if math.isfinite(number) else None for name, number in numbers.items()}


def kept(notebook: Any, given: Iterable[Any] = ()) -> Any:
    """An executed notebook as it is written: `scrub`, then `joined`, then `slim`."""
    return slim(joined(scrub(notebook, given)))


def shown(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as a record keeps them: of an absolute path its last name."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in parameters.items()
    }


def scrub(notebook: Any, given: Iterable[Any] = ()) -> Any:
    """The notebook without absolute paths of this machine, and without papermill's own of its files.

    ``given``: parameter values; a folder among them is shown by its last name.
    """
    import nbformat

    text = json.dumps(notebook)
    folders = [Path(value) for value in given if isinstance(value, str) and Path(value).is_absolute()]
    words = [(folder, folder.name) for folder in folders]
    for folder, word in (*words, (Path.cwd(), "."), (PROJECT, "."), (Path.home(), "~")):
        if len(str(folder)) > 1:
            text = text.replace(json.dumps(str(folder))[1:-1], word)
    clean = nbformat.reads(text, as_version=4)
    for key in ("input_path", "output_path", "environment_variables"):
        clean["metadata"].get("papermill", {}).pop(key, None)
    return clean


def joined(notebook: Any) -> Any:
    """The notebook with what was printed in pieces in one, and of a progress bar only what it showed last.

    nbclient's own ``coalesce_streams`` takes minutes for a line of megabytes.
    """
    for cell in notebook["cells"]:
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            last = outputs[-1] if outputs else {}
            same = last.get("name") == output.get("name")
            if output["output_type"] == last.get("output_type") == "stream" and same:
                last["text"] += output["text"]
            else:
                outputs.append(output)
        for output in outputs:
            if output["output_type"] == "stream":
                lines = output["text"].replace("\r\n", "\n").split("\n")
                output["text"] = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        if outputs:
            cell["outputs"] = outputs
    return notebook


def slim(notebook: Any) -> Any:
    """The notebook with its longest outputs cut, longest first, until it is no larger than `LARGEST`."""
    import nbformat

    def size() -> int:
        return len(nbformat.writes(notebook).encode())

    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    parts = [
        (output, kind) for output in outputs for kind in ("text", "evalue", "traceback") if kind in output
    ]
    parts += [(output["data"], kind) for output in outputs for kind in output.get("data", {})]
    parts.sort(key=lambda part: -len(str(part[0][part[1]])))
    over = size() - LARGEST
    for holder, kind in parts if over > 0 else ():
        if over <= 0 and (over := size() - LARGEST) <= 0:  # counted on the way, and once more in the end
            break
        before = len(str(holder[kind]))
        if kind == "traceback":
            holder[kind] = [_cut(line) for line in holder[kind]]
        elif kind in ("text", "evalue", "text/plain"):
            holder[kind] = _cut(holder[kind])
        else:
            del holder[kind]
            holder["text/plain"] = f"{kind} of {before} characters left out"
        over -= before - len(str(holder.get(kind, "")))
    while (over := size() - LARGEST) > 0:  # many outputs, none of them long
        longest = max(notebook["cells"], key=lambda cell: len(cell.get("outputs", [])))
        shown = longest.get("outputs", [])
        if len(shown) < 3:
            break  # it is the notebook's own source
        third = len(shown) // 3
        words = f"... {len(shown) - 2 * third} outputs left out ...\n"
        left_out = nbformat.v4.new_output("stream", name="stderr", text=words)
        longest["outputs"] = [*shown[:third], left_out, *shown[-third:]]
    return notebook


def _cut(text: str) -> str:
    half = KEPT_OF_AN_OUTPUT // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"


def one_line(text: str) -> str:
    """An error's text as a line, cut where it is long."""
    text = " ".join(str(text).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
