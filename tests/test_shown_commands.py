"""Every command shown in the documents, the notebooks and the Makefile can be given."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ikdlib import __main__
from ikdlib.commands import options as options_of
from ikdlib.errors import IkdError
from ikdlib.reporting import tables  # noqa: F401  (what the table commands need is importable)
from ikdlib.studies import grid, plan
from ikdlib.studies.notebook import parameters_of
from ikdlib.studies.study import Study

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
NOTEBOOKS = [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
SHOWING = ["README.md", "results/README.md", "benchmarks/README.md", "examples/slurm/README.md", *NOTEBOOKS]


def shown_commands(name: str = "README.md") -> list[str]:
    """Every command in a document's code blocks and inline code, continued lines joined.

    Of a notebook: in its Markdown, in its code's comments and strings, and what it gives to a shell.
    """
    text = (ROOT / name).read_text()
    if name.endswith(".ipynb"):
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        text = re.sub(r"^!(.*)$", r"`\1`", text, flags=re.MULTILINE)
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`([^`\n]+)`", prose)
    return [line.removeprefix("$ ") for line in lines]


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def make_commands(name: str = "README.md") -> list[list[str]]:
    return [words_of(line) for line in shown_commands(name) if re.match(r"(\w+=\S+ )*make( |$)", line)]


def ikdlib_commands(lines: list[str]) -> list[list[str]]:
    """What follows `-m ikdlib` in each line that has it."""
    found = [words_of(line.split("-m ikdlib", 1)[1]) for line in lines if "-m ikdlib" in line]
    return [[word for word in words if word != "..."] for words in found]


def would_print(*given: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`make -n`; no variable is set but those given, on its line or in its environment."""
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | (env or {})
    return subprocess.run(["make", "-n", *given], cwd=ROOT, capture_output=True, text=True, env=plain)


def make_would(*given: str) -> list[list[str]]:
    """The arguments of each `-m ikdlib` that make would run."""
    told = would_print(*given)
    assert told.returncode == 0, told.stderr
    return ikdlib_commands(told.stdout.replace("\\\n", " ").splitlines())


def check_arguments(words: list[str]) -> None:
    """The arguments parse, and the studies can be made of them (that is: every name in them is known)."""
    options = __main__._parser().parse_args(words)
    if hasattr(options, "profile"):
        values = options_of.study_settings(options).updated(device="auto")
        Study(values)
        if hasattr(options, "only"):
            plan.ablation_studies(values, options.only)
    if getattr(options, "notebook", "") and not options.watch:
        source = ROOT / options.notebook
        if options.grid:
            grid.read(ROOT / options.grid, source, options.values)
        else:
            grid.of_options(options.values, source)


@pytest.mark.parametrize("document", SHOWING)
def test_every_make_command_shown_can_be_given(document):
    for words in make_commands(document):
        given = [word for word in words if word not in ("make", "...")]
        for word in given:
            name, equals, _ = word.partition("=")
            if equals:
                assert re.search(rf"\b{name}\b", MAKEFILE), f"`{shlex.join(words)}`: make reads no {name}"
            elif not word.startswith("-"):
                assert word in targets(), f"`{shlex.join(words)}`: there is no target {word}"
        if any("=" not in word for word in given):
            for arguments in make_would(*given):
                check_arguments(arguments)


@pytest.mark.parametrize("document", SHOWING)
def test_every_ikdlib_command_shown_parses(document):
    for words in ikdlib_commands(shown_commands(document)):
        if words:  # `python -m ikdlib` alone, in a sentence
            check_arguments(words)


@pytest.mark.parametrize("document", SHOWING)
def test_every_papermill_command_shown_names_parameters_that_exist(document):
    for words in [words_of(line) for line in shown_commands(document) if "papermill " in line]:
        (source,) = [ROOT / word for word in words if word.startswith("notebooks/")]
        given = [words[place + 1] for place, word in enumerate(words) if word in ("-p", "-r")]
        assert set(given) <= set(parameters_of(source)), shlex.join(words)


def test_commands_are_found_where_they_are_shown():
    """Else the two tests above would pass for want of something to look at."""
    assert make_commands() and ikdlib_commands(shown_commands())
    assert ["make", "ablations", "DRY=1"] in make_commands("notebooks/31_weight_of_the_term.ipynb")


# Makefile

WITHOUT_DRY = ("demo", "bench", "data", "report")


def targets() -> list[str]:
    return re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("target", targets())
def test_every_target_gives_arguments_that_parse_and_a_line_of_help(target):
    dry = [] if target in WITHOUT_DRY else make_would(target, "DRY=1")
    for arguments in make_would(target) + dry:
        check_arguments(arguments)
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^  make {target} +\w", told, re.MULTILINE)
    assert target in re.search(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[1].split()


RUNS = ("reproduce-cifar", "teachers", "ablations", "sweep", "equivalence", "evidence")


@pytest.mark.parametrize("target", (*RUNS, *WITHOUT_DRY))
def test_make_refuses_what_a_target_would_pass_over(target):
    """Every variable that make reads: either the commands change with it, or it is an error."""
    names = set(re.findall(r"^([A-Z]+) \?=", MAKEFILE, re.MULTILINE)) - {"PYTHON"}
    assert {"PAIRS", "SEEDS", "FIRST", "GRID", "DRY", "WATCH", "SCHEDULER"} <= names
    usual, taken = would_print(target).stdout, set()
    for name in names:
        told = would_print(target, f"{name}=77")
        if told.returncode:
            assert f"make {target} takes no {name}, only " in told.stderr
        else:
            assert told.stdout != usual, f"make {target} passes over {name}"
            taken.add(name)
    assert taken & {"RESULTS", "DATA"} and ("DRY" in taken) == (target not in WITHOUT_DRY)


@pytest.mark.parametrize(
    "target, misspelt",
    [("sweep", "GRIDS=a b.yaml"), ("reproduce-cifar", "SEED=1"), ("ablations", "seeds=1"), ("demo", "X:=1")],
)
def test_make_refuses_a_misspelt_variable(target, misspelt):
    """It would be passed over: all seeds instead of one."""
    told = would_print(target, misspelt, "RESULTS=a b=c")
    name = re.match(r"\w+", misspelt)[0]
    assert told.returncode and f"make {target} takes no {name}, only " in told.stderr
    assert not would_print(target, "RESULTS=a b=c", "PYTHON=python3.12").returncode


def test_of_several_targets_one_may_take_what_another_does_not():
    assert not would_print("data", "teachers", "ablations", "ONLY=30", "PAIRS=vgg13/vgg8").returncode
    assert (
        "make data report takes no ONLY, only DATA RESULTS" in would_print("data", "report", "ONLY=30").stderr
    )
    assert "make data takes no DRY" in would_print("data", "ablations", "DRY=1").stderr, "it would download"


def test_make_goes_on_with_what_changes_nothing():
    usual = would_print("demo").stdout
    assert would_print("demo", "PAIRS=", "DRY=0").stdout == usual
    assert would_print("demo", env={"PAIRS": "a/b", "NAME": "mine"}).stdout == usual, "of the shell"
    assert would_print("demo", env={"DRY": "1"}).returncode, "but it would train what was to be shown"


def test_make_hands_on_what_it_is_given():
    chosen = {"pairs": "vgg13/vgg8", "methods": "kd+ikd", "seeds": "1,2", "results": "a b", "holdout": "3"}
    given = [f"{name.upper()}={value}" for name, value in chosen.items()]
    (arguments,) = make_would("ablations", "ONLY=30,33", "DRY=1", *given)
    options = vars(__main__._parser().parse_args(arguments))
    assert chosen.items() <= options.items() and options["only"] == "30,33" and options["dry"]
    (arguments,) = make_would("ablations", "DRY=0")
    assert not __main__._parser().parse_args(arguments).dry


def test_the_check_of_commands_can_fail():
    with pytest.raises(IkdError, match="paars"):
        check_arguments(["table", "--paars", "resnet56/resnet20"])
    with pytest.raises(Exception, match="kdd"):
        check_arguments(["table", "--methods", "kdd"])
    with pytest.raises(IkdError, match="34"):
        check_arguments(["ablations", "--only", "34"])
