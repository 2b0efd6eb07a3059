"""A small Llama, trained here on real text, for studies of compression.

Its checkpoint has the format of transformers (config.json, model.safetensors, tokenizer), so that a study
begins where a user does: with `todm import`.

Letters: B windows of a batch, T tokens of a window.
"""

import dataclasses
import gzip
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from todm.config import Config
from todm.errors import CorpusError
from todm.llm.checkpoint import require

if TYPE_CHECKING:
    from torch import nn

SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
BOS, EOS, UNK = "<s>", "</s>", "<unk>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallLlama(Config):
    """Sizes and training.

    `vocab` counts pieces of the byte-pair encoding, `width` is that of the residual stream, `ffn` the hidden
    units of the gated feed-forward layer, `heads` those of attention, with as many of keys and values.
    `context` is T, `batch` B. `lr` is the peak learning rate of AdamW, after 5 % of warm-up; it falls to
    zero as a cosine. `seed` is that of weights and batches.
    """

    vocab: int = 1024
    width: int = 256
    ffn: int = 768
    layers: int = 4
    heads: int = 4
    context: int = 128
    batch: int = 8
    updates: int = 2000
    lr: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0


def read_chapters(directory: Path, split: str) -> list[str]:
    """Texts of a split of LibriSpeech's transcripts: the lines of a chapter in order make one text.

    Args:
        directory: holds train-clean-100.trans.txt.gz and its like, lines `SPEAKER-CHAPTER-NUMBER TEXT`.
        split: train, dev or test.

    Raises:
        CorpusError: the file is missing or has another format.
    """
    file = directory / f"{SPLITS[split]}.trans.txt.gz"
    chapters: dict[str, list[str]] = {}
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                name, _, text = line.strip().partition(" ")
                chapters.setdefault(name.rpartition("-")[0], []).append(text)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{file} cannot be read ({error}): --text is the directory of LibriSpeech's transcripts"
        ) from None
    texts = [" ".join(lines) for name, lines in chapters.items() if name]
    if not texts:
        raise CorpusError(f"{file} has no lines of the form SPEAKER-CHAPTER-NUMBER TEXT")
    return texts


def train(
    texts: list[str], out: Path, config: SmallLlama, *, progress: Callable[[str], None]
) -> None:
    """Train tokenizer and model, and write them to `out` in the format of transformers.

    Args:
        texts: of the training split.
        out: must not exist yet; it appears once it is complete.
        config: sizes and training.
        progress: takes lines about the progress.
    """
    tokenizer = train_tokenizer(texts, config)
    tokens = torch.cat([torch.tensor(tokenizer(text)["input_ids"]) for text in texts])
    progress(f"{len(texts)} texts, {len(tokens)} tokens")
    torch.manual_seed(config.seed)
    model = build(config)
    _fit(model, tokens, config, progress)
    temporary = out.with_name(f".{out.name}.tmp")
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(out)


def train_tokenizer(texts: list[str], config: SmallLlama) -> Any:  # noqa: ANN401 - transformers' own
    """Byte-pair encoding; every text begins with `<s>`.

    Raises:
        MissingExtra: transformers is not installed.
    """
    require()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE(unk_token=UNK))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab, special_tokens=[UNK, BOS, EOS], show_progress=False
    )
    pieces.train_from_iterator(texts, trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, pieces.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


def build(config: SmallLlama) -> Any:  # noqa: ANN401 - transformers' own
    """A fresh LlamaForCausalLM with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.ffn,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def windows(tokens: Tensor, config: SmallLlama) -> Iterator[Tensor]:
    """Endless batches [B, T] of windows drawn from the joined texts; the same for the same seed."""
    generator = torch.Generator().manual_seed(config.seed)
    inside = torch.arange(config.context)
    while True:
        starts = torch.randint(len(tokens) - config.context, (config.batch, 1), generator=generator)
        yield tokens[starts + inside]


def _fit(
    model: "nn.Module", tokens: Tensor, config: SmallLlama, progress: Callable[[str], None]
) -> None:
    """AdamW; gains and other vectors are not decayed."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, config.updates))
    losses: list[float] = []
    model.train()
    for update, tokens_BT in zip(range(config.updates), windows(tokens, config), strict=False):
        loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if (update + 1) % 50 == 0:
            recent = sum(losses[-50:]) / len(losses[-50:])
            progress(f"update {update + 1} of {config.updates}: loss {recent:.3f}")


def _rate(update: int, updates: int) -> float:
    """Fraction of the peak learning rate."""
    warm = 0.05 * updates
    if update < warm:
        return (update + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (update - warm) / (updates - warm)))
