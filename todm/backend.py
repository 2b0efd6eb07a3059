"""The seam between stages (train, search, export) and modalities (asr, vision, llm).

A stage uses a modality only through `Backend`, a target only through `Graph`. Only the command line knows
which class a backend's name means.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from todm.artifact import Artifact
from todm.supernet.sandwich import Objective
from todm.supernet.space import SearchSpace, Subnet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of a graph: its name, an example and its dynamic axes."""

    name: str
    example: Tensor
    dynamic: Mapping[int, str] = dataclasses.field(default_factory=dict[int, str])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """A module to export. Its inputs and outputs are stated once, for checks and for every target.

    Attributes:
        name: file stem: encoder, decoder, joiner.
        module: called with the inputs in order, returns the outputs in order.
        inputs: with examples of batch 2.
        outputs: likewise.
        metadata: written to the file, besides the target's own.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphParts:
    """A stack of blocks in parts, from which the graph of any subnet can be composed.

    Every block is the same chain of sublayers, each with one elastic width. A sublayer takes `x` and its
    own states [B, S], and returns `out` and the states after it.

    Attributes:
        whole: the graph of some subnet; its first input and output belong to the stem and the head,
            its second ones are all states of all blocks, concatenated along the last axis.
        stem: the whole's inputs without the states of blocks -> `out`, and its other outputs.
        sublayers: by the name of the width, in the order of a block, and by the width.
        head: `x` -> the whole's first output.
        others: graphs that are the same for all subnets.
    """

    whole: Graph
    stem: Graph
    sublayers: Mapping[str, Mapping[int, Graph]]
    head: Graph
    others: tuple[Graph, ...]

    def graphs(self) -> list[Graph]:
        """Every part, the others included."""
        sublayers = [graph for widths in self.sublayers.values() for graph in widths.values()]
        return [self.stem, self.head, *self.others, *sublayers]


class Batches(Protocol):
    """An endless stream of training batches that can be resumed exactly."""

    def __iter__(self) -> Iterator[Any]:
        """Batches from the current position on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON types."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        ...

    @property
    def hours(self) -> float:
        """Hours of audio in an epoch, all processes together."""
        ...

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one process in an epoch."""
        ...

    @property
    def limit(self) -> str:
        """The setting that bounds a batch and its value, such as `asr.loader.max_frames=60000`."""
        ...

    def seconds(self, batch: Any) -> float:  # noqa: ANN401 - the backend's own
        """Audio in a batch."""
        ...

    def worst_batch(self) -> Any:  # noqa: ANN401 - the backend's own
        """The batch of an epoch that needs the most memory."""
        ...


class Backend(Protocol):
    """The interface of a modality to the stages."""

    @property
    def space(self) -> SearchSpace:
        """The subnets of the supernet."""
        ...

    def prepare(self) -> None:
        """Prepare once what training needs before the first `build` (features); quick when done before."""
        ...

    def preparation(self) -> tuple[int, Path]:
        """About how many bytes of features `prepare` will still write, and where."""
        ...

    def build(self, subnet: Subnet | None) -> nn.Module:
        """A new plain model of a subnet, or the supernet (None)."""
        ...

    def init_from(self, model: nn.Module, earlier: Artifact) -> list[str]:
        """Copy the weights of an earlier supernet or subnet into a new supernet.

        Returns:
            What was copied and what keeps its new weights, a line each.

        Raises:
            ConfigError: its sizes do not fit, with the setting to change.
        """
        ...

    def deployed(self, subnet: Subnet) -> nn.Module:
        """The plain model of a subnet with the constants of its export; its parameters are its size."""
        ...

    def extract(self, model: nn.Module, subnet: Subnet) -> nn.Module:
        """A plain dense module whose outputs equal the supernet's with that subnet."""
        ...

    def objective(self, model: nn.Module) -> Objective:
        """The training loss around a model."""
        ...

    def batches(self, *, rank: int, world_size: int, num_updates: int) -> Batches:
        """Training batches of one process."""
        ...

    def evaluate(
        self, model: nn.Module, *, subnet: Subnet | None, split: str, limit: int
    ) -> dict[str, Any]:
        """Figures of merit on (at most `limit` examples of) a split; search minimises `error`."""
        ...

    def scorer(
        self, model: nn.Module, *, limit: int = 0
    ) -> Callable[[Subnet | None], dict[str, Any]]:
        """Scores subnets of a supernet on (at most `limit` examples of) the dev split, which is read once.

        The scores hold `score`, less is better, `parts`, the same on equal parts of the examples, and the
        figures of `evaluate`. A plain model is scored with None.
        """
        ...

    def graphs(self, model: nn.Module) -> list[Graph]:
        """The graphs to export for a plain model."""
        ...

    def graph_parts(self) -> GraphParts:
        """Graphs with random weights that compose to the graph of any subnet."""
        ...

    def work_and_state(self, subnet: Subnet) -> dict[str, float]:
        """`macs` per second of input, and `state`, the bytes that a stream keeps between chunks."""
        ...

    @property
    def chunk_frames(self) -> int:
        """Frames of the encoder that one call of its graph computes."""
        ...

    @property
    def chunk_seconds(self) -> float:
        """Seconds of input that one call of the encoder's graph consumes."""
        ...

    def space_key(self) -> dict[str, Any]:
        """Everything that determines the graphs of the space's subnets, as JSON types."""
        ...

    def write_assets(self, directory: Path) -> None:
        """Put the files that travel with the weights (tokenizer, labels) into an artifact."""
        ...
