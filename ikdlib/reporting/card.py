"""The reproducibility card: what a reader must know to judge and repeat the runs, from what was recorded.

The questions are the variables by which papers on AI are judged for reproducibility, after O. E. Gundersen
and S. Kjensmo, "State of the Art: Reproducibility in Artificial Intelligence", AAAI 2018
(doi:10.1609/aaai.v32i1.11503), which groups them under method, data and experiment: research type, research
question and hypothesis, affiliation, pseudocode, open source code, open data split into training, validation
and test, hardware, software dependencies, experiment set-up, results. Randomness is our addition.

The runs' answers are in `recorded`; here stand those of the project's own files, and the table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ikdlib.errors import IkdError
from ikdlib.reporting import recorded
from ikdlib.reporting.recorded import NO_RUN, NOT_RECORDED, Facts
from ikdlib.runs import Run
from ikdlib.studies.copies import PROJECT

CLAIM = "does adding the IKD term raise the test accuracy of the method it is added to?"
ALGORITHM = {
    "ikdlib/methods/ikd.py": "in the docstring",
    "notebooks/00_ikd_step_by_step.ipynb": "step by step in the notebook",
}
DATA = {"cifar100": "ikdlib/data/cifar100.py", "glyphs100": "ikdlib/data/glyphs.py"}


def card(runs: Iterable[Run], root: Path | None = None) -> pd.DataFrame:
    """A row a question: columns ``question``, ``answer`` and ``where``, all text.

    Args:
        runs: the runs that the report is about; those that are not finished are only counted.
        root: the project's folder, with ``pyproject.toml`` and ``CITATION.cff``; None for this checkout.
            ``where`` names files and folders that exist, relative to it, several with a comma between them.

    Raises:
        IkdError: a file of a run, or one of those two, is there and cannot be read.
    """
    root = PROJECT if root is None else root
    runs = list(runs)
    facts = [Facts(run) for run in runs if run.status == "finished"]
    folders = recorded.folders(runs, root)
    there = ", ".join(folders) or NO_RUN
    cited, project = _citation(root), _project(root)
    algorithm = [place for place in ALGORITHM if _names_algorithm(root / place)]

    def where(*places: str, also: Iterable[str] = ()) -> str:
        return ", ".join([*(place for place in places if (root / place).exists()), *also]) or NOT_RECORDED

    data = (DATA[name] for name in dict.fromkeys(fact.spec.data for fact in facts) if name in DATA)
    claim = where("notebooks/20_cifar100_same_architecture.ipynb", also=folders)
    code = f"{_licence(project)}; {recorded.commits(facts)}"
    setup = where("ikdlib/studies/settings.csv", also=folders)
    rows = [
        ("Research type", _research_type(cited), where("CITATION.cff")),
        ("Research question", f"{CLAIM} {recorded.comparisons(facts)}", claim),
        ("Affiliation of the code", _affiliation(cited), where("CITATION.cff")),
        ("Pseudocode", _pseudocode(algorithm), where(*algorithm)),
        ("Open code", code, where("pyproject.toml", "LICENSE", also=folders)),
        ("Open data", recorded.data(facts), where(*data, also=folders) if facts else there),
        ("Splits", recorded.splits(facts), there),
        ("Hardware", recorded.hardware(facts), there),
        ("Software versions", recorded.software(facts), where("pyproject.toml", also=folders)),
        ("Set-up", recorded.setup(facts), setup),
        ("Randomness", recorded.randomness(facts), there),
        ("Results", recorded.results(runs, facts), there),
    ]
    return pd.DataFrame(rows, columns=["question", "answer", "where"])


def _citation(root: Path) -> dict[str, Any]:
    import yaml  # comes with papermill, which the notebooks need

    path = root / "CITATION.cff"
    try:
        return yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise IkdError(f"{path}: cannot be read ({type(error).__name__}); mend it") from None


def _project(root: Path) -> dict[str, Any]:
    path = root / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text()).get("project", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise IkdError(f"{path}: cannot be read ({error}); mend it") from None


def _names(people: Iterable[dict[str, str]] | None) -> list[str]:
    """Persons and entities of a CITATION.cff, as one writes them."""
    return [
        person.get("name") or f"{person.get('given-names', '')} {person.get('family-names', '')}".strip()
        for person in people or ()
    ]


def _both(cited: dict[str, Any]) -> list[str]:
    """Who is an author of the code and of the paper."""
    theirs = _names(cited.get("preferred-citation", {}).get("authors"))
    return [name for name in _names(cited.get("authors")) if name in theirs]


def _research_type(cited: dict[str, Any]) -> str:
    paper = cited.get("preferred-citation")
    if not paper:
        return NOT_RECORDED
    kind = "an independent reproduction" if cited.get("authors") and not _both(cited) else "a reproduction"
    place = ", ".join(str(paper[key]) for key in ("collection-title", "year") if key in paper)
    return f"experimental: {kind} of a published method, {paper.get('title', NOT_RECORDED)} ({place})"


def _affiliation(cited: dict[str, Any]) -> str:
    authors = cited.get("authors")
    if not authors:
        return NOT_RECORDED
    homes = ", ".join(dict.fromkeys(a["affiliation"] for a in authors if a.get("affiliation")))
    answer = f"{', '.join(_names(authors))} (affiliation: {homes or NOT_RECORDED})"
    paper = _names(cited.get("preferred-citation", {}).get("authors"))
    if both := _both(cited):
        return f"{answer}; also authors of the paper: {', '.join(both)}"
    return f"{answer}; none is named among the paper's authors: {', '.join(paper)}" if paper else answer


def _names_algorithm(path: Path) -> bool:
    return path.is_file() and "Algorithm 1" in path.read_text()


def _pseudocode(places: list[str]) -> str:
    if not places:
        return NOT_RECORDED
    return f"the paper's Algorithm 1, {' and '.join(ALGORITHM[place] for place in places)}"


def _licence(project: dict[str, Any]) -> str:
    licence = project.get("license")
    return f"licence: {licence if isinstance(licence, str) else NOT_RECORDED}"
