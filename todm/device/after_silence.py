"""Whether a recogniser that has waited hears as well as one that just started.

A wait is computed once for each sound; at every length of interest its state is forked for each
command. The sound goes on under the words (unless it is other speech), which lie at least `MARGIN` dB
above it, so that only the wait differs from the reference: the same sound and commands with no wait.

Letters: S samples.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.decode import FRAME_SECONDS
from todm.device.features import FRAMES_PER_SECOND
from todm.device.recognizer import Stream, StreamingRecognizer, detokenize
from todm.device.segments import final_text, transcribe_blocks
from todm.device.sounds import Sound, speech_level

MARGIN = 15.0
_LEAD = 0.3  # seconds of the sound before each command
_FEATURE_LEAD = 10  # frames before a fork, so that its first window is as in an unbroken stream
_SHIFT = SAMPLE_RATE // FRAMES_PER_SECOND
_BLOCK_SECONDS = 10
_PRIME = 7919
_SPEECH_SHARE = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A recording and its transcript: float32 [S] at 16 kHz."""

    samples_S: Samples
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heard:
    """Commands recognised after a wait.

    Attributes:
        seconds: of the wait.
        texts: of each command, as recognised.
        right: for each command, whether its text is exactly right.
        words: words written during the wait.
    """

    seconds: float
    texts: tuple[str, ...]
    right: tuple[bool, ...]
    words: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """The share right after a wait: in percent, and against no wait in points, with a 95 % interval."""

    right: float
    points: float
    low: float
    high: float


def after_waits(
    recognizer: StreamingRecognizer,
    sound: Sound,
    commands: Sequence[Command],
    waits: Sequence[float],
    *,
    under_words: bool = True,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Heard]:
    """What is recognised after waits of increasing length in a sound.

    Args:
        recognizer: of the bundle.
        sound: what is heard meanwhile.
        commands: each at another place in its chunk, all places in turn.
        waits: seconds, ascending; each is rounded up to whole chunks.
        under_words: whether the sound goes on; if not, silence follows.
        batch_size: commands decoded together; 1 where activations are quantised, since their scale
            is shared by a batch.
        progress: called with seconds of audio done and in all.
    """
    chunk = recognizer.spec.shift_frames * _SHIFT
    stream, fed, words, heard = recognizer.create_stream(), 0, 0, []
    each = sum(len(c.samples_S) for c in commands) / SAMPLE_RATE
    total = round(max(waits) + each * len(waits))

    def report() -> None:
        if progress:
            progress(min(round(fed / SAMPLE_RATE + each * len(heard)), total), total)

    for wait in waits:
        end = math.ceil(wait * SAMPLE_RATE / chunk) * chunk
        while fed < end:
            num = min(_BLOCK_SECONDS * SAMPLE_RATE // chunk * chunk or chunk, end - fed)
            stream.accept(sound.part(fed, num))
            fed += num
            words += _decode(recognizer, stream)
            report()
        texts: list[str] = []
        for start in range(0, len(commands), batch_size):
            group = range(start, min(start + batch_size, len(commands)))
            forks = [_fork(recognizer, stream) for _ in group]
            at = round(stream.decoder_state.num_frames * FRAME_SECONDS * SAMPLE_RATE)
            for index, fork in zip(group, forks, strict=True):
                place = index * _PRIME % recognizer.spec.shift_frames
                heard_sound = sound if under_words else None
                fork.accept(_clip(recognizer, commands[index], sound, heard_sound, at, place))
                fork.drop(min(_FEATURE_LEAD, at // _SHIFT))
                fork.finish()
            while recognizer.step(forks):
                pass
            texts += [final_text(recognizer, recognizer.result(fork)) for fork in forks]
        right = tuple(t == command.text for t, command in zip(texts, commands, strict=True))
        heard.append(Heard(seconds=wait, texts=tuple(texts), right=right, words=words))
        report()
    return heard


def repeats(
    recognizer: StreamingRecognizer, commands: Sequence[Command], pause: float
) -> tuple[list[bool], list[bool]]:
    """Whether each command is right, and right again when it is said once more after a pause.

    The pause lies between the end of one recording and the beginning of the next, and is digital
    silence. A symbol belongs to the second command if it comes after its beginning.
    """
    first, second = [], []
    for number, command in enumerate(commands):
        lead = _LEAD + number * _PRIME % recognizer.spec.shift_frames / FRAMES_PER_SECOND
        said = command.samples_S
        audio = np.concatenate([_quiet(lead), said, _quiet(pause), said])
        again = (len(audio) - len(command.samples_S)) / SAMPLE_RATE
        found = recognizer.transcribe(audio)
        num = sum(time < again for time in found.timestamps)
        first.append(detokenize(found.tokens[:num]) == command.text)
        second.append(detokenize(found.tokens[num:]) == command.text)
    return first, second


def busy_hour(
    recognizer: StreamingRecognizer,
    sound: Sound,
    commands: Sequence[Command],
    other_speech: Sequence[Samples],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[bool], list[bool]]:
    """Whether commands are right one by one, and in a long recording among other speech.

    There they come in random order with pauses of 0.3 to 5 s, and other speech in three of four pauses,
    which with 300 commands and sentences of some 8 s is about an hour. The words of a command are those
    written between its beginning and that of what comes next. The sound lies under everything, in both.

    Args:
        recognizer: of the bundle.
        sound: the background.
        commands: each once.
        other_speech: recordings, float32 [S] at 16 kHz, taken in turn; none for pauses alone.
        progress: called with commands done and in all.
    """
    rng, speech = np.random.default_rng(4), itertools.cycle(other_speech)
    order = rng.permutation(len(commands)).tolist()
    spans: list[tuple[float, float]] = []

    def blocks() -> Iterator[Samples]:
        at = 0
        for done, index in enumerate(order, 1):
            parts = [_quiet(rng.uniform(0.3, 5.0))]
            if other_speech and rng.random() < _SPEECH_SHARE:
                parts += [next(speech), _quiet(rng.uniform(0.3, 5.0))]
            before = np.concatenate(parts)
            samples_S = commands[index].samples_S
            if spans:
                spans[-1] = (spans[-1][0], (at + len(parts[0])) / SAMPLE_RATE)
            audio = np.concatenate([before, samples_S])
            spans.append(((at + len(before)) / SAMPLE_RATE, math.inf))
            yield audio + sound.part(at, len(audio))
            at += len(audio)
            if progress:
                progress(done, len(order))

    words = [w for s in transcribe_blocks(recognizer, blocks()) for w in s.words]
    among = [False] * len(commands)
    for index, (begin, end) in zip(order, spans, strict=True):
        text = " ".join(w.text for w in words if begin <= w.start < end)
        among[index] = text == commands[index].text
    alone = []
    for command in commands:
        audio = np.concatenate([_quiet(_LEAD), command.samples_S])
        found = recognizer.transcribe(audio + sound.part(0, len(audio)))
        alone.append(final_text(recognizer, found) == command.text)
    return alone, among


def change(before: Sequence[bool], after: Sequence[bool]) -> Change:
    """How a share changed, commands paired."""
    differences = np.subtract(after, before, dtype=np.float64) * 100
    points = float(differences.mean())
    half = 1.96 * float(differences.std()) / max(len(differences), 1) ** 0.5
    return Change(
        right=100 * float(np.mean(after)), points=points, low=points - half, high=points + half
    )


def _decode(recognizer: StreamingRecognizer, stream: Stream) -> int:
    """Decode what is there, forget what was recognised, and return the number of its words."""
    while recognizer.step([stream]):
        pass
    found = recognizer.commit(stream, len(recognizer.result(stream).tokens))
    return len(found.text.split())


def _fork(recognizer: StreamingRecognizer, stream: Stream) -> Stream:
    """A stream that goes on from the state of another, without its audio."""
    fork = recognizer.create_stream()
    fork.states = stream.states
    fork.decoder_state = copy.deepcopy(stream.decoder_state)
    return fork


def _clip(
    recognizer: StreamingRecognizer,
    command: Command,
    waited: Sound,
    sound: Sound | None,
    at: int,
    place: int,
) -> Samples:
    """The audio from sample `at` of a stream on: lead, command at a place in its chunk, tail."""
    before = min(_FEATURE_LEAD * _SHIFT, at)
    lead = round(_LEAD * SAMPLE_RATE) + place * _SHIFT
    tail = round(recognizer.tail_seconds * SAMPLE_RATE)
    clip = np.zeros(before + lead + len(command.samples_S) + tail, np.float32)
    scale = 1.0
    if sound is not None:
        clip += sound.part(at - before, len(clip))
        if sound.level is not None:
            missing = sound.level + MARGIN - speech_level(command.samples_S)
            scale = 10 ** (max(0.0, missing) / 20)
    elif before:
        clip[:before] = waited.part(at - before, before)
    clip[before + lead :][: len(command.samples_S)] += command.samples_S * np.float32(scale)
    return clip


def _quiet(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)
