"""What batch norm sums over a batch, in two operators of our own: a pass for bf16 on a CPU.

torch.compile makes of batch norm loops over rows of memory, one for each 16 channels: memory is read as often
as there are such groups in a cache line, and each loop waits for its own last sum. The operators read it once
(`native.py`); all else of batch norm stays with the compiler.
"""

from __future__ import annotations

from operator import getitem

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.pattern_matcher import stable_topological_sort

from ikdlib.training import native
from ikdlib.training.operators import operator

CAST = torch.ops.prims.convert_element_type.default
VARIANCE = torch.ops.aten.var_mean.correction
SUM, PRODUCT, DIFFERENCE = (
    torch.ops.aten.sum.dim_IntList, torch.ops.aten.mul.Tensor, torch.ops.aten.sub.Tensor,
)  # fmt: skip
PLACES = [0, 2, 3]


def _of_moments(images):
    one = images.new_empty((1, images.shape[1], 1, 1), dtype=torch.float32)
    return one, torch.empty_like(one)


def _of_gradient_sums(gradient, images, mean):
    one = images.new_empty((images.shape[1],), dtype=torch.float32)
    return one, torch.empty_like(one)


@operator("moments(Tensor images) -> (Tensor, Tensor)", _of_moments)
def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (over n) and mean of each channel of [N, C, H, W], float32 [1, C, 1, 1] each."""
    if native.takes(images) and native.works():
        return native.moments(images)
    return torch.var_mean(images.float(), PLACES, correction=0, keepdim=True)


@operator("gradient_sums(Tensor gradient, Tensor images, Tensor mean) -> (Tensor, Tensor)", _of_gradient_sums)
def gradient_sums(gradient: Tensor, images: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel the sums of g and of g * (x - mean), float32 [C]; x as g, mean [1, C, 1, 1]."""
    if native.takes(gradient, images) and native.works():
        return native.gradient_sums(gradient, images, mean)
    gradient = gradient.float()
    return gradient.sum(PLACES), (gradient * (images.float() - mean)).sum(PLACES)


class ChannelSums(CustomGraphPass):
    """Puts the two operators where the graph of a compiled step sums bf16 over images and places."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=VARIANCE):
            self._forward(graph, node)
        for node in graph.find_nodes(op="call_function", target=SUM):
            self._backward(graph, node)
        stable_topological_sort(graph)
        graph.eliminate_dead_code()

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__, native.__file__))

    def _forward(self, graph: fx.Graph, node: fx.Node) -> None:
        images = _narrow(node.args[0])
        whole = list(node.args[1]) == PLACES and node.kwargs == {"correction": 0, "keepdim": True}
        if images is not None and whole and _is_fp32(node.args[0]):
            node.replace_all_uses_with(_before(node, moments, images))

    def _backward(self, graph: fx.Graph, node: fx.Node) -> None:
        """Of a sum of g * (x - mean); where g is summed alone too, that comes with it."""
        product, *how = node.args
        if how != [PLACES] or product.target is not PRODUCT:
            return
        wide, difference = product.args
        if not isinstance(difference, fx.Node) or difference.target is not DIFFERENCE:
            return
        gradient, images, mean = _narrow(wide), _narrow(difference.args[0]), difference.args[1]
        if gradient is None or images is None or not (_is_fp32(wide) and _is_fp32(mean)):
            return
        if tuple(mean.meta["val"].shape) != (1, gradient.meta["val"].shape[1], 1, 1):
            return
        found = _before(node, gradient_sums, gradient, images, mean)
        alone = [user for user in wide.users if user.target is SUM and user.args == (wide, PLACES)]
        for number, sums in enumerate((alone, [node])):
            for one in sums:
                with graph.inserting_before(node):
                    part = graph.call_function(getitem, (found, number))
                part.meta["val"] = one.meta["val"]
                one.replace_all_uses_with(part)


def _narrow(node: object) -> fx.Node | None:
    """The bf16 images that the kernels take, given them or what was widened from them; None for all else."""
    if isinstance(node, fx.Node) and node.target is CAST:
        node = node.args[0]
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return node if isinstance(value, Tensor) and native.takes(value) else None


def _is_fp32(node: object) -> bool:
    """The operators read and return fp32: what they replace has to be no narrower, and no number."""
    return isinstance(node, fx.Node) and node.meta["val"].dtype == torch.float32


def _before(node: fx.Node, operation: torch._ops.OpOverload, *arguments: fx.Node) -> fx.Node:
    with node.graph.inserting_before(node):
        call = node.graph.call_function(operation, arguments)
    with detect_fake_mode([one.meta["val"] for one in arguments]):
        call.meta["val"] = operation(*(one.meta["val"] for one in arguments))
    return call
