"""Which run folders may be counted, and which cell of which table each belongs to.

Everything the report says is made from here: from what lies in the folders, whatever command left it. A
folder that cannot be trusted is left out, and named with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ikdlib import runs
from ikdlib.errors import IkdError
from ikdlib.runs import Cell, Run
from ikdlib.spec import NUMERICS_VERSION
from ikdlib.studies import protocol
from ikdlib.studies.variants import variant_of

TEACHER = "teacher"
"""The method of a run that trained a teacher: cross-entropy without warm-up."""


_OF_A_RUN = ("spec.json", "result.json")


@dataclass(frozen=True)
class Table:
    """Cells that may stand side by side: one data set, length, precision, protocol and split."""

    data: str
    epochs: int
    precision: str
    protocol: str
    holdout: int
    cells: tuple[Cell, ...] = field(compare=False)

    @property
    def title(self) -> str:
        apart = f", {self.holdout} images a class held apart" if self.holdout else ""
        length = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        return f"{self.data}, {length}, {self.precision}, {self.protocol} protocol{apart}"

    @property
    def name(self) -> str:
        """The same for the names of files."""
        apart = f"-holdout{self.holdout}" if self.holdout else ""
        return f"{self.data}-{self.epochs}epochs-{self.precision}-{self.protocol}{apart}"

    @property
    def primary(self) -> str:
        """``last`` or ``best``: which epoch the protocol reports."""
        return protocol.PRIMARY[self.protocol]

    @property
    def comparable(self) -> bool:
        """Whether published numbers may stand beside it: CIFAR-100, all its images, 240 epochs."""
        return (self.data, self.epochs, self.holdout) == ("cifar100", 240, 0)

    @property
    def pairs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.pair for cell in self.cells))

    def runs(self, pair: str, method: str) -> tuple[Run, ...]:
        """The trials of a cell; none where nothing was run."""
        return next((c.runs for c in self.cells if (c.pair, c.method) == (pair, method)), ())


def collect(roots: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs below folders of run folders, in the order of their names; and a line for each left out.

    Left out: what cannot be read or was written by a later format, another numerics version, a file that is
    missing or not what ``result.json`` says, a folder that is not named by its run, and both of two folders
    with one id and other results.
    """
    found: dict[str, list[Run]] = {}
    left_out: list[str] = []
    for root in roots:
        for folder in folders(root):
            try:
                run = runs.read(folder)
                reason = fault(run, folder)
            except IkdError as error:
                run, reason = None, str(error)
            if reason:
                left_out.append(f"{folder.name}: {reason}")
            elif run is not None:
                found.setdefault(run.spec.run_id, []).append(run)
    kept = []
    for run_id, every in found.items():
        same = [run for run in every if run.over] or every[:1]
        if len({str(run.result) for run in same if len(same) > 1}) > 1:
            left_out.append(f"{run_id}: {len(same)} folders have this id and other results")
            continue
        kept.append(same[0])
        left_out += [f"{run_id}: a copy in {run.root.parent.name} is not counted again" for run in same[1:]]
    return sorted(kept, key=lambda run: run.spec.run_id), left_out


def folders(root: Path) -> list[Path]:
    """Every folder below ``root`` that holds something of a run, in the order of their names."""
    return sorted({path.parent for name in _OF_A_RUN for path in root.glob(f"*/{name}")})


def everything(results: Path) -> tuple[list[Run], list[str]]:
    """`collect` over a results folder's profiles, the demo's not among them; or over one profile's folder."""
    return collect(roots(results))


def roots(results: Path) -> list[Path]:
    """The folders of run folders that `everything` reads."""
    if (results / "runs").is_dir():
        return [results / "runs"]
    return sorted(path for path in results.glob("*/runs") if path.parent.name != "demo")


def fault(run: Run, folder: Path) -> str | None:
    """Why a run's folder cannot be counted, or None; raises `IkdError` where a file cannot be read."""
    if run.spec.numerics_version != NUMERICS_VERSION:
        return f"numerics version {run.spec.numerics_version}, and this ikdlib has {NUMERICS_VERSION}"
    if folder.name != run.spec.run_id:
        return f"its spec is that of {run.spec.run_id}; a folder has the name of its run"
    try:
        if run.status in ("missing", "unfinished"):
            return None
        if not run.over:
            return f"its result.json has a status {run.status!r}; restore it, or delete the folder"
        runs.check_format(folder / "result.json", run.result["format_version"])
        if damaged := runs.damaged_files(run):
            return f"{', '.join(damaged)} missing or edited since the run; restore it, or delete the folder"
        return _contradiction(run) if run.status == "finished" else None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return f"its result.json is not as a run writes it ({error!r}); restore it, or delete the folder"


def _contradiction(run: Run) -> str | None:
    # result.json has the digests of the other files, and none of its own; but history.csv knows it better.
    history, result = run.history, run.result
    best = history.iloc[int(history["test_top1"].to_numpy().argmax())]
    for which, row in (("last", history.iloc[-1]), ("best", best)):
        stated = {name: result[which][name] for name in ("epoch", "top1", "top5")}
        if stated != {"epoch": row["epoch"], "top1": row["test_top1"], "top5": row["test_top5"]}:
            return (
                f"its result.json states {stated['top1']} % for the {which} epoch {stated['epoch']}, its "
                f"history.csv {row['test_top1']} % for {row['epoch']:.0f}; restore it, or delete the folder"
            )
    if (result["teacher"] is None) != (run.spec.teacher is None):
        return "its result.json does not fit its spec.json (teacher); restore it, or delete the folder"
    return None


def sound(cells: Iterable[Any]) -> tuple[list[Cell], list[str]]:
    """A study's cells with the runs that may be counted, and a line for each that is left out."""
    kept, left_out = [], []
    for cell in cells:
        good = []
        for run in cell.runs:
            try:
                reason = fault(run, run.folder)
            except IkdError as error:
                reason = str(error)
            if reason:
                left_out.append(f"{run.spec.run_id}: {reason}")
            else:
                good.append(run)
        kept.append(Cell(cell.pair, cell.method, tuple(good)))
    return kept, list(dict.fromkeys(left_out))


def tables(found: Iterable[Run]) -> tuple[list[Table], list[str]]:
    """Runs in their cells and tables; and a line for each cell left out, because others outweigh it.

    Within a table one teacher file speaks for an architecture, and one digest for a data set: the one with
    most finished runs. A student trained without a teacher stands in the row of each of its pairs.
    """
    by_table: dict[tuple[Any, ...], list[Run]] = {}
    for run in found:
        s = run.spec
        key = (s.data, s.recipe.epochs, s.recipe.precision, s.protocol, s.holdout)
        by_table.setdefault(key, []).append(run)
    made, left_out = [], []
    for key in sorted(by_table, key=lambda key: (key[0], -key[1], *map(str, key[2:]))):  # longest first
        members, lines = _one_of_each(by_table[key])
        left_out += [f"{Table(*key, ()).title}: {line}" for line in lines]
        if cells := _cells(members):
            made.append(Table(*key, tuple(cells)))
    return made, left_out


def _one_of_each(members: Sequence[Run]) -> tuple[list[Run], list[str]]:
    kept, left_out = list(members), []
    for what, name in (("data_sha256", "data"), ("teacher_sha256", "teacher")):
        counts: dict[str, dict[str, int]] = {}
        for run in kept:
            if digest := getattr(run.spec, what):
                of = counts.setdefault(getattr(run.spec, name), {})
                of[digest] = of.get(digest, 0) + (run.status == "finished")
        chosen = {key: min(of, key=lambda digest: (-of[digest], digest)) for key, of in counts.items()}
        for run in kept:
            digest, key = getattr(run.spec, what), getattr(run.spec, name)
            if digest and digest != chosen[key]:
                other = f"sha256 {digest[:12]}..., where the others have {chosen[key][:12]}..."
                left_out.append(f"{run.spec.run_id}: {name} {key} of {other}")
        kept = [r for r in kept if getattr(r.spec, what) in (None, chosen.get(getattr(r.spec, name)))]
    return kept, left_out


def _cells(members: Sequence[Run]) -> list[Cell]:
    pairs = [run.spec.pair for run in members if run.spec.teacher]
    taught = {pair.split("/")[1]: [] for pair in pairs}
    for pair in dict.fromkeys(pairs):
        taught[pair.split("/")[1]].append(pair)
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(members, key=lambda run: (run.spec.seed, run.spec.run_id)):
        name = label_of(run)
        alone = run.spec.teacher is None and name != TEACHER
        for pair in (taught.get(run.spec.student) or [run.spec.student]) if alone else [run.spec.pair]:
            cells.setdefault((pair, name), []).append(run)
    return [Cell(pair, name, tuple(cells[pair, name])) for pair, name in sorted(cells, key=_rank)]


def label_of(run: Run) -> str:
    """The label of a run's `Variant`, or `TEACHER`."""
    spec = run.spec
    if spec.teacher is None:
        own = protocol.recipe("paper", "-", spec.student, spec.recipe.epochs, spec.recipe.precision)
        if spec.recipe == own:
            return TEACHER
    return variant_of(spec).label


def by_seed(found: Iterable[Run], which: str, measure: str = "top1") -> dict[int, float]:
    """Seed to a measure (% of test images) of the ``last`` or ``best`` epoch, over the finished runs."""
    return {run.spec.seed: run.result[which][measure] for run in found if run.status == "finished"}


def _rank(key: tuple[str, str]) -> tuple[Any, ...]:
    """Pairs as the paper's tables have them, methods as they built on one another; then by name."""
    pair, name = key
    order = (*protocol.SAME_ARCHITECTURE, *protocol.DIFFERENT_ARCHITECTURE)
    methods = ("ce", "kd", "dkd", "nkd", "wttm")
    base = name.partition(",")[0].removesuffix("+ikd")
    return (
        order.index(pair) if pair in order else len(order), pair,
        methods.index(base) if base in methods else len(methods), name,
    )  # fmt: skip
