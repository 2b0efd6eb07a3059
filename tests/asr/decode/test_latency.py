"""Emission latency of words of which the delays are known."""

import pytest

from todm.asr.decode.latency import Clock, measure
from todm.asr.decode.utterances import Decoded
from todm.asr.decode.word_ends import Timed


@pytest.mark.parametrize(
    ("frame", "chunk", "seconds"),
    [(0, 8, 0.32), (7, 8, 0.32), (8, 8, 0.64), (9, 1, 0.4), (9, 0, 5.0)],
)
def test_a_label_is_out_at_the_end_of_its_chunk(frame, chunk, seconds):
    assert clock(chunk).out(frame, 5.0) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("frame", "chunk", "seconds"),
    [
        (16, 1, 1.28),  # blank in the 15 frames 17 to 31: all are there after 32 frames
        (16, 8, 1.28),
        (17, 8, 1.6),  # frame 32 is in the next chunk
        (135, 8, 5.8),  # the input ends before the pause is over
        (143, 8, 5.8),
        (145, 8, 6.08),  # never before the text itself
        (16, 0, 5.0),
    ],
)
def test_a_text_is_final_when_the_pause_behind_it_is_over_or_the_input_ends(frame, chunk, seconds):
    assert clock(chunk).final(frame, 5.0) == pytest.approx(seconds)


def clock(chunk):
    return Clock(chunk=chunk, endpoint_seconds=0.6, tail_seconds=0.8)


REFERENCE = {
    "a": Timed(("GO", "LEFT", "NOW"), (0.30, 0.50, 1.00), 1.5),
    "b": Timed(("STOP",), (0.40,), 1.0),
}


def heard(name, *words):
    symbols, frames = zip(*words, strict=True)
    return Decoded(
        id=name,
        reference="",
        hypothesis="",
        symbols=tuple(f"\u2581{symbol}" for symbol in symbols),
        frames=frames,
    )


def test_delays_of_words_and_of_the_last_word():
    found = [
        heard("a", ("GO", 8), ("UM", 9), ("RIGHT", 12), ("NOW", 30)),
        heard("b", ("STOP", 3)),
        heard("unknown", ("STOP", 3)),
    ]
    latency = measure(found, REFERENCE, clock=clock(8))
    # GO: 0.64 - 0.30; NOW: 1.28 - 1.00; STOP: 0.32 - 0.40, before it has ended
    assert (latency.words.num, latency.words.of) == (3, 4)
    assert latency.words.mean == pytest.approx((0.34 + 0.28 - 0.08) / 3)
    assert latency.words.p50 == pytest.approx(0.28)
    assert latency.words.p90 == pytest.approx(0.28 + 0.8 * 0.06)
    assert (latency.last.num, latency.last.of) == (2, 2)
    assert latency.last.mean == pytest.approx((0.28 - 0.08) / 2)
    # Final: frame 45 is in the chunk to 1.92; frame 18 in that to 0.96
    assert (latency.final.num, latency.final.of) == (2, 2)
    assert latency.final.mean == pytest.approx((1.92 - 1.00 + 0.96 - 0.40) / 2)


def test_a_word_after_the_last_one_puts_the_endpoint_off():
    found = measure([heard("b", ("STOP", 3), ("UM", 15))], REFERENCE, clock=clock(8))
    assert found.last.mean == pytest.approx(0.32 - 0.40)
    assert found.final.mean == pytest.approx(1.28 - 0.40)


def test_where_the_last_word_is_wrong_the_text_is_not_measured():
    found = measure([heard("a", ("GO", 8), ("NO", 30))], REFERENCE, clock=clock(8))
    assert (found.words.num, found.last, found.final) == (1, None, None)


def test_a_whole_utterance_is_out_at_its_end():
    found = [heard("a", ("GO", 8), ("LEFT", 12), ("NOW", 30))]
    latency = measure(found, REFERENCE, clock=clock(0))
    assert latency is not None
    assert latency.words.mean == pytest.approx((1.2 + 1.0 + 0.5) / 3)


def test_an_earlier_recogniser_has_less_latency():
    late, early = ([heard("b", ("STOP", t))] for t in (20, 9))
    assert (
        measure(early, REFERENCE, clock=clock(8)).words.mean
        < measure(late, REFERENCE, clock=clock(8)).words.mean
    )


@pytest.mark.parametrize("found", [[], [heard("b", ("GO", 3))]], ids=["nothing", "nothing right"])
def test_without_a_word_there_is_no_latency(found):
    assert measure(found, REFERENCE, clock=clock(8)) is None
