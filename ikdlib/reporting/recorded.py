"""What finished runs recorded, in words: data, splits, machines, versions, recipes, seeds, files.

Each function answers one question from ``spec.json``, ``provenance.json`` and ``result.json`` of all runs
together. What a run did not record counts as `not recorded`; without any run the answer is `no finished run`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ikdlib.errors import IkdError
from ikdlib.runs import Run, damaged_files

NOT_RECORDED = "not recorded"
NO_RUN = "no finished run"
SOURCES = {
    "cifar100": "make data downloads it and checks the archive's checksum",
    "glyphs100": "drawn by this package from a seed",
}
MACHINE = {
    "gpu": "{}", "cuda": "CUDA {}", "cudnn": "cuDNN {}", "processor": "{}", "cores": "{} cores",
    "system": "{}", "instructions up to": "instructions up to {}",
}  # fmt: skip


class Facts:
    """What one finished run recorded; ``provenance`` is empty where there is none, and old ones lack keys."""

    def __init__(self, run: Run):
        self.run = run
        self.spec = run.spec
        self.result = run.result
        there = (run.folder / "provenance.json").exists()
        self.provenance: dict[str, Any] = run.provenance if there else {}

    def recorded(self, *keys: str) -> Any:
        """A value in the provenance, by its path, or None."""
        value: Any = self.provenance
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def tally(values: Iterable[Any], between: str = ", ") -> str:
    """``a (3 runs), b (1 run)``, the most frequent first; one answer of all stands alone.

    None is `not recorded`, and comes last.
    """
    counts = Counter(NOT_RECORDED if value is None else str(value) for value in values)
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.most_common(), key=lambda item: item[0] == NOT_RECORDED)
    return between.join(f"{value} ({number_of_runs(count)})" for value, count in ordered)


def number_of_runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def comparisons(facts: Sequence[Facts]) -> str:
    """How many finished runs with the IKD term have a partner that differs in the term alone."""
    if not facts:
        return NO_RUN
    there = {fact.spec.run_id for fact in facts}
    treated = [f.spec for f in facts if f.spec.method.ikd is not None and f.spec.without_term.run_id in there]
    if not treated:
        return "no two finished runs differ in the term alone"
    methods = tally(spec.method for spec in treated)
    return f"{number_of_runs(len(treated))} with the term, each with its partner without it: {methods}"


def commits(facts: Sequence[Facts]) -> str:
    """The first ten digits of each commit; how many runs came from a checkout that was as committed."""
    if not facts:
        return f"commits: {NO_RUN}"
    clean = sum(fact.recorded("git", "clean") is True for fact in facts)
    named = (fact.recorded("git", "commit") for fact in facts)
    names = tally(commit[:10] if commit else None for commit in named)
    return f"commits: {names}; {clean} of {number_of_runs(len(facts))} from a clean checkout"


def data(facts: Sequence[Facts]) -> str:
    """Each data set, where it comes from, and the sha256 of its decoded images and labels."""
    if not facts:
        return NO_RUN
    specs = [fact.spec for fact in facts]
    return tally(
        (f"{s.data}: {SOURCES.get(s.data, NOT_RECORDED)}; decoded sha256 {s.data_sha256}" for s in specs),
        between="; ",
    )


def splits(facts: Sequence[Facts]) -> str:
    """Training images less those held out; test images as the stored logits of the same data count them."""
    from ikdlib.data import shape

    if not facts:
        return NO_RUN
    tested: dict[str, set[int]] = {}
    for fact in facts:
        tested.setdefault(fact.spec.data_sha256, set()).update(_test_images(fact.run))
    answers = []
    for spec in (fact.spec for fact in facts):
        classes, _, _, images = shape(spec.data)
        test = " or ".join(f"{count:,}" for count in sorted(tested[spec.data_sha256])) or NOT_RECORDED
        answers.append(
            f"{spec.data}: training images {images - spec.holdout * classes:,}, held out per class"
            f" {spec.holdout}, test images {test}, classes {classes}"
        )
    return tally(answers, between="; ")


def _test_images(run: Run) -> list[int]:
    """How many images the run's stored test logits are of; none where none are stored."""
    from safetensors import SafetensorError, safe_open

    path = run.folder / "test_logits.safetensors"
    if not path.exists():
        return []
    try:
        with safe_open(path, "numpy") as file:
            return [file.get_slice(name).get_shape()[0] for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise IkdError(f"{path}: cannot be read ({error}); delete the run's folder to run it again") from None


def hardware(facts: Sequence[Facts]) -> str:
    """Each distinct machine, the runs that began on it, and their hours: training, teacher and evaluation.

    A run's hours are one sum, wherever it went on: of those that moved, the number is said.
    """
    if not facts:
        return NO_RUN
    by_machine: dict[str, list[Facts]] = {}
    for fact in facts:
        by_machine.setdefault(_machine(fact.recorded("machine") or {}), []).append(fact)
    answers = []
    for machine, its in sorted(by_machine.items(), key=lambda item: -len(item[1])):
        seconds = [sum(fact.recorded("seconds").values()) for fact in its if fact.recorded("seconds")]
        hours = f"{sum(seconds) / 3600:.2f} hours" if seconds else f"hours {NOT_RECORDED}"
        missing = f" ({len(its) - len(seconds)} {NOT_RECORDED})" if 0 < len(seconds) < len(its) else ""
        moved = sum(_went_elsewhere(fact, machine) for fact in its)
        elsewhere = f" ({moved} went on elsewhere, with all their hours here)" if moved else ""
        answers.append(f"{machine}: {number_of_runs(len(its))}, {hours}{missing}{elsewhere}")
    answers.append(f"threads a run: {tally(fact.recorded('machine', 'threads') for fact in facts)}")
    return "; ".join(answers)


def _went_elsewhere(fact: Facts, machine: str) -> bool:
    resumed = [entry for entry in fact.recorded("resumed_at") or () if isinstance(entry, dict)]
    return any(_machine(entry["machine"]) != machine for entry in resumed if "machine" in entry)


def _machine(recorded: dict[str, Any]) -> str:
    words = [text.format(recorded[key]) for key, text in MACHINE.items() if recorded.get(key)]
    return ", ".join(words) or NOT_RECORDED


def software(facts: Sequence[Facts]) -> str:
    """Every distinct version of each library."""
    if not facts:
        return NO_RUN
    versions = [fact.recorded("versions") or {} for fact in facts]
    libraries = dict.fromkeys(library for found in versions for library in found)
    answers = [f"{library} {tally(found.get(library) for found in versions)}" for library in libraries]
    return "; ".join(answers) or NOT_RECORDED


def setup(facts: Sequence[Facts]) -> str:
    """Length, precision, batch size and rate of the recipes; the protocol; what was compiled or captured."""
    if not facts:
        return NO_RUN
    recipes = (
        f"{r.epochs} epoch{'s' * (r.epochs > 1)} in {r.precision}, batch {r.batch_size}, "
        f"learning rate {r.learning_rate:g}"
        for r in (fact.spec.recipe for fact in facts)
    )
    return "; ".join(
        (
            tally(recipes, between="; "),
            f"protocol: {tally(fact.spec.protocol for fact in facts)}",
            f"compiled code: {tally(_yes(fact.recorded('compiled')) for fact in facts)}",
            f"ikdlib's own CPU kernels: {tally(_yes(fact.recorded('own_kernels')) for fact in facts)}",
            f"captured GPU graphs: {tally(_yes(fact.recorded('graphs')) for fact in facts)}",
        )
    )


def randomness(facts: Sequence[Facts]) -> str:
    """Seeds; how many runs were in deterministic mode; how many were stopped and went on."""
    if not facts:
        return NO_RUN
    seeds = ", ".join(str(seed) for seed in sorted({fact.spec.seed for fact in facts}))
    strict = sum(fact.spec.deterministic for fact in facts)
    resumed = tally(_resumed(fact.recorded("resumed_at")) for fact in facts)
    return (
        f"seeds: {seeds}; in deterministic mode: {strict} of {number_of_runs(len(facts))};"
        f" stopped and resumed: {resumed}"
    )


def _resumed(stops: Any) -> str | None:
    """A stop names more than its place where the run went on from another commit, or with other libraries."""
    elsewhere = any(isinstance(stop, dict) and stop.keys() - {"epoch", "step"} for stop in stops or ())
    return "yes, at another commit, with other libraries or elsewhere" if elsewhere else _yes(stops)


def _yes(value: Any) -> str | None:
    return None if value is None else "yes" if value else "no"


def results(runs: Sequence[Run], facts: Sequence[Facts]) -> str:
    """How many runs ended how, and whether their files are still those that ``result.json`` names."""
    states = Counter(run.status for run in runs)
    others = "".join(
        f", {states[state]} {state}" for state in ("diverged", "unfinished", "missing") if states[state]
    )
    if not facts:
        return NO_RUN + others
    files = sum(len(fact.result.get("files_sha256", ())) for fact in facts)
    damaged = sum(len(damaged_files(fact.run)) for fact in facts if "files_sha256" in fact.result)
    weights = sum("weights_sha256" in fact.result for fact in facts)
    return (
        f"{number_of_runs(len(facts))} finished{others}; result.json has the sha256 of {files} files"
        f" ({files - damaged} are as they were) and of the weights of {number_of_runs(weights)}"
    )


def folders(runs: Iterable[Run], root: Path) -> list[str]:
    """Where the run folders lie, below ``root``; of one outside only the last name, never where it is."""

    def place(folder: Path) -> str:
        below = folder.resolve().is_relative_to(root.resolve())
        return folder.resolve().relative_to(root.resolve()).as_posix() if below else folder.name

    return list(dict.fromkeys(place(run.root) for run in runs))
