"""Who may import whom, and what a bare GPU machine need not have."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ikdlib

PACKAGE = Path(ikdlib.__file__).parent
ABSENT = (
    "papermill", "jupyter", "jupyterlab", "nbconvert", "nbformat", "bs4", "yaml", "dask", "distributed",
    "matplotlib", "seaborn", "scipy",
)  # fmt: skip
FORBIDDEN = {
    "methods": ("training", "studies", "reporting"),
    "models": ("training", "studies", "reporting"),
    "data": ("training", "studies", "reporting"),
    "training": ("studies", "reporting"),
    "studies": ("reporting",),
    "reporting": ("training",),
}


def test_training_imports_without_notebooks_plots_or_clusters():
    """They are not only unused: importing them fails here, as where they are not installed."""
    program = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None
import ikdlib, ikdlib.__main__, ikdlib.training.job, ikdlib.methods, ikdlib.models, ikdlib.data
assert "ikdlib.studies" not in sys.modules and "ikdlib.reporting" not in sys.modules
print("fine")
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert done.stdout.strip() == "fine", done.stderr


def imports(tree: ast.Module, in_functions: bool = False) -> set[str]:
    """Dotted names that a module imports when it is imported itself, or whenever."""
    names: set[str] = set()
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if inside and not in_functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        queue += ast.iter_child_nodes(node)
    return names


def breaches(part: str, text: str) -> list[str]:
    """Imports in a module of ``part`` that go against the direction in which data flows."""
    forbidden = tuple(f"ikdlib.{other}" for other in FORBIDDEN[part])
    found = imports(ast.parse(text), in_functions=True)
    return sorted(n for n in found if any(n == f or n.startswith(f + ".") for f in forbidden))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_go_one_way(part):
    for path in (PACKAGE / part).rglob("*.py"):
        assert breaches(part, path.read_text()) == [], path


def test_a_breach_would_be_noticed():
    assert breaches("data", "if True:\n    from ikdlib import training") == ["ikdlib.training"]
    assert breaches("methods", "import ikdlib.training.trainer") == ["ikdlib.training.trainer"]
    assert breaches("methods", "from ikdlib.training.job import Job") == ["ikdlib.training.job.Job"]
    assert breaches("methods", "def f():\n    from ikdlib import training") == ["ikdlib.training"]


@pytest.mark.parametrize("name", ["spec.py", "errors.py", "files.py"])
def test_the_ground_floor_stands_alone(name):
    """`spec` and what is below import no part at module level."""
    found = imports(ast.parse((PACKAGE / name).read_text()))
    parts = {n.split(".")[1] for n in found if n.startswith("ikdlib.")}
    assert parts <= {"errors", "files"}


def test_plots_and_clusters_are_imported_where_they_are_used():
    for path in PACKAGE.rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
        assert not roots & set(ABSENT), path
