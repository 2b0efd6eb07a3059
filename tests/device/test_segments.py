"""Words, pauses, and recordings of any length: the same words as in one piece, in memory that stays."""

import dataclasses
import itertools
import math
import tracemalloc

import pytest

from todm.device.audio import read_audio
from todm.device.bundle import open_bundle
from todm.device.recognizer import (
    OfflineRecognizer,
    StreamingRecognizer,
    Transcript,
    detokenize,
    pad_tail,
)
from todm.device.segments import (
    Pauses,
    first_segment,
    split,
    transcribe_blocks,
    word_spans,
    words,
)
from todm.errors import CorpusError

# The golden bundle has random weights and never rests for long, nor do its words end.
SHORT = Pauses(silence=0.1)
LONG = Pauses(silence=9.0, longest=0.4)
NONE = Pauses(silence=9.0)


def with_endpoint(path, seconds):
    bundle = open_bundle(path)
    return dataclasses.replace(bundle, info={**bundle.info, "endpoint_seconds": seconds})


@pytest.fixture(scope="module")
def recognizer(golden):
    return StreamingRecognizer(open_bundle(golden))


@pytest.fixture(scope="module")
def restarting(golden):
    """The recognizer, whose context starts again after 0.2 s: the segments of SHORT end earlier."""
    return StreamingRecognizer(with_endpoint(golden, 0.2))


@pytest.fixture(scope="module")
def speech(golden):
    return read_audio(golden / "test_wavs" / "0.wav")


def blocks(samples, size=4000):
    return (samples[i : i + size] for i in range(0, len(samples), size))


def joined(segments, name):
    return tuple(x for s in segments for x in getattr(s, name))


@pytest.mark.parametrize("size", [1, 160, 4000, 10**6])
@pytest.mark.parametrize("pauses", [SHORT, LONG, NONE], ids=["short", "long", "none"])
@pytest.mark.parametrize("which", ["recognizer", "restarting"])
def test_segments_together_are_the_transcript_of_the_whole(which, request, speech, pauses, size):
    recognizer = request.getfixturevalue(which)
    speech = speech[: 16_000 if size == 1 else None]
    whole = recognizer.transcribe(speech)
    found = list(transcribe_blocks(recognizer, blocks(speech, size), pauses=pauses))
    for name in ("tokens", "timestamps", "log_probs"):
        assert joined(found, name) == getattr(whole, name)
    assert (len(found) > 1) == (pauses != NONE)


@pytest.mark.parametrize("pauses", [SHORT, LONG, None], ids=["short", "long", "of-the-bundle"])
def test_whole_and_streaming_end_segments_at_the_same_places(restarting, speech, pauses):
    streamed = list(transcribe_blocks(restarting, blocks(speech), pauses=pauses))
    pauses = pauses or Pauses.of(restarting)
    assert streamed == split(restarting.transcribe(speech), pauses=pauses)
    assert len(streamed) > 2


def test_a_segment_ends_where_the_context_starts_again(golden, recognizer, restarting, speech):
    assert Pauses.of(restarting).silence == 0.2
    assert Pauses.of(recognizer).silence == 0.8  # a bundle of an earlier version
    assert Pauses.of(OfflineRecognizer(with_endpoint(golden, 3))).silence == 3
    gaps = [
        b.start - a.timestamps[-1]
        for a, b in itertools.pairwise(transcribe_blocks(restarting, blocks(speech)))
    ]
    assert min(gaps) > 0.22
    assert restarting.transcribe(speech).tokens != recognizer.transcribe(speech).tokens


def test_segments_come_before_the_audio_has_ended(recognizer, speech):
    fed = []

    def source():
        for block in blocks(speech):
            fed.append(len(block))
            yield block

    found = transcribe_blocks(recognizer, source(), pauses=SHORT)
    next(found)
    assert sum(fed) < len(speech) / 2


@pytest.mark.parametrize("beam", [2, 4])
def test_beam_search_goes_on_after_a_segment(golden, speech, beam):
    recognizer = StreamingRecognizer(open_bundle(golden), beam=beam)
    found = list(transcribe_blocks(recognizer, blocks(speech), pauses=LONG))
    assert len(found) > 1
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


def test_what_came_before_damage_is_transcribed(recognizer, speech):
    def damaged():
        yield speech[:24_000]
        raise CorpusError("damaged after 1.5 s")

    found = []
    with pytest.raises(CorpusError, match=r"after 1\.5 s"):
        found.extend(transcribe_blocks(recognizer, damaged(), pauses=SHORT))
    assert joined(found, "tokens") == recognizer.transcribe(speech[:24_000]).tokens


def peak(recognizer, speech, repeats):
    """The most memory that Python and numpy held at a time."""
    tracemalloc.start()
    source = (block for _ in range(repeats) for block in blocks(speech))
    pauses = Pauses(silence=0.8, longest=2.0)
    tokens = sum(len(s.tokens) for s in transcribe_blocks(recognizer, source, pauses=pauses))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return tokens, most


def test_memory_does_not_grow_with_the_recording(recognizer, speech):
    """6 s against a minute of constant talk, which would be 3.8 MB."""
    speech = speech[:48_000]
    peak(recognizer, speech, 1)  # what is made once
    few, small = peak(recognizer, speech, 2)
    many, large = peak(recognizer, speech, 20)
    assert many > 5 * few
    assert large < 2 * small


def test_what_is_settled_is_forgotten(recognizer, speech):
    stream = recognizer.create_stream()
    stream.accept(speech)
    while recognizer.step([stream]):
        pass
    before = recognizer.result(stream)
    done = recognizer.commit(stream, 5)
    rest = recognizer.result(stream)
    assert (*done.tokens, *rest.tokens) == before.tokens
    assert (*done.timestamps, *rest.timestamps) == before.timestamps
    recognizer.commit(stream, len(rest.tokens))
    (left,) = stream.decoder_state.hypotheses
    assert left.context == before.ids[-recognizer.spec.context_size :]
    assert left.last == round(before.timestamps[-1] / 0.04)
    assert left.ids == left.frames == left.log_probs == ()


TOKENS = ("▁GO", "▁LE", "FT", "▁", "NOW")


def test_words_have_times_and_confidence():
    found = list(words(TOKENS, (0.2, 0.4, 0.52, 1.0, 1.2), (0.0, -0.2, -0.4, -1.0, -2.0)))
    assert [(w.text, w.start, w.end) for w in found] == [
        ("GO", 0.2, 0.24),
        ("LEFT", 0.4, 0.56),
        ("NOW", 1.0, 1.24),
    ]
    assert [w.confidence for w in found] == pytest.approx(
        [1.0, math.exp(-0.3), math.exp(-1.5)], abs=1e-4
    )


@pytest.mark.parametrize(
    ("times", "now", "num"),
    [
        ([0.0, 0.2, 0.4], 1.0, 0),
        ([0.0, 0.2, 0.4], 1.24, 3),
        ([0.0, 1.2, 1.4], 1.5, 1),
        ([0.0, 0.2, 1.4], 1.5, 2),
        ([0.0, 1.0, 1.8], 1.9, 1),
        ([0.0, 0.6, 2.0], 2.0, 2),
        ([0.0, 0.2, 0.4, 1.2, 2.0], 2.0, 3),
        ([0.0, 0.6, 1.2], 2.0, 0),
        ([0.0, 0.6, 1.2], 2.04, 3),
        ([], 9.0, 0),
    ],
    ids=["talking", "silence", "pause", "in-a-word", "rest-goes-on", "before-too-long", "too-long",
         "not-yet", "one-frame-later", "nothing"],
)  # fmt: skip
def test_where_a_segment_ends(times, now, num):
    pauses = Pauses(silence=0.8, longest=2.0)
    assert first_segment(TOKENS[: len(times)], times, now, pauses=pauses) == num


def test_a_word_without_end_is_cut():
    tokens = ["A"] * 10
    assert (
        first_segment(
            tokens, [i / 4 for i in range(10)], 9.0, pauses=Pauses(silence=0.8, longest=1.0)
        )
        == 4
    )


def test_a_lone_word_boundary_is_no_segment():
    transcript = Transcript(text="", ids=(3,), tokens=("▁",), timestamps=(0.4,), log_probs=(-0.1,))
    assert split(transcript, pauses=NONE) == []
    assert detokenize(transcript.tokens) == ""


def test_the_tail_brings_out_the_last_words(recognizer, speech):
    cut = speech[:48_000]
    found = list(transcribe_blocks(recognizer, [cut]))
    whole = recognizer.transcribe(pad_tail(cut, recognizer.tail_seconds), tail_seconds=0)
    assert joined(found, "tokens") == whole.tokens


def test_no_symbols_are_no_words():
    assert list(word_spans([])) == []
