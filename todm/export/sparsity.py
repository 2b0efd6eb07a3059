"""Check that an exported file has its 2:4 zeros where a sparse product needs them.

Sparse tensor cores (Ampere and later, AGX Orin included) need at most two nonzeros in every four neighbours
**along the reduction axis**, which the product sums over. In a file that axis is the first (MatMul) or the
second (Gemm with transB). An exporter or quantizer that transposes, folds or regroups a constant can leave
as many zeros along the other axis, where they are useless, without any error. So the constants of the
file itself are checked.

Letters: N outputs, K inputs (the reduction).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from todm.backend import Graph
from todm.compress import packed
from todm.errors import BundleError

if TYPE_CHECKING:
    import onnx


def matrices_24(path: Path) -> dict[str, bool]:
    """Whether each matrix of a file is 2:4 along the reduction axis, by the name of its constant.

    Covers MatMul, Gemm and MatMulInteger with a constant of two axes on the right, directly or behind a
    DequantizeLinear. A zero is a code that dequantises to zero.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    constants = {c.name: c for c in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    kept = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "MatMulInteger"):
            continue
        name, zero = _constant(node, makers, constants)
        if name is None or len(constants[name].dims) != 2:
            continue
        matrix = numpy_helper.to_array(constants[name]) != zero
        kept[name] = is_24(matrix if _has_outputs_first(node) else matrix.T)
    return kept


def is_24(nonzero_NK: NDArray[np.bool_]) -> bool:
    """Whether every four neighbours along K have at most two nonzeros; K is padded with zeros."""
    padded = np.pad(nonzero_NK, ((0, 0), (0, -nonzero_NK.shape[1] % 4)))
    return bool((padded.reshape(len(padded), -1, 4).sum(2) <= 2).all())


def require_24(path: Path, graph: Graph) -> int:
    """Check that a file has a 2:4 matrix for every 2:4 layer that becomes an ONNX product.

    Args:
        path: the ONNX file.
        graph: the source of the file. Layers that it does not call are not counted, nor are those of 4
            bits, for which no engine has a sparse product.

    Returns:
        The number of 2:4 layers.

    Raises:
        BundleError: a layer lost its zeros or has them along the other axis.
    """
    wanted = len([layer for layer in _called(graph) if _is_sparse(layer)])
    kept = sum(matrices_24(path).values())
    if kept < wanted:
        raise BundleError(
            f"{path.name} has {kept} matrices with 2:4 zeros along the inputs and the model has "
            f"{wanted} such layers: the export lost them, and was not written"
        )
    return wanted


def _called(graph: Graph) -> list[packed.PackedLinear]:
    """The packed layers that a graph runs; its module may contain those of other graphs too."""
    called: dict[int, packed.PackedLinear] = {}
    layers = packed.layers_of(graph.module).values()
    hooks = [
        layer.register_forward_hook(
            lambda _module, *_, layer=layer: called.update({id(layer): layer})
        )
        for layer in layers
    ]
    try:
        if layers:
            with torch.inference_mode():
                graph.module(*(port.example for port in graph.inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return list(called.values())


def _is_sparse(layer: packed.PackedLinear) -> bool:
    if isinstance(layer, packed.Int8Linear):
        return layer.sparse24
    return isinstance(layer, packed.SparseLinear)


def _constant(
    node: "onnx.NodeProto",
    makers: "dict[str, onnx.NodeProto]",
    constants: "dict[str, onnx.TensorProto]",
) -> tuple[str | None, int]:
    """The constant on the right of a product, and its zero point."""
    from onnx import numpy_helper

    name, zero_name = node.input[1], ""
    if node.op_type == "MatMulInteger" and len(node.input) > 3:
        zero_name = node.input[3]
    maker = makers.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        name, zero_name = maker.input[0], maker.input[2] if len(maker.input) > 2 else ""
    zeros = numpy_helper.to_array(constants[zero_name]) if zero_name in constants else np.zeros(1)
    assert (zeros == zeros.flat[0]).all()
    return (name if name in constants else None), int(zeros.flat[0])


def _has_outputs_first(node: "onnx.NodeProto") -> bool:
    """Whether the constant is stored as [N, K]."""
    return any(a.name == "transB" and a.i == 1 for a in node.attribute)
