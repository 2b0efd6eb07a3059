"""Word ends on lattices and models of which the answer is known."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from todm.asr.decode.utterances import Emission, emissions
from todm.asr.decode.word_ends import force_align, known_ends, manifest_ends, viterbi, word_ends
from todm.asr.tokens import normalise


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
    """A transducer of 4 symbols that emits label `enc[t]` at frame t after any other."""

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


def test_a_manifest_may_say_where_words_end():
    def item(word, start, duration):
        return SimpleNamespace(symbol=word, start=start, duration=duration)

    spoken = SimpleNamespace(alignment={"word": [item("", 0, 0.1), item("GO", 0.1, 0.25)]})
    cut = SimpleNamespace(supervisions=[SimpleNamespace(alignment=None), spoken])
    assert manifest_ends(cut) == [("GO", 0.35)]
    assert manifest_ends(SimpleNamespace(supervisions=[])) == []


def test_a_corpus_knows_the_ends_of_whole_transcripts_only():
    def cut(name, text, *words):
        items = [
            SimpleNamespace(symbol=w, start=0.1 * i, duration=0.1) for i, w in enumerate(words)
        ]
        spoken = SimpleNamespace(
            text=text, speaker="", alignment={"word": items} if words else None
        )
        return SimpleNamespace(id=name, duration=1.5, supervisions=[spoken])

    cuts = [
        cut("whole", "go left", "go", "left"),
        cut("part", "go left", "go"),
        cut("silent", "go left"),
        cut("strange", "go 3", "go", "3"),
    ]
    known = known_ends(cuts, normalise)
    assert list(known) == ["whole"]
    assert known["whole"].words == ("GO", "LEFT")
    assert known["whole"].ends == pytest.approx((0.1, 0.2))
    assert known["whole"].seconds == 1.5
