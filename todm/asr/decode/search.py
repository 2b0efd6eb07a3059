"""Greedy and beam search of decoding, with one symbol per frame as the device's recogniser has it.

Both take encoder outputs and the part of a model that `Transducer` names. <unk> counts as blank. The
label context starts as `[-1, ..., -1, 0]`, and starts again after an endpoint, a pause without labels.

Letters: B utterances, T frames after subsampling, D model width, J joiner width, K label context,
V vocabulary, P active paths of the beam.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from todm.asr.tokens import BLANK_ID, UNK_ID

_SILENT = (BLANK_ID, UNK_ID)


class Transducer(Protocol):
    """What a search needs of a model."""

    @property
    def context_size(self) -> int:
        """The number K of labels that the predictor sees."""
        ...

    def project_encoder(self, enc_BTD: Tensor, /) -> Tensor:
        """Encoder outputs, any number of leading axes, to the joiner's width."""
        ...

    def predict(self, context_BK: Tensor, /) -> Tensor:
        """The predictor's output [B, J] for the last K labels, int64, -1 for none."""
        ...

    def joint(self, enc_J: Tensor, pred_J: Tensor, /) -> Tensor:
        """Logits [..., V]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A recognised sequence.

    Attributes:
        tokens: labels without blanks.
        frames: the frame each label was emitted at (one is 40 ms).
        log_probs: the log-probability of each label in its frame.
        score: log-probability of the path, blanks included; in beam search of all merged paths.
    """

    tokens: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0


Search = Callable[[Transducer, Tensor, Tensor], list[Hypothesis]]
"""From a model, encoder outputs [B, T, D] and their lengths [B] to a hypothesis for each.

Its endpoint is the caller's to bind, as in `functools.partial(greedy_search, endpoint=15)`.
"""


@torch.no_grad()
def greedy_search(
    model: Transducer, enc_BTD: Tensor, lens_B: Tensor, *, endpoint: int | None = None
) -> list[Hypothesis]:
    """The best symbol of every frame, for a batch at a time.

    Args:
        model: a transducer in evaluation mode.
        enc_BTD: encoder outputs.
        lens_B: valid frames of each utterance.
        endpoint: frames without a label after which the context starts again; None for never.
    """
    enc_BTJ = model.project_encoder(enc_BTD)
    num, frames = enc_BTJ.shape[:2]
    context_BK = torch.full((num, model.context_size), -1, device=enc_BTJ.device)
    context_BK[:, -1] = BLANK_ID
    start_BK, start_BJ = context_BK.clone(), model.predict(context_BK)
    pred_BJ, last = start_BJ, [-math.inf] * num
    best_TB = torch.zeros(frames, num, dtype=torch.long, device=enc_BTJ.device)
    log_probs_TB = torch.zeros(frames, num, device=enc_BTJ.device)
    for t in range(frames):
        # Once, at the first frame past the pause; before the first label there is nothing to reset.
        if due := [
            b for b, at in enumerate(last) if endpoint is not None and t - at == endpoint + 1
        ]:
            context_BK[due] = start_BK[due]
            pred_BJ = pred_BJ.index_copy(0, torch.tensor(due, device=pred_BJ.device), start_BJ[due])
        log_probs_BV = model.joint(enc_BTJ[:, t], pred_BJ).float().log_softmax(-1)
        log_probs_TB[t], best_B = log_probs_BV.max(-1)
        best_TB[t] = best_B
        emits_B = (best_B != BLANK_ID) & (best_B != UNK_ID) & (t < lens_B)
        rows = emits_B.nonzero().squeeze(-1)
        if len(rows):  # in most frames all are blank, and the predictor has nothing to do
            context_BK[rows] = torch.cat([context_BK[rows, 1:], best_B[rows, None]], 1)
            pred_BJ = pred_BJ.index_copy(0, rows, model.predict(context_BK[rows]))
            for row in rows.tolist():
                last[row] = t
    found = []
    for symbols, values, length in zip(
        best_TB.T.tolist(), log_probs_TB.T.tolist(), lens_B.tolist(), strict=True
    ):
        emitting = [t for t in range(length) if symbols[t] not in _SILENT]
        found.append(
            Hypothesis(
                tokens=tuple(symbols[t] for t in emitting),
                frames=tuple(emitting),
                log_probs=tuple(values[t] for t in emitting),
                score=sum(values[:length]),
            )
        )
    return found


@torch.no_grad()
def beam_search(
    model: Transducer,
    enc_BTD: Tensor,
    lens_B: Tensor,
    *,
    endpoint: int | None = None,
    num_active_paths: int = 4,
    length_norm: bool = True,
) -> list[Hypothesis]:
    """Modified beam search: one symbol per frame, paths with the same labels merged by log-add.

    Args:
        model: a transducer in evaluation mode.
        enc_BTD: encoder outputs.
        lens_B: valid frames of each utterance.
        endpoint: frames without a label after which a path's context starts again; None for never.
        num_active_paths: paths kept per utterance after each frame.
        length_norm: choose the winner by score per label, context included, as the device does.
    """
    enc_BTJ, lens = model.project_encoder(enc_BTD), lens_B.tolist()
    beams, known = [[Hypothesis()] for _ in lens], dict[tuple[int, ...], Tensor]()
    unused = Hypothesis(score=-math.inf)
    for t in range(max(lens, default=0)):
        alive = [b for b, length in enumerate(lens) if t < length]
        paths = [(beams[b] + [unused] * num_active_paths)[:num_active_paths] for b in alive]
        scores_BP = torch.tensor([[h.score for h in beam] for beam in paths], dtype=torch.float64)
        contexts = [
            [_context(path, t, model.context_size, endpoint) for path in beam] for beam in paths
        ]
        pred_BPJ = _predict(model, contexts, known, enc_BTJ.device)
        logits_BPV = model.joint(enc_BTJ[alive, t].unsqueeze(1), pred_BPJ).float()
        log_probs_BPV = logits_BPV.log_softmax(-1)
        totals_BN = (scores_BP.to(log_probs_BPV)[:, :, None] + log_probs_BPV).flatten(1)
        values, places = totals_BN.topk(min(num_active_paths, totals_BN.shape[1]))
        chosen = log_probs_BPV.flatten(1).gather(1, places).tolist()
        vocab = log_probs_BPV.shape[-1]
        found = zip(alive, values.tolist(), places.tolist(), chosen, strict=True)
        for b, totals, at, own in found:
            moves = [(p // vocab, p % vocab, x, y) for p, x, y in zip(at, totals, own, strict=True)]
            beams[b] = _advance(beams[b], moves, t)
    bonus = model.context_size
    return [
        max(beam, key=lambda h: h.score / (len(h.tokens) + bonus) if length_norm else h.score)
        for beam in beams
    ]


def _predict(
    model: Transducer,
    contexts: list[list[tuple[int, ...]]],
    known: dict[tuple[int, ...], Tensor],
    device: torch.device,
) -> Tensor:
    """Predictor outputs [B, P, J]; those of earlier label contexts are `known`, since contexts recur."""
    new = sorted({c for row in contexts for c in row} - known.keys())
    if new:
        known.update(zip(new, model.predict(torch.tensor(new, device=device)), strict=True))
    rows = torch.stack([known[c] for row in contexts for c in row])
    return rows.unflatten(0, (len(contexts), -1))


def _context(path: Hypothesis, frame: int, size: int, endpoint: int | None) -> tuple[int, ...]:
    """What the predictor sees at a frame: the path's last labels, of those after the last endpoint."""
    since = len(path.tokens)
    for at in reversed(path.frames):
        if len(path.tokens) - since == size or (endpoint is not None and frame - at > endpoint):
            break
        since, frame = since - 1, at
    start = (-1,) * (size - 1) + (BLANK_ID,)
    return (start + path.tokens[since:])[-size:]


def _advance(
    beam: list[Hypothesis], moves: list[tuple[int, int, float, float]], frame: int
) -> list[Hypothesis]:
    """The beam after a frame, from moves (path, symbol, total, log-probability), best first.

    Of paths with the same labels the best keeps its frames, and so its endpoints, and gets the sum of
    all their scores.
    """
    merged: dict[tuple[int, ...], Hypothesis] = {}
    for path, symbol, total, log_prob in moves:
        if total == -math.inf:
            continue
        new = dataclasses.replace(beam[path], score=total)
        if symbol not in _SILENT:
            new = Hypothesis(
                tokens=(*new.tokens, symbol),
                frames=(*new.frames, frame),
                log_probs=(*new.log_probs, log_prob),
                score=total,
            )
        old = merged.get(new.tokens)
        if old is not None:
            new = dataclasses.replace(old, score=float(np.logaddexp(old.score, total)))
        merged[new.tokens] = new
    return list(merged.values())
