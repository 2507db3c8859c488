"""The last `make test-all`, written down: counts, the long tests, what was skipped and why, and where it ran.

python tests/record.py JUNIT.xml RECORD.md
"""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import torch

from ikdlib import files, provenance

LONG = 20.0
"""Seconds from which on a test is named."""


def record(report: Path, day: datetime.date) -> str:
    """A report in JUnit's format as a page."""
    cases = ElementTree.parse(report).getroot().findall(".//testcase")
    kinds = Counter(kind_of(case) for case in cases)
    machine, git = provenance.machine(torch.device("cpu")), provenance.git_state()
    commit = f"{git['commit'][:12]}{'' if git['clean'] else ', with changes'}" if git["commit"] else "unknown"
    lines = [
        "# The last `make test-all`", "",
        f"{day}, commit {commit}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()) + ".",
        f"{machine['processor']}, {machine['cores']} cores; torch {torch.__version__}.", "",
        f"Tests of {LONG:.0f} seconds or more:", "", "| test | seconds |", "|---|---:|",
    ]  # fmt: skip
    slow = sorted(
        (case for case in cases if float(case.get("time")) >= LONG), key=lambda c: -float(c.get("time"))
    )
    lines += [f"| {name_of(case)} | {float(case.get('time')):.0f} |" for case in slow]
    skipped = Counter(case.find("skipped").get("message") for case in cases if kind_of(case) == "skipped")
    lines += ["", "Skipped, and why:", "", *(f"- {n} x {why}" for why, n in skipped.most_common())]
    failed = [case for case in cases if kind_of(case) == "failed"]
    lines += ["", "Failed:", "", *(f"- {name_of(case)}" for case in failed)] if failed else []
    return "\n".join(lines) + "\n"


def kind_of(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def name_of(case: ElementTree.Element) -> str:
    return f"{case.get('classname').removeprefix('tests.')} · {case.get('name')}".replace("|", "\\|")


if __name__ == "__main__":
    files.write_text(Path(sys.argv[2]), record(Path(sys.argv[1]), datetime.date.today()))
