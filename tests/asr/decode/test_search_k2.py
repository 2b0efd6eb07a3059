"""The biasing graph by itself; and, where k2 is installed, the search against every path there is."""

import importlib.util
import itertools
import sys

import pytest
import torch
from torch import nn

from todm.asr.decode.search_k2 import biasing_arcs, biasing_graph, fast_beam_search, favour
from todm.errors import ConfigError
from todm.kernels.k2_package import MissingK2

needs_k2 = pytest.mark.skipif(
    importlib.util.find_spec("k2") is None,
    reason="k2 is not installed (todm/kernels/k2_package.py)",
)
V = 6  # blank, start, <unk>, and 3, 4, 5


class Toy(nn.Module):
    """A transducer of random numbers with a context of two labels."""

    context_size = 2

    def __init__(self):
        super().__init__()
        self.table = torch.randn(V + 1, V + 1, V)

    def project_encoder(self, enc):
        return enc

    def predict(self, context_BK):
        return self.table[context_BK[:, 0], context_BK[:, 1]]  # -1 is the last row

    def joint(self, enc_J, pred_J):
        return enc_J + pred_J


def _walk(phrases, labels, bonus=1.0):
    """What the graph adds to a label sequence."""
    arcs = {(a.source, a.label): a for a in biasing_arcs(phrases, V, bonus=bonus)}
    state, total = 0, 0.0
    for label in [*labels, V, -1]:
        arc = arcs[state, label]
        state, total = arc.target, total + arc.score
    return total


@pytest.mark.parametrize(
    ("labels", "bonus"),
    [
        ([3, 4, 5], 3),
        ([1, 3, 4, 5, 1], 3),
        ([3, 4, 1], 0),
        ([3, 4], 0),
        ([3, 3, 4, 5], 3),
        ([3, 4, 3, 4, 5], 3),
        ([3, 4, 5, 3, 4, 5], 6),
        ([], 0),
    ],
    ids=str,
)
def test_a_phrase_earns_its_bonus_only_when_it_is_whole(labels, bonus):
    assert _walk([[3, 4, 5]], labels) == bonus


@pytest.mark.parametrize(
    ("labels", "bonus"),
    [([3, 4], 2), ([3, 4, 5], 2), ([3, 4, 5, 1], 2), ([3, 4, 5, 5], 4), ([4, 5, 3], 2)],
    ids=str,
)
def test_a_phrase_within_a_longer_one_keeps_its_bonus(labels, bonus):
    assert _walk([[3, 4], [3, 4, 5, 5], [5, 3]], labels) == bonus


def test_without_phrases_everything_is_allowed_for_nothing():
    arcs = biasing_arcs([], V)
    assert [a.label for a in arcs] == [1, 3, 4, 5, V, -1]
    assert {a.score for a in arcs} == {0.0}


@pytest.mark.parametrize("phrase", [[], [0], [2], [6]], ids=str)
def test_a_phrase_that_cannot_be_said(phrase):
    with pytest.raises(ConfigError, match="cannot be favoured"):
        biasing_arcs([phrase], V)


def _every_path(model, enc_TV, phrases, bonus):
    """The best (score, labels, frames) over all sequences of a symbol a frame."""
    found = []
    for path in itertools.product([0, 1, 3, 4, 5], repeat=len(enc_TV)):
        context, total = [-1, 0], 0.0
        for t, symbol in enumerate(path):
            row = (enc_TV[t] + model.table[context[0], context[1]]).log_softmax(0)
            total += float(row[symbol] if symbol else row[[0, 2]].logsumexp(0))
            context = [context[1], symbol] if symbol else context
        labels = [s for s in path if s]
        total += _walk(phrases, labels, bonus)
        found.append((total, labels, [t for t, s in enumerate(path) if s]))
    return max(found)


@needs_k2
@pytest.mark.parametrize("phrases", [[], [[3, 4], [5, 5, 1]]], ids=str)
def test_finds_the_best_of_all_paths(phrases):
    model, lens = Toy(), torch.tensor([4, 2, 3])
    enc = 2 * torch.randn(3, 4, V)
    graph = biasing_graph(phrases, V, bonus=1.5)
    found = fast_beam_search(model, enc, lens, graph, beam=100.0, max_states=500, max_contexts=200)
    for b, hypothesis in enumerate(found):
        score, labels, frames = _every_path(model, enc[b, : lens[b]], phrases, 1.5)
        assert list(hypothesis.tokens) == labels
        assert list(hypothesis.frames) == frames
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        own = sum(hypothesis.log_probs)
        assert own < 0 or not labels


@needs_k2
def test_a_bonus_brings_a_phrase_out():
    model, lens = Toy(), torch.tensor([6])
    enc = torch.randn(1, 6, V)
    enc[..., 0] += 3.0
    without, little, much = (
        fast_beam_search(model, enc, lens, biasing_graph([[4, 3, 4]], V, bonus=bonus), beam=50.0)[0]
        for bonus in (0.0, 0.01, 10.0)
    )
    assert without.tokens == little.tokens != (4, 3, 4)
    found = [much.tokens[i : i + 3] for i in range(len(much.tokens))]
    assert (4, 3, 4) in found
    assert sum(much.log_probs) < 0 < much.score  # the bonus is in the score only


class Spelling:
    """A tokenizer of the toy's labels: B, C, D, E are 1, 3, 4, 5; other letters are unknown."""

    vocab_size = V

    def normalise(self, text):
        if "7" in text:
            raise ValueError("signs outside A-Z: 7")
        return text.strip().upper()

    def encode(self, text):
        return [{"B": 1, "C": 3, "D": 4, "E": 5}.get(letter, 2) for letter in text]


@needs_k2
def test_phrases_come_from_a_file(tmp_path):
    (tmp_path / "phrases").write_text("dcd\n\ncc\n", encoding="utf-8-sig")
    model, lens = Toy(), torch.tensor([6])
    enc = torch.randn(1, 6, V)
    graph = biasing_graph([[4, 3, 4], [3, 3]], V)
    found = favour(tmp_path / "phrases", Spelling())(model, enc, lens)
    assert found == fast_beam_search(model, enc, lens, graph)
    without = fast_beam_search(model, enc, lens, biasing_graph([], V))
    assert favour(None, Spelling())(model, enc, lens) == without


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"dcd\n7\n", "phrases:2: '7' has signs outside"),
        (b"quiz\n", "no training transcript"),
        (b"\xff", "phrases is not UTF-8 text"),
    ],
    ids=["digits", "letters", "bytes"],
)
def test_phrases_that_cannot_be_written_are_named(tmp_path, data, words):
    (tmp_path / "phrases").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        favour(tmp_path / "phrases", Spelling())


def test_without_k2_the_message_says_what_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    with pytest.raises(MissingK2, match="fast beam search needs the package 'k2' built for torch"):
        biasing_graph([], V)
