"""Post-training forms of exported graphs: int8 per output channel, and 8 or 4 bits in blocks.

    int8, int8.rr   MatMulInteger, a scale per output channel, activations quantized dynamically
    int8.block      MatMulNBits of 8 bits, a scale and a zero point per 32 inputs: 12 dB less noise where
                    weights have outliers, at twice the time; for onnxruntime of 2025 or newer
    int4            MatMulNBits of 4 bits, a scale and a zero point per 32 inputs: the smallest file

In blocks, `accuracy_level=4` allows an int8 product: lower levels are as slow as float32.

Only a MatMul with a constant matrix on the right is quantized, and the decoder's embedding. The
SSM's chunk operators stand on the left, act on carried state, and stay float32: an error in them
would last as long as the state does. Stacks of small matrices (one per head) stay float32 too:
onnxruntime's per-channel scales are for a single matrix, and a stack of them fails at run time.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from todm.errors import BundleError
from todm.export.to_onnx import quiet, save_model, set_metadata

if TYPE_CHECKING:
    import onnx

_OPS = ("MatMul", "Gather")
BLOCK = 32


def quantize_int8(source: Path, target: Path, *, reduce_range: bool = False) -> int:
    """Write the int8 form of a graph.

    Args:
        source: a float32 ONNX file.
        target: the file to write, with the same metadata.
        reduce_range: 7-bit weights, for x86 processors without VNNI, whose 16-bit sums saturate
            with 8 bits (a loss of 20 dB there, against 2 dB with 7 bits elsewhere).

    Returns:
        The number of matrices in int8.

    Raises:
        BundleError: the graph has no matrix that can be int8.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    original = onnx.load(str(source))
    with tempfile.TemporaryDirectory() as folder, quiet():
        scratch = Path(folder) / "int8.onnx"
        quantize_dynamic(
            str(source),
            str(scratch),
            op_types_to_quantize=list(_OPS),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_excluded(original),
            extra_options={"MatMulConstBOnly": True},
        )
        model = onnx.load(str(scratch))
    done = _count(model, "MatMulInteger")
    if done == 0:
        raise BundleError(f"{source.name} has no matrix that can be int8")
    del model.graph.value_info[:]
    _unshare_weights(model)
    set_metadata(model, {entry.key: entry.value for entry in original.metadata_props})
    save_model(model, target)
    return done


def quantize_blocks(source: Path, target: Path, *, bits: int) -> int:
    """Write the form of a graph with its matrices in blocks of 32 inputs.

    Args:
        source: a float32 ONNX file.
        target: the file to write, with the same metadata.
        bits: per weight, 8 or 4.

    Returns:
        The number of matrices in blocks.

    Raises:
        BundleError: the graph has no matrix that can be put into blocks.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(str(source))
    with quiet():
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=4,
            nodes_to_exclude=_excluded(model),
        )
        quantizer.process()
    done = _count(model, "MatMulNBits")
    if done == 0:
        raise BundleError(f"{source.name} has no matrix that can be quantized in blocks")
    # The quantizer writes a shared weight once per product.
    constants = {constant.name: constant for constant in model.graph.initializer}
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants.values())
    save_model(model, target)
    return done


def _count(model: "onnx.ModelProto", op: str) -> int:
    return sum(node.op_type == op for node in model.graph.node)


def _unshare_weights(model: "onnx.ModelProto") -> None:
    """Give every product its own weight.

    onnxruntime 1.31 cannot load a shared one with `session.x64quantprecision`, which `todm.device` sets
    on x86 without VNNI.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        for at in (1, 3) if node.op_type == "MatMulInteger" else ():
            name = node.input[at]
            if name in taken:
                node.input[at] = f"{node.name}.{name}"
                model.graph.initializer.add().CopyFrom(constants[name])
                model.graph.initializer[-1].name = node.input[at]
            taken.add(name)


def _excluded(model: "onnx.ModelProto") -> list[str]:
    """Names of the nodes that stay float32, as described at the top of this file.

    A Gather with a constant index picks a layer's weights from a stack; only one with an input as index is
    an embedding.
    """
    ranks = {constant.name: len(constant.dims) for constant in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "MatMul" and ranks.get(node.input[1], 2) > 2)
        or (node.op_type == "Gather" and node.input[1] in ranks)
    ]
