"""Greedy and beam search with a transducer: at most one symbol a frame, as in sherpa-onnx.

Letters: N streams; C frames of encoder output; J joiner width; K context size; V vocabulary;
A hypotheses kept.
"""

import abc
import dataclasses
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

    `ids` begins with the start context; `frames` and `log_probs` have one entry per symbol.
    """

    ids: tuple[int, ...]
    frames: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0

    def extend(self, token: int, frame: int, log_prob: float) -> "Hypothesis":
        """The sequence extended by one symbol."""
        return Hypothesis(
            ids=(*self.ids, token),
            frames=(*self.frames, frame),
            log_probs=(*self.log_probs, log_prob),
            score=self.score,
        )

    def split(self, num: int, context_size: int) -> tuple["Hypothesis", "Hypothesis"]:
        """The first `num` symbols, and the rest with the symbols before it as context.

        The first part keeps the score.
        """
        head = Hypothesis(
            ids=self.ids[: context_size + num],
            frames=self.frames[:num],
            log_probs=self.log_probs[:num],
            score=self.score,
        )
        tail = Hypothesis(
            ids=self.ids[num:], frames=self.frames[num:], log_probs=self.log_probs[num:]
        )
        return head, tail


@dataclasses.dataclass
class DecoderState:
    """The hypotheses of one stream, and the number of frames decoded."""

    hypotheses: list[Hypothesis]
    num_frames: int = 0


class TransducerDecoder(abc.ABC):
    """Decodes encoder output with the predictor and the joiner, chunk by chunk."""

    def __init__(self, networks: Networks, context_size: int, where: Path) -> None:
        self._networks, self._where = networks, where
        self._context_size = context_size
        self._silent = silent_ids(networks.tokens)

    def start(self) -> DecoderState:
        """The state of a new stream."""
        ids = tuple(int(i) for i in start_context(self._context_size))
        return DecoderState([Hypothesis(ids=ids)])

    @abc.abstractmethod
    def advance(self, encoder_out_NCJ: Floats, states: list[DecoderState]) -> None:
        """Decode one chunk of N streams."""

    @abc.abstractmethod
    def best(self, state: DecoderState) -> Hypothesis:
        """The best hypothesis so far."""

    def _predict(self, hypotheses: list[Hypothesis]) -> Floats:
        """Predictor output, float32 [A, J]."""
        context = np.array([h.ids[-self._context_size :] for h in hypotheses], np.int64)
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
            log_probs = self._log_probs(encoder_out_NCJ[:, frame], decoder_out)
            emitting = []
            for row, token in enumerate(log_probs.argmax(axis=1).tolist()):
                if token not in self._silent:
                    state = states[row]
                    log_prob = float(log_probs[row, token])
                    at = state.num_frames + frame
                    state.hypotheses[0] = state.hypotheses[0].extend(token, at, log_prob)
                    emitting.append(row)
            if emitting:
                decoder_out[emitting] = self._predict([states[r].hypotheses[0] for r in emitting])
        for state in states:
            state.num_frames += encoder_out_NCJ.shape[1]

    def best(self, state: DecoderState) -> Hypothesis:
        """The one hypothesis."""
        return state.hypotheses[0]


class BeamDecoder(TransducerDecoder):
    """Modified beam search: `max_active` sequences, one symbol a frame, equal sequences merged."""

    def __init__(
        self, networks: Networks, context_size: int, where: Path, *, max_active: int = 4
    ) -> None:
        super().__init__(networks, context_size, where)
        self._max_active = max_active

    def advance(self, encoder_out_NCJ: Floats, states: list[DecoderState]) -> None:
        """Decode one chunk of N streams."""
        for row, state in enumerate(states):
            for encoder_out_J in encoder_out_NCJ[row]:
                state.hypotheses = self._step(encoder_out_J, state)
                state.num_frames += 1

    def best(self, state: DecoderState) -> Hypothesis:
        """The hypothesis with the best score per symbol; as in sherpa-onnx, the start context counts."""
        return max(state.hypotheses, key=lambda h: h.score / len(h.ids))

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


def silent_ids(tokens: tuple[str, ...]) -> frozenset[int]:
    """Ids that emit nothing: blank and, as in sherpa-onnx, `<unk>`."""
    return frozenset((_BLANK_ID, *(i for i, t in enumerate(tokens) if t == UNKNOWN)))


def log_softmax(logits_NV: Floats) -> Floats:
    """Log-probabilities, float32 [N, V]."""
    shifted = logits_NV - logits_NV.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
