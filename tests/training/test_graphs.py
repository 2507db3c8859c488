"""`GraphedStep` without a GPU: a stand-in that records a step's tensor operations and does them again.

The stand-in is as blind as a CUDA graph. What is captured is a list of operations at fixed addresses, with
every Python number in them as it was; capturing changes nothing; replaying runs no Python of the step. So a
rate that is a number, sums that are replaced, or a word asked of the device show here as they would on a GPU.
What it cannot show: streams that race, the allocator's pools, and the algorithms of cuDNN and cuBLAS.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ikdlib import methods, models
from ikdlib.data.views import Views
from ikdlib.methods.base import Method, cross_entropy
from ikdlib.spec import IKDSettings, MethodSpec, Recipe
from ikdlib.training.graphs import WARM_UP, GraphedStep
from ikdlib.training.step import Inputs, TrainStep, below

CLASSES, SIZE, BATCH, LAST = 10, 8, 6, 4
CPU = torch.device("cpu")


class Stream:
    """A stream that is one name more: everything runs in order."""

    def __init__(self, device=None):
        self.waited_for: list[Stream | Event] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)

    def wait_event(self, event: Event) -> None:
        self.waited_for.append(event)


class Event:
    """Notes after how many replays of all graphs it was recorded, and on which stream."""

    def __init__(self):
        self.recorded: list[tuple[int, Stream]] = []

    def record(self) -> None:
        self.recorded.append((len(Graph.order), torch.cuda.current_stream()))


class Graph:
    """Operations in the order they were captured, with the very tensors they had."""

    order: list[tuple[Graph, Stream]] = []

    def __init__(self):
        self.operations: list[tuple] = []
        self.replays = 0

    def pool(self) -> tuple[int, int]:
        return (1, 0)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        self.order.append((self, torch.cuda.current_stream()))
        for function, args, kwargs, outputs in self.operations:
            new = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            for old, value in zip(outputs, new, strict=True):
                if address(old) != address(value):  # else a view, or done in place: it is there already
                    old.copy_(value)


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Capturing(TorchDispatchMode):
    """Notes operations in a `Graph`, and remembers what memory from before held, so that it can be undone."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph, self.before, self.made = graph, {}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "profiler":
            return function(*args, **kwargs)
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and address(tensor) not in self.made | self.before.keys():
                storage = tensor.untyped_storage()
                self.before[address(tensor)] = storage, storage.clone()
        result = function(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.made |= {address(x) for x in outputs} - self.before.keys()
        self.graph.operations.append((function, args, kwargs, outputs))
        return result

    def undo(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda's streams and graphs, as stand-ins; `log` tells what was captured, and on which stream."""
    log = SimpleNamespace(current=Stream(), captures=[], pools=[])
    log.main = log.current

    @contextmanager
    def stream(which: Stream):
        before, log.current = log.current, which
        try:
            yield
        finally:
            log.current = before

    class capture:  # noqa: N801  (torch.cuda.graph is a class)
        def __init__(self, graph: Graph, pool=None, stream=None, **options):
            self.graph, self.stream, self.mode = graph, stream, Capturing(graph)
            log.pools.append(pool)

        def __enter__(self):
            self.before, log.current = log.current, self.stream
            self.mode.__enter__()

        def __exit__(self, kind, error, trace):
            self.mode.__exit__(kind, error, trace)
            self.mode.undo()
            if error is not None:  # torch's own: ending a broken capture raises, and the stream stays set
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            log.current = self.before
            log.captures.append(self.graph)

    monkeypatch.setattr(Graph, "order", [])
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: log.current)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda which: setattr(log, "current", which))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return log


def train_step(
    method: Method | str = "dkd+ikd", recipe: Recipe | None = None, **settings: float
) -> TrainStep:
    """A step like a GPU's: its rate is a tensor on the device."""
    torch.manual_seed(5)
    student = models.build("resnet8", CLASSES).to(memory_format=torch.channels_last)
    if isinstance(method, str):
        name, _, ikd = method.partition("+")
        ikd = IKDSettings() if ikd else None
        method = methods.build(MethodSpec(name=name, settings=settings, ikd=ikd), CLASSES)
    views = Views(4, SIZE, SIZE, (0.5,) * 3, (0.25,) * 3, CPU)
    step = TrainStep(student, method, recipe or Recipe(), views, CPU)
    for group in step.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    return step


def batch(epoch: int, number: int, size: int) -> Inputs:
    draw = torch.Generator().manual_seed(100 * epoch + number)

    def whole(top: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, top, shape, generator=draw)

    return Inputs(
        pixels=whole(256, size, SIZE, SIZE, 3).to(torch.uint8), target=whole(CLASSES, size),
        index=whole(50, size), views=whole(162, size), progress=torch.tensor([float(epoch), number / 100]),
        teacher=torch.randn(size, CLASSES, generator=draw).half(),
    )  # fmt: skip


def epoch(run, step: TrainStep, number: int, whole: int = 5, start: int = 0, sums=None) -> dict[str, float]:
    """An epoch of `whole` batches and a shorter last one, at its own rate; returns its sums."""
    step.begin_epoch(number, 0.01 * number, sums)
    for at in range(start, whole + 1):
        run(batch(number, at, BATCH if at < whole else LAST))
    sums = {name: float(value) for name, value in step.sums.items()}
    step.method.end_epoch(number)
    step.sums = {}  # as the trainer does
    return sums


def same(a: TrainStep, b: TrainStep) -> None:
    left, right = a.state(), b.state()
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"not the same bits: {different}"


class Counted:
    """A step and a note of each time Python ran it: on which stream, and whether while capturing."""

    def __init__(self, step: TrainStep, cuda):
        self.step, self.cuda, self.runs = step, cuda, []

    def __getattr__(self, name: str):
        return getattr(self.step, name)

    def __call__(self, inputs: Inputs) -> None:
        capturing = torch.utils._python_dispatch._get_current_dispatch_mode() is not None
        self.runs.append((len(inputs.target), self.method.phase, capturing, self.cuda.current))
        self.step(inputs)

    def count(self, size: int, phase: str, capturing: bool = False) -> int:
        return sum(run[:3] == (size, (phase, None), capturing) for run in self.runs)


def test_each_kind_runs_three_times_as_it_stands_is_captured_twice_and_then_replayed(cuda):
    """Kinds are sizes of batches times phases of the method; the short last batch comes once an epoch."""
    counted = Counted(train_step(), cuda)
    run = GraphedStep(counted)
    epoch(run, counted.step, 1)
    assert counted.count(BATCH, "observe") == WARM_UP and counted.count(BATCH, "observe", True) == 2
    assert counted.count(LAST, "observe") == 1 and counted.count(LAST, "observe", True) == 0
    assert [graph.replays for graph in cuda.captures] == [1, 1], "two that take turns"
    epoch(run, counted.step, 2)
    assert counted.count(BATCH, "pull") == WARM_UP and counted.count(BATCH, "pull", True) == 2
    assert [graph.replays for graph in cuda.captures] == 4 * [1], "a phase of its own has graphs of its own"
    for number in (3, 4, 5, 6):
        epoch(run, counted.step, number)
    assert counted.count(LAST, "pull") == WARM_UP and counted.count(LAST, "pull", True) == 2
    assert [graph.replays for graph in cuda.captures] == [1, 1, 1 + 10, 1 + 10, 1, 1]
    assert len(counted.runs) == 4 * WARM_UP + 6 - 2, "six graphs; the last batch of epoch 1 had one go"
    assert run.captured == 6


def test_what_python_runs_is_on_one_stream_that_the_main_one_waits_for(cuda):
    counted = Counted(train_step(), cuda)
    run = GraphedStep(counted)
    epoch(run, counted.step, 1)
    side = run._stream
    assert {stream for *_, stream in counted.runs} == {side} != {cuda.main}
    assert cuda.current is cuda.main
    eager, replays = WARM_UP + 1, 5 - WARM_UP
    assert {stream for _, stream in Graph.order} == {side}
    assert side.waited_for == [cuda.main] * (eager + replays), "for what fills its inputs"
    assert [one for one in cuda.main.waited_for if isinstance(one, Stream)] == [side] * eager
    run.join()
    assert cuda.main.waited_for[-1] is side


def test_the_next_batch_is_filled_in_while_a_graph_runs(cuda):
    """Two graphs take turns, and the inputs of one are written once its own last run is over."""
    counted = Counted(train_step("ce"), cuda)
    run = GraphedStep(counted)
    counted.step.begin_epoch(1, 0.01)
    for at in range(WARM_UP + 7):
        run(batch(1, at, BATCH))
    (a, b), played = cuda.captures, [graph for graph, _ in Graph.order]
    assert played == [a, b, a, b, a, b, a]
    waits = [one for one in cuda.main.waited_for if isinstance(one, Event)]
    assert len(waits) == 7 and waits[0] is not waits[1] and waits[::2] == [waits[0]] * 4
    assert [after for after, _ in waits[0].recorded] == [1, 3, 5, 7] and waits[1].recorded[0][0] == 2
    assert {stream for one in waits[:2] for _, stream in one.recorded} == {run._stream}


def test_the_short_batch_tries_no_algorithms(cuda, monkeypatch):
    """cuDNN would for seconds; it is one step of an epoch."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen, step = set(), train_step("ce", Recipe(batch_size=BATCH))
    forward = step.student.forward
    step.student.forward = lambda *a: (seen.add((len(a[0]), torch.backends.cudnn.benchmark)), forward(*a))[1]
    run = GraphedStep(step)
    for number in range(1, 6):
        epoch(run, step, number)
    assert seen == {(BATCH, True), (LAST, False)} and torch.backends.cudnn.benchmark
    assert run.captured == 4


def test_graphs_share_one_pool(cuda):
    step = train_step()
    run = GraphedStep(step)
    for number in (1, 2):
        epoch(run, step, number)
    assert cuda.pools == [None, (1, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize(
    "method", ["ce", "kd", "kd+ikd", "dkd+ikd", "nkd+ikd", "wttm+ikd"], ids=lambda name: name
)
def test_the_same_bits_as_without_graphs(cuda, method):
    """Five epochs, a rate for each, a phase that changes after the first, a short last batch in each."""
    plain, graphed = train_step(method), train_step(method)
    run = GraphedStep(graphed)
    for number in range(1, 6):
        assert epoch(plain, plain, number) == epoch(run, graphed, number), f"sums of epoch {number}"
        same(plain, graphed)
    assert sum(graph.replays for graph in cuda.captures) > 15


@pytest.mark.parametrize("control", [{"source": "running"}, {"source": "clean"}, {"target": "permuted"}])
def test_the_same_bits_for_every_control(cuda, control):
    """Phases differ: running means observe AND pull from epoch 2 on, surveyed ones never observe."""

    def made() -> TrainStep:
        step = train_step(methods.build(MethodSpec(name="dkd", ikd=IKDSettings(**control)), CLASSES))
        if step.method.survey:
            sums = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(6))
            step.method.take_survey(sums.double(), torch.ones(CLASSES, dtype=torch.int64))
        return step

    plain, graphed = made(), made()
    run = GraphedStep(graphed)
    for number in range(1, 6):
        assert epoch(plain, plain, number) == epoch(run, graphed, number), f"sums of epoch {number}"
        same(plain, graphed)
    epochs_seen = {"running": 5, "clean": 0}.get(control.get("source"), 1)
    surveyed = CLASSES if control.get("source") == "clean" else 0
    assert int(graphed.method.ikd.counts.sum()) == epochs_seen * (5 * BATCH + LAST) + surveyed
    assert sum(graph.replays for graph in cuda.captures) > 15


def test_a_part_that_grows_with_progress_grows_in_a_graph_too(cuda):
    """mdistiller's warm-up of DKD: a factor from the epoch's number, which a graph reads from the device."""
    plain, graphed = train_step("dkd", warmup=4.0), train_step("dkd", warmup=4.0)
    run = GraphedStep(graphed)
    for number in (1, 2, 3):
        assert epoch(plain, plain, number) == epoch(run, graphed, number)
    same(plain, graphed)


def test_evaluation_between_epochs_leaves_graphs_alone(cuda):
    plain, graphed = train_step(), train_step()
    run = GraphedStep(graphed)
    for number in (1, 2, 3):
        epoch(plain, plain, number)
        epoch(run, graphed, number)
        graphed.student.eval()
        with torch.inference_mode():
            graphed.student(torch.randn(3, 3, SIZE, SIZE))
    graphed.student.train()
    same(plain, graphed)


@pytest.mark.parametrize(("number", "at"), [(1, 2), (1, 4), (2, 3), (3, 5)])
def test_a_resumed_run_goes_on_to_the_same_bits(cuda, number, at):
    """Stopped inside an epoch and taken up by another process: with warm-ups of its own, and the old sums."""
    whole = train_step()
    for before in range(1, 4):
        expected = epoch(whole, whole, before)

    first = train_step()
    run = GraphedStep(first)
    for before in range(1, number):
        epoch(run, first, before)
    first.begin_epoch(number, 0.01 * number)
    for done in range(at):
        run(batch(number, done, BATCH))
    kept = {name: value.clone() for name, value in first.state().items()}

    second = train_step()
    second.load_state(kept)
    run = GraphedStep(second)
    sums = epoch(run, second, number, start=at, sums=below(kept, "sums"))
    for after in range(number + 1, 4):
        sums = epoch(run, second, after)
    assert sums == expected
    same(whole, second)


class Asks(Method):
    """A method that wants a word from the device, which nobody can have while a graph is captured."""

    def forward(self, student, teacher, batch):
        loss = cross_entropy(student.logits, batch.target)
        return {"ce": loss if loss.item() > 0 else 0 * loss}


def test_a_step_that_cannot_be_captured_runs_as_it_stands_with_one_warning(cuda):
    def asks() -> TrainStep:
        return train_step(Asks(MethodSpec(name="ce"), CLASSES))

    plain, counted = asks(), Counted(asks(), cuda)
    run = GraphedStep(counted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in (1, 2, 3, 4, 5):
            assert epoch(plain, plain, number) == epoch(run, counted.step, number)
    told = [str(warning.message) for warning in caught if "CUDA graph" in str(warning.message)]
    assert len(told) == 1 and "not permitted when stream is capturing" in told[0], "the cause, not its echo"
    assert not run.can_capture and not cuda.captures and run.captured == 0
    assert cuda.current is cuda.main, "work that follows is where it was before"
    assert all(parameter.grad is None for parameter in counted.step.parameters())
    same(plain, counted.step)


def test_after_a_failure_no_earlier_graph_is_used(cuda):
    """torch frees cuBLAS's workspace of the stream with the failed graph, under the earlier graphs' feet."""
    plain, step = train_step("kd+ikd"), train_step("kd+ikd")
    run = GraphedStep(step)
    epoch(plain, plain, 1)
    epoch(run, step, 1)
    good, _ = cuda.captures
    step.method.method = Asks(MethodSpec(name="ce"), CLASSES)
    plain.method.method = Asks(MethodSpec(name="ce"), CLASSES)
    with pytest.warns(UserWarning, match="no CUDA graph"):
        epoch(run, step, 2)
    epoch(plain, plain, 2)
    replays = good.replays
    step.begin_epoch(1, 0.01)
    plain.begin_epoch(1, 0.01)
    run(batch(1, 0, BATCH))
    plain(batch(1, 0, BATCH))
    assert good.replays == replays
    same(plain, step)


# That the stand-in is as blind as the real thing


def test_the_stand_in_keeps_a_rate_that_is_a_number(cuda):
    plain, graphed = train_step("ce"), train_step("ce")
    graphed.optimizer.param_groups[0]["lr"] = 0.05
    run = GraphedStep(graphed)
    for number in (1, 2):
        epoch(plain, plain, number)
        epoch(run, graphed, number)
    with pytest.raises(AssertionError, match="not the same bits"):
        same(plain, graphed)


def test_a_compiled_step_is_captured_anew_and_compiled_where_it_runs(cuda, monkeypatch):
    """`ce` has one phase: the graph of epoch 1 is of the step as it stands, and is not replayed any more."""
    counted, compiled_on = Counted(train_step("ce"), cuda), []
    run = GraphedStep(counted)
    epoch(run, counted.step, 1)
    stands = list(cuda.captures)

    def compile(inputs: Inputs) -> None:
        compiled_on.append((len(inputs.target), cuda.current))
        monkeypatch.setattr(TrainStep, "is_compiled", True)

    monkeypatch.setattr(counted.step, "compile", compile)
    run.compile(batch(2, 0, BATCH))
    assert compiled_on == [(BATCH, counted.runs[0][3])] and cuda.current is cuda.main
    epoch(run, counted.step, 2)
    assert [graph.replays for graph in cuda.captures] == 4 * [1] and cuda.captures[:2] == stands


def test_the_stand_in_adds_to_the_sums_it_was_captured_with(cuda):
    plain, graphed = train_step("ce"), train_step("ce")
    run = GraphedStep(graphed)
    assert epoch(plain, plain, 1) == epoch(run, graphed, 1)
    graphed._sums_of.clear()
    assert epoch(plain, plain, 2) != epoch(run, graphed, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_graphs_do_what_the_step_does_and_never_wait(precision):
    """The same training twice, to rounding; in epoch 7 everything is captured, and any sync raises.

    A graphed step sleeps where it reads its inputs, so that whoever fills them in or reads results too early
    has other numbers.
    """
    device = torch.device("cuda:0")

    def made() -> TrainStep:
        torch.manual_seed(5)
        student = models.build("resnet8", CLASSES).to(device, memory_format=torch.channels_last)
        method = methods.build(MethodSpec(name="dkd", ikd=IKDSettings()), CLASSES).to(device)
        views = Views(4, SIZE, SIZE, (0.5,) * 3, (0.25,) * 3, device)
        return TrainStep(student, method, Recipe(precision=precision), views, device)

    plain, graphed = made(), made()
    forward = graphed.method.forward
    graphed.method.forward = lambda *given: (torch.cuda._sleep(1_000_000), forward(*given))[1]
    run = GraphedStep(graphed)
    for number in range(1, 8):
        rate, inputs = 1e-4 * number, [batch(number, at, BATCH if at < 5 else LAST) for at in range(6)]
        for step, does in ((plain, plain), (graphed, run)):
            on_device = [Inputs(*(value.to(device) for value in one)) for one in inputs]
            step.begin_epoch(number, rate)
            torch.cuda.set_sync_debug_mode("error" if number > 6 else "default")
            try:
                for one in on_device:
                    does(one)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            run.join()
            step.method.end_epoch(number)
        theirs, ours = (
            {name: float(total) for name, total in step.sums.items()} for step in (plain, graphed)
        )
        assert ours == pytest.approx(theirs, rel=1e-2), f"sums of epoch {number}"
    assert run.captured == 6, "two each: both phases at full size, and the short batch of the second"
    for name, value in plain.student.state_dict().items():
        assert torch.allclose(graphed.student.state_dict()[name].float(), value.float(), rtol=1e-2, atol=1e-3)
