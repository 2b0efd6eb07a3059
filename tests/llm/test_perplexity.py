"""Perplexity against transformers' own loss and closed forms."""

import math

import pytest
import torch

from todm.errors import CorpusError
from todm.llm.data import read_texts, windows
from todm.llm.perplexity import Losses, bootstrap, compare, losses

pytest.importorskip("transformers")


def test_every_token_but_the_first_is_predicted_once(adapter):
    found = adapter()
    texts_ids = [torch.arange(n) % found.config.vocab for n in (2, 9, 1, 24, 25, 60)]
    got = losses(lambda ids: found.run(found.model, ids), texts_ids, context=24)
    assert got.tokens == (1, 8, 0, 23, 24, 59)
    for ids, nats in zip(texts_ids, got.nats, strict=True):
        wanted = 0.0
        for start in range(0, len(ids) - 1, 23):
            piece = ids[None, start : start + 24]
            with torch.no_grad():
                loss = found.model(input_ids=piece, labels=piece).loss
            wanted += float(loss) * (piece.shape[1] - 1)
        assert nats == pytest.approx(wanted, rel=1e-4)


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    def predict(ids):
        return torch.zeros(*ids.shape, 37)

    got = losses(predict, [torch.arange(5), torch.arange(30)], context=8)
    assert got.perplexity == pytest.approx(37, rel=1e-5)
    interval = bootstrap(got)
    assert interval.low == pytest.approx(interval.high, rel=1e-5)


def test_the_interval_is_that_of_a_mean():
    torch.manual_seed(0)
    nats = 3 + torch.randn(400).double()
    found = Losses(nats=tuple(nats.tolist()), tokens=(1,) * 400)
    interval = bootstrap(found)
    spread = 1.96 * float(nats.std()) / 20
    assert math.log(interval.low) == pytest.approx(float(nats.mean()) - spread, abs=0.02)
    assert math.log(interval.high) == pytest.approx(float(nats.mean()) + spread, abs=0.02)


def test_pairing_removes_what_texts_differ_in():
    torch.manual_seed(0)
    hard = 3 + 2 * torch.rand(50).double()
    tokens = tuple(range(10, 60))
    sums = hard * torch.tensor(tokens)
    a = Losses(nats=tuple(sums.tolist()), tokens=tokens)
    b = Losses(nats=tuple((1.01 * torch.tensor(tokens) + sums).tolist()), tokens=tokens)
    found = compare(b, a)
    assert (found.low, found.value, found.high) == pytest.approx((math.exp(1.01),) * 3)
    with pytest.raises(ValueError, match="two different sets"):
        compare(a, Losses(nats=(1.0,), tokens=(1,)))


def test_texts_too_short_are_an_error():
    with pytest.raises(CorpusError, match="two tokens"):
        losses(lambda ids: torch.zeros(*ids.shape, 3), [torch.arange(1)], context=8)


def test_texts_are_paragraphs(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one  two\nthree\n\n \n\nfour\n")
    assert read_texts(file) == ["one two three", "four"]


def test_windows_are_spread_and_do_not_overlap():
    found = windows([torch.arange(40), torch.arange(40, 103)], 5, context=20, source="x")
    assert found.shape == (5, 20)
    assert found[0, 0] == 0
    assert found[-1, -1] == 102
    assert found.unique().numel() == 100
