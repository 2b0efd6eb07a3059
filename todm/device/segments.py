"""Words and segments of a transcript, with times and confidences.

Times are those at which symbols were emitted, in frames of 40 ms: a transducer emits a word near its
end, so a word of one symbol starts and ends within one frame. A segment of too little confidence
(todm/device/decision.py) gives no text. The confidence of a word is the geometric
mean of its symbols' probabilities at the frames that emitted them, in competition with blank. It is not
calibrated: words with 0.9 are not right nine times out of ten.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.decision import confidence
from todm.device.decode import FRAME_SECONDS, endpoint_frames
from todm.device.recognizer import (
    OfflineRecognizer,
    Stream,
    StreamingRecognizer,
    Transcript,
    detokenize,
)
from todm.errors import CorpusError

_SPACE = "\u2581"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
    """A word, from its first symbol to the end of its last symbol's frame, in seconds."""

    text: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Words between two pauses; times in seconds from the start of the recording.

    `confidence` is that of the whole, see `todm.device.decision`.
    """

    text: str
    start: float
    end: float
    confidence: float
    words: tuple[Word, ...]
    tokens: tuple[str, ...]
    timestamps: tuple[float, ...]
    log_probs: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pauses:
    """Where segments end.

    Attributes:
        silence: seconds without a symbol that end a segment.
        longest: seconds after which a segment ends before the next word, pause or not.
    """

    silence: float
    longest: float = 20.0

    @classmethod
    def of(cls, recognizer: StreamingRecognizer | OfflineRecognizer) -> "Pauses":
        """Those of a bundle: a segment ends where the predictor's context starts again.

        After 0.8 s in bundles of earlier versions, whose context never does.
        """
        return cls(silence=recognizer.pause_seconds)


def transcribe_blocks(
    recognizer: StreamingRecognizer,
    blocks: Iterable[Samples],
    *,
    pauses: Pauses | None = None,
    threshold: float | None = None,
    partial: Callable[[str], None] | None = None,
) -> Iterator[Segment]:
    """Transcribe audio of any length in constant memory.

    Greedy search and a threshold of 0 give the same words as `StreamingRecognizer.transcribe` on the whole
    recording.

    Args:
        recognizer: decodes; its tail of silence is added.
        blocks: consecutive audio, each float32 [S] at 16 kHz.
        pauses: where segments end; the bundle's if None.
        threshold: confidence below which a segment is left out; the bundle's if None.
        partial: called with the text of the incomplete segment whenever it may have changed.

    Yields:
        Each segment as soon as it is complete.

    Raises:
        CorpusError: raised by `blocks`, after everything before it was yielded.
    """
    pauses = pauses or Pauses.of(recognizer)
    threshold = recognizer.threshold if threshold is None else threshold
    found = _segments(recognizer, blocks, pauses, partial)
    yield from (one for one in found if one.confidence >= threshold)


def _segments(
    recognizer: StreamingRecognizer,
    blocks: Iterable[Samples],
    pauses: Pauses,
    partial: Callable[[str], None] | None,
) -> Iterator[Segment]:
    """All segments, whatever their confidence."""
    stream, source, damage = recognizer.create_stream(), iter(blocks), None
    while True:
        try:
            block = next(source, None)
        except CorpusError as error:
            block, damage = None, error
        if block is None:
            break
        stream.accept(block)
        yield from _advance(recognizer, stream, pauses, partial)
    stream.accept(np.zeros(round(recognizer.tail_seconds * SAMPLE_RATE), np.float32))
    stream.finish()
    yield from _advance(recognizer, stream, pauses, partial)
    rest = recognizer.result(stream)
    yield from split(recognizer.commit(stream, len(rest.tokens)), pauses=pauses)
    if damage is not None:
        raise damage


def final_text(recognizer: StreamingRecognizer | OfflineRecognizer, transcript: Transcript) -> str:
    """The text of a whole transcript without the segments that are below the bundle's threshold."""
    if not recognizer.threshold:
        return transcript.text.strip()
    found = split(transcript, pauses=Pauses.of(recognizer), threshold=recognizer.threshold)
    return " ".join(segment.text for segment in found)


def split(transcript: Transcript, *, pauses: Pauses, threshold: float = 0.0) -> list[Segment]:
    """Split a whole transcript into segments, without those of a confidence below the threshold."""
    segments, start = [], 0
    while start < len(transcript.tokens):
        rest = slice(start, None)
        num = first_segment(
            transcript.tokens[rest], transcript.timestamps[rest], math.inf, pauses=pauses
        )
        segments.append(segment(transcript, start, start + num))
        start += num
    return [s for s in segments if s.text and s.confidence >= threshold]


def first_segment(
    tokens: Sequence[str], timestamps: Sequence[float], now: float, *, pauses: Pauses
) -> int:
    """The number of tokens in the first segment, or 0 if it is not complete.

    A pause ends it even within a word, since nobody knew that the word would go on.

    Args:
        tokens: all that are not in a segment yet.
        timestamps: of each.
        now: the time of the next frame, from the start of the stream.
        pauses: where segments end.
    """
    begins = [i for i, token in enumerate(tokens) if i and token.startswith(_SPACE)]
    pause = endpoint_frames(pauses.silence)
    for i, time in enumerate(timestamps):
        if time - timestamps[0] >= pauses.longest:
            return max((b for b in begins if b <= i), default=i)
        following = timestamps[i + 1] if i + 1 < len(tokens) else now
        if (following - time) / FRAME_SECONDS > pause + 0.5:  # whole frames, but for rounding
            return i + 1
    return 0


def segment(transcript: Transcript, start: int, end: int) -> Segment:
    """The tokens from `start` to `end`, exclusive, as a segment."""
    part = slice(start, end)
    tokens, timestamps = transcript.tokens[part], transcript.timestamps[part]
    log_probs = transcript.log_probs[part]
    return Segment(
        text=detokenize(tokens),
        start=timestamps[0],
        end=round(timestamps[-1] + FRAME_SECONDS, 2),
        confidence=confidence(log_probs),
        words=tuple(words(tokens, timestamps, log_probs)),
        tokens=tokens,
        timestamps=timestamps,
        log_probs=log_probs,
    )


def words(
    tokens: Sequence[str], timestamps: Sequence[float], log_probs: Sequence[float]
) -> Iterator[Word]:
    """The words that tokens spell, with times and confidence."""
    for text, start, end in word_spans(tokens):
        yield Word(
            text=text,
            start=timestamps[start],
            end=round(timestamps[end - 1] + FRAME_SECONDS, 2),
            confidence=round(math.exp(sum(log_probs[start:end]) / (end - start)), 4),
        )


def word_spans(tokens: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Every word: its text, the index of its first token, and the index after its last.

    A word begins at each token that begins with U+2581.
    """
    begins = [i for i, token in enumerate(tokens) if i == 0 or token.startswith(_SPACE)]
    for start, end in itertools.pairwise([*begins, len(tokens)]):
        if text := detokenize(tokens[start:end]):
            yield text, start, end


def _advance(
    recognizer: StreamingRecognizer,
    stream: Stream,
    pauses: Pauses,
    partial: Callable[[str], None] | None,
) -> Iterator[Segment]:
    """Decode the audio received so far; yields the complete segments."""
    while recognizer.step([stream]):
        now = stream.decoder_state.num_frames * FRAME_SECONDS
        transcript = recognizer.result(stream)
        while num := first_segment(transcript.tokens, transcript.timestamps, now, pauses=pauses):
            done = segment(recognizer.commit(stream, num), 0, num)
            if done.text:
                yield done
            transcript = recognizer.result(stream)
        if partial:
            partial(detokenize(transcript.tokens))
