"""``make bench``: the published kind of loop against ikdlib's trainer, alternately, as ratios.

Every program is a process of its own that waits until it is told to run a round, so the machine's drift
meets all alike. The first rounds of each are a warm-up and are not counted (on a GPU the second compiles, and
captures what is used from then on); the rest give medians. The reference gets the number of DataLoader
workers that is fastest for it, and the same number of threads as ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
from record import earlier, machine_words, save

from ikdlib.studies.children import ENVIRONMENT
from ikdlib.training.job import choose_device

PAIRS = "resnet32x4/resnet8x4,resnet56/resnet20,vgg13/MobileNetV2,wrn_40_2/ShuffleV1"
WORKERS = (0, 1, 2, 8)
WARM_UP = {"cpu": 1, "cuda": 2}
STEPS = {"cpu": 12, "cuda": 200}
HERE = Path(__file__).parent


class Program:
    """A measured program, waiting."""

    def __init__(self, name: str, environment: dict[str, str] | None = None, **options: object):
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / f"{name}.py"), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=sys.stderr, text=True, env={**(environment or {}), **os.environ},
        )  # fmt: skip

    def round(self) -> dict[str, float]:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args[1:])} ended with {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def best_workers(common: dict[str, object], choices: tuple[int, ...]) -> int:
    """The number of DataLoader workers with which the reference's second round is shortest."""
    seconds = {}
    for workers in choices:
        program = Program("reference", workers=workers, **common)
        program.round()
        seconds[workers] = program.round()["seconds"]
        program.end()
    return min(seconds, key=seconds.get)


def compare(pair: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for the reference and one for each precision of ours, cold and warm."""
    common = {"pair": pair, "classes": 100, "threads": options.threads, "device": options.device}
    common["images"] = options.steps * 64
    workers = best_workers(common, WORKERS if options.workers is None else (options.workers,))
    programs = {"reference": Program("reference", workers=workers, **common)}
    for precision in options.precisions.split(","):
        programs[precision] = Program(
            "ours", ENVIRONMENT, precision=precision, compile=options.compile, **common
        )
    for name, program in programs.items():
        for _ in range(WARM_UP[options.device]):
            last = program.round()
        if options.device == "cuda" and not last.get("graphs", True):
            raise SystemExit(f"{pair}, {name}: no graph was captured; another program would be measured")
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(options.repeats):
        for name, program in programs.items():
            rounds[name].append(program.round())
    for program in programs.values():
        program.end()

    base = [one["seconds"] for one in rounds["reference"]]
    exact = "fp32" if options.device == "cpu" else "tf32"
    rows = [row(pair, "reference", exact, "", base, base, rounds["reference"], common)]
    rows[0]["workers"] = workers
    for name in list(programs)[1:]:
        warm = [one["seconds"] for one in rounds[name]]
        cold = [one["seconds"] + one["teacher"] for one in rounds[name]]
        rows.append(row(pair, "ikdlib", name, "warm", warm, base, rounds[name], common))
        rows.append(row(pair, "ikdlib", name, "cold", cold, base, rounds[name], common))
    return rows


def row(pair, program, precision, slabs, seconds, base, rounds, common) -> dict[str, object]:
    """Medians over the rounds; the ratio is that of rounds side by side, with its range."""
    ratios = [theirs / own for theirs, own in zip(base, seconds, strict=True)]
    rate = common["images"] / median(seconds)
    return {
        "pair": pair, "program": program, "precision": precision, "slabs": slabs,
        "images_per_second": round(rate, 1), "seconds_per_epoch": round(50_000 / rate, 2),
        "ratio": round(median(ratios), 2), "ratio_least": round(min(ratios), 2),
        "ratio_most": round(max(ratios), 2), "peak_mib": round(max(one["peak_mib"] for one in rounds)),
        "rounds": len(rounds), "images_a_round": common["images"], "threads": common["threads"],
    }  # fmt: skip


def chart(table: pd.DataFrame, machine: str) -> plt.Figure:
    """Images a second as bars: the reference, then ours, pair by pair."""
    table = table.assign(bar=table[["program", "precision", "slabs"]].agg(" ".join, axis=1).str.strip())
    wide = table.pivot(index="pair", columns="bar", values="images_per_second")
    wide = wide.loc[table["pair"].unique(), table["bar"].unique()]
    colours = ["#999999", "#0072B2", "#56B4E9", "#D55E00", "#E69F00"]  # of Okabe and Ito: colour-blind safe
    axes = wide.plot.bar(
        figsize=(9, 4.2), rot=0, width=0.8, ylabel="training images a second", xlabel="", color=colours
    )
    axes.set_title(f"dkd+ikd, batch 64, {machine}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    axes.figure.tight_layout()
    return axes.figure


def place(pairs: pd.Series) -> pd.Series:
    """Where each stands among `PAIRS`; others after them."""
    known = PAIRS.split(",")
    return pairs.map(lambda pair: known.index(pair) if pair in known else len(known))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default=PAIRS)
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, help="of 64 images, a round; if left out 12, on a GPU 200")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, help="of the reference; the best of 0, 1, 2, 8 if left out")
    parser.add_argument("--compile", default="on", choices=("on", "off"), help="of ours")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    device = choose_device(options.device)
    options.device = device.type
    options.steps = options.steps or STEPS[device.type]
    rows = []
    for pair in options.pairs.split(","):
        rows += compare(pair, options)
        print(
            pd.DataFrame(rows[-5:])[["pair", "program", "precision", "slabs", "images_per_second", "ratio"]]
        )
    table = pd.DataFrame(rows)
    table = pd.concat([earlier(table, options.results, "step", device, "pair"), table])
    table = table.sort_values("pair", key=place, kind="stable", ignore_index=True)
    machine = machine_words(device, options.threads)
    save(table, chart(table, machine), options.results, "step", device, machine)


if __name__ == "__main__":
    main()
