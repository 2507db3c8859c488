"""How many runs at once give most runs an hour on this machine: tried, not guessed.

A trial starts that many processes, each with its share of cores (or of the GPU), lets them take training
steps on noise side by side for some seconds, and adds up their images a second. Half-empty cores, a GPU that
waits for its next kernel, and processes that fight over either all show in that one number.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch

from ikdlib import files, methods, models, provenance
from ikdlib.data.views import Views
from ikdlib.errors import IkdError
from ikdlib.provenance import usable_cores
from ikdlib.spec import RunSpec, Settings
from ikdlib.studies import gpu_server, memory
from ikdlib.training.compiled import pays
from ikdlib.training.evaluate import settle
from ikdlib.training.graphs import TURNS, WARM_UP, GraphedStep
from ikdlib.training.job import choose_device
from ikdlib.training.step import Inputs, TrainStep, set_switches

SECONDS = 6.0
BETTER = 1.03
"""More at once must give this much more: the last per cent are noise, and each run takes longer."""


class Trial(Settings):
    """What one process of a trial does: a spec's training steps on noise of some shape."""

    spec: RunSpec
    classes: int
    height: int
    width: int
    device: str
    threads: int
    seconds: float = SECONDS
    compile: bool = False


def synthetic_step(
    spec: RunSpec, classes: int, height: int, width: int, device: torch.device, compile: bool = False
) -> Callable[[], None]:
    """A spec's training step, in the phase it spends its time in, on the same noise again and again.

    ``compile``: as a long run does on a GPU.
    """
    set_switches(spec.deterministic)
    student = models.build(spec.student, classes).to(device, memory_format=torch.channels_last)
    method = methods.build(spec.method, classes).to(device)
    if spec.method.ikd is not None:
        method.take_survey(torch.randn(classes, classes), torch.ones(classes, dtype=torch.int64))
    views = Views(4, height, width, (0.5,) * 3, (0.25,) * 3, device)
    step = TrainStep(student, method, spec.recipe, views, device)
    step.begin_epoch(2, 1e-4)
    n = spec.recipe.batch_size
    inputs = Inputs(
        pixels=torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8).to(device),
        target=(torch.arange(n) % classes).to(device),
        index=torch.arange(n).to(device),
        views=torch.randint(0, views.count, (n,)).to(device),
        progress=torch.tensor([2.0, 0.5]).to(device),
        teacher=torch.randn(n, classes).half().to(device) if spec.method.needs_teacher else None,
    )
    run = GraphedStep(step) if device.type == "cuda" and not spec.deterministic else step
    if compile:
        run.compile(inputs)
    return lambda: run(inputs)


def take_part(given: Trial) -> None:
    """The child's side: ready, then steps until the time is over; what it measured as a line of JSON."""
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    step = synthetic_step(given.spec, given.classes, given.height, given.width, device, given.compile)

    for _ in range(WARM_UP + TURNS):
        step()
    settle(device)
    if device.type == "cuda":  # what the libraries took while they chose their algorithms is given back
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    print("ready", flush=True)
    sys.stdin.readline()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < given.seconds:
        for _ in range(4 if device.type == "cpu" else 100):
            step()
            steps += 1
        settle(device)
    rate = steps * given.spec.recipe.batch_size / (time.perf_counter() - began)
    on_gpu = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": rate, "mib": peak, "gpu_mib": on_gpu / 2**20}), flush=True)


def measure(given: Trial, count: int) -> dict[str, float]:
    """``count`` processes at once: images a second of all together, and the largest one's memory in MiB.

    Raises:
        IkdError: one of them ended early, for want of memory as a rule.
    """
    from ikdlib.studies.children import ENVIRONMENT

    with gpu_server.shared(count if given.device.startswith("cuda") else 0) as environment:
        return _together(given, count, {**ENVIRONMENT, **os.environ, **environment})


def _together(given: Trial, count: int, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "ikdlib", "bench", "--trial", "-"]
    children: list[subprocess.Popen] = []
    try:
        for _ in range(count):
            children.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
                )
            )  # fmt: skip
        for text, expected, verb in ((given.model_dump_json(), "ready", "start"), ("go", "{", "last")):
            for child in children:
                child.stdin.write(text + "\n")
                child.stdin.flush()
            lines = [child.stdout.readline() for child in children]
            if not all(line.startswith(expected) for line in lines):
                raise IkdError(f"jobs: {count} runs at once do not {verb} here")
    except OSError as error:  # no room for one more, or one is gone and its pipe with it
        raise IkdError(f"jobs: {count} runs at once do not start here ({error.strerror})") from None
    finally:
        for child in children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
    found = [json.loads(line) for line in lines]
    rate = sum(one["rate"] for one in found)
    most = {name: max(one[name] for one in found) for name in ("mib", "gpu_mib")}
    return {"jobs": count, "threads": given.threads, "images_per_second": round(rate, 1), **most}


def compare(
    spec: RunSpec, shape: tuple[int, int, int], device: torch.device, images: int = 0
) -> pd.DataFrame:
    """A row for 1, 2, ... runs at once, until more no longer pays or fits.

    Args:
        spec: of a run like those to come.
        shape: classes, height, width.
        images: of an epoch. On a GPU, steps are compiled where those of such a run would be.
    """
    cores = usable_cores()
    compiles = _compiles(spec, images, device)
    rows: list[dict[str, float]] = []
    for count in _counts(device, cores):
        if rows and not _fits(rows[-1], count, device):
            break
        threads = max(1, cores // count)
        classes, height, width = shape
        trial = Trial(
            spec=spec, classes=classes, height=height, width=width, device=device.type, threads=threads,
            compile=compiles,
        )  # fmt: skip
        try:
            rows.append(measure(trial, count))
        except IkdError:
            if not rows:
                raise
            break
        if device.type == "cuda" and len(rows) > 1:
            if rows[-1]["images_per_second"] < BETTER * rows[-2]["images_per_second"]:
                break
    return pd.DataFrame(rows)


def _compiles(spec: RunSpec, images: int, device: torch.device) -> bool:
    steps = int(spec.recipe.epochs * images / spec.recipe.batch_size)
    return device.type == "cuda" and pays("auto", spec.deterministic, steps, device)


def _fits(row: dict[str, float], count: int, device: torch.device) -> bool:
    """Whether ``count`` processes like those of a trial have room; on a GPU, as `memory.fitting` allows."""
    if device.type == "cuda" and count * memory.CHILD_GPU_MIB > memory.gpu_free_mib(device):
        return False
    return row["mib"] * count <= memory.available_mib()


def _counts(device: torch.device, cores: int) -> Iterable[int]:
    if device.type == "cuda":
        return (1, 2, 4, 8, 16)  # each takes 20 s or more: every process chooses algorithms, and compiles
    return sorted({1, cores // 2 or 1, cores})


def best(table: pd.DataFrame) -> int:
    """The number of runs at once with most images a second; a smaller one that is as good wins."""
    chosen = table.iloc[0]
    for _, row in table.iterrows():
        if row["images_per_second"] > BETTER * chosen["images_per_second"]:
            chosen = row
    return int(chosen["jobs"])


def choose(
    spec: RunSpec, shape: tuple[int, int, int], images: int, device_name: str, kept: Path, say=print
) -> int:
    """`best`, measured once for runs like ``spec`` on this kind of machine and kept in a file."""
    device = choose_device(device_name)
    machine = provenance.machine(device)
    facts = (machine["processor"], usable_cores(), machine.get("gpu", ""), torch.__version__)
    key = " ".join(map(str, (*facts, spec.student, spec.recipe.precision, spec.recipe.batch_size)))
    if device.type == "cuda":  # what else decides whether packing pays there
        does = {"compiled": _compiles(spec, images, device), "deterministic": spec.deterministic}
        does["side by side in parts"] = gpu_server.available()
        key = " ".join([key, *(word for word, done in does.items() if done)])
    try:
        known = dict(json.loads(kept.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    if key not in known:
        known[key] = best(compare(spec, shape, device, images))
        try:
            files.write_json(kept, known)
        except OSError:
            pass  # measured again next time
        say(f"{known[key]} runs at once give most images a second here (measured; JOBS= overrules it)")
    return known[key]
