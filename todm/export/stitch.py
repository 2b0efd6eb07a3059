"""Graphs of subnets assembled from exported parts, without an export of each subnet.

The operators are those of a real export, node by node (a test compares them); the constants are those of
the parts, the same in every block. Their values do not change what a matrix product costs, so `hollow`
leaves them out of the file: one row is kept, and onnxruntime expands it when it loads the graph.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from todm.backend import GraphParts, Port
from todm.export.quantize import quantize_int8
from todm.export.to_onnx import IR_VERSION, OPSET, graph_to_onnx
from todm.supernet.space import Subnet

if TYPE_CHECKING:
    import onnx

_HOLLOW = 1024
"""Smaller constants stay as they are: the decay of a state must stay below one."""


class Stitcher:
    """Assembles the graph of any subnet from exported parts of one precision."""

    def __init__(self, parts: GraphParts, models: Mapping[str, "onnx.ModelProto"]) -> None:
        """See `lower`."""
        self._parts, self._models = parts, models

    def assemble(self, subnet: Subnet) -> "onnx.ModelProto":
        """The graph of a subnet, with the inputs and outputs of the whole."""
        import onnx
        from onnx import helper

        whole = self._parts.whole
        build = _Builder(self._models)
        features, states = whole.inputs[0].name, whole.inputs[1].name
        fixed = [port.name for port in whole.inputs[2:]]
        x, *kept = build.add(self._parts.stem.name, "stem", [features, *fixed])
        chain = [
            (f"{position}.{name}", self._parts.sublayers[name][subnet.width(name, position)])
            for position in range(subnet.depth)
            for name in self._parts.sublayers
        ]
        sizes = [port.example.shape[1] for _, part in chain for port in part.inputs[1:]]
        before = build.split(states, sizes)
        after: list[str] = []
        for prefix, part in chain:
            own = [before.pop(0) for _ in part.inputs[1:]]
            x, *left = build.add(part.name, prefix, [x, *own])
            after += left
        (out,) = build.add(self._parts.head.name, "head", [x])
        joined = build.join(after)
        results = [out, joined, *kept]
        for name, port in zip(results, whole.outputs, strict=True):
            build.node("Identity", [name], [port.name])
        total = {whole.inputs[1].name: sum(sizes), whole.outputs[1].name: sum(sizes)}
        graph = helper.make_graph(
            build.nodes,
            whole.name,
            [_value(port, total.get(port.name)) for port in whole.inputs],
            [_value(port, total.get(port.name)) for port in whole.outputs],
            build.constants,
        )
        opsets = {o.domain: o for model in self._models.values() for o in model.opset_import}
        model = helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=IR_VERSION)
        assert opsets[""].version == OPSET
        onnx.checker.check_model(model)
        return model


def lower(parts: GraphParts, *, int8: bool) -> dict[str, dict[str, "onnx.ModelProto"]]:
    """Export every part once: by precision and by name.

    Raises:
        MissingExtra: a package for export is not installed.
    """
    import onnx

    models: dict[str, dict[str, onnx.ModelProto]] = {"fp32": {}}
    if int8:
        models["int8"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph in parts.graphs():
            plain, small = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
            graph_to_onnx(graph, plain)
            models["fp32"][graph.name] = onnx.load(str(plain))
            if int8:
                quantize_int8(plain, small)
                models["int8"][graph.name] = onnx.load(str(small))
    return models


def hollow(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same graph without its large constants: one row of each is kept and expanded at load time."""
    import onnx
    from onnx import helper, numpy_helper

    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.initializer[:]
    spread = []
    for constant in model.graph.initializer:
        value = numpy_helper.to_array(constant)
        if value.size < _HOLLOW or value.ndim < 2:
            graph.initializer.append(constant)
            continue
        name = constant.name
        row = np.ascontiguousarray(value[(slice(0, 1),) * (value.ndim - 1)])
        shape = np.array(value.shape, np.int64)
        graph.initializer.append(numpy_helper.from_array(row, f"{name}.row"))
        graph.initializer.append(numpy_helper.from_array(shape, f"{name}.shape"))
        spread.append(helper.make_node("Expand", [f"{name}.row", f"{name}.shape"], [name]))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*spread, *nodes])
    made = helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
    made.metadata_props.extend(model.metadata_props)
    return made


class _Builder:
    """Nodes and constants of several models in one graph, with prefixed names."""

    def __init__(self, models: Mapping[str, "onnx.ModelProto"]) -> None:
        self._models = models
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, model: str, prefix: str, inputs: list[str]) -> list[str]:
        """Append a part that reads these values; returns the names of its outputs."""
        from onnx import compose

        graph = compose.add_prefix_graph(self._models[model].graph, f"{prefix}/")
        names = {port.name: given for port, given in zip(graph.input, inputs, strict=True)}
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        self.nodes += graph.node
        self.constants += graph.initializer
        return [port.name for port in graph.output]

    def split(self, states: str, sizes: list[int]) -> list[str]:
        """Split [1, B, S] into the states [B, S] of every part, as a whole export does."""
        names = [f"states.{i}" for i in range(len(sizes))]
        self._integers("states.first", 0)
        self._integers("states.sizes", sizes)
        self.node("Gather", [states, "states.first"], ["states.all"], axis=0)
        self.node("Split", ["states.all", "states.sizes"], names, axis=1)
        return names

    def join(self, names: list[str]) -> str:
        """The inverse of `split`."""
        self._integers("states.axis", [0])
        self.node("Concat", names, ["states.joined"], axis=1)
        self.node("Unsqueeze", ["states.joined", "states.axis"], ["states.after"])
        return "states.after"

    def node(
        self, op: str, inputs: list[str], outputs: list[str], *, axis: int | None = None
    ) -> None:
        """Append a single node."""
        from onnx import helper

        made = helper.make_node(op, inputs, outputs, f"stitch/{outputs[0]}")
        if axis is not None:
            made.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(made)

    def _integers(self, name: str, value: int | list[int]) -> None:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.array(value, np.int64), name))


def _value(port: Port, last: int | None) -> "onnx.ValueInfoProto":
    """An input or output of the whole; `last` overrides the size of its last axis."""
    from onnx import TensorProto, helper

    shape: list[str | int] = [port.dynamic.get(i, n) for i, n in enumerate(port.example.shape)]
    if last is not None:
        shape[-1] = last
    return helper.make_tensor_value_info(port.name, TensorProto.FLOAT, shape)
