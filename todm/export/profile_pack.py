"""A folder for measuring a device: graphs of a few dozen subnets, a plan, and one Python file.

The graphs are hollow (`todm.export.stitch`), so that a pack of a 40M supernet has a few megabytes and no
trained weights. The measured table is enough to predict any subnet (`todm.search.latency`).
"""

import hashlib
import itertools
import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm import __version__
from todm.backend import GraphParts
from todm.device import profiler
from todm.errors import ArtifactError
from todm.export import quantize, to_onnx
from todm.export.stitch import Stitcher, hollow, lower
from todm.files import write_text
from todm.supernet.space import SearchSpace, Subnet

if TYPE_CHECKING:
    import onnx

GRAPHS, PLAN, PROGRAM = "graphs", "plan.json", "measure.py"
_WHOLE = "whole"
_MOST = 32  # subnets of a design
_README = """\
# Measure this device for todm

    python3 measure.py --name NAME

needs Python 3.8, onnxruntime and numpy, and takes a few minutes. It writes NAME.json. Copy that file to
the machine with the supernet:

    todm profile SUPERNET --import NAME.json
    todm search SUPERNET --budget latency=20ms@NAME

The graphs have no trained weights: the cost of a matrix product does not depend on their values.
"""


class ProfileBuilder:
    """Makes graphs to measure from the lowered parts of a search space."""

    def __init__(
        self,
        parts: GraphParts,
        key: str,
        *,
        chunk_seconds: float,
        frames: int,
        cache: Path | None = None,
    ) -> None:
        """Export the parts, which takes tens of seconds, or read them from the cache.

        Args:
            parts: the parts of the stack.
            key: identifies the search space and the sizes around it; a table with another key is refused.
            chunk_seconds: audio in a chunk.
            frames: encoder frames in a chunk; the joiner runs for each.
            cache: a folder for the exported parts.

        Raises:
            MissingExtra: a package for export is not installed.
        """
        self.parts, self.key = parts, key
        self.chunk_seconds, self.frames = chunk_seconds, frames
        stamp = stamp_of(parts)
        models = _kept(cache) if cache and is_fresh(cache, stamp) else None
        self._models = models or lower(parts, int8=True)
        if cache and models is None:
            _keep(cache, self._models, stamp)
        self._stitchers = {name: Stitcher(parts, m) for name, m in self._models.items()}

    def graph(self, subnet: Subnet, precision: str) -> "onnx.ModelProto":
        """The graph of a subnet in fp32 or int8."""
        return self._stitchers[precision].assemble(subnet)

    def num_bytes(self, subnet: Subnet, precision: str) -> int:
        """File size of all graphs of a subnet's bundle, in bytes."""
        others = (self._models[precision][other.name] for other in self.parts.others)
        whole = (self.graph(subnet, precision), *others)
        return sum(model.ByteSize() for model in whole)

    def write_pack(
        self,
        folder: Path,
        subnets: Sequence[Subnet],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write a pack of these subnets, in every precision.

        Raises:
            ArtifactError: the folder has other content.
        """
        if folder.exists() and any(folder.iterdir()) and not (folder / PLAN).is_file():
            raise ArtifactError(
                f"{folder} exists and is not a profile pack: choose another place or remove it"
            )
        shutil.rmtree(folder, ignore_errors=True)
        (folder / GRAPHS).mkdir(parents=True)
        rows: list[dict[str, Any]] = []
        for done, subnet in enumerate(subnets):
            for precision in self._models:
                file = f"{GRAPHS}/encoder-{done:02d}.{precision}.onnx"
                num_bytes = self._write(folder / file, self.graph(subnet, precision))
                row = {"subnet": subnet.to_json(), "precision": precision}
                rows.append({**row, "file": file, "bytes": num_bytes})
            if progress:
                progress(done + 1, len(subnets))
        search: dict[str, dict[str, str]] = {}
        for precision, models in self._models.items():
            search[precision] = {}
            for other in self.parts.others:
                file = search[precision][other.name] = f"{GRAPHS}/{other.name}.{precision}.onnx"
                self._write(folder / file, models[other.name])
        shutil.copy(profiler.__file__, folder / PROGRAM)
        (folder / "README.md").write_text(_README, encoding="utf-8")
        plan = json.dumps({**self._plan(), "graphs": rows, "search": search}, indent=1)
        (folder / PLAN).write_text(plan + "\n", encoding="utf-8")  # last: it marks a complete pack

    def _plan(self) -> Mapping[str, Any]:
        decoder, joiner = self.parts.others
        return {
            "kind": profiler.PACK_KIND,
            "format_version": profiler.FORMAT_VERSION,
            "space": self.key,
            "chunk_seconds": self.chunk_seconds,
            "frames": self.frames,
            "context_size": decoder.inputs[0].example.shape[1],
            "joiner_dim": joiner.inputs[0].example.shape[1],
        }

    @staticmethod
    def _write(path: Path, model: "onnx.ModelProto") -> int:
        """Write the hollow form; returns the bytes of the whole graph, as in a device's memory."""
        path.write_bytes(hollow(model).SerializeToString())
        return model.ByteSize()


def stamp_of(parts: GraphParts) -> str:
    """A hash of the code that makes and lowers the parts, so that no old graphs are measured."""
    names = {type(m).__module__ for graph in parts.graphs() for m in graph.module.modules()}
    names = {name for name in names if name.startswith("todm.")}
    files = [sys.modules[name].__file__ for name in sorted(names)]
    digest = hashlib.sha256(__version__.encode())
    for file in [*files, *(module.__file__ for module in (to_onnx, quantize))]:
        digest.update(Path(str(file)).read_bytes())
    return digest.hexdigest()


def is_fresh(cache: Path, stamp: str) -> bool:
    """Whether the cache has all parts, made by the present code."""
    return (cache / _WHOLE).is_file() and (cache / _WHOLE).read_text().strip() == stamp


def _keep(cache: Path, models: Mapping[str, Mapping[str, "onnx.ModelProto"]], stamp: str) -> None:
    """Write the parts; the stamp comes last and marks a complete cache."""
    for precision, named in models.items():
        (cache / precision).mkdir(parents=True, exist_ok=True)
        for name, model in named.items():
            (cache / precision / f"{name}.onnx").write_bytes(model.SerializeToString())
    write_text(cache / _WHOLE, stamp + "\n")


def _kept(cache: Path) -> dict[str, dict[str, "onnx.ModelProto"]]:
    """Read the parts from the cache."""
    import onnx

    models: dict[str, dict[str, onnx.ModelProto]] = {}
    for file in sorted(cache.glob("*/*.onnx")):
        models.setdefault(file.parent.name, {})[file.stem] = onnx.load(str(file))
    return models


def design(space: SearchSpace, seed: int = 0) -> list[Subnet]:
    """Subnets whose times determine those of all others: every width at two depths, and mixed ones."""
    depths = {space.config.depths[0], space.config.depths[-1]}
    uniform = [s for s in space.uniforms() if s.depth in depths]
    rng = random.Random(seed)
    if len(uniform) > 3 * _MOST // 4:
        rng.shuffle(uniform)
        uniform = _covering(uniform)[: 3 * _MOST // 4]
    always = [space.smallest, space.largest]
    mixed = [space.sample(rng) for _ in range(_MOST)]
    return list(dict.fromkeys([*always, *uniform, *mixed]))[:_MOST]


def _covering(subnets: list[Subnet]) -> list[Subnet]:
    """The same subnets, beginning with a few that cover every width at every depth."""
    seen: set[tuple[int, str, int]] = set()
    first: list[Subnet] = []
    for subnet in subnets:
        has = {(subnet.depth, name, values[0]) for name, values in subnet.widths}
        if has - seen:
            first.append(subnet)
            seen |= has
    return list(dict.fromkeys(itertools.chain(first, subnets)))
