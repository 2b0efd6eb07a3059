"""Emission latency: how long after the end of a word a streaming recogniser has it out.

A label of frame t is out when the last frame of its chunk has arrived. The delay of the chunk is
counted; the time of computing is not (`todm.device.timing` measures it), nor are the 17.5 ms that the
features' window and the runtime's one frame of look-ahead add everywhere. `word_ends.py` says where
words end.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from todm.asr.decode.utterances import Decoded, Emission
from todm.asr.decode.wer import align
from todm.asr.decode.word_ends import Timed
from todm.device.decode import FRAME_SECONDS


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
    """Delay of every word recognised correctly, and of each utterance's last word where it was."""

    words: Delay
    last: Delay | None


def measure(
    decoded: Iterable[Decoded], reference: Mapping[str, Timed], *, chunk: int
) -> Latency | None:
    """The delays of a recogniser.

    Words are matched to the reference by the alignment that counts errors; only those recognised
    correctly have a delay. A negative one means that the word was out before it ended.

    Args:
        decoded: utterances; those without a reference are left out.
        reference: word ends by utterance.
        chunk: C of the recogniser, 0 for the whole utterance.

    Returns:
        The delays, or None if no word could be measured.
    """
    delays: list[float] = []
    last: list[float] = []
    total = utterances = 0
    for utterance in decoded:
        timed = reference.get(utterance.id)
        if timed is None or not timed.words:
            continue
        total, utterances = total + len(timed.words), utterances + 1
        own = _delays(utterance.words, timed, chunk)
        delays += own.values()
        last += [own[len(timed.words) - 1]] if len(timed.words) - 1 in own else []
    if not delays:
        return None
    return Latency(words=_summary(delays, total), last=_summary(last, utterances) if last else None)


def available(frame: int, chunk: int, seconds: float) -> float:
    """The second at which a label of a frame is out.

    Args:
        frame: after subsampling.
        chunk: C, the frames of a chunk; 0 is the whole utterance.
        seconds: length of the utterance.
    """
    return (frame // chunk + 1) * chunk * FRAME_SECONDS if chunk else seconds


def _delays(recognised: Sequence[Emission], timed: Timed, chunk: int) -> dict[int, float]:
    """The delay of every reference word that was recognised, by its place."""
    delays, i, j = dict[int, float](), 0, 0
    for ref, hyp in align(timed.words, [e.text for e in recognised]):
        if ref and ref == hyp:
            delays[i] = available(recognised[j].frame, chunk, timed.seconds) - timed.ends[i]
        i, j = i + bool(ref), j + bool(hyp)
    return delays


def _summary(delays: Sequence[float], of: int) -> Delay:
    p50, p90 = np.quantile(delays, [0.5, 0.9])
    return Delay(
        num=len(delays), of=of, mean=float(np.mean(delays)), p50=float(p50), p90=float(p90)
    )
