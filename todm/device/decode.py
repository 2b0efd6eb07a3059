"""Greedy and beam search with a transducer: at most one symbol a frame, as in sherpa-onnx.

A pause without a symbol is an endpoint: what was said before it no longer tells what comes next, so the
predictor's context starts again, at a frame that depends on symbols only and not on chunks.

Letters: N streams; C frames of encoder output; J joiner width; K context size; V vocabulary;
A hypotheses kept.
"""

import abc
import dataclasses
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from todm.device.bundle import UNKNOWN, Networks, run
from todm.device.contract import start_context

FRAME_SECONDS = 0.04
_BLANK_ID = 0

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A label sequence, with the summed score of all paths that give it.

    Attributes:
        context: what the predictor sees, K ids.
        last: frame of the stream's last symbol, which may be forgotten; None before the first.
        ids: the symbols.
        frames: the frame of each.
        log_probs: of each, at its frame.
        score: log-probability, blanks included.
    """

    context: tuple[int, ...]
    last: int | None = None
    ids: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0

    def extend(self, token: int, frame: int, log_prob: float) -> "Hypothesis":
        """The sequence extended by one symbol."""
        return Hypothesis(
            context=(*self.context[1:], token),
            last=frame,
            ids=(*self.ids, token),
            frames=(*self.frames, frame),
            log_probs=(*self.log_probs, log_prob),
            score=self.score,
        )

    def forget(self, num: int) -> "Hypothesis":
        """The sequence without its first `num` symbols, from which decoding goes on as before."""
        return dataclasses.replace(
            self,
            ids=self.ids[num:],
            frames=self.frames[num:],
            log_probs=self.log_probs[num:],
            score=0.0,
        )


@dataclasses.dataclass
class DecoderState:
    """The hypotheses of one stream, and the number of frames decoded."""

    hypotheses: list[Hypothesis]
    num_frames: int = 0


class TransducerDecoder(abc.ABC):
    """Decodes encoder output with the predictor and the joiner, chunk by chunk."""

    def __init__(
        self, networks: Networks, context_size: int, where: Path, *, endpoint: int | None = None
    ) -> None:
        """Prepare.

        Args:
            networks: the loaded graphs.
            context_size: K.
            where: the bundle, for messages.
            endpoint: frames without a symbol after which the context starts again; None for never.
        """
        self._networks, self._where = networks, where
        self._endpoint = endpoint
        self._start = tuple(int(i) for i in start_context(context_size))
        self._silent = silent_ids(networks.tokens)

    def start(self) -> DecoderState:
        """The state of a new stream."""
        return DecoderState([Hypothesis(context=self._start)])

    @abc.abstractmethod
    def advance(self, encoder_out_NCJ: Floats, states: list[DecoderState]) -> None:
        """Decode one chunk of N streams."""

    @abc.abstractmethod
    def best(self, state: DecoderState) -> Hypothesis:
        """The best hypothesis so far."""

    def _restart(self, state: DecoderState) -> bool:
        """Start contexts again that are due at the next frame; whether there was one."""
        due = [self._is_due(h, state.num_frames) for h in state.hypotheses]
        if any(due):
            state.hypotheses = [
                dataclasses.replace(h, context=self._start) if is_due else h
                for h, is_due in zip(state.hypotheses, due, strict=True)
            ]
        return any(due)

    def _is_due(self, hypothesis: Hypothesis, frame: int) -> bool:
        if self._endpoint is None or hypothesis.last is None or hypothesis.context == self._start:
            return False
        return frame - hypothesis.last > self._endpoint

    def _predict(self, hypotheses: list[Hypothesis]) -> Floats:
        """Predictor output, float32 [A, J]."""
        context = np.array([h.context for h in hypotheses], np.int64)
        return run(self._networks.decoder, [context], "decoder", self._where)[0]

    def _log_probs(self, encoder_out_NJ: Floats, decoder_out_NJ: Floats) -> Floats:
        """Log-probabilities of the next symbol, float32 [N, V]."""
        inputs = [encoder_out_NJ, decoder_out_NJ]
        return log_softmax(run(self._networks.joiner, inputs, "joiner", self._where)[0])


class GreedyDecoder(TransducerDecoder):
    """The likeliest symbol of every frame; `<unk>` counts as blank."""

    def advance(self, encoder_out_NCJ: Floats, states: list[DecoderState]) -> None:
        """Decode one chunk of N streams."""
        decoder_out = self._predict([s.hypotheses[0] for s in states])
        for frame in range(encoder_out_NCJ.shape[1]):
            if restarted := [row for row, state in enumerate(states) if self._restart(state)]:
                decoder_out[restarted] = self._predict([states[r].hypotheses[0] for r in restarted])
            log_probs = self._log_probs(encoder_out_NCJ[:, frame], decoder_out)
            emitting = []
            for row, token in enumerate(log_probs.argmax(axis=1).tolist()):
                state = states[row]
                if token not in self._silent:
                    log_prob = float(log_probs[row, token])
                    last = state.hypotheses[0]
                    state.hypotheses[0] = last.extend(token, state.num_frames, log_prob)
                    emitting.append(row)
                state.num_frames += 1
            if emitting:
                decoder_out[emitting] = self._predict([states[r].hypotheses[0] for r in emitting])

    def best(self, state: DecoderState) -> Hypothesis:
        """The one hypothesis."""
        return state.hypotheses[0]


class BeamDecoder(TransducerDecoder):
    """Modified beam search: `max_active` sequences, one symbol a frame, equal sequences merged.

    Of merged sequences the likeliest keeps its frames, and so its pauses and its context.
    """

    def __init__(
        self,
        networks: Networks,
        context_size: int,
        where: Path,
        *,
        endpoint: int | None = None,
        max_active: int = 4,
    ) -> None:
        super().__init__(networks, context_size, where, endpoint=endpoint)
        self._max_active = max_active

    def advance(self, encoder_out_NCJ: Floats, states: list[DecoderState]) -> None:
        """Decode one chunk of N streams."""
        for row, state in enumerate(states):
            for encoder_out_J in encoder_out_NCJ[row]:
                self._restart(state)
                state.hypotheses = self._step(encoder_out_J, state)
                state.num_frames += 1

    def best(self, state: DecoderState) -> Hypothesis:
        """The hypothesis with the best score per symbol; as in sherpa-onnx, the start context counts."""
        size = len(self._start)
        return max(state.hypotheses, key=lambda h: h.score / (size + len(h.ids)))

    def _step(self, encoder_out_J: Floats, state: DecoderState) -> list[Hypothesis]:
        old = state.hypotheses
        tiled = np.repeat(encoder_out_J[None], len(old), axis=0)
        log_probs = self._log_probs(tiled, self._predict(old))
        scores = log_probs + np.array([[h.score] for h in old], np.float32)
        merged: dict[tuple[int, ...], Hypothesis] = {}
        for flat in np.argsort(-scores, axis=None, kind="stable")[: self._max_active].tolist():
            row, token = divmod(flat, scores.shape[1])
            new = old[row]
            if token not in self._silent:
                new = new.extend(token, state.num_frames, float(log_probs[row, token]))
            score = float(scores[row, token])
            if new.ids in merged:
                new, score = merged[new.ids], float(np.logaddexp(merged[new.ids].score, score))
            merged[new.ids] = dataclasses.replace(new, score=score)
        return list(merged.values())


def endpoint_frames(seconds: float) -> int:
    """Seconds without a symbol in frames; a half counts as one, as JavaScript and C++ round."""
    return math.floor(seconds / FRAME_SECONDS + 0.5)


def silent_ids(tokens: tuple[str, ...]) -> frozenset[int]:
    """Ids that emit nothing: blank and, as in sherpa-onnx, `<unk>`."""
    return frozenset((_BLANK_ID, *(i for i, t in enumerate(tokens) if t == UNKNOWN)))


def log_softmax(logits_NV: Floats) -> Floats:
    """Log-probabilities, float32 [N, V]."""
    shifted = logits_NV - logits_NV.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
