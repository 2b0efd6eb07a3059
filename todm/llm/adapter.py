"""Language models as compression sees them: blocks of the Llama family, text, perplexity.

Letters: B windows of a batch, T tokens, V vocabulary.
"""

import inspect
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.artifact import Artifact
from todm.backend import Graph
from todm.compress import storage
from todm.compress.adapter import Fold, logits_graph
from todm.compress.train.distill import soft_loss
from todm.errors import ArtifactError, ConfigError, CorpusError
from todm.llm.checkpoint import (
    CONFIG,
    TOKENIZER,
    allocate,
    assign,
    empty_model,
    load_tokenizer,
    read_tensors,
    weight_files,
)
from todm.llm.config import LlmConfig
from todm.llm.data import read_texts, tokens_of, windows
from todm.llm.folds import folds_of
from todm.llm.importing import SPLITS, text_file
from todm.llm.perplexity import Losses, bootstrap, losses
from todm.llm.streaming import Streaming

_BATCH = 8
_LARGE = 4 << 30
"""Bytes of a model in float32 from which on it is streamed."""
_BLOCKS = "model.layers"


class LlmAdapter:
    """`todm.compress.adapter.ModelAdapter` for language models."""

    backend = "llm"
    block_lists: Sequence[str] = (_BLOCKS,)
    kept: Mapping[str, str] = {"lm_head": "the head: every token's probability depends on it alone"}

    def __init__(
        self,
        config: LlmConfig,
        model: nn.Module,
        assets: Path,
        *,
        streaming: Streaming | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            config: its artifact's.
            model: a causal language model of transformers.
            assets: the artifact's directory: tokenizer and texts.
            streaming: keeps the weights in files, if they are not all in memory.
        """
        self.config, self.model, self.assets = config, model, assets
        self._streaming = streaming
        self._tokenizer: Any = None
        _let_blocks_know_their_positions(model)

    @classmethod
    def load(
        cls, source: Artifact, *, streamed: bool | None = None, scratch: Path | None = None
    ) -> "LlmAdapter":
        """The model of an artifact, of kind `model` or `compressed`.

        Args:
            source: the artifact.
            streamed: weights stay in files, and one block at a time is in memory; by default if all of
                them would take more than 4 GiB.
            scratch: where a streamed model keeps changed blocks; the system's place by default.

        Raises:
            ArtifactError: it is not a language model, or its weights are damaged.
            MissingExtra: transformers is not installed.
        """
        if source.config.get("backend") != "llm":
            raise ArtifactError(
                f"{source.path} is not a language model: its configuration names none"
            )
        config = LlmConfig.from_json(source.config)
        model = empty_model(config.model)
        if source.kind == storage.KIND:
            allocate(model)
            storage.load_weights(model, source)
            return cls(config, model, source.path)
        tensors = read_tensors(weight_files(source.path))
        if streamed is None:
            streamed = 4 * sum(p.numel() for p in model.parameters()) > _LARGE
        assign(model, tensors, dtype=None if streamed else torch.float32)
        blocks = [f"{_BLOCKS}.{n}" for n, _ in model.get_submodule(_BLOCKS).named_children()]
        keeper = Streaming(model, blocks, scratch) if streamed else None
        return cls(config, model, source.path, streaming=keeper)

    def folds(self, block: nn.Module) -> Sequence[Fold]:
        """See `todm.llm.folds`."""
        return folds_of(block)

    def resident(self, prefix: str) -> AbstractContextManager[None]:
        """Brings the weights of a block into memory, if the model is streamed."""
        return self._streaming.resident(prefix) if self._streaming else nullcontext()

    def calibration(self, num: int, file: Path | None) -> list[Tensor]:
        """Windows of text [B, T], spread over the file or over the artifact's training text.

        Raises:
            CorpusError: too little text, or none.
        """
        place = file or self._text("train", "name a text file with  --calibration FILE")
        chosen = windows(
            self.tokens(read_texts(place)), num, context=self.config.context, source=place
        )
        return list(chosen.split(_BATCH))

    @torch.no_grad()
    def run(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        outside = self._streaming.present("") if self._streaming else nullcontext()
        with outside:
            return _logits(model, batch)

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Windows [B, T] drawn from the training text.

        Raises:
            ConfigError: the model is streamed, and training needs it in memory.
            CorpusError: too little text, or none.
        """
        if self._streaming:
            raise ConfigError(
                "this model is larger than memory, and training needs it there: leave out "
                "tune.updates and sr_ste"
            )
        place = self._text("train", "import the model again with  --text")
        ids, context = torch.cat(self.tokens(read_texts(place))), self.config.context
        if len(ids) <= context:
            raise CorpusError(f"{place} has {len(ids)} tokens: more than {context} are needed")
        draws = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(ids) - context, (_BATCH, 1), generator=draws)
            yield ids[starts + torch.arange(context)]

    def losses(
        self,
        batch: Tensor,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        temperature: float,
    ) -> dict[str, Tensor]:
        """Per token: of the next token, and the divergence from the teacher's distribution of it.

        See `todm.compress.train.distill.soft_loss` for the divergence.
        """
        logits_MV = _logits(student, batch)[:, :-1].flatten(0, 1)
        terms = {"hard": F.cross_entropy(logits_MV, batch[:, 1:].flatten())}
        if teacher is not None:
            with torch.no_grad():
                wanted_MV = _logits(teacher, batch)[:, :-1].flatten(0, 1)
            terms["soft"] = soft_loss(logits_MV, wanted_MV, temperature)
        return terms

    def evaluate(self, model: nn.Module, *, split: str, limit: int = 0) -> dict[str, Any]:
        """Perplexity of the first `limit` texts of a split (0: all), with its interval over texts."""
        place = self._text(split, "import the model again with  --text")
        texts = read_texts(place)[: limit or None]
        interval = bootstrap(self.text_losses(model, texts))
        return {
            "metric": "perplexity",
            "error": interval.value,
            "low": interval.low,
            "high": interval.high,
            "texts": len(texts),
        }

    def text_losses(self, model: nn.Module, texts: Sequence[str]) -> Losses:
        """Losses of texts, by text."""
        model.eval()
        outside = self._streaming.present("") if self._streaming else nullcontext()
        with outside:
            return losses(
                lambda ids: self.run(model, ids), self.tokens(texts), context=self.config.context
            )

    def tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """Ids of texts."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.assets)
        return tokens_of(texts, self._tokenizer, vocab=self.config.vocab)

    def graphs(self, model: nn.Module) -> list[Graph]:
        """One graph: logits of token ids, without a cache of keys and values."""
        length = min(self.config.context, 16)
        ids_BT = torch.arange(2 * length).view(2, length) % self.config.vocab
        module, axes = _Logits(model), {0: "batch", 1: "tokens"}
        logits_BTV = self.run(model, ids_BT)
        return [logits_graph(module, {"input_ids": ids_BT}, logits_BTV, dynamic=axes)]

    def write_assets(self, directory: Path) -> None:
        """config.json, the tokenizer and the texts."""
        for name in (CONFIG, *TOKENIZER, *(text_file(Path(), s).name for s in SPLITS)):
            if (self.assets / name).is_file():
                shutil.copyfile(self.assets / name, directory / name)

    def _text(self, split: str, remedy: str) -> Path:
        file = text_file(self.assets, split)
        if not file.is_file():
            raise CorpusError(f"{self.assets} holds no {split} text: {remedy}")
        return file


class _Logits(nn.Module):
    """What is exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return _logits(self.model, input_ids)


def _logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """[B, T, V]."""
    return model(input_ids=ids_BT, use_cache=False).logits


def _let_blocks_know_their_positions(model: nn.Module) -> None:
    """Where rotary embeddings differ between blocks (Gemma 3), each block makes its own.

    Passes call all blocks with the further arguments that the first one got.
    """
    rotary = model.get_submodule("model.rotary_emb")
    if "layer_type" not in inspect.signature(type(rotary).forward).parameters:
        return
    config: Any = model.get_submodule("model").config
    kinds = config.layer_types
    for block, kind in zip(model.get_submodule(_BLOCKS).children(), kinds, strict=True):

        def own(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kind: str = kind
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            positions = rotary(args[0], kwargs["position_ids"], kind)
            return args, {**kwargs, "position_embeddings": positions}

        block.register_forward_pre_hook(own, with_kwargs=True)
