"""The benchmark's plain loop does the same task as ours, and the two programs answer when asked."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
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
    rows = {row["name"]: row for row in where.parts("resnet8", "fp32", rounds=3)}
    assert set(rows) == set(where.PARTS)
    assert 80 < sum(row["percent"] for row in rows.values()) < 120, "medians of parts, not parts of a median"
    assert rows["backward"]["ms"] > rows["SGD"]["ms"] > 0, "a convolution network spends its time backwards"
    assert torch.Tensor.backward is backward and training_step.TrainStep.__init__ is build


def test_kernels_are_named(where):
    names = [row["name"] for row in where.kernels("resnet8", "fp32", torch.device("cpu"))]
    assert "aten::convolution_backward" in names[:2]


def bars_of(figure) -> dict[str, list[float]]:
    (axis,) = figure.axes
    return {bar.get_label(): [part.get_width() for part in bar] for bar in axis.containers}


def test_kernels_stand_in_the_picture_by_what_they_do_and_its_bar_reaches_a_hundred(where):
    """Names as a profile of an H200 has them, and the share that each has of all kernels' time."""
    named = {
        "sm90_xmma_wgrad_indexed_implicit_gemm_bf16": 9.0,
        "void cask_plugin::init_device_workspace_kernel<xmma::implicit_gemm::wgrad_indexed::Params>": 2.0,
        "sm80_xmma_fprop_implicit_gemm_indexed_bf16": 3.0,
        "void cutlass::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16>": 4.0,
        "triton_poi_fused__native_batch_norm_legit_convolution_backward_24": 6.0,
        "void convolve_common_engine_float_NHWC<__nv_bfloat16, 128>": 2.5,
        "void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor<float, 3>>": 3.5,
        "nvjet_tst_64x8_64x16_1x4_h_bz_TNT": 1.0,
    }
    rows = [("a", "kernels", "148 a step, side by side", 0.9, 130.2)]
    rows += [("a", "kernel", name, 1.0, percent) for name, percent in named.items()]
    table = pd.DataFrame(rows, columns=["student", "kind", "name", "ms", "percent"])
    figure = where.chart(table, "a machine")
    assert bars_of(figure) == {
        "fused by the compiler (triton)": [6.0], "convolution, forward": [3.0],
        "convolution, data gradient": [4.0], "convolution, weight gradient": [11.0],
        "convolution, the name does not say which": [2.5], "optimiser": [3.5], where.OTHER: [1.0],
        where.NOT_LISTED: [69.0],
    }  # fmt: skip
    assert "130 % of a's step" in figure.axes[0].get_xlabel()


def test_a_moment_in_which_two_kernels_run_is_busy_once(where):
    """Counted moment by moment, on a grid."""
    draw = random.Random(2)
    intervals = [(start := draw.randrange(500), start + draw.randrange(1, 40)) for _ in range(30)]
    moments = {moment for start, stop in intervals for moment in range(start, stop)}
    assert where.covered(intervals) == len(moments) < sum(stop - start for start, stop in intervals)
    assert where.covered([]) == 0.0


def test_the_parts_reach_a_hundred_in_the_picture(where):
    """Of medians, which add up to 80 and 125 here; the student named first is on top."""
    parts = {"one": (20.0, 60.0), "two": (25.0, 100.0)}
    rows = [
        (student, "part", name, 1.0, percent)
        for student, both in parts.items() for name, percent in zip(("losses", "backward"), both, strict=True)
    ]  # fmt: skip
    rows.append(("one", "kernel", "aten::add", 1.0, 50.0))
    table = pd.DataFrame(rows, columns=["student", "kind", "name", "ms", "percent"])
    figure = where.chart(table, "a machine")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["two", "one"]
    assert bars_of(figure) == {"losses": [20.0, 25.0], "backward": [80.0, 75.0]}


def test_the_picture_of_cells_says_what_they_are_and_where(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import cells

    table = pd.DataFrame({
        "measured": ["a cell: seconds", "a cell: MiB at the peak", "planning"],
        "bare": [4.53, 685.7, None], "with": [7.89, 772.5, 0.3], "rounds": [5.0, 5.0, 5.0],
    })  # fmt: skip
    figure = cells.chart(table, "a machine, 2 cores")
    assert "cell of a sweep" in figure.get_suptitle() and "a machine, 2 cores" in figure.get_suptitle()
    assert [axis.get_ylabel() for axis in figure.axes] == ["seconds", "MiB at the peak"]
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["4.53", "7.89", "686", "772"]


# On paper


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import scale

    monkeypatch.setattr(scale, "operations", lambda name: 1000 + len(name))
    return scale


SPEEDS = """pair,program,precision,slabs,seconds_per_epoch,machine
resnet56/resnet20,reference,fp32,,200,"a machine, 2 cores, 2 threads, torch 2"
resnet56/resnet20,ikdlib,fp32,warm,30,"a machine, 2 cores, 2 threads, torch 2"
resnet56/resnet20,ikdlib,fp32,cold,45,"a machine, 2 cores, 2 threads, torch 2"
resnet56/resnet20,ikdlib,bf16,warm,1,"a machine, 2 cores, 2 threads, torch 2"
resnet56/resnet20,ikdlib,bf16,cold,2,"a machine, 2 cores, 2 threads, torch 2"
"""


def test_the_paper_table_counts_every_run_once(scale, tmp_path):
    """13 pairs x 8 methods x 3 seeds, and `ce` once for each of 9 students and 3 seeds; 6 teachers."""
    costs = scale.Costs(pd.read_csv(io.StringIO(SPEEDS)), epochs=240)
    teachers, students = scale.work(costs, (1, 2, 3))
    assert len(teachers) == 6 and len(students) == 13 * 8 * 3 + 9 * 3
    # 30 s an epoch, and 10,000 test images at a third of the time of one of 50,000 training images.
    warm = 240 / 3600 * (30 + 30 / 15)
    assert costs.student("resnet20") == pytest.approx(warm)
    assert costs.logits("resnet56") == pytest.approx(240 / 3600 * 15)
    others = costs.student("vgg8") / costs.student("resnet20")
    assert others == pytest.approx(1004 / 1008), "not measured: by its operations"
    cold = [hours for hours in students[: 6 * 3]]
    assert all(hours > warm for hours in cold), "the first of each (teacher, seed) computes the logits"


def test_cells_go_to_whoever_is_free_first(scale):
    assert scale.hand_out([3, 3, 2, 2, 2], 1) == 12
    assert scale.hand_out([3, 3, 2, 2, 2], 2) == 7, "3+2 and 3+2, then the last 2"
    assert scale.hand_out([3, 3, 2, 2, 2], 64) == 3


def test_what_was_not_measured_is_said(scale, tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "step-cpu-a-machine-2.csv").write_text(SPEEDS)
    assert set(scale.table(tmp_path)["hours"]) == {"too few networks measured", "not measured"}
    monkeypatch.setattr(scale, "LEAST", 1)
    table = scale.table(tmp_path)
    gpu = table[table["device"] == "a GPU"]
    assert list(gpu["devices"]) == [1, 8, 64] and set(gpu["hours"]) == {"not measured"}
    cpu = table[table["device"] == "a machine, 2 cores, 2 threads"]
    hours = [float(text) for text in cpu["hours"]]
    assert hours[0] > hours[1] > hours[2] > hours[0] / 64
    assert "busy 100 %" in cpu["limit"].iloc[0] and "teachers come first" in cpu["limit"].iloc[2]


def test_a_machine_measured_in_bf16_alone_is_no_reason_to_stop(scale, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    alone = "\n".join(line for line in SPEEDS.splitlines() if "fp32" not in line or "reference" in line)
    (tmp_path / "benchmarks" / "step-cuda-a-gpu.csv").write_text(
        alone.replace("reference,fp32", "reference,tf32")
    )
    said = scale.table(tmp_path).set_index("device")["hours"]
    assert set(said["a machine, 2 cores, 2 threads"]) == {"too few networks measured"}


@pytest.mark.parametrize(
    "processor, name",
    [
        ("Intel(R) Xeon(R) Processor", "step-cpu-intel-xeon-2"),
        ("AMD EPYC", "step-cpu-amd-epyc-2"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "step-cpu-intel-core-i7-9750h-2"),
    ],
)
def test_each_kind_of_machine_has_files_of_its_own(monkeypatch, processor, name):
    monkeypatch.syspath_prepend(str(FOLDER))
    import record

    facts = {"processor": processor, "cores": 2}
    monkeypatch.setattr(record.provenance, "machine", lambda device: facts)
    assert record.file_name("step", torch.device("cpu")) == name
    facts["gpu"] = "NVIDIA H200"
    assert record.file_name("step", torch.device("cuda")) == "step-cuda-nvidia-h200"
    assert record.machine_words(torch.device("cuda"), 2).startswith("NVIDIA H200, 2 cores, 2 threads, torch ")


def test_a_pair_measured_again_leaves_the_others_rows(monkeypatch, tmp_path):
    """Each row keeps the commit it was measured at; the pairs stay in their order."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import compare
    import record

    monkeypatch.setattr(record.provenance, "machine", lambda device: {"processor": "AMD EPYC", "cores": 2})
    monkeypatch.setattr(sys, "argv", ["compare", "--device", "cpu", "--results", str(tmp_path)])
    path = tmp_path / "benchmarks" / "step-cpu-amd-epyc-2.csv"
    again = "x/y,resnet56/resnet20"
    for commit, rate, pairs in (("a", 100, f"vgg13/MobileNetV2,{again}"), ("b", 200, again)):
        monkeypatch.setattr(
            record.provenance, "git_state", lambda found=commit: {"commit": found, "clean": True}
        )
        monkeypatch.setattr(
            compare, "compare", lambda pair, options, rate=rate: measured(compare, pair, rate)
        )
        monkeypatch.setattr(sys, "argv", [*sys.argv[:5], "--pairs", pairs])
        compare.main()
    found = pd.read_csv(path)
    assert list(found["pair"][::2]) == ["resnet56/resnet20", "vgg13/MobileNetV2", "x/y"]
    assert list(found["commit"][::2]) == list(found["commit"][1::2]) == ["b", "a", "b"]
    assert list(found["images_per_second"][1::2]) == [200, 100, 200]
    assert (
        list(found["workers"].fillna(0)) == [1, 0] * 3 and list(found["slabs"].fillna("")) == ["", "warm"] * 3
    )
    assert found["clean"].all() and found["machine"].str.startswith("AMD EPYC, 2 cores").all()


def measured(compare, pair: str, rate: int) -> list[dict[str, object]]:
    rounds, common = [{"peak_mib": 1.0}], {"images": rate, "threads": 2}
    reference = compare.row(pair, "reference", "fp32", "", [1.0], [1.0], rounds, common) | {"workers": 1}
    return [reference, compare.row(pair, "ikdlib", "bf16", "warm", [1.0], [2.0], rounds, common)]


@pytest.mark.long
def test_a_cell_costs_a_kernel_and_a_client(monkeypatch, tmp_path):
    """The measuring program measures: both sides took time and memory, and the cell took more of both."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import cells

    monkeypatch.setattr(cells, "IMPORT", "import json")
    seconds, memory = cells.overhead(tmp_path, rounds=1)
    assert seconds["with"] > seconds["bare"] > 0 and memory["with"] > memory["bare"] > 0
    planned = cells.planning(tmp_path, count=5, done=3, rounds=1)
    assert planned["measured"] == "planning 5 cells, 3 of them finished: seconds" and planned["with"] > 0
    *_, left = cells.many(tmp_path, count=2)
    assert left["measured"] == "2 no-op cells: processes left" and left["with"] == 0
