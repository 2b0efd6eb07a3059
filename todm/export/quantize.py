"""Post-training int8 of exported graphs: weights per output channel, activations as they come.

Only a MatMul with a constant matrix on the right is quantized, and the decoder's embedding. The
SSM's chunk operators stand on the left, act on carried state, and stay float32: an error in them
would last as long as the state does. Stacks of small matrices (one per head) stay float32 too:
onnxruntime's per-channel scales are for a single matrix, and a stack of them fails when it is run.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from todm.errors import BundleError
from todm.export.to_onnx import quiet, save_model, set_metadata

if TYPE_CHECKING:
    import onnx

_OPS = ("MatMul", "Gather")


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
    set_metadata(model, {entry.key: entry.value for entry in original.metadata_props})
    save_model(model, target)
    return done


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
