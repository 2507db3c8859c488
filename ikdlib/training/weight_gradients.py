"""Weight gradients apart from the rest of the backward pass.

Going backward through a convolution gives two things: the gradient of its input, which the layer before it
waits for, and that of its weights, which nobody needs before the optimiser. On a GPU a kernel of a small
network keeps a part of it busy, so the second kind runs on a stream of its own while the first goes on: the
convolutions are the same and so are their numbers; only their order in time is free. On a CPU a faster kernel
makes it, where there is one (`native.py`).

`Apart` is a pass over the graph that torch.compile made of a step (`compiled.py`): models and methods know
nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from ikdlib.training import native
from ikdlib.training.operators import operator

BACKWARD = torch.ops.aten.convolution_backward.default
CAST = torch.ops.prims.convert_element_type.default
INPUT, WEIGHT, BIAS = 0, 1, 2  # what `BACKWARD` returns, in the order of its mask

_streams: dict[torch.device, torch.cuda.Stream] = {}
_busy: set[torch.device] = set()


def _of_weight_gradient(gradient, images, weight, stride, padding, dilation, groups, dtype):
    return torch.empty_like(weight, dtype=dtype)


@operator(
    "weight_gradient(Tensor gradient, Tensor images, Tensor weight, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, SymInt groups, ScalarType dtype) -> Tensor",
    _of_weight_gradient,
)
def weight_gradient(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of a convolution's weights; on a GPU made on its second stream, for which `join` waits.

    ``gradient``: of the output, [N, K, H', W']; ``images``: the input, [N, C, H, W]; ``weight``: [K, C/g,
    h, w], of which shape and memory layout count -> the same in ``dtype``.
    """
    device = gradient.device
    if device.type != "cuda":
        return _computed(gradient, images, weight, stride, padding, dilation, groups, dtype)
    here, beside = torch.cuda.current_stream(device), _stream(device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        found = _computed(gradient, images, weight, stride, padding, dilation, groups, dtype)
    for tensor in (gradient, images):  # nobody else gets their memory before this stream is done with it
        tensor.record_stream(beside)
    found.record_stream(here)
    _busy.add(device)
    return found


def _computed(gradient, images, weight, stride, padding, dilation, groups, dtype) -> Tensor:
    if (
        native.takes_convolution(gradient, images, weight, stride, padding, dilation, groups)
        and native.works()
    ):
        found = native.weight_gradient(gradient, images, stride[0])
    else:
        shape = (None, stride, padding, dilation, False, [0] * len(stride), groups)
        found = BACKWARD(gradient, images, weight, *shape, [False, True, False])[WEIGHT]
    if found.dtype == dtype and found.stride() == weight.stride():
        return found
    return torch.empty_like(weight, dtype=dtype).copy_(found)


def join() -> None:
    """Let what follows on the current stream wait for weight gradients that are under way, if any are.

    One training a process at a time: another thread's would be waited for here, and not there.
    """
    while _busy:
        device = _busy.pop()
        torch.cuda.current_stream(device).wait_stream(_stream(device))


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def every(*_: Any) -> bool:
    return True


class Apart(CustomGraphPass):
    """Takes the weight gradient out of the backward of convolutions whose input wants a gradient too.

    Args:
        suits: asked of each with its tensors' shapes, as `native.takes_convolution` is.
    """

    def __init__(self, suits: Callable[..., bool] = every):
        self.suits = suits

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=BACKWARD):
            self._split(graph, node)

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__, native.__file__), self.suits.__name__)

    def _split(self, graph: fx.Graph, node: fx.Node) -> None:
        gradient, images, weight, _, stride, padding, dilation, transposed, _, groups, mask = node.args
        result = self._result(node)
        if result is None or transposed or not mask[INPUT]:
            return
        shapes = (one.meta["val"] for one in (gradient, images, weight))
        if not self.suits(*shapes, stride, padding, dilation, groups):
            return
        value = result.meta["val"]
        with graph.inserting_before(node):  # so that it does not wait for the other half
            shape = (stride, padding, dilation, groups, value.dtype)
            own = graph.call_function(weight_gradient, (gradient, images, weight, *shape))
            own.meta["val"] = torch.empty_like(weight.meta["val"], dtype=value.dtype)
        result.replace_all_uses_with(own)
        for unused in (result, result.args[0]) if result.target is CAST else (result,):
            graph.erase_node(unused)
        node.args = (*node.args[:-1], [mask[INPUT], False, mask[BIAS]])

    def _result(self, node: fx.Node) -> fx.Node | None:
        """What the graph returns of the weight gradient, cast or not; None where more is done with it."""
        for taken in node.users:
            if taken.target is getitem and taken.args[1] == WEIGHT:
                users = list(taken.users)
                last = users[0] if len(users) == 1 and users[0].target is CAST else taken
                return last if all(user.op == "output" for user in last.users) else None
        return None


BESIDE = {
    "post_grad_custom_post_pass": Apart(),
    # The compiler may let a kernel write where another's input lies that it thinks is read already: one on
    # the second stream may still be reading it. The allocator, which is told, hands memory on instead.
    "allow_buffer_reuse": False,
    "inplace_buffers": False,
    "reorder_for_peak_memory": False,  # or the compiler may start one half when the other is done
}
