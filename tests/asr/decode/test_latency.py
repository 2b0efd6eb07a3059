"""Emission latency of words of which the delays are known."""

import pytest

from todm.asr.decode.latency import available, measure
from todm.asr.decode.utterances import Decoded
from todm.asr.decode.word_ends import Timed


@pytest.mark.parametrize(
    ("frame", "chunk", "seconds"),
    [(0, 8, 0.32), (7, 8, 0.32), (8, 8, 0.64), (9, 1, 0.4), (9, 0, 5.0)],
)
def test_a_label_is_out_at_the_end_of_its_chunk(frame, chunk, seconds):
    assert available(frame, chunk, 5.0) == pytest.approx(seconds)


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
    latency = measure(found, REFERENCE, chunk=8)
    # GO: 0.64 - 0.30; NOW: 1.28 - 1.00; STOP: 0.32 - 0.40, before it has ended
    assert (latency.words.num, latency.words.of) == (3, 4)
    assert latency.words.mean == pytest.approx((0.34 + 0.28 - 0.08) / 3)
    assert latency.words.p50 == pytest.approx(0.28)
    assert latency.words.p90 == pytest.approx(0.28 + 0.8 * 0.06)
    assert (latency.last.num, latency.last.of) == (2, 2)
    assert latency.last.mean == pytest.approx((0.28 - 0.08) / 2)


def test_a_whole_utterance_is_out_at_its_end():
    found = [heard("a", ("GO", 8), ("LEFT", 12), ("NOW", 30))]
    latency = measure(found, REFERENCE, chunk=0)
    assert latency is not None
    assert latency.words.mean == pytest.approx((1.2 + 1.0 + 0.5) / 3)


def test_an_earlier_recogniser_has_less_latency():
    late, early = ([heard("b", ("STOP", t))] for t in (20, 9))
    assert (
        measure(early, REFERENCE, chunk=8).words.mean < measure(late, REFERENCE, chunk=8).words.mean
    )


@pytest.mark.parametrize("found", [[], [heard("b", ("GO", 3))]], ids=["nothing", "nothing right"])
def test_without_a_word_there_is_no_latency(found):
    assert measure(found, REFERENCE, chunk=8) is None
