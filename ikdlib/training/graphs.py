"""A training step as a CUDA graph: captured once, then started as a whole.

A step of a small network is some hundred kernels of a few microseconds; starting them one by one from Python
takes longer than running them. A graph starts them all at once. There is one for each batch size (an epoch of
50,000 ends in a batch of 16), each phase of the method (the IKD term observes in epoch 1, then pulls), and
the step before and after it is compiled.

The first `WARM_UP` steps of each kind run as they stand: real steps, in which libraries choose their
algorithms and the optimiser makes its momenta. Nothing has to be undone, and no step is lost or done twice.

Graphs run on a stream of their own, and there are two of each kind that take turns: while one runs, the next
batch is picked, on the current stream, for the other. `join` makes the current stream wait for them.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

from ikdlib.errors import first_line
from ikdlib.training.evaluate import algorithms
from ikdlib.training.step import Inputs, TrainStep

WARM_UP = 3
TURNS = 2
"""Graphs of a kind: one runs, another's inputs are filled in."""


class Captured(NamedTuple):
    """A graph, the inputs it reads, and an event: its last run is over."""

    graph: torch.cuda.CUDAGraph
    places: Inputs
    over: torch.cuda.Event


class GraphedStep:
    """Does what the `TrainStep` it wraps does, from graphs; same arguments, same effects, same order."""

    def __init__(self, step: TrainStep):
        self.step = step
        self.can_capture = True
        self._graphs: defaultdict[Hashable, deque[Captured]] = defaultdict(deque)
        self._seen: Counter[Hashable] = Counter()
        self._stream = torch.cuda.Stream(step.device)
        self._pool = None

    @property
    def captured(self) -> int:
        """Graphs in use."""
        return sum(map(len, self._graphs.values()))

    def __call__(self, inputs: Inputs) -> None:
        kind = (len(inputs.target), self.step.method.phase, self.step.is_compiled)
        if len(self._graphs[kind]) < TURNS:
            warm = self.can_capture and self._seen[kind] >= WARM_UP
            if not warm or not self._capture(kind, inputs):
                self._seen[kind] += 1
                self._as_it_stands(inputs)
                return
        self._graphs[kind].rotate()
        graph, places, over = self._graphs[kind][0]
        here = torch.cuda.current_stream(self.step.device)
        here.wait_event(over)
        for place, value in zip(places, inputs, strict=True):
            if place is not None:
                place.copy_(value)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            graph.replay()
            over.record()

    def join(self) -> None:
        """Let what follows on the current stream see what the steps so far did."""
        torch.cuda.current_stream(self.step.device).wait_stream(self._stream)

    def compile(self, inputs: Inputs) -> None:
        """Compile the step, where it will run: what autograd makes belongs to a stream."""
        self._aside(self.step.compile, inputs)

    def _as_it_stands(self, inputs: Inputs) -> None:
        with algorithms(self._whole(inputs)):
            self._aside(self.step, inputs)

    def _whole(self, inputs: Inputs) -> bool:
        """Whether it is no short batch: that one, an epoch's last, is too rare to try algorithms for it."""
        return len(inputs.target) == self.step.batch_size

    def _aside(self, work: Callable[[Inputs], None], inputs: Inputs) -> None:
        # On a stream of its own, as capturing wants it: the default stream would wait for everything.
        main = torch.cuda.current_stream(self.step.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            work(inputs)
        main.wait_stream(self._stream)

    def _capture(self, kind: Hashable, inputs: Inputs) -> bool:
        """Record a step (capturing runs nothing); False where the method forbids it."""
        places = Inputs(*(None if value is None else value.clone() for value in inputs))
        main = torch.cuda.current_stream(self.step.device)
        graph = torch.cuda.CUDAGraph()
        try:
            # One pool for all: no two graphs run at once, and nothing in it outlives its step.
            recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream)
            with algorithms(self._whole(inputs)), recording:
                self.step(places)
            self._pool = graph.pool()
        except RuntimeError as error:
            torch.cuda.set_stream(main)  # torch does not, where ending the capture fails
            self._give_up(graph, error)
            return False
        self._graphs[kind].append(Captured(graph, places, torch.cuda.Event()))
        return True

    def _give_up(self, failed: torch.cuda.CUDAGraph, error: BaseException) -> None:
        """No graphs from here on, not even those that were captured before; one warning tells why.

        A graph that goes takes cuBLAS's workspace of its stream with it, which the others still use (pytorch
        issue 193402), and in torch 2.11 the allocator still asks the failed one: it stays, they go.
        """
        self.can_capture, self._failed = False, failed
        self._graphs.clear()
        self.step.optimizer.zero_grad(set_to_none=True)
        while error.__context__ is not None:  # "failed due to a previous error": the previous one tells why
            error = error.__context__
        warnings.warn(f"no CUDA graph of this step, it runs without one ({first_line(error)})", stacklevel=4)
