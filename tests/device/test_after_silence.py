"""A forked state decodes as the unbroken stream: held against whole recordings, by the golden bundle."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from todm.device import after_silence, sounds
from todm.device.after_silence import Command, after_waits, busy_hour, change, repeats
from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer, detokenize

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer(golden):
    return StreamingRecognizer(open_bundle(golden))


def _commands(num):
    """Recordings of noise that swells: a random net writes something else for each."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(4_000, 30_000, size=num)
    return [
        Command(
            samples_S=(0.2 * rng.normal(size=n) * np.linspace(0, 1, n)).astype(np.float32), text=""
        )
        for n in lengths
    ]


def _unbroken(recognizer, sound, command, index, wait):
    """The text of a command in one recording with its wait, as `after_waits` lays them out."""
    chunk = recognizer.spec.shift_frames * 160
    # The last chunk of the wait is decoded with what follows: that takes one frame more.
    start = max(0, -(-round(wait * RATE) // chunk) - 1) * chunk
    lead = round(0.3 * RATE) + index * 7919 % recognizer.spec.shift_frames * 160
    tail = round(recognizer.tail_seconds * RATE)
    audio = sound.part(0, start + lead + len(command.samples_S) + tail)
    if sound.level is not None:
        missing = sound.level + after_silence.MARGIN - sounds.speech_level(command.samples_S)
        command_S = command.samples_S * np.float32(10 ** (max(0.0, missing) / 20))
    else:
        command_S = command.samples_S
    audio[start + lead :][: len(command_S)] += command_S
    found = recognizer.transcribe(audio, tail_seconds=0)
    waited = sum(time < start / RATE for time in found.timestamps)
    return found.tokens[waited:]


@pytest.mark.parametrize(
    "sound", [sounds.silence(), sounds.white_noise(-30.0)], ids=["silence", "noise"]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_command_after_a_wait_is_heard_as_in_one_recording(
    recognizer, monkeypatch, sound, batch_size
):
    commands, waits = _commands(5), [0.0, 1.3, 4.0]
    texts = []
    result = recognizer.result

    def spy(stream):
        found = result(stream)
        if stream not in seen:
            texts.append(found.tokens)
        return found

    seen = []
    monkeypatch.setattr(after_silence, "_decode", _decode_counting(seen))
    monkeypatch.setattr(recognizer, "result", spy)
    heard = after_waits(recognizer, sound, commands, waits, batch_size=batch_size)
    monkeypatch.undo()
    want = [
        _unbroken(recognizer, sound, command, index, wait)
        for wait in waits
        for index, command in enumerate(commands)
    ]
    assert texts == want
    assert len({t for t in want if t}) > 3  # the net says different things
    assert [h.seconds for h in heard] == waits
    assert [t for h in heard for t in h.texts] == [detokenize(tokens) for tokens in want]
    assert all(len(h.right) == len(commands) for h in heard)


def _decode_counting(seen):
    """`_decode` that marks the stream of the wait."""
    decode = after_silence._decode

    def wrapped(recognizer, stream):
        seen.append(stream)
        return decode(recognizer, stream)

    return wrapped


def test_right_is_an_exact_text(recognizer):
    command = _commands(1)[0]
    (heard,) = after_waits(recognizer, sounds.silence(), [command], [0.0])
    assert heard.right == (False,)
    found = recognizer.transcribe(np.concatenate([np.zeros(4_800, np.float32), command.samples_S]))
    assert found.text
    named = Command(samples_S=command.samples_S, text=found.text)
    (heard,) = after_waits(recognizer, sounds.silence(), [named], [0.0])
    assert heard.right == (True,)


def test_a_repeated_command_is_judged_apart_from_the_first(recognizer, monkeypatch):
    command = Command(samples_S=np.zeros(RATE, np.float32), text="ON")

    class Found:
        tokens = ("\u2581ON", "\u2581OFF")
        timestamps = (0.9, 2.9)

    monkeypatch.setattr(recognizer, "transcribe", lambda audio: Found())
    assert repeats(recognizer, [command], 1.0) == ([True], [False])


def test_change_is_paired():
    before, after = [True, True, False, False], [True, True, True, False]
    found = change(before, after)
    assert found.right == 75
    assert found.points == 25
    spread = np.std([0, 0, 100, 0]) / 2
    assert found.low == pytest.approx(25 - 1.96 * spread)
    assert found.high == pytest.approx(25 + 1.96 * spread)
    same = change(before, before)
    assert (same.points, same.low, same.high) == (0, 0, 0)


def test_words_of_the_hour_belong_to_the_command_they_follow(recognizer, monkeypatch):
    commands = [Command(samples_S=np.full(RATE, 0.5, np.float32), text=f"C{n}") for n in range(6)]
    other = np.full(2 * RATE, 0.25, np.float32)
    heard = []

    def listen(_recognizer, blocks):
        """Hears each command 0.2 s after its beginning, and one word in all other speech."""
        audio = np.concatenate(list(blocks))
        level = np.round(np.abs(audio[::160]), 2)
        starts = [i for i in range(1, len(level)) if level[i] != level[i - 1] and level[i] > 0]
        named = iter(np.random.default_rng(4).permutation(len(commands)).tolist())
        for at in starts:
            heard.append(level[at])
            yield _Segment([_Word("X" if level[at] < 0.5 else f"C{next(named)}", at / 100 + 0.2)])

    monkeypatch.setattr(after_silence, "transcribe_blocks", listen)
    monkeypatch.setattr(recognizer, "transcribe", lambda audio: _Found("C3"))
    alone, among = busy_hour(recognizer, sounds.silence(), commands, [other])
    assert among == [True] * 6
    assert alone == [n == 3 for n in range(6)]
    assert heard.count(0.5) == 6
    assert heard.count(0.25) >= 2


class _Word:
    def __init__(self, text, start):
        self.text, self.start = text, start


class _Segment:
    def __init__(self, words):
        self.words = words


class _Found:
    def __init__(self, text):
        self.text = text
