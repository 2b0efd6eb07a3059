"""The interface of a modality to compression: one file that implements `ModelAdapter`.

Letters: N outputs, K inputs of a layer.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from todm.backend import Graph, Port


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """Linear layers of a block that read the same input, and the module that may absorb a factor of it.

    Names are relative to the block.

    Attributes:
        layers: the linear layers.
        inspect: the module whose output AWQ compares (the attention around q, k and v); the layer
            itself if it has no companions.
        into: the module right before: a norm, or a linear layer whose last K rows make the input.
            None: nothing folds, and the layers keep a `pre_quant_scale`.
        offset: added to the norm's stored weight when it is used (1 for Gemma).
    """

    layers: tuple[str, ...]
    inspect: str
    into: str | None = None
    offset: float = 0.0


class ModelAdapter(Protocol):
    """A model, and what passes need to know about its modality.

    The model runs its `block_lists` in order, and the blocks of a list in order: each is called with the
    output of the one before as its first argument, and with the same further arguments.
    """

    @property
    def backend(self) -> str:
        """Its name in artifacts: asr, vision, llm, multimodal."""
        ...

    @property
    def model(self) -> nn.Module:
        """The model, changed in place by passes."""
        ...

    @property
    def block_lists(self) -> Sequence[str]:
        """Names of the module lists whose children are the blocks, in the order they run."""
        ...

    @property
    def kept(self) -> Mapping[str, str]:
        """Layers (names, or patterns as of `fnmatch`) that stay dense unless included, and why."""
        ...

    def folds(self, block: nn.Module) -> Sequence[Fold]:
        """Where AWQ's scales go in a block; a linear layer in none of them keeps a `pre_quant_scale`."""
        ...

    def resident(self, prefix: str) -> AbstractContextManager[None]:
        """Inside, the weights of a block (or with "", those outside the block lists) are in memory.

        Changes made inside are kept. Models that are in memory anyway return a null context.
        """
        ...

    def calibration(self, num: int, file: Path | None) -> list[Any]:
        """Batches for `run` with at least `num` items together, from `file` or else the training data.

        Raises:
            CorpusError: too few items, or items that cannot be used.
        """
        ...

    def run(self, model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 - the modality's own
        """Forward of a model on a batch of `calibration` or `batches`, without gradient or dropout."""
        ...

    def batches(self, seed: int) -> Iterator[Any]:
        """Endless training batches; the same for the same seed."""
        ...

    def losses(
        self,
        batch: Any,  # noqa: ANN401 - the modality's own
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        temperature: float,
    ) -> dict[str, Tensor]:
        """`hard` (against labels), and `soft` (against the teacher's outputs) if there is a teacher."""
        ...

    def evaluate(self, model: nn.Module, *, split: str, limit: int = 0) -> dict[str, Any]:
        """Figures of merit; `error` is the one to minimise, `metric` its name."""
        ...

    def graphs(self, model: nn.Module) -> list[Graph]:
        """What is exported."""
        ...

    def write_assets(self, directory: Path) -> None:
        """Put the files that travel with the weights (tokenizer, labels) into an artifact."""
        ...


def logits_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    logits: Tensor,
    *,
    dynamic: Mapping[int, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Graph:
    """The one graph of a model that goes from inputs to logits.

    Args:
        module: called with the inputs in order.
        inputs: examples by name.
        logits: the output for them.
        dynamic: axes of all ports; by default the batch.
        metadata: see `Graph`.
    """
    axes = dynamic or {0: "batch"}
    ports = [Port(name=name, example=example, dynamic=axes) for name, example in inputs.items()]
    out = Port(name="logits", example=logits, dynamic=axes)
    return Graph(
        name="model", module=module, inputs=tuple(ports), outputs=(out,), metadata=metadata or {}
    )
