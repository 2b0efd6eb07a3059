"""Emission latency: how long after the end of a word a streaming recogniser has it out, and is sure of it.

A label of frame t is out when the last frame of its chunk has arrived. A text is complete with its last
label, but only a pause tells that no other follows: it is final at the endpoint, when the chunk has
arrived in which a pause of `endpoint_seconds` is over, or where the input ends, after the tail.

The delay of the chunk is counted; the time of computing is not (`todm.device.timing` measures it), nor
are the 17.5 ms that the features' window and the runtime's one frame of look-ahead add everywhere.
`word_ends.py` says where words end.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np

from todm.asr.config import AsrConfig
from todm.asr.decode.utterances import Decoded, Emission
from todm.asr.decode.wer import align
from todm.asr.decode.word_ends import Timed
from todm.device.decode import FRAME_SECONDS, endpoint_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delay:
    """Delays in seconds: `num` of `of` words were measured, with mean, median and 90th percentile."""

    num: int
    of: int
    mean: float
    p50: float
    p90: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Delays from the end of words that were recognised correctly.

    Attributes:
        words: of every word to its own text.
        last: of each utterance's last word to its text, with which the text is complete; None if no
            last word was right.
        final: of the same words to the endpoint, at which the text is final.
    """

    words: Delay
    last: Delay | None
    final: Delay | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """When labels are out.

    Attributes:
        chunk: C of the recogniser, 0 for the whole utterance.
        endpoint_seconds: the pause after which a text is final.
        tail_seconds: silence after the input.
    """

    chunk: int
    endpoint_seconds: float
    tail_seconds: float

    @classmethod
    def of(cls, config: AsrConfig, chunk: int) -> Self:
        """That of a net in torch at a chunk size."""
        return cls(
            chunk=chunk,
            endpoint_seconds=config.endpoint_seconds,
            tail_seconds=config.tail_seconds(chunk),
        )

    def out(self, frame: int, seconds: float) -> float:
        """The second at which a label is out.

        Args:
            frame: of the label, after subsampling.
            seconds: length of the utterance.
        """
        if not self.chunk:
            return seconds
        return (frame // self.chunk + 1) * self.chunk * FRAME_SECONDS

    def final(self, frame: int, seconds: float) -> float:
        """The second at which a text is final.

        Args:
            frame: of its last label, after subsampling.
            seconds: length of the utterance.
        """
        if not self.chunk:
            return seconds
        endpoint = self.out(frame + endpoint_frames(self.endpoint_seconds), seconds)
        return max(self.out(frame, seconds), min(endpoint, seconds + self.tail_seconds))


def measure(
    decoded: Iterable[Decoded], reference: Mapping[str, Timed], *, clock: Clock
) -> Latency | None:
    """The delays of a recogniser.

    Words are matched to the reference by the alignment that counts errors; only those recognised
    correctly have a delay. A negative one means that the word was out before it ended.

    Args:
        decoded: utterances; those without a reference are left out.
        reference: word ends by utterance.
        clock: when the recogniser's labels are out.

    Returns:
        The delays, or None if no word could be measured.
    """
    delays, last, final = list[float](), list[float](), list[float]()
    total = utterances = 0
    for utterance in decoded:
        timed = reference.get(utterance.id)
        if timed is None or not timed.words:
            continue
        total, utterances = total + len(timed.words), utterances + 1
        own = _delays(utterance.words, timed, clock)
        delays += own.values()
        if len(timed.words) - 1 in own:
            last.append(own[len(timed.words) - 1])
            final.append(clock.final(utterance.frames[-1], timed.seconds) - timed.ends[-1])
    if not delays:
        return None
    return Latency(
        words=_summary(delays, total),
        last=_summary(last, utterances) if last else None,
        final=_summary(final, utterances) if final else None,
    )


def _delays(recognised: Sequence[Emission], timed: Timed, clock: Clock) -> dict[int, float]:
    """The delay of every reference word that was recognised, by its place."""
    delays, i, j = dict[int, float](), 0, 0
    for ref, hyp in align(timed.words, [e.text for e in recognised]):
        if ref and ref == hyp:
            delays[i] = clock.out(recognised[j].frame, timed.seconds) - timed.ends[i]
        i, j = i + bool(ref), j + bool(hyp)
    return delays


def _summary(delays: Sequence[float], of: int) -> Delay:
    p50, p90 = np.quantile(delays, [0.5, 0.9])
    return Delay(
        num=len(delays), of=of, mean=float(np.mean(delays)), p50=float(p50), p90=float(p90)
    )
