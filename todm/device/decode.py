"""Searches over the joiner: at most one symbol a frame, as sherpa-onnx does.

Letters: N streams; C frames of encoder output; J joiner width; K context size; V vocabulary;
A hypotheses kept.
"""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from todm.device.bundle import UNKNOWN, Networks, run
from todm.device.contract import start_context

FRAME_SECONDS = 0.04
_BLANK_ID = 0

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A label sequence with the score of all paths merged into it.

    `ids` begins with the start context; `frames` and `log_probs` hold one entry per symbol.
    """

    ids: tuple[int, ...]
    frames: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0

    def extend(self, token: int, frame: int, log_prob: float) -> "Hypothesis":
        """This sequence and one more symbol."""
        return Hypothesis(
            ids=(*self.ids, token),
            frames=(*self.frames, frame),
            log_probs=(*self.log_probs, log_prob),
            score=self.score,
        )

    def split(self, num: int, context_size: int) -> tuple["Hypothesis", "Hypothesis"]:
        """The first `num` symbols, and the others with those before them as their context.

        The score stays with the first part.
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
class SearchState:
    """What a search keeps of one stream: its hypotheses, and the frames it has seen."""

    hypotheses: list[Hypothesis]
    num_frames: int = 0


class Search(Protocol):
    """A search that goes on from chunk to chunk."""

    def start(self) -> SearchState:
        """The state of a new stream."""
        ...

    def advance(self, encoder_out_NCJ: Floats, states: list[SearchState]) -> None:
        """Go on with one chunk of N streams."""
        ...

    def best(self, state: SearchState) -> Hypothesis:
        """The best hypothesis so far."""
        ...


class _Transducer:
    """Decoder and joiner as functions of arrays."""

    def __init__(self, networks: Networks, context_size: int, where: Path) -> None:
        self._networks, self._where = networks, where
        self.context_size = context_size
        self.silent = silent_ids(networks.tokens)

    def start(self) -> SearchState:
        ids = tuple(int(i) for i in start_context(self.context_size))
        return SearchState([Hypothesis(ids=ids)])

    def predict(self, hypotheses: list[Hypothesis]) -> Floats:
        """Predictor output, float32 [A, J]."""
        context = np.array([h.ids[-self.context_size :] for h in hypotheses], np.int64)
        return run(self._networks.decoder, [context], "decoder", self._where)[0]

    def log_probs(self, encoder_out_NJ: Floats, decoder_out_NJ: Floats) -> Floats:
        """Log-probabilities of the next symbol, float32 [N, V]."""
        inputs = [encoder_out_NJ, decoder_out_NJ]
        return log_softmax(run(self._networks.joiner, inputs, "joiner", self._where)[0])


class GreedySearch:
    """The likeliest symbol of every frame; `<unk>` counts as blank."""

    def __init__(self, networks: Networks, context_size: int, where: Path) -> None:
        self._transducer = _Transducer(networks, context_size, where)

    def start(self) -> SearchState:
        """The state of a new stream."""
        return self._transducer.start()

    def advance(self, encoder_out_NCJ: Floats, states: list[SearchState]) -> None:
        """Go on with one chunk of N streams."""
        model = self._transducer
        decoder_out = model.predict([s.hypotheses[0] for s in states])
        for frame in range(encoder_out_NCJ.shape[1]):
            log_probs = model.log_probs(encoder_out_NCJ[:, frame], decoder_out)
            emitting = []
            for row, token in enumerate(log_probs.argmax(axis=1).tolist()):
                if token not in model.silent:
                    state = states[row]
                    log_prob = float(log_probs[row, token])
                    at = state.num_frames + frame
                    state.hypotheses[0] = state.hypotheses[0].extend(token, at, log_prob)
                    emitting.append(row)
            if emitting:
                decoder_out[emitting] = model.predict([states[r].hypotheses[0] for r in emitting])
        for state in states:
            state.num_frames += encoder_out_NCJ.shape[1]

    def best(self, state: SearchState) -> Hypothesis:
        """The one hypothesis."""
        return state.hypotheses[0]


class BeamSearch:
    """Modified beam search: `max_active` sequences, one symbol a frame, equal sequences merged."""

    def __init__(
        self, networks: Networks, context_size: int, where: Path, *, max_active: int = 4
    ) -> None:
        self._transducer = _Transducer(networks, context_size, where)
        self._max_active = max_active

    def start(self) -> SearchState:
        """The state of a new stream."""
        return self._transducer.start()

    def advance(self, encoder_out_NCJ: Floats, states: list[SearchState]) -> None:
        """Go on with one chunk of N streams."""
        for row, state in enumerate(states):
            for encoder_out_J in encoder_out_NCJ[row]:
                state.hypotheses = self._step(encoder_out_J, state)
                state.num_frames += 1

    def best(self, state: SearchState) -> Hypothesis:
        """The hypothesis of the best score per symbol, the start context counted, as on the device."""
        return max(state.hypotheses, key=lambda h: h.score / len(h.ids))

    def _step(self, encoder_out_J: Floats, state: SearchState) -> list[Hypothesis]:
        model, old = self._transducer, state.hypotheses
        tiled = np.repeat(encoder_out_J[None], len(old), axis=0)
        log_probs = model.log_probs(tiled, model.predict(old))
        scores = log_probs + np.array([[h.score] for h in old], np.float32)
        merged: dict[tuple[int, ...], Hypothesis] = {}
        for flat in np.argsort(-scores, axis=None, kind="stable")[: self._max_active].tolist():
            row, token = divmod(flat, scores.shape[1])
            new = old[row]
            if token not in model.silent:
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
