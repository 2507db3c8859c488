"""Compiled code trains to the same weights, to rounding, and where there is no compiler nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from ikdlib import methods, models
from ikdlib.data.views import Views
from ikdlib.spec import IKDSettings, MethodSpec, Recipe
from ikdlib.training import compiled
from ikdlib.training.step import Inputs, TrainStep
from tests.training.test_trainer import distance, short_recipe


@pytest.fixture
def in_a_cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))


def test_a_compiled_run_ends_with_the_same_weights(tiny, tmp_path, in_a_cache_of_its_own):
    """resnet8 with dkd+ikd, 21 steps; teacher and student compiled against both as they stand."""
    spec = tiny.spec("dkd+ikd", recipe=short_recipe(tiny, 0.0005), deterministic=False)
    plain = tiny.train(tmp_path / "plain", spec, compile="off")
    fast = tiny.train(tmp_path / "fast", spec, compile="on")
    assert fast.run.provenance["compiled"] and not plain.run.provenance["compiled"]
    assert fast.run.provenance["own_kernels"] is plain.run.provenance["own_kernels"] is False, "of fp32"
    found = distance(fast.student.state_dict(), plain.student.state_dict())
    assert 0 < found < 1e-3, "other sums, the same weights"
    assert fast.run.history["train_loss"].tolist() == pytest.approx(
        plain.run.history["train_loss"].tolist(), rel=1e-3
    )
    counters = [v for k, v in fast.student.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(int(value) == 21 for value in counters), "compiling ahead is not a step"
    resumed = tiny.trainer(tmp_path / "again", spec, compile="on")
    tiny.interrupt(resumed, lambda: (resumed.epoch, resumed.step) == (2, 1))
    again = tiny.train(tmp_path / "again", spec, compile="on")
    assert tiny.outcome(again.run) == tiny.outcome(fast.run), "resumed to the bit"


def losses_alone(method: str) -> TrainStep:
    """A step of resnet8 on the CPU with batches of 16, in epoch 2, where the term is there."""
    torch.manual_seed(3)
    name, _, ikd = method.partition("+")
    made = methods.build(MethodSpec(name=name, ikd=IKDSettings() if ikd else None), 10)
    if ikd:
        made.take_survey(torch.randn(10, 10), torch.ones(10, dtype=torch.int64))
    student = models.build("resnet8", 10).to(memory_format=torch.channels_last).train()
    views, recipe = Views(4, 8, 8, (0.5,) * 3, (0.25,) * 3), Recipe(batch_size=16)
    step = TrainStep(student, made, recipe, views, torch.device("cpu"))
    step.begin_epoch(2, 0.01)
    return step


def given(count: int) -> Inputs:
    draw = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=draw)
    teacher = torch.randn(count, 10, generator=draw).half()
    index, views = torch.arange(count), torch.randint(0, 162, (count,), generator=draw)
    return Inputs(pixels, index % 10, index, views, torch.tensor([2.0, 0.5]), teacher)


def test_a_step_compiled_as_a_gpu_has_it_is_the_step(in_a_cache_of_its_own):
    """Views, student and losses in one: the same sums and weights, from two full batches and a short one."""
    plain, fast = losses_alone("dkd+ikd"), losses_alone("dkd+ikd")
    fast.compile(given(16))
    assert fast.is_compiled
    for step in (plain, fast):
        for inputs in (given(7), given(16), given(16), given(5)):
            step(inputs)
    assert list(fast.sums) == list(plain.sums) == ["ce", "tckd", "nckd", "ikd", "loss", "hits"]
    for name, total in plain.sums.items():
        assert float(fast.sums[name]) == pytest.approx(float(total), rel=1e-4), name
    counters = [v for k, v in fast.student.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(int(value) == 4 for value in counters), "compiling ahead is not a step"
    assert distance(fast.student.state_dict(), plain.student.state_dict()) < 1e-3
    assert torch.equal(fast.method.ikd.means, plain.method.ikd.means)


@pytest.fixture
def graphs(monkeypatch):
    """Nothing is compiled; each time something would be, a word is added to this list."""
    made: list[str] = []

    def note(graph: torch.fx.GraphModule, example: list[torch.Tensor]):
        made.append("a graph")
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: compiler(function, backend=note))
    return made


@pytest.mark.parametrize("method", ["ce", "dkd+ikd"])
def test_a_step_is_compiled_once_for_all_epochs_to_come(graphs, method):
    step = losses_alone(method)
    step.compile(given(16))
    for number in (2, 3, 4):
        step.begin_epoch(number, 0.01)
        step(given(16))
        step(given(5))
        step.method.end_epoch(number)
    assert len(graphs) == 1


def test_the_tenth_run_of_a_process_is_compiled_as_the_first_was(graphs):
    """torch gives up on a function after eight: notebooks train many runs in one process."""
    for count in range(1, 11):
        step = losses_alone("kd")
        step.compile(given(16))
        step(given(16))
        assert len(graphs) == count


def test_a_stop_while_a_gpus_step_compiles_finds_all_of_it_saved(tiny, tmp_path, monkeypatch):
    """As on a GPU, but for the compiler: before it starts, the state is that of the step to come."""
    spec, seen = tiny.spec("dkd+ikd", deterministic=False), []
    trainer = tiny.trainer(tmp_path / "one", spec)

    class Asked:
        def __call__(self) -> bool:
            return False

        @contextmanager
        def nothing_to_lose(self):
            shutil.copytree(tmp_path / "one", tmp_path / "two")
            seen.append((trainer.epoch, trainer.step))
            yield

    monkeypatch.setattr(trainer.train_step, "compile", lambda inputs: seen.append(len(inputs.target)))
    trainer.stop = Asked()
    trainer.prepare()
    trainer._to_compile = True
    trainer.train()
    assert seen == [(2, 0), 64], "once, in epoch 2, before its first full batch"
    assert tiny.outcome(tiny.train(tmp_path / "two", spec).run) == tiny.outcome(trainer.run)


def test_the_backward_is_compiled_before_it_is_asked_for(in_a_cache_of_its_own, monkeypatch):
    """On a GPU autograd has a thread of its own, and while that compiled, no signal would be heeded."""
    from torch._inductor import metrics

    metrics.reset()
    backward, seen = torch.Tensor.backward, []

    def watched(loss: torch.Tensor) -> None:
        seen.append(metrics.generated_kernel_count)
        backward(loss)
        seen.append(metrics.generated_kernel_count)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    step = losses_alone("kd")
    step.compile(given(16))
    assert step.is_compiled and len(seen) == 2 and seen[0] == seen[1] > 0


def test_where_this_packages_cache_cannot_be_written_torchs_own_is_kept(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("in the way")
    for name, home in (("kept", "home"), ("named", "free")):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
        compiled.keep_cache()
        there = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
        assert (str(tmp_path) in there) == (name == "named")


def test_compiled_code_lies_in_this_packages_cache_and_helpers_are_none(tmp_path):
    """In a process of its own: torch chooses folder and helpers when it is imported, unless it is told."""
    program = """
import os, torch
from ikdlib.training.compiled import Compiled
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
made = Compiled(torch.nn.Linear(4, 4), (torch.zeros(2, 4),), ())
made(torch.zeros(2, 4))
print(made.works, torch._inductor.async_compile.AsyncCompile._ready_future is None)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHINDUCTOR", "TRITON"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr
    assert any((tmp_path / "ikdlib" / "compiled").rglob("*.so")), "the code"
    assert not list((tmp_path / "temporary").rglob("*.so"))


def test_without_a_compiler_it_warns_once_and_trains_all_the_same(tiny, tmp_path, monkeypatch):
    def refuse(model, **settings):
        def fails(images):
            raise RuntimeError("no C++ compiler\nand a page of details")

        return fails

    monkeypatch.setattr(torch, "compile", refuse)
    spec = tiny.spec("ce", deterministic=False)
    with pytest.warns(UserWarning, match="without torch.compile: no C\\+\\+ compiler$"):
        made = tiny.train(tmp_path / "one", spec, compile="on")
    assert not made.run.provenance["compiled"]
    plain = tiny.train(tmp_path / "two", spec, compile="off")
    assert tiny.outcome(made.run) == tiny.outcome(plain.run)


def test_it_is_used_where_it_pays(tiny, tmp_path, monkeypatch):
    """Not for the 9 steps of a tiny run, nor in deterministic mode; from `PAYS_FROM_STEPS` steps on."""
    asked = []
    monkeypatch.setattr(TrainStep, "compile_student", lambda step: asked.append(step))
    tiny.trainer(tmp_path, tiny.spec("ce", deterministic=False)).prepare()
    assert asked == []
    monkeypatch.setitem(compiled.PAYS_FROM_STEPS, "cpu", 9)
    tiny.trainer(tmp_path, tiny.spec("ce", deterministic=True)).prepare()
    tiny.trainer(tmp_path, tiny.spec("ce", deterministic=False), compile="off").prepare()
    assert asked == []
    pays = tiny.trainer(tmp_path, tiny.spec("ce", deterministic=False))
    pays.prepare()
    assert asked == [pays.train_step]
    monkeypatch.setitem(compiled.PAYS_FROM_STEPS, "cpu", 10)
    tiny.trainer(tmp_path, tiny.spec("ce", deterministic=False)).prepare()
    assert len(asked) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_the_compiler_is_at_work_ends_the_process_at_once(number):
    """Nobody asks `stop()` then, and there is nothing to save; outside of it a stop is only noted."""
    program = f"""
import os, time
from ikdlib.training.job import Stop
stop = Stop()
with stop.nothing_to_lose():
    pass
os.kill(os.getpid(), {int(number)})
print(stop(), flush=True)
with stop.nothing_to_lose():
    os.kill(os.getpid(), {int(number)})
    time.sleep(30)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("True\n", 128 + number)
