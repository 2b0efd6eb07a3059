"""Perplexity of texts, with its bootstrap interval, alone or against another model on the same texts.

    perplexity = exp(sum of -log p(token | tokens before) / number of tokens predicted)

A text longer than the context is cut into windows that overlap by one token, so that every token but
the text's first is predicted once.

Letters: B windows of a batch, T tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import CorpusError

_BATCH = 8
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """Negative log-likelihood of every text in nats, and how many tokens of it were predicted."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """Of all texts together."""
        return _perplexity(sum(self.nats) / sum(self.tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and its 95 % bootstrap interval over texts."""

    value: float
    low: float
    high: float


@torch.no_grad()
def losses(
    predict: Callable[[Tensor], Tensor], texts_ids: Sequence[Tensor], *, context: int
) -> Losses:
    """Losses of texts.

    Args:
        predict: logits [B, T, V] of tokens [B, T].
        texts_ids: ids of each text.
        context: longest window.

    Raises:
        CorpusError: no text has two tokens.
    """
    places = [(i, w) for i, ids in enumerate(texts_ids) for w in _windows(ids, context)]
    if not places:
        raise CorpusError("no text has two tokens or more: give longer texts to evaluate on")
    places.sort(key=lambda place: len(place[1]))
    nats, tokens = [0.0] * len(texts_ids), [0] * len(texts_ids)
    for start in range(0, len(places), _BATCH):
        batch = places[start : start + _BATCH]
        for (text, ids), loss in zip(batch, _batch_nats(predict, batch), strict=True):
            nats[text] += loss
            tokens[text] += len(ids) - 1
    return Losses(nats=tuple(nats), tokens=tuple(tokens))


def bootstrap(texts: Losses, *, seed: int = 0) -> Interval:
    """The perplexity, and its interval over resampled texts."""
    means = _resampled(texts, seed).exp()
    return Interval(
        value=texts.perplexity, low=_quantile(means, 0.025), high=_quantile(means, 0.975)
    )


def compare(texts: Losses, other: Losses, *, seed: int = 0) -> Interval:
    """Perplexity divided by another model's on the same texts; 1 means no difference.

    Raises:
        ValueError: they are not of the same texts.
    """
    if texts.tokens != other.tokens:
        raise ValueError("losses of two different sets of texts cannot be compared")
    ratios = (_resampled(texts, seed) - _resampled(other, seed)).exp()
    value = texts.perplexity / other.perplexity
    return Interval(value=value, low=_quantile(ratios, 0.025), high=_quantile(ratios, 0.975))


def _windows(ids: Tensor, context: int) -> list[Tensor]:
    starts = range(0, len(ids) - 1, context - 1)
    return [ids[start : start + context] for start in starts]


def _batch_nats(
    predict: Callable[[Tensor], Tensor], batch: Sequence[tuple[int, Tensor]]
) -> list[float]:
    """Of each window. Padding comes after the text, where no earlier token attends to it."""
    tokens_BT = torch.nn.utils.rnn.pad_sequence([ids for _, ids in batch], batch_first=True)
    logits_BTV = predict(tokens_BT)[:, :-1].float()
    loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT[:, 1:], reduction="none")
    return [
        float(loss_T[: len(ids) - 1].double().sum())
        for loss_T, (_, ids) in zip(loss_BT, batch, strict=True)
    ]


def _resampled(texts: Losses, seed: int) -> Tensor:
    """Mean loss of each resample; the same texts for the same seed."""
    nats = torch.tensor(texts.nats, dtype=torch.float64)
    tokens = torch.tensor(texts.tokens, dtype=torch.float64)
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(nats), (_RESAMPLES, len(nats)), generator=draws)
    return nats[chosen].sum(1) / tokens[chosen].sum(1).clamp(min=1)


def _quantile(values: Tensor, share: float) -> float:
    return float(values.quantile(share))


def _perplexity(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf
