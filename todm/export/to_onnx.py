"""Graphs to ONNX files: one file each, with a dynamic batch axis, for old runtimes too."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from todm.backend import Graph, Port
from todm.errors import MissingExtra
from todm.export.compressed import lowered

if TYPE_CHECKING:
    import onnx

OPSET = 18
# sherpa-onnx 1.10 and older refuse IR 10, which torch writes; nothing newer than IR 8 is used.
IR_VERSION = 8
_FOLDED = 16  # elements: shapes are folded, weights are not


def graph_to_onnx(graph: Graph, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Lower one graph to a single ONNX file that contains its weights, packed layers included.

    Args:
        graph: to lower; a dynamic axis needs an example size of at least 2.
        path: the file to write.
        metadata: added to the graph's own, which it overrides.

    Raises:
        BundleError: a packed layer has no ONNX form.
        MissingExtra: onnx or onnxscript is not installed.
        ValueError: an example has size 1 on a dynamic axis, or an output differs from its port.
    """
    model = _lower(graph)
    # Remove what is of no use to others: Python stack traces of every node.
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    model.producer_name = "todm"
    set_metadata(model, {**graph.metadata, **(metadata or {})})
    save_model(model, path)


def save_model(model: "onnx.ModelProto", path: Path) -> None:
    """Check a model and write it as one file.

    Apps load it from a buffer, where weights in a second file would not be found.
    """
    import onnx

    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path), save_as_external_data=False)


def set_metadata(model: "onnx.ModelProto", metadata: Mapping[str, str]) -> None:
    """Replace the metadata of a model."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)


def _lower(graph: Graph) -> "onnx.ModelProto":
    _require_onnx()
    from onnxscript import optimizer

    for port in graph.inputs:
        _check_example(graph, port)
    # Cloned, because the exporter merges inputs whose examples are the same tensor.
    examples = tuple(port.example.clone() for port in graph.inputs)
    shapes = tuple(dict.fromkeys(port.dynamic, torch.export.Dim.DYNAMIC) for port in graph.inputs)
    with quiet(), lowered(graph.module):
        program = torch.onnx.export(
            graph.module.eval(),
            examples,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        # Values computed from weights stay expressions, which makes smaller files; runtimes fold them.
        optimizer.optimize(program.model, input_size_limit=_FOLDED)
    model = program.model_proto
    _name_axes(model, graph)
    return model


def _check_example(graph: Graph, port: Port) -> None:
    for axis in port.dynamic:
        if port.example.shape[axis] < 2:
            raise ValueError(
                f"graph {graph.name!r}: axis {axis} of input {port.name!r} is dynamic and its example "
                f"has size {port.example.shape[axis]}, which the exporter would freeze: give 2 or more"
            )


def _name_axes(model: "onnx.ModelProto", graph: Graph) -> None:
    """Give the axes the names of the ports instead of the exporter's s0, s1."""
    for values, ports in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
        for value, port in zip(values, ports, strict=True):
            dims = value.type.tensor_type.shape.dim
            if len(dims) != port.example.ndim:
                raise ValueError(
                    f"graph {graph.name!r}: {port.name!r} has {len(dims)} axes, its port says "
                    f"{port.example.ndim}"
                )
            for axis, dim in enumerate(dims):
                dim.Clear()
                if axis in port.dynamic:
                    dim.dim_param = port.dynamic[axis]
                else:
                    dim.dim_value = port.example.shape[axis]


def _require_onnx() -> None:
    import importlib.util

    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "train", "exporting")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter's deprecations and progress notes are not for the user of todm."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
