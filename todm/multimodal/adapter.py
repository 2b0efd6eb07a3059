"""A transformers model with an encoder of images or sound and a language model: their `ModelAdapter`.

Nothing here knows an architecture: block lists are looked for, and folds go by the names of layers.

Letters: I items, T tokens, V words of the vocabulary.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Graph
from todm.compress import storage
from todm.compress.adapter import Fold, logits_graph
from todm.compress.packed import PackedLinear
from todm.compress.train.distill import soft_loss
from todm.errors import ConfigError, CorpusError, MissingExtra
from todm.llm.folds import folds_of

INPUTS = "inputs.safetensors"
BATCH = 8


def model_class(architecture: str) -> Any:  # noqa: ANN401 - a class of transformers
    """The class of an architecture, such as LlavaForConditionalGeneration.

    Raises:
        ConfigError: transformers has no such class.
        MissingExtra: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "llm", "a multi-modal model") from None
    cls = getattr(transformers, architecture, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ConfigError(
            f"transformers has no model {architecture!r}: give the name in `architectures` of config.json"
        )
    return cls


def build(architecture: str, settings: Mapping[str, Any]) -> nn.Module:
    """A model with fresh weights; nothing is downloaded.

    Args:
        architecture: see `model_class`.
        settings: its config as JSON.

    Raises:
        ConfigError: transformers has no such class, or it cannot be built so.
        MissingExtra: transformers is not installed.
    """
    cls = model_class(architecture)
    try:
        return cls(cls.config_class.from_dict(dict(settings))).eval()
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{architecture} cannot be built so: {error}") from None


class MultimodalAdapter:
    """A model of two block_lists and a projector between them, and its inputs."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        """See the arguments.

        Args:
            model: of transformers, called with `inputs` by name; its output has `logits`.
            inputs: of I items, as a processor makes them: `input_ids` [I, T], and pixels or features.
        """
        self.model, self.inputs = model, dict(inputs)
        # Before any pass, since passes replace the layers of blocks.
        self._block_lists = _block_lists(model)

    @classmethod
    def load(cls, source: Artifact) -> "MultimodalAdapter":
        """From an artifact of kind `model`, or a compressed one.

        Raises:
            ArtifactError: its weights are not those of its config.
        """
        from safetensors.torch import load_file

        model = build(source.config["architecture"], source.config["settings"])
        storage.load_weights(model, source)
        return cls(model, load_file(source.file(INPUTS)))

    def save(self, path: Path) -> Artifact:
        """Write the (dense) model as an artifact of kind `model`."""
        return artifact.save(
            path,
            kind="model",
            config=self.to_json(),
            tensors={k: v.clone() for k, v in self.model.state_dict().items()},
            write=self.write_assets,
        )

    def to_json(self) -> dict[str, Any]:
        """The config of an artifact, enough for `build`."""
        settings: dict[str, Any] = self.model.config.to_dict()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        name = type(self.model).__name__
        return {"backend": "multimodal", "architecture": name, "settings": settings}

    @property
    def backend(self) -> str:
        """Its name in artifacts."""
        return "multimodal"

    @property
    def block_lists(self) -> Sequence[str]:
        """The outermost lists of blocks of one class, in the order of the model."""
        return self._block_lists

    @property
    def kept(self) -> Mapping[str, str]:
        """The vocabulary; the projector is outside the blocks, and is done if it is included."""
        return {
            "*lm_head": "it gives the words: sensitive",
            "*embed*": "an embedding, or a front end",
        }

    def folds(self, block: nn.Module) -> Sequence[Fold]:
        """See `todm.llm.folds`."""
        return folds_of(block)

    def resident(self, prefix: str) -> AbstractContextManager[None]:
        """All of it is in memory."""
        del prefix
        return nullcontext()

    def calibration(self, num: int, file: Path | None) -> list[dict[str, Tensor]]:
        """Items of `file` (a .safetensors of inputs by name), or of the model's own training items."""
        items = self._split("train") if file is None else read_inputs(file, self.inputs)
        count = len(next(iter(items.values())))
        if count < num:
            raise CorpusError(
                f"there are {count} items and calibration needs {num}: give more, or set "
                f"num_calibration={count}"
            )
        return [_some(items, range(i, min(i + BATCH, num))) for i in range(0, num, BATCH)]

    @torch.no_grad()
    def run(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Logits, [items, T, V]."""
        before = model.training
        try:
            return model.eval()(**batch, use_cache=False).logits
        finally:
            model.train(before)

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Training items, in a new order every epoch."""
        items, draw = self._split("train"), np.random.default_rng(seed)
        while True:
            order = draw.permutation(len(items["input_ids"]))
            for start in range(0, len(order), BATCH):
                yield _some(items, order[start : start + BATCH].tolist())

    def losses(
        self,
        batch: dict[str, Tensor],
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        temperature: float,
    ) -> dict[str, Tensor]:
        """Cross entropy of next tokens, and `soft_loss` of them."""
        logits_ITV = student(**batch, use_cache=False).logits
        terms = {"hard": _next_token(logits_ITV, batch["input_ids"])}
        if teacher is not None:
            with torch.no_grad():
                wanted_ITV = teacher(**batch, use_cache=False).logits
            terms["soft"] = soft_loss(logits_ITV, wanted_ITV, temperature)
        return terms

    def evaluate(self, model: nn.Module, *, split: str, limit: int = 0) -> dict[str, Any]:
        """Mean cross entropy of next tokens, in nats."""
        items = self._split(split)
        count = len(items["input_ids"])
        count = min(limit, count) if limit else count
        batches = [_some(items, range(i, min(i + BATCH, count))) for i in range(0, count, BATCH)]
        sums = [
            _next_token(self.run(model, b), b["input_ids"]).item() * len(b["input_ids"])
            for b in batches
        ]
        return {"metric": "cross entropy", "error": sum(sums) / count, "items": count}

    def graphs(self, model: nn.Module) -> list[Graph]:
        """One: all inputs to logits."""
        batch = {name: self.inputs[name][:2] for name in sorted(self.inputs)}
        return [logits_graph(_Logits(model, list(batch)), batch, self.run(model, batch))]

    def write_assets(self, directory: Path) -> None:
        """The inputs travel with the model."""
        from safetensors.torch import save

        (directory / INPUTS).write_bytes(save(self.inputs))

    def _split(self, split: str) -> dict[str, Tensor]:
        """Three quarters of the items are for training, the rest for the other splits."""
        count = len(next(iter(self.inputs.values())))
        cut = 3 * count // 4
        return _some(self.inputs, range(cut) if split == "train" else range(cut, count))


class _Logits(nn.Module):
    """What is exported: called with the inputs in order."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return self.model(**named, use_cache=False).logits


def _block_lists(model: nn.Module) -> tuple[str, ...]:
    names: list[str] = []
    for name, module in model.named_modules():
        blocks = list(module.children()) if isinstance(module, nn.ModuleList) else []
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if not inside and blocks and len({type(b) for b in blocks}) == 1 and _linear(blocks[0]):
            names.append(name)
    return tuple(names)


def _linear(block: nn.Module) -> bool:
    return any(isinstance(m, nn.Linear | PackedLinear) for m in block.modules())


def _some(items: Mapping[str, Tensor], indices: Sequence[int]) -> dict[str, Tensor]:
    return {name: tensor[list(indices)] for name, tensor in items.items()}


def _next_token(logits_ITV: Tensor, tokens_IT: Tensor) -> Tensor:
    return F.cross_entropy(logits_ITV[:, :-1].flatten(0, 1).float(), tokens_IT[:, 1:].flatten())


def read_inputs(file: Path, wanted: Collection[str] = ("input_ids",)) -> dict[str, Tensor]:
    """Inputs by name, of the same number of items each.

    Args:
        file: a .safetensors.
        wanted: names that must be there, and no others unless it is `input_ids` alone.

    Raises:
        CorpusError: the file cannot be read, or lacks these inputs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        items = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise CorpusError(f"{file} cannot be read as .safetensors of inputs: {error}") from None
    odd = set(items) ^ set(wanted) if len(wanted) > 1 else set(wanted) - set(items)
    if odd or len({len(t) for t in items.values()}) != 1:
        raise CorpusError(
            f"{file} has {', '.join(sorted(items))}: {', '.join(sorted(wanted))} are needed, each with "
            "the same number of items"
        )
    return items
