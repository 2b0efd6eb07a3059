import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from todm.asr.decode.search import beam_search, greedy_search
from todm.device.bundle import Networks
from todm.device.decode import BeamDecoder, GreedyDecoder

V, J = 5, 6


class FakeModel:
    """A transducer with random weights that counts the contexts of its predictor."""

    def __init__(self, context_size=2, vocab=V, sharpness=3.0, blank=0.0):
        generator = torch.Generator().manual_seed(vocab)
        self.context_size = context_size
        self.embedding = torch.randn(context_size, vocab, J, generator=generator)
        self.output = sharpness * torch.randn(J, vocab, generator=generator)
        self.bias = torch.tensor([blank] + [0.0] * (vocab - 1))
        self.contexts = []

    def project_encoder(self, enc_BTD):
        return 2 * enc_BTD

    def predict(self, tokens_BK):
        assert tokens_BK.shape[1] == self.context_size
        self.contexts += tokens_BK.tolist()
        parts = [
            self.embedding[k][tokens_BK[:, k].clamp(min=0)] * (tokens_BK[:, k, None] >= 0)
            for k in range(self.context_size)
        ]
        return torch.stack(parts).sum(0)

    def joint(self, enc_J, pred_J):
        return torch.tanh(enc_J + pred_J) @ self.output + self.bias


def outputs(lens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lens), max(lens), J, generator=generator), torch.tensor(lens)


def one_by_one(model, enc_TD):
    """Greedy search as the device's loop has it: one stream, one frame, predictor every time."""
    size = model.context_size
    tokens, frames, log_probs, score = [-1] * (size - 1) + [0], [], [], 0.0
    for t, frame in enumerate(model.project_encoder(enc_TD)):
        context = torch.tensor([tokens[-size:]])
        log_prob_V = model.joint(frame[None], model.predict(context))[0].log_softmax(-1)
        best = int(log_prob_V.argmax())
        score += log_prob_V[best].item()
        if best not in (0, 2):
            tokens.append(best)
            frames.append(t)
            log_probs.append(log_prob_V[best].item())
    return tokens[size:], frames, log_probs, score


@pytest.mark.parametrize("context_size", [1, 2, 3])
def test_greedy_of_a_batch_equals_one_stream_at_a_time(context_size):
    model = FakeModel(context_size)
    enc, lens = outputs([9, 40, 1, 0, 23])
    seen = set()
    for hypothesis, enc_TD, length in zip(greedy_search(model, enc, lens), enc, lens, strict=True):
        tokens, frames, log_probs, score = one_by_one(model, enc_TD[:length])
        assert (list(hypothesis.tokens), list(hypothesis.frames)) == (tokens, frames)
        assert hypothesis.log_probs == pytest.approx(log_probs, abs=1e-5)
        assert hypothesis.score == pytest.approx(score, abs=1e-5)
        seen |= set(tokens)
    assert seen == {1, 3, 4}  # neither <blk> nor <unk>


def test_predictor_rests_while_all_is_blank():
    model = FakeModel(blank=50.0)
    assert [h.tokens for h in greedy_search(model, *outputs([30, 20]))] == [(), ()]
    assert model.contexts == [[-1, 0], [-1, 0]]


@pytest.mark.parametrize("search", [greedy_search, beam_search])
def test_empty_batches_and_utterances(search):
    model = FakeModel()
    assert search(model, torch.zeros(0, 0, J), torch.zeros(0, dtype=torch.long)) == []
    found = search(model, torch.zeros(1, 0, J), torch.zeros(1, dtype=torch.long))
    assert (found[0].tokens, found[0].score) == ((), 0.0)


def all_sequences(model, enc_TD):
    """Log-probability of every label sequence, summed over all its paths of T symbols."""
    size, sums = model.context_size, {}
    vocab = len(model.bias)
    for path in itertools.product(range(vocab), repeat=len(enc_TD)):
        tokens, total = [-1] * (size - 1) + [0], 0.0
        for frame, symbol in zip(model.project_encoder(enc_TD), path, strict=True):
            pred = model.predict(torch.tensor([tokens[-size:]]))
            total += model.joint(frame[None], pred)[0].log_softmax(-1)[symbol].item()
            tokens += [symbol] if symbol not in (0, 2) else []
        key = tuple(tokens[size:])
        sums[key] = math.log(math.exp(sums.get(key, -math.inf)) + math.exp(total))
    return sums


@pytest.mark.parametrize("length_norm", [False, True])
@pytest.mark.parametrize("vocab", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_finds_the_best_sum_over_paths(vocab, seed, length_norm):
    model = FakeModel(vocab=vocab, sharpness=1.0)
    enc, lens = outputs([3], seed)
    sums = all_sequences(model, enc[0])
    assert sum(map(math.exp, sums.values())) == pytest.approx(1, abs=1e-5)
    norm = (lambda tokens: len(tokens) + 2) if length_norm else (lambda tokens: 1)
    best = max(sums, key=lambda tokens: sums[tokens] / norm(tokens))
    (found,) = beam_search(model, enc, lens, num_active_paths=100, length_norm=length_norm)
    assert found.tokens == best
    assert found.score == pytest.approx(sums[best], abs=1e-5)


def test_beam_of_one_is_greedy():
    model, (enc, lens) = FakeModel(), outputs([25, 7, 0, 12])
    greedy, beam = (
        greedy_search(model, enc, lens),
        beam_search(model, enc, lens, num_active_paths=1),
    )
    for a, b in zip(greedy, beam, strict=True):
        assert (a.tokens, a.frames) == (b.tokens, b.frames)
        assert b.log_probs == pytest.approx(a.log_probs, abs=1e-5)
        assert b.score == pytest.approx(a.score, abs=1e-5)


def test_beam_of_a_batch_equals_one_utterance_at_a_time():
    model, (enc, lens) = FakeModel(sharpness=1.0), outputs([25, 7, 12])
    together = beam_search(model, enc, lens)
    for b, found in enumerate(together):
        (alone,) = beam_search(model, enc[b : b + 1], lens[b : b + 1])
        assert (alone.tokens, alone.frames) == (found.tokens, found.frames)
        assert alone.score == pytest.approx(found.score, abs=1e-5)


def test_wider_beam_scores_no_worse_than_greedy():
    model, (enc, lens) = FakeModel(sharpness=1.0), outputs([15] * 8)
    greedy = greedy_search(model, enc, lens)
    wide = beam_search(model, enc, lens, num_active_paths=30, length_norm=False)
    assert all(b.score >= a.score - 1e-4 for a, b in zip(greedy, wide, strict=True))
    assert all(list(h.frames) == sorted(set(h.frames)) for h in wide)


class Session:
    """A function of tensors as a device's graph of one output."""

    def __init__(self, function, num_inputs):
        self._function, self._names = function, [str(i) for i in range(num_inputs)]

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self._names]

    def run(self, outputs, feed):
        return [self._function(*(torch.from_numpy(feed[name]) for name in self._names)).numpy()]


def on_device(model, enc_TD, kind, **options):
    """The best hypothesis of the device's decoder for the same model, in chunks of 4 frames."""
    networks = Networks(
        encoder=None,
        decoder=Session(model.predict, 1),
        joiner=Session(model.joint, 2),
        tokens=("<blk>", "a", "<unk>", "b", "c"),
    )
    decoder = kind(networks, model.context_size, Path("x"), **options)
    state = decoder.start()
    for chunk in model.project_encoder(enc_TD).split(4):
        decoder.advance(chunk[None].numpy(), [state])
    return decoder.best(state)


@pytest.mark.parametrize("context_size", [1, 2, 3])
@pytest.mark.parametrize("endpoint", [0, 1, 2, 4, 7])
@pytest.mark.parametrize(
    ("search", "kind"), [(greedy_search, GreedyDecoder), (beam_search, BeamDecoder)]
)
def test_contexts_start_again_where_the_device_starts_them(search, kind, endpoint, context_size):
    model = FakeModel(context_size, blank=6.0)
    enc, lens = outputs([150, 90, 1, 0])
    found = search(model, enc, lens, endpoint=endpoint)
    never = search(model, enc, lens)
    assert [h.tokens for h in found] != [h.tokens for h in never]
    for hypothesis, other, enc_TD, length in zip(found, never, enc, lens, strict=True):
        device = on_device(model, enc_TD[:length], kind, endpoint=endpoint)
        assert (hypothesis.tokens, hypothesis.frames) == (device.ids, device.frames)
        assert hypothesis.log_probs == pytest.approx(device.log_probs, abs=1e-4)
        assert other.tokens == on_device(model, enc_TD[:length], kind).ids
