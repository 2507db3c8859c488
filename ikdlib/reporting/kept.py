"""A run's kept test logits, with their labels: read, and believed only if they yield the run's own accuracy.

A run of the lowest seed of a cell keeps the logits of all test images at its last epoch, as fp16 and in
canonical order. Labels follow from the data set's name, so neither images nor weights are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ikdlib import runs
from ikdlib.data import groups as coarse
from ikdlib.errors import IkdError
from ikdlib.runs import Run
from ikdlib.spec import RunSpec

FILE = "test_logits.safetensors"


@dataclass(frozen=True)
class Predictions:
    """A finished run's answers at its last epoch: logits float32 [N, C], labels int64 [N]."""

    spec: RunSpec
    logits: np.ndarray
    labels: np.ndarray

    @property
    def method(self) -> str:
        return str(self.spec.method)

    @property
    def about(self) -> str:
        """Pair, data, length, precision, protocol and seed, as captions and titles name them."""
        spec, recipe = self.spec, self.spec.recipe
        parts = [
            spec.pair,
            spec.data,
            f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}",
            recipe.precision,
            f"{spec.protocol} protocol",
        ]
        return ", ".join([*parts, f"seed {spec.seed}"])

    @property
    def classes(self) -> tuple[str, ...]:
        return coarse.class_names(self.spec.data)

    @property
    def short_names(self) -> tuple[str, ...]:
        """The classes as a picture has room for them."""
        return coarse.short_names(self.spec.data)

    @property
    def groups(self) -> list[str]:
        """The coarse group of each class, by its number; an `IkdError` for a data set without groups."""
        found = coarse.groups(self.spec.data)
        if found is None:
            raise IkdError(
                f"{self.spec.run_id}: {self.spec.data} has no groups of classes; see data/groups.py"
            )
        return list(found.values())


def predictions(run: Run) -> Predictions:
    """A run's kept answers with their labels; raises as `kept_logits`."""
    return Predictions(run.spec, kept_logits(run), coarse.test_labels(run.spec.data))


def kept_logits(run: Run) -> np.ndarray:
    """The test logits of a run's last epoch, float32 [N, C] (kept as fp16), in canonical order.

    Raises:
        IkdError: the run is not finished or kept none, the file is damaged, or it does not yield the accuracy
            that ``result.json`` states for the last epoch.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    name, again = run.spec.run_id, "delete its folder to run it again"
    if run.status != "finished":
        raise IkdError(f"{name}: {run.status}, so there are no test logits; finish the run first")
    if FILE not in run.result["files_sha256"]:
        raise IkdError(
            f"{name}: it kept no test logits, which the lowest seed of a cell does; take that one, or {again}"
        )
    if FILE in runs.damaged_files(run):
        raise IkdError(f"{name}: {FILE} is missing or edited since the run; restore it, or {again}")
    try:
        logits = load_file(run.folder / FILE)["logits"].astype(np.float32)
    except (OSError, SafetensorError, KeyError) as error:
        raise IkdError(f"{name}: {FILE} cannot be read ({error}); {again}") from None
    labels = coarse.test_labels(run.spec.data)
    wanted = (len(labels), len(coarse.class_names(run.spec.data)))
    if logits.shape != wanted or not np.isfinite(logits).all():
        raise IkdError(
            f"{name}: {FILE} holds {list(logits.shape)}, not {list(wanted)} finite numbers; {again}"
        )
    _check_accuracy(run, logits, labels)
    return logits


def _check_accuracy(run: Run, logits: np.ndarray, labels: np.ndarray) -> None:
    # Rounding to fp16 keeps the order of two numbers or makes them equal. So the accuracy before rounding
    # lies between those of counting a tie for the largest logit as wrong and as right: no tolerance needed.
    target = of_target(logits, labels)[:, None]
    first = (logits <= target).all(axis=1)
    alone = (logits == target).sum(axis=1) == 1
    low, high = (100 * float(hits.mean()) for hits in (first & alone, first))
    stated = run.result["last"]["top1"]
    if not low - 1e-6 <= stated <= high + 1e-6:
        raise IkdError(
            f"{run.spec.run_id}: {FILE} yields {high:.2f} % top-1, but result.json states {stated:.2f} % "
            "for the last epoch: other weights, or images in another order; delete its folder to run it again"
        )


def of_target(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What stands at the target's place: [N, C] and [N] -> [N]."""
    return np.take_along_axis(values, labels[:, None], axis=1)[:, 0]
