"""On paper: the CIFAR-100 tables, 13 pairs x 9 methods x 3 seeds at 240 epochs, on 1, 8 and 64 devices.

    python benchmarks/scale.py --results results

Nothing is trained here. Seconds an epoch come from every ``step-*.csv`` there is, one for each kind of
machine (fp32, teacher's logits warm; cold minus warm is the teacher's part). A network that was not
measured is taken by its operations, at the median speed of those that were. Evaluation adds a third of a
training image's time for each test image. Cells are then handed out as the sweep does: teachers first,
then the first run of each (teacher, seed), then the others, each to the device that is free first.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from ikdlib import files, models
from ikdlib.studies.profiles import LOGIT_METHODS, profile
from ikdlib.studies.protocol import DIFFERENT_ARCHITECTURE, SAME_ARCHITECTURE, split_pair

PAIRS = SAME_ARCHITECTURE + DIFFERENT_ARCHITECTURE
DEVICES = (1, 8, 64)
TRAIN, TEST = 50_000, 10_000
NOT_MEASURED, TOO_FEW = "not measured", "too few networks measured"
LEAST = 3
"""Networks a machine must have been measured with. On a GPU operations say little: small kernels wait."""


@cache
def operations(name: str) -> int:
    """Of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        models.build(name, 100).eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def ours(measured: pd.DataFrame) -> pd.Series:
    """Which rows count: ikdlib's, in fp32."""
    return (measured["program"] == "ikdlib") & (measured["precision"] == "fp32")


def pairs(measured: pd.DataFrame) -> pd.Series:
    return measured.loc[ours(measured), "pair"]


class Costs:
    """Hours of each kind of work on one device, from the measured pairs."""

    def __init__(self, measured: pd.DataFrame, epochs: int):
        seconds = measured[ours(measured)].pivot(index="pair", columns="slabs", values="seconds_per_epoch")
        self.students = {split_pair(pair)[1]: s for pair, s in seconds["warm"].items()}
        self.teachers = {split_pair(p)[0]: s for p, s in (seconds["cold"] - seconds["warm"]).items()}
        self._student = statistics.median(s / operations(name) for name, s in self.students.items())
        self._teacher = statistics.median(s / operations(name) for name, s in self.teachers.items())
        self.epochs = epochs

    def student(self, name: str) -> float:
        """One student, the teacher's logits at hand."""
        seconds = self.students.get(name, self._student * operations(name))
        return self._hours(seconds * (1 + TEST / TRAIN / 3))

    def logits(self, name: str) -> float:
        """A teacher's answers to all epochs of one seed."""
        return self._hours(self.teachers.get(name, self._teacher * operations(name)))

    def teacher(self, name: str) -> float:
        """A teacher's own training: as a student's, by its operations."""
        return self._hours(self._student * operations(name) * (1 + TEST / TRAIN / 3))

    def _hours(self, seconds: float) -> float:
        return seconds * self.epochs / 3600


def hand_out(hours: list[float], devices: int) -> float:
    """When the last of these cells ends, each given to the device that is free first."""
    free = [0.0] * devices
    for each in hours:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def work(costs: Costs, seeds: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Hours of every teacher, and of every student in the order of the sweep."""
    teachers = dict.fromkeys(split_pair(pair)[0] for pair in PAIRS)
    first, others, seen = [], [], set()
    for pair in PAIRS:
        teacher, student = split_pair(pair)
        for seed in seeds:
            for method in LOGIT_METHODS:
                if method == "ce":
                    if (student, seed) not in seen:  # one serves all its pairs
                        others.append(costs.student(student))
                        seen.add((student, seed))
                elif (teacher, seed) not in seen:
                    first.append(costs.student(student) + costs.logits(teacher))
                    seen.add((teacher, seed))
                else:
                    others.append(costs.student(student))
    return [costs.teacher(name) for name in teachers], first + others


def limit(teachers: list[float], students: list[float], devices: int, ends: tuple[float, float]) -> str:
    """What a further device would not make shorter."""
    total = sum(teachers) + sum(students)
    busy = total / (devices * sum(ends))
    if busy > 0.9:
        return f"the work itself: devices are busy {100 * busy:.0f} % of the time"
    words = f"devices are busy {100 * busy:.0f} % of the time; {len(teachers)} teachers come first"
    words += f" and take {ends[0]:.0f} h, the longest alone {max(teachers):.0f} h"
    return f"{words}; the longest student takes {max(students):.0f} h"


def machines(folder: Path) -> dict[str, pd.DataFrame | None]:
    """Measured speeds by kind of machine; a CPU or a GPU that nobody measured is named with None."""
    found: dict[str, pd.DataFrame | None] = {}
    for kind, words in (("cpu", "CPU"), ("cuda", "GPU")):
        tables = [pd.read_csv(path) for path in sorted(folder.glob(f"step-{kind}-*.csv"))]
        found |= {table["machine"][0].partition(" threads,")[0] + " threads": table for table in tables}
        found |= {} if tables else {f"a {words}": None}
    return found


def table(results: Path) -> pd.DataFrame:
    rows = []
    chosen = profile("paper")
    for name, measured in machines(results / "benchmarks").items():
        for devices in DEVICES:
            row = {"device": name, "devices": devices}
            if measured is None or pairs(measured).nunique() < LEAST:
                said = NOT_MEASURED if measured is None else TOO_FEW
                words = dict.fromkeys(("hours", "teachers_hours", "students_hours", "limit", "machine"), said)
                rows.append(row | words)
                continue
            teachers, students = work(Costs(measured, chosen.epochs), chosen.seeds)
            ends = hand_out(teachers, devices), hand_out(students, devices)
            hours = {"hours": sum(ends), "teachers_hours": ends[0], "students_hours": ends[1]}
            row |= {name: f"{value:.0f}" for name, value in hours.items()}
            row |= {"limit": limit(teachers, students, devices, ends), "machine": measured["machine"][0]}
            rows.append(row | {"runs": f"{len(teachers)} + {len(students)}"})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default="results", type=Path)
    results = parser.parse_args().results
    made = table(results)
    path = results / "benchmarks" / "full-table"
    files.write_text(path.with_suffix(".csv"), made.to_csv(index=False, lineterminator="\n"))
    words = "On paper, by `benchmarks/scale.py` from the measured speeds beside it; nothing here ran."
    shown = made.drop(columns="machine").fillna(NOT_MEASURED).to_markdown(index=False, disable_numparse=True)
    files.write_text(path.with_suffix(".md"), f"{words}\n\n{shown}\n")
    print(f"{shown}\n{path}.csv, .md")


if __name__ == "__main__":
    main()
