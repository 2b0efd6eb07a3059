"""An offline encoder from a streaming one: an ONNX Scan over its chunks, with the same weights.

The streaming graph becomes the body and refers to its weights outside by name. So offline and streaming
transcripts of the same audio are equal, in int8 too. Weights in blocks lie in the body: the onnxruntime
of sherpa-onnx 2.0.1 packs them without their zero points if these lie outside.

Around the Scan, frames after each recording's end become digital silence, `tail_frames` frames of silence
are added, and the lengths grow accordingly. A recogniser with little look-ahead emits its last words after
the speech, and sherpa-onnx adds no tail.

Letters: N recordings, T frames, C encoder frames of a chunk, J joiner width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from todm.device.contract import OFFLINE_MODEL_TYPE
from todm.device.features import NUM_BINS, SILENCE
from todm.errors import BundleError
from todm.export.to_onnx import save_model, set_metadata

if TYPE_CHECKING:
    import onnx

_SUBSAMPLING = 4
_PREFIX = "offline."  # keeps names apart from those of the streaming graph


def wrap_in_scan(source: Path, target: Path, *, tail_frames: int) -> None:
    """Write the offline form of a streaming encoder.

    Args:
        source: encoder.onnx or encoder.int8.onnx, with its metadata.
        target: the file to write: x [N, T, 80], x_lens [N] -> encoder_out [N, T', J], lengths [N].
        tail_frames: feature frames of silence decoded after each recording.

    Raises:
        BundleError: the streaming encoder reads frames beyond its chunk, which a Scan cannot do.
    """
    import onnx
    from onnx import helper

    streaming = onnx.load(str(source))
    metadata = {entry.key: entry.value for entry in streaming.metadata_props}
    if metadata["T"] != metadata["decode_chunk_len"]:
        raise BundleError(
            f"{source.name} reads {metadata['T']} frames and advances {metadata['decode_chunk_len']}: "
            "only an encoder without overlap has an offline form"
        )
    graph = _around(streaming.graph, int(metadata["T"]), tail_frames)
    model = helper.make_model(
        graph,
        opset_imports=streaming.opset_import,
        ir_version=streaming.ir_version,
        producer_name="todm",
    )
    kept = {k: v for k, v in metadata.items() if k in ("version", "model_author", "comment")}
    set_metadata(model, {"model_type": OFFLINE_MODEL_TYPE, **kept, "tail_frames": str(tail_frames)})
    save_model(model, target)


def _around(streaming: "onnx.GraphProto", chunk_frames: int, tail_frames: int) -> "onnx.GraphProto":
    from onnx import helper

    x, *states = streaming.input
    out, *new_states = streaming.output
    joiner_dim = out.type.tensor_type.shape.dim[2].dim_value
    in_blocks = {i for n in streaming.node if n.op_type == "MatMulNBits" for i in n.input[1:]}
    inside = [constant for constant in streaming.initializer if constant.name in in_blocks]
    outside = [constant for constant in streaming.initializer if constant.name not in in_blocks]
    body = helper.make_graph(
        list(streaming.node), "chunk", [*states, x], [*new_states, out], initializer=inside
    )
    builder = _Builder()
    silent, lens = _silence(builder, chunk_frames, tail_frames)
    batch = builder.add("Slice", builder.add("Shape", "x"), builder.ints([0]), builder.ints([1]))
    chunks = builder.add("Reshape", silent, builder.ints([0, -1, chunk_frames, NUM_BINS]))
    zeros = [_zeros(builder, batch, state) for state in states]
    scan = helper.make_node(
        "Scan",
        [*zeros, chunks],
        [_PREFIX + "state0", _PREFIX + "state1", _PREFIX + "outs"],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    builder.nodes.append(scan)
    shape = builder.ints([0, -1, joiner_dim])
    builder.nodes.append(helper.make_node("Reshape", [_PREFIX + "outs", shape], ["encoder_out"]))
    builder.nodes.append(helper.make_node("Identity", [lens], ["encoder_out_lens"]))
    return helper.make_graph(
        builder.nodes,
        "offline",
        _ports("x", ["N", "T", NUM_BINS]),
        _ports("encoder_out", ["N", "T_out", joiner_dim]),
        initializer=[*outside, *builder.constants],
    )


def _ports(name: str, shape: list[str | int]) -> "list[onnx.ValueInfoProto]":
    """A float32 value and its lengths."""
    from onnx import TensorProto, helper

    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape),
        helper.make_tensor_value_info(f"{name}_lens", TensorProto.INT64, ["N"]),
    ]


class _Builder:
    """Nodes and constants of a graph under construction; each result has a unique name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, axis: int | None = None) -> str:
        """Append a node; returns the name of its result."""
        from onnx import helper

        name = f"{_PREFIX}{op.lower()}{len(self.nodes)}"
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def ints(self, values: Sequence[int] | int) -> str:
        """An int64 constant."""
        return self._constant(np.asarray(values, np.int64))

    def floats(self, value: float) -> str:
        """A float32 constant."""
        return self._constant(np.asarray(value, np.float32))

    def _constant(self, value: NDArray[np.int64] | NDArray[np.float32]) -> str:
        from onnx import numpy_helper

        name = f"{_PREFIX}constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _silence(builder: _Builder, chunk_frames: int, tail_frames: int) -> tuple[str, str]:
    """The input with its tail, padded to whole chunks and silent after each end; and the output lengths."""
    add, ints = builder.add, builder.ints
    num_frames = add("Gather", add("Shape", "x"), ints(1))
    wanted = add("Add", num_frames, ints(tail_frames + chunk_frames - 1))
    padded = add("Mul", add("Div", wanted, ints(chunk_frames)), ints(chunk_frames))
    extra = add("Unsqueeze", add("Sub", padded, num_frames), ints([0]))
    pads = add("Concat", ints([0, 0, 0, 0]), extra, ints([0]), axis=0)
    x = add("Pad", "x", pads, builder.floats(SILENCE))
    ticks = add("Range", ints(0), padded, ints(1))
    inside = add("Less", add("Unsqueeze", ticks, ints([0])), add("Unsqueeze", "x_lens", ints([1])))
    silent = add("Where", add("Unsqueeze", inside, ints([2])), x, builder.floats(SILENCE))
    rounded = add("Add", "x_lens", ints(tail_frames + _SUBSAMPLING - 1))
    return silent, add("Div", rounded, ints(_SUBSAMPLING))


def _zeros(builder: _Builder, batch: str, state: "onnx.ValueInfoProto") -> str:
    """A state at the start: zeros [L, N, size]."""
    layers, _, size = (dim.dim_value for dim in state.type.tensor_type.shape.dim)
    shape = builder.add("Concat", builder.ints([layers]), batch, builder.ints([size]), axis=0)
    return builder.add("ConstantOfShape", shape)
