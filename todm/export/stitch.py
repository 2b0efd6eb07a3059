"""Graphs of subnets put together of exported pieces, without an export of each.

The operators are those of a real export, node by node (held against one in a test); the constants are
those of the pieces, the same in every block. Numbers do not change what a matrix product costs, so
`hollow` can also leave them out of the file: a row is kept, and onnxruntime spreads it when it loads.
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
"""Constants of fewer numbers stay as they are: the decay of a state must stay below one."""


class Stitcher:
    """Exported pieces of one precision, and graphs of any subnet made of them."""

    def __init__(self, pieces: GraphParts, models: Mapping[str, "onnx.ModelProto"]) -> None:
        """See `lower`."""
        self._pieces, self._models = pieces, models

    def assemble(self, subnet: Subnet) -> "onnx.ModelProto":
        """The graph of a subnet, with the inputs and outputs of the whole."""
        import onnx
        from onnx import helper

        whole = self._pieces.whole
        build = _Builder(self._models)
        features, states = whole.inputs[0].name, whole.inputs[1].name
        fixed = [port.name for port in whole.inputs[2:]]
        x, *kept = build.add(self._pieces.front.name, "front", [features, *fixed])
        parts = [
            (f"{position}.{name}", self._pieces.halves[name][subnet.width(name, position)])
            for position in range(subnet.depth)
            for name in self._pieces.halves
        ]
        sizes = [port.example.shape[1] for _, part in parts for port in part.inputs[1:]]
        before = build.split(states, sizes)
        after: list[str] = []
        for prefix, part in parts:
            own = [before.pop(0) for _ in part.inputs[1:]]
            x, *left = build.add(part.name, prefix, [x, *own])
            after += left
        (out,) = build.add(self._pieces.back.name, "back", [x])
        joined = build.join(after)
        found = [out, joined, *kept]
        for name, port in zip(found, whole.outputs, strict=True):
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


def lower(pieces: GraphParts, *, int8: bool) -> dict[str, dict[str, "onnx.ModelProto"]]:
    """Export every piece once: by precision and by name, the others among them.

    Raises:
        MissingExtra: a package for export is not installed.
    """
    import onnx

    graphs = [pieces.front, pieces.back, *pieces.others]
    graphs += [graph for half in pieces.halves.values() for graph in half.values()]
    found: dict[str, dict[str, onnx.ModelProto]] = {"fp32": {}}
    if int8:
        found["int8"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph in graphs:
            plain, small = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
            graph_to_onnx(graph, plain)
            found["fp32"][graph.name] = onnx.load(str(plain))
            if int8:
                quantize_int8(plain, small)
                found["int8"][graph.name] = onnx.load(str(small))
    return found


def hollow(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same graph without its large constants: one row of each is kept and spread at load time."""
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
    """Nodes and constants of several models in one graph, their names kept apart by prefixes."""

    def __init__(self, models: Mapping[str, "onnx.ModelProto"]) -> None:
        self._models = models
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, model: str, prefix: str, inputs: list[str]) -> list[str]:
        """Append a piece that reads these values; returns the names of its outputs."""
        import onnx

        graph = self._models[model].graph
        names = {port.name: given for port, given in zip(graph.input, inputs, strict=True)}
        for constant in graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(constant)
            copy.name = names[constant.name] = f"{prefix}/{constant.name}"
            self.constants.append(copy)
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{prefix}/{node.name}"
            ours = [names.setdefault(n, f"{prefix}/{n}") if n else "" for n in node.input]
            theirs = [names.setdefault(n, f"{prefix}/{n}") if n else "" for n in node.output]
            del copy.input[:], copy.output[:]
            copy.input.extend(ours)
            copy.output.extend(theirs)
            self.nodes.append(copy)
        return [names[port.name] for port in graph.output]

    def split(self, states: str, sizes: list[int]) -> list[str]:
        """[1, B, S] into [B, S] of every part, as a whole export does it."""
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
    """An input or output of the whole; `last` replaces the size of its last axis."""
    from onnx import TensorProto, helper

    shape: list[str | int] = [port.dynamic.get(i, n) for i, n in enumerate(port.example.shape)]
    if last is not None:
        shape[-1] = last
    return helper.make_tensor_value_info(port.name, TensorProto.FLOAT, shape)
