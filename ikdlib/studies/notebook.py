"""Notebooks as programs: parameters checked first, executed by papermill, whole or absent.

papermill itself only warns of a parameter a notebook does not have, and leaves half-written files when
it is killed; so names are checked before, and the executed copy gets its name when it is complete.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ikdlib
from ikdlib import files
from ikdlib.errors import IkdError
from ikdlib.spec import known

# A kernel of our own making: the user's start-up files stay out of a reproduction, and only errors speak.
KERNEL_CONFIG = "c.IPKernelApp.log_level = 40\n"
SOURCES = Path(ikdlib.__file__).parent.parent / "notebooks"


def enter_project() -> None:
    """Leave ``notebooks/``, where JupyterLab starts a notebook, for the project's folder.

    So ``results`` means the same folder by hand, by papermill and by command. Anywhere else is left as it is.
    """
    if Path.cwd() == SOURCES.resolve():
        os.chdir(SOURCES.parent)


def parameters_of(source: Path) -> dict[str, Any]:
    """Names and defaults in a notebook's ``parameters`` cell."""
    import ast

    cells = json.loads(source.read_text())["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise IkdError(f"{source.name}: {len(tagged)} cells tagged `parameters`, it needs exactly one")
    tree = ast.parse("".join(tagged[0]["source"]))
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }


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


def execute(name: str, output: Path, parameters: dict[str, Any], status: Path | None = None) -> Path:
    """Run ``notebooks/<name>.ipynb`` with parameters; the executed copy goes to ``output``.

    Args:
        status: file where a pool inside the notebook writes how far it is.

    Raises:
        IkdError: bad parameters, or a cell failed (its copy is kept at ``<output>.failed.ipynb``).
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = SOURCES / f"{name}.ipynb"
    if not source.exists():
        raise IkdError(f"notebooks: there is no {source.name}; run this from a checkout of the project")
    check_parameters(source, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    with TemporaryDirectory() as profile:
        (Path(profile) / "profile_default").mkdir()
        (Path(profile) / "profile_default" / "ipython_kernel_config.py").write_text(KERNEL_CONFIG)
        environment = {"IPYTHONDIR": profile} | ({"IKDLIB_STATUS_FILE": str(status)} if status else {})
        try:
            with _environment(environment):  # the kernel inherits it
                papermill.execute_notebook(
                    str(source), str(temporary), parameters,
                    kernel_name="python3", progress_bar=False, cwd=os.getcwd(),
                )  # fmt: skip
            finished = scrub(nbformat.read(temporary, as_version=4), parameters.values())
            files.write_text(output, nbformat.writes(finished) + "\n")
            return output
        except KeyboardInterrupt:
            # The kernel was interrupted too, and asyncio would print its cell's traceback as never retrieved.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise
        except PapermillExecutionError as error:
            failed = output.with_suffix(".failed.ipynb")
            copy = scrub(nbformat.read(temporary, as_version=4), parameters.values())
            files.write_text(failed, nbformat.writes(copy) + "\n")
            if error.ename == "IkdError":
                raise IkdError(str(error.evalue)) from None
            raise IkdError(
                f"{source.name}: cell {error.exec_count}: {error.ename}: {error.evalue} ({failed})"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


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
