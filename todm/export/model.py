"""A model of one graph as an ONNX file, compressed or not, checked in onnxruntime before it is written.

Files: model.onnx, README.md, and those of the modality (labels, tokenizer).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Graph, Port
from todm.device.bundle import load_session
from todm.errors import BundleError
from todm.export.compressed import is_rounding, summary
from todm.export.to_onnx import graph_to_onnx
from todm.export.verify import Report, compare_graph

KIND = "onnx"
FILE = "model.onnx"
_SIZES = (1, 2, 3)

_CARD = """\
# {name}.onnx, exported by todm

| | name | type | shape |
| --- | --- | --- | --- |
{ports}

{size:.2f} MB (10^6 bytes). {layers}
Compared with torch in onnxruntime when it was made; largest differences:

{checks}
"""


def write_model(
    path: str | Path,
    graph: Graph,
    *,
    parent: Artifact,
    write_assets: Callable[[Path], None],
) -> Artifact:
    """Lower a model, verify it and write it.

    Args:
        path: the directory to make; an export already there is replaced.
        graph: the whole model.
        parent: the artifact it is made from.
        write_assets: writes the modality's files into a directory.

    Raises:
        BundleError: a layer has no ONNX form, or outputs differ; nothing is written then.
        MissingExtra: a package for export is not installed.
        ArtifactError: `path` exists and is not an artifact.
    """
    metrics: dict[str, Any] = {}
    layers = summary([graph.module])

    def write(folder: Path) -> None:
        write_assets(folder)
        graph_to_onnx(graph, folder / FILE)
        report = check_model(graph, folder / FILE)
        size = (folder / FILE).stat().st_size
        metrics.update({"checks": report.figures, "bytes": {FILE: size}})
        text = _card(graph, layers, report, size)
        (folder / "README.md").write_text(text, encoding="utf-8")

    return artifact.save(
        path,
        kind=KIND,
        config=parent.config,
        parent=parent.hash,
        metrics=metrics,
        info={"compressed": layers},
        write=write,
    )


def check_model(graph: Graph, file: Path, *, first: int = 0) -> Report:
    """Run the file on random inputs of several sizes, against the torch module.

    Args:
        graph: the source of the file.
        file: the ONNX file.
        first: the index of its output that is the graph's first.

    Raises:
        BundleError: onnxruntime refuses it, or outputs differ.
    """
    session = load_session(file)
    report = Report(rounds=is_rounding(graph.module))
    for size in _SIZES:
        inputs = [_random(port, size) for port in graph.inputs]
        compare_graph(report, graph, session, inputs, where=file, first=first)
    return report


def check_one_graph(graphs: list[Graph], source: Path) -> Graph:
    """The only graph of a model.

    Raises:
        BundleError: it has several graphs, or none.
    """
    if len(graphs) != 1:
        names = ", ".join(g.name for g in graphs) or "none"
        raise BundleError(
            f"{source} has the graphs {names}: the target onnx needs a model with one"
        )
    return graphs[0]


def _random(port: Port, size: int) -> Tensor:
    """An input like the example, with dynamic axes shorter, equal or longer."""
    shape = [
        max(1, n + size - 2) if axis in port.dynamic else n
        for axis, n in enumerate(port.example.shape)
    ]
    draws = torch.Generator().manual_seed(size)
    if port.example.dtype.is_floating_point:
        low, high = float(port.example.min()), float(port.example.max())
        return low + (high - low) * torch.rand(shape, generator=draws)
    return torch.randint(int(port.example.max()) + 1, shape, generator=draws)


def _card(graph: Graph, layers: dict[str, int], report: Report, size: int) -> str:
    ports = [("in", p) for p in graph.inputs] + [("out", p) for p in graph.outputs]
    rows = [
        f"| {way} | {p.name} | {str(p.example.dtype).removeprefix('torch.')} | "
        f"{', '.join(str(p.dynamic.get(a, n)) for a, n in enumerate(p.example.shape))} |"
        for way, p in ports
    ]
    held = [f"- {num} layers: {words}\n" for words, num in layers.items()]
    return _CARD.format(
        name=graph.name,
        ports="\n".join(rows),
        size=size / 1e6,
        layers="Compressed layers, the rest in float32:\n\n" + "".join(held) if held else "",
        checks="\n".join(f"- {name}: {value:.2g}" for name, value in report.figures.items()),
    )
