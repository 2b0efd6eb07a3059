"""Post-training forms of exported graphs: int8 per output channel, and 8 or 4 bits in blocks.

    int8, int8.rr   MatMulInteger, a scale per output channel, activations in 8 bits as they come
    int8.block      MatMulNBits of 8 bits, a scale per 32 inputs: 12 dB less noise where weights have
                    outliers, at twice the time; for onnxruntime of 2025 or newer
    int4            MatMulNBits of 4 bits, a scale and a zero point per 32 inputs: the smallest file

In blocks, `accuracy_level=4` lets the product be one of int8: with less, it is as slow as float32.

Only a MatMul with a constant matrix on the right is quantized, and the decoder's embedding. The
SSM's chunk operators stand on the left, act on carried state, and stay float32: an error in them
would last as long as the state does. Stacks of small matrices (one per head) stay float32 too:
onnxruntime's per-channel scales are for a single matrix, and a stack of them fails when it is run.

Letters: N outputs, K inputs, G blocks of inputs.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import BundleError
from todm.export.nbits import to_nbits
from todm.export.to_onnx import quiet, save_model, set_metadata
from todm.kernels import matmul_w4

if TYPE_CHECKING:
    import onnx

_OPS = ("MatMul", "Gather")
BLOCK = 32
_DOMAIN = "com.microsoft"


def quantize_int8(source: Path, target: Path, *, reduce_range: bool = False) -> int:
    """Write the int8 form of a graph.

    Args:
        source: a float32 ONNX file.
        target: the file to write, with the same metadata.
        reduce_range: 7-bit weights, for x86 processors without VNNI, whose 16-bit sums saturate
            otherwise (20 dB of signal-to-noise there, against 2 dB lost elsewhere).

    Returns:
        The number of matrices made int8.

    Raises:
        BundleError: the graph has no matrix that can be made int8.
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
    done = Counter(node.op_type for node in model.graph.node)["MatMulInteger"]
    if done == 0:
        raise BundleError(f"{source.name} has no matrix that int8 could be applied to")
    del model.graph.value_info[:]
    _unshare_weights(model)
    set_metadata(model, {entry.key: entry.value for entry in original.metadata_props})
    save_model(model, target)
    return done


def quantize_blocks(source: Path, target: Path, *, bits: int) -> int:
    """Write the form of a graph that has its matrices in blocks of 32 inputs.

    Args:
        source: a float32 ONNX file.
        target: the file to write, with the same metadata.
        bits: 8 or 4 of a weight.

    Returns:
        The number of matrices in blocks.

    Raises:
        BundleError: the graph has no matrix that can be put into blocks.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    matrices = {c.name: c for c in model.graph.initializer if len(c.dims) == 2}
    nodes = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in matrices]
    if not nodes:
        raise BundleError(f"{source.name} has no matrix that could be put into blocks of weights")
    for name in dict.fromkeys(node.input[1] for node in nodes):
        weight_NK = torch.from_numpy(numpy_helper.to_array(matrices[name]).T.copy())
        for key, value in block_constants(weight_NK, bits).items():
            constant = numpy_helper.from_array(value.numpy(), f"{name}.{key}")
            model.graph.initializer.append(constant)
    for node in nodes:
        _to_blocks(node, tuple(matrices[node.input[1]].dims), bits)
    used = {name for node in model.graph.node for name in node.input}
    kept = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    if _DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    save_model(model, target)
    return len(nodes)


def block_constants(weight_NK: Tensor, bits: int) -> dict[str, Tensor]:
    """The constants of MatMulNBits by name, for a weight [N, K] in blocks of 32 inputs.

    Of 8 bits they are `B` uint8 [N, G, 32] and `scales` [N, G] about a middle of 128; of 4 bits see
    `nbits.py`.
    """
    if bits == 4:
        return to_nbits(matmul_w4.quantise_rtn(weight_NK, group=BLOCK))._asdict()
    assert bits == 8
    w_NGI = F.pad(weight_NK, (0, -weight_NK.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scale_NG = w_NGI.abs().amax(2).clamp(min=torch.finfo(torch.float32).tiny) / 127
    codes_NGI = (w_NGI / scale_NG[..., None]).round() + 128
    return {"B": codes_NGI.to(torch.uint8), "scales": scale_NG}


def _to_blocks(node: "onnx.NodeProto", shape_KN: tuple[int, ...], bits: int) -> None:
    """A MatMul becomes a MatMulNBits with the constants of its weight."""
    from onnx import helper

    names = ("B", "scales", "zero_points") if bits == 4 else ("B", "scales")
    node.input[:] = [node.input[0], *(f"{node.input[1]}.{name}" for name in names)]
    node.op_type, node.domain = "MatMulNBits", _DOMAIN
    sizes = {"K": shape_KN[0], "N": shape_KN[1], "bits": bits, "block_size": BLOCK}
    for key, value in {**sizes, "accuracy_level": 4}.items():
        node.attribute.append(helper.make_attribute(key, value))


def _unshare_weights(model: "onnx.ModelProto") -> None:
    """Give every product a weight of its own.

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
    """Names of the nodes that stay float32: see the head of this file.

    A Gather by a constant picks a layer's weights out of a stack; only one by an input is a lookup.
    """
    ranks = {constant.name: len(constant.dims) for constant in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "MatMul" and ranks.get(node.input[1], 2) > 2)
        or (node.op_type == "Gather" and node.input[1] in ranks)
    ]
