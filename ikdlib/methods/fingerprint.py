"""What a method's own code was: so that an edited loss is not taken for the one a run was made with.

A run is named by its settings, and code is none. Whoever changes a loss under the same name would find its
old runs finished; they are told so.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ikdlib.methods import base, controls, ikd, method_class
from ikdlib.provenance import other_code
from ikdlib.spec import MethodSpec

if TYPE_CHECKING:
    from ikdlib.runs import Run


def of(spec: MethodSpec) -> str | None:
    """sha256 of the code in the method's file, and in those it and its term rest on; 16 hex digits.

    Comments, docstrings and layout have no part in it. None for a class that has no file (a notebook's).
    """
    try:
        shared = [base, ikd, controls] if spec.ikd else [base]
        paths = [inspect.getfile(method_class(spec.name)), *(module.__file__ for module in shared)]
        return hashlib.sha256("\n".join(map(_code, paths)).encode()).hexdigest()[:16]
    except (TypeError, OSError, SyntaxError):
        return None


def changed(run: Run) -> bool:
    """Whether the code is no longer that which a run that is over recorded; False where it recorded none."""
    there = (run.folder / "provenance.json").exists()
    return there and other_code(run.provenance, of(run.spec.method))


@cache
def _code(path: str) -> str:
    """A file's code without comments, docstrings and layout; as this process first read it."""
    tree = ast.parse(Path(path).read_bytes())
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
