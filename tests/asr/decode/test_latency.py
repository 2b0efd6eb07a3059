"""Emission latency on lattices and models of which the answer is known."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from todm.asr.decode.latency import (
    Emission,
    Timed,
    available,
    emissions,
    force_align,
    manifest_ends,
    measure,
    viterbi,
    word_ends,
)


def best_by_trying(label_TU, blank_TU):
    """The best one-symbol path by its definition: every choice of frames for the labels."""
    (T, U), scores = label_TU.shape, {}
    for frames in itertools.combinations(range(T), U):
        total, u = 0.0, 0
        for t in range(T):
            emits = t in frames
            total += float(label_TU[t, u] if emits else blank_TU[t, u])
            u += emits
        scores[frames] = total
    return list(max(scores, key=scores.__getitem__))


@pytest.mark.parametrize(("T", "U"), [(5, 2), (6, 3), (4, 4), (3, 0), (1, 1)])
def test_viterbi_finds_the_best_path(T, U):
    for _ in range(5):
        label, blank = torch.randn(T, U), torch.randn(T, U + 1)
        assert viterbi(label, blank) == best_by_trying(label, blank)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 labels do not fit into 2 frames"):
        viterbi(torch.zeros(2, 3), torch.zeros(2, 4))


class Scripted:
    """A transducer of 4 symbols that says label `enc[t]` at frame t, whatever came before."""

    def project_encoder(self, enc_TD):
        return enc_TD

    def predict_sequence(self, targets_BU):
        return torch.zeros(len(targets_BU), targets_BU.shape[1] + 1, 4)

    def joint(self, enc_J, pred_J):
        return enc_J + pred_J


def script(frames, length=200):
    """Encoder outputs in which label `frames[t]` is likely at frame t, and blank elsewhere."""
    enc = torch.zeros(length, 4)
    enc[:, 0] = 5.0
    for t, label in frames.items():
        enc[t] = torch.eye(4)[label] * 5.0
    return enc


def test_forced_alignment_finds_where_a_model_says_its_labels():
    enc = script({10: 1, 63: 2, 64: 3, 150: 1})
    assert force_align(Scripted(), enc, [1, 2, 3, 1]) == [10, 63, 64, 150]
    assert force_align(Scripted(), enc[:3], [1, 2, 3, 1]) is None


def test_words_end_with_their_last_label():
    assert emissions(["▁GO", "▁LE", "FT"], [3, 8, 11]) == (Emission("GO", 3), Emission("LEFT", 11))
    ends = dict(word_ends(["▁GO", "▁LE", "FT"], [3, 8, 11]))
    assert ends == pytest.approx({"GO": 0.16, "LEFT": 0.48})


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
    return SimpleNamespace(id=name, words=tuple(Emission(*w) for w in words))


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


def test_a_manifest_may_say_where_words_end():
    def item(word, start, duration):
        return SimpleNamespace(symbol=word, start=start, duration=duration)

    spoken = SimpleNamespace(alignment={"word": [item("", 0, 0.1), item("GO", 0.1, 0.25)]})
    cut = SimpleNamespace(supervisions=[SimpleNamespace(alignment=None), spoken])
    assert manifest_ends(cut) == [("GO", 0.35)]
    assert manifest_ends(SimpleNamespace(supervisions=[])) == []
