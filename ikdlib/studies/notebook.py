"""Notebooks as programs: parameters checked first, executed by papermill, whole or absent.

papermill itself only warns of a parameter a notebook does not have, and leaves half-written files when
it is killed; so names are checked before, and the executed copy gets its name when it is complete.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikdlib import files
from ikdlib.errors import IkdError
from ikdlib.spec import known
from ikdlib.studies import copies, kernel

SOURCES = copies.PROJECT / "notebooks"
START_SECONDS = 300
"""How long a kernel may take to start: of 64 at once, all read their libraries from one disk."""
OUTPUT_SECONDS = 600
"""How long the client may take to read what a cell has printed, after the cell has ended."""


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
        copy = copies.kept(nbformat.read(temporary, as_version=4), parameters.values())
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
        raise Failure(error.ename, copies.one_line(error.evalue), failed) from None
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
