"""Notebooks as programs: parameters checked first, executed by papermill, whole or absent.

papermill itself only warns of a parameter a notebook does not have, and leaves half-written files when
it is killed; so names are checked before, and the executed copy gets its name when it is complete.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ikdlib
from ikdlib import files
from ikdlib.errors import IkdError
from ikdlib.spec import known
from ikdlib.studies import kernel

SOURCES = Path(ikdlib.__file__).parent.parent / "notebooks"
LARGEST = 1_000_000
"""Bytes of an executed notebook; what is over it is cut from the longest outputs."""
START_SECONDS = 300
"""How long a kernel may take to start: of 64 at once, all read their libraries from one disk."""
OUTPUT_SECONDS = 600
"""How long the client may take to read what a cell has printed, after the cell has ended."""
KEPT_OF_AN_OUTPUT = 10_000
"""Characters kept of a text that is cut, half of its beginning and half of its end."""


LONGEST_REASON = 500
"""Characters of an error's text that are shown in one line."""


@dataclass(eq=False)
class Failure(Exception):
    """A cell of a notebook raised an error, or its kernel died.

    Attributes:
        kind: name of the error's class, like ``ZeroDivisionError``; ``DeadKernelError``.
        text: what it said, in one line.
        copy: the notebook as far as it came, with the traceback.
    """

    kind: str
    text: str
    copy: Path


def enter_project() -> None:
    """Leave ``notebooks/``, where JupyterLab starts a notebook, for the project's folder.

    So ``results`` means the same folder by hand, by papermill and by command. Anywhere else is left as it is.
    """
    if Path.cwd() == SOURCES.resolve():
        os.chdir(SOURCES.parent)


def source_of(name: str) -> Path:
    """One of the project's notebooks; raises `IkdError` where there is none of this name."""
    source = SOURCES / f"{name}.ipynb"
    if not source.exists():
        raise IkdError(f"notebooks: there is no {source.name}; run this from a checkout of the project")
    return source


def read(source: Path) -> dict[str, Any]:
    """A notebook's content; raises `IkdError` where there is none, or none in Python."""
    try:
        content = json.loads(source.read_text())
        metadata = [cell["metadata"] for cell in content["cells"]]
        language = content["metadata"].get("kernelspec", {}).get("language", "python")
    except OSError as error:
        raise IkdError(f"{source}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IkdError(f"{source}: no notebook of format 4") from None
    if language != "python" or not all(isinstance(each, dict) for each in metadata):
        raise IkdError(f"{source}: its language is {language}; parameters are read from Python notebooks")
    return content


def digest_of(source: Path) -> str:
    """sha256 of a notebook's code: words beside it may change without a cell becoming another."""
    code = [
        ["".join(cell["source"]), cell["metadata"].get("tags", [])]
        for cell in read(source)["cells"]
        if cell["cell_type"] == "code"
    ]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def parameters_of(source: Path) -> dict[str, Any]:
    """Names and defaults in a notebook's ``parameters`` cell."""
    tagged = [cell for cell in read(source)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise IkdError(f"{source.name}: {len(tagged)} cells tagged `parameters`, it needs exactly one")
    try:
        tree = ast.parse("".join(tagged[0]["source"]))
    except SyntaxError as error:
        raise IkdError(f"{source.name}: its `parameters` cell is no Python ({error.msg})") from None
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target = statement.target
        else:
            continue
        try:
            found[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            continue  # several names at once, or a value that is computed: no plain scalar to sweep
    return found


def check_parameters(source: Path, given: dict[str, Any]) -> None:
    """Refuse a name the notebook has no parameter for, and a value of another type than its default."""
    defaults = parameters_of(source)
    for name, value in given.items():
        default = defaults[known(name, tuple(defaults), source.name, "parameter")]
        kind = type(default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise IkdError(f"{source.name}: {name} = {value!r} is no {kind.__name__}, like {default!r}")
        if isinstance(value, float) and value != value:
            raise IkdError(f"{source.name}: {name} is NaN; give a number")


def execute(
    source: Path,
    output: Path,
    failed: Path,
    parameters: dict[str, Any],
    stopped: Callable[[], bool] = lambda: False,
) -> Any:
    """Run a notebook with parameters that were checked; the executed copy goes to ``output``.

    Args:
        stopped: asked before each cell, because a kernel that is starting, or between two cells, hears no
            signal.

    Returns:
        the executed notebook (nbformat's node), scrubbed.

    Raises:
        Failure: a cell failed; the copy goes to ``failed``.
        KeyboardInterrupt: it was stopped between two cells.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")

    def look(**_: Any) -> None:
        if stopped():
            raise KeyboardInterrupt

    def keep(path: Path) -> Any:
        copy = slim(joined(scrub(nbformat.read(temporary, as_version=4), parameters.values())))
        files.write_text(path, nbformat.writes(copy) + "\n")
        return copy

    try:
        with kernel.fresh() as options:
            papermill.execute_notebook(
                str(source), str(temporary), parameters,
                progress_bar=False, cwd=os.getcwd(), on_cell_start=look, start_timeout=START_SECONDS,
                iopub_timeout=OUTPUT_SECONDS, **options,
            )  # fmt: skip
        copy = keep(output)
        failed.unlink(missing_ok=True)  # of an earlier attempt
        return copy
    except KeyboardInterrupt:
        # The kernel was interrupted too, and asyncio would print its cell's traceback as never retrieved.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except PapermillExecutionError as error:
        keep(failed)
        raise Failure(error.ename, _one_line(error.evalue), failed) from None
    except (DeadKernelError, RuntimeError) as error:  # RuntimeError: while it started
        if not isinstance(error, DeadKernelError) and "Kernel d" not in str(error):
            raise
        if temporary.exists():
            keep(failed)
        raise Failure("DeadKernelError", "the kernel died (out of memory, as a rule)", failed) from None
    finally:
        temporary.unlink(missing_ok=True)


def execute_here(name: str, output: Path, parameters: dict[str, Any]) -> Path:
    """`execute` one of the project's notebooks, its parameters checked, for a command that shows its end.

    Raises:
        IkdError: bad parameters, or a cell failed: the error's text where it is a user's to mend, else
            where the copy with the traceback lies (``failed/`` beside ``output``).
    """
    source = source_of(name)
    check_parameters(source, parameters)
    try:
        execute(source, output, output.parent / "failed" / output.name, parameters)
    except Failure as failure:
        if failure.kind == "IkdError":
            raise IkdError(failure.text) from None
        raise IkdError(f"{source.name}: {failure.kind}: {failure.text} ({failure.copy})") from None
    return output


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
        raise IkdError(f"outcome: {_one_line(text)[:80]!r} is neither a number nor a dict of numbers by name")
    return {str(name): number if math.isfinite(number) else None for name, number in numbers.items()}


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
    for folder, word in (*words, (Path.cwd(), "."), (SOURCES.parent, "."), (Path.home(), "~")):
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


def _one_line(text: str) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
