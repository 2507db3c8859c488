"""The benchmark's plain loop does the same task as ours, and the two programs answer when asked."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ikdlib import methods
from ikdlib.methods import IKD
from ikdlib.models import Outputs
from ikdlib.spec import MethodSpec
from ikdlib.training import step as training_step

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import reference

    return reference


def test_the_plain_losses_are_ours(reference):
    """Written twice, from different formulas: a mask and log of sums there, a gather and logsumexp here."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(12, 100, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.arange(12) % 3
    spec = MethodSpec(name="dkd", settings={"beta": 8.0, "warmup": 0.0, "ce": 0.0})
    method = methods.build(spec, 100)
    batch = type("Batch", (), {"target": target, "progress": torch.tensor([1.0, 0.0])})()
    parts = method(Outputs(logits=student), Outputs(logits=teacher), batch)
    torch.testing.assert_close(
        reference.dkd(student, teacher, target), torch.stack(list(parts.values())).sum()
    )
    term = IKD(100)
    warnings.filterwarnings("ignore", message="no image of classes")
    term.observe(teacher, target)
    term.finish()
    means = torch.zeros(100, 100, dtype=torch.float64)
    for name in range(3):
        means[name] = teacher[target == name].mean(0)
    torch.testing.assert_close(
        reference.ikd(student, means, target), term(student, target), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "program, more", [("reference", "--workers 0"), ("ours", "--precision fp32 --compile off")]
)
def test_a_round_for_each_line(program, more):
    words = f"--pair resnet8/resnet8 --images 128 --classes 10 --threads 1 {more}".split()
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{program}.py"), *words], input="\n\n", text=True,
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == 2
    assert all(one["seconds"] > 0 and one["peak_mib"] > 50 for one in rounds)
    assert program == "reference" or all(one["teacher"] > 0 for one in rounds)


@pytest.fixture
def where(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import where

    return where


def test_the_parts_of_a_step_are_all_of_it_and_the_trainer_is_left_as_it_was(where):
    backward, build = torch.Tensor.backward, training_step.TrainStep.__init__
    rows = {row["name"]: row for row in where.parts("resnet8", rounds=3)}
    assert set(rows) == set(where.PARTS)
    assert 80 < sum(row["percent"] for row in rows.values()) < 120, "medians of parts, not parts of a median"
    assert rows["backward"]["ms"] > rows["SGD"]["ms"] > 0, "a convolution network spends its time backwards"
    assert torch.Tensor.backward is backward and training_step.TrainStep.__init__ is build


def test_kernels_are_named(where):
    names = [row["name"] for row in where.kernels("resnet8", torch.device("cpu"))]
    assert "aten::convolution_backward" in names[:2]
