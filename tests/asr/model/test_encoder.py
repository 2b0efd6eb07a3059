"""Letters: B batch, T frames (100 a second), C frames of a chunk (25 a second)."""

import pytest
import torch

from todm.asr.model.encoder import Encoder, Subsampling
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.mixer import Mixer
from todm.errors import ConfigError
from todm.supernet.space import Subnet

SMALL = EncoderConfig(
    d_model=32, ffn=(32, 64, 32), pairs=(1, 3, 2), head_channels=16, state=4, dropout=0.0
)


def _encoder(**changes):
    encoder = Encoder(SMALL.replace(**changes)).eval()
    with torch.no_grad():
        encoder.subsampling.mean.uniform_(-8, -4)
        encoder.subsampling.scale.uniform_(0.2, 0.5)
    return encoder


def _features(*shape):
    return torch.randn(*shape, 80) * 3 - 6


@pytest.mark.parametrize("lookahead", ["chunk", "none"])
@pytest.mark.parametrize("chunk", [8, 16, 32, 0])
@torch.no_grad()
def test_a_batch_of_unequal_lengths_is_one_by_one(chunk, lookahead):
    encoder, lens = _encoder(lookahead=lookahead), torch.tensor([333, 64, 190, 7])
    features = _features(4, 333)
    together, frames = encoder(features, lens, chunk=chunk)
    assert frames.tolist() == [83, 16, 47, 1]
    for row, whole, length, count in zip(together, features, lens.tolist(), frames, strict=True):
        alone, _ = encoder(whole[None, :length], torch.tensor([length]), chunk=chunk)
        torch.testing.assert_close(row[:count], alone[0, :count], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [16, 0])
@torch.no_grad()
def test_what_lies_beyond_the_end_is_never_seen(chunk):
    encoder, features = _encoder(), _features(2, 200)
    lens = torch.tensor([200, 101])
    want, frames = encoder(features, lens, chunk=chunk)
    features[1, 101:] = float("nan")
    got, _ = encoder(features, lens, chunk=chunk)
    assert torch.equal(got[1, : frames[1]], want[1, : frames[1]])
    assert torch.equal(got[0], want[0])


@torch.no_grad()
def test_any_chunk_gives_the_same_without_lookahead():
    encoder, features = _encoder(lookahead="none"), _features(2, 260)
    lens = torch.tensor([260, 155])
    want, frames = encoder(features, lens, chunk=0)
    for chunk in (1, 8, 16, 32):
        got, _ = encoder(features, lens, chunk=chunk)
        for a, b, count in zip(got, want, frames, strict=True):
            torch.testing.assert_close(a[:count], b[:count], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_the_chunk_matters_with_lookahead():
    encoder, features, lens = _encoder(), _features(1, 256), torch.tensor([256])
    first = [encoder(features, lens, chunk=c)[0][0, 0] for c in (8, 16, 0)]
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    assert not torch.allclose(first[1], first[2], atol=1e-3)


@pytest.mark.parametrize(
    ("lookahead", "chunk", "last"),
    [("chunk", 8, 16), ("chunk", 16, 16), ("chunk", 32, 32), ("none", 8, 10), ("none", 0, 10)],
)
def test_a_frame_sees_no_further_than_its_chunk(lookahead, chunk, last):
    """Frame 9 (from 0) has a gradient to the frames up to the end of its chunk, and to no other."""
    encoder, features = _encoder(lookahead=lookahead), _features(1, 192).requires_grad_()
    out, _ = encoder(features, torch.tensor([192]), chunk=chunk)
    (grad,) = torch.autograd.grad(out[0, 9].square().sum(), features)
    seen = grad[0].abs().amax(1)
    assert (seen[4 * last :] == 0).all()
    assert (seen[: 4 * last] > 0).all()


def test_the_whole_utterance_is_seen_offline():
    encoder, features = _encoder(), _features(1, 192).requires_grad_()
    out, _ = encoder(features, torch.tensor([192]), chunk=0)
    (grad,) = torch.autograd.grad(out[0, 9].square().sum(), features)
    assert (grad[0].abs().amax(1) > 0).all()


@torch.no_grad()
def test_a_chunk_that_holds_the_utterance_is_offline():
    """Streaming and offline are one model: nothing but the reach of the backward state differs."""
    encoder, features, lens = _encoder(), _features(2, 128), torch.tensor([128, 90])
    offline, frames = encoder(features, lens, chunk=0)
    for chunk in (32, 40):
        chunked, _ = encoder(features, lens, chunk=chunk)
        for a, b, count in zip(chunked, offline, frames, strict=True):
            torch.testing.assert_close(a[:count], b[:count], atol=2e-5, rtol=1e-5)


def test_every_chunk_trains_every_weight():
    encoder, features, lens = _encoder(), _features(1, 192), torch.tensor([192])
    for chunk in (8, 16, 32, 0):
        encoder.zero_grad()
        encoder(features, lens, chunk=chunk)[0].square().sum().backward()
        assert all((p.grad != 0).any() for p in encoder.parameters())


@pytest.mark.parametrize("context", [4, 5, 6, 7, 8])
def test_subsampling_stacks_its_own_frames_and_those_before(context):
    front = Subsampling(SMALL.replace(context=context))
    x_BTF, history_BTF = torch.randn(2, 12, 80), torch.randn(2, context - 4, 80)
    padded = torch.cat([history_BTF, x_BTF], 1)
    own_first = [  # the look-back, then the frames of its own
        torch.cat([padded[:, 4 * k : 4 * k + context - 4], x_BTF[:, 4 * k : 4 * k + 4]], 1)
        for k in range(3)
    ]
    stacked = torch.stack([w.flatten(1) for w in own_first], 1)
    want = front.out(torch.nn.functional.silu(front.hidden(stacked)))
    torch.testing.assert_close(front(x_BTF, history_BTF), want)


@torch.no_grad()
def test_statistics_of_the_features_are_folded_in():
    encoder = _encoder()
    plain = Encoder(SMALL).eval()
    plain.load_state_dict(
        encoder.state_dict()
        | {"subsampling.mean": torch.zeros(80), "subsampling.scale": torch.ones(80)}
    )
    features, lens = _features(1, 128), torch.tensor([128])
    normal = encoder.subsampling.normalise(features)
    torch.testing.assert_close(encoder(features, lens)[0], plain(normal, lens)[0])


def test_time_scales_of_every_prefix_span_slow_and_fast():
    mixer = Mixer(SMALL.replace(step_range=(1e-3, 1e-1)), 8)
    for heads in (4, 8, 16):  # the value and the gate head of 2, 4 and 8 pairs
        steps = mixer.log_dt[0, 0, :heads].exp()
        assert steps.max() / steps.min() > 8
    assert mixer.log_dt[0, 0, 0] == mixer.log_dt[0, 0, 1]


def test_parameters_of_the_recurrence_are_marked_for_plain_adam():
    marked = {
        name.rpartition(".")[2]
        for name, p in _encoder().named_parameters()
        if getattr(p, "_plain_adam", False)
    }
    assert marked == {"log_dt", "log_neg_re", "im", "skip"}


def test_dropout_is_for_training_only():
    encoder = Encoder(SMALL.replace(dropout=0.3))
    features, lens = _features(1, 64), torch.tensor([64])
    once, twice = (encoder.train()(features, lens)[0] for _ in range(2))
    assert not torch.allclose(once, twice)
    once, twice = (encoder.eval()(features, lens)[0] for _ in range(2))
    assert torch.equal(once, twice)


def _subnet(blocks, ffn, pairs):
    return Subnet(blocks=blocks, widths=(("ffn", ffn), ("pairs", pairs)))


WHOLE = _subnet((0, 1, 2), (32, 64, 32), (1, 3, 2))
STUDENTS = {
    "shallower": _subnet((0, 2), (32, 32), (1, 2)),
    "narrower": _subnet((0, 1, 2), (32, 32, 32), (1, 3, 2)),
    "fewer pairs": _subnet((0, 1, 2), (32, 64, 32), (1, 2, 2)),
}


def _is_random(encoder, subnet):
    """Whether two passes of a training differ."""
    features, lens = _features(1, 64), torch.tensor([64])
    once, twice = (encoder(features, lens, subnet=subnet)[0] for _ in range(2))
    return not torch.equal(once, twice)


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize(
    ("rule", "largest_drops", "student_drops"),
    [
        ("adaptive", True, True),
        ("constant", True, True),
        ("off_for_students", True, False),
        ("none", False, False),
    ],
)
def test_who_drops_is_the_rules(rule, largest_drops, student_drops, student):
    """A student drops nothing in its layers of full width either."""
    encoder = Encoder(SMALL.replace(dropout=0.3, dropout_rule=rule)).train()
    assert _is_random(encoder, WHOLE) == _is_random(encoder, None) == largest_drops
    assert _is_random(encoder, STUDENTS[student]) == student_drops


def test_a_narrow_layer_drops_less(monkeypatch):
    rates = []
    monkeypatch.setattr("todm.supernet.elastic.drop", lambda x, p: rates.append(p) or x)
    encoder = Encoder(SMALL.replace(dropout=0.3)).train()
    encoder(_features(1, 64), torch.tensor([64]), subnet=_subnet((1, 2), (16, 32), (1, 2)))
    assert rates == pytest.approx([0.1, 0.075, 0.075, 0.3, 0.3, 0.3])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ffn": (32, 32)}, r"encoder.ffn has 2 blocks and encoder.pairs 3"),
        ({"ffn": (), "pairs": ()}, "one entry per block"),
        ({"ffn": (32, 24, 32)}, "multiples of 16, not 24"),
        ({"d_model": 40}, "multiples of 16, not 40"),
        ({"head_channels": 8}, "multiples of 16, not 8"),
        ({"context": 3}, "encoder.context is 3: 4 to 8"),
        ({"context": 9}, "encoder.context is 9: 4 to 8"),
        ({"dropout": 1.0}, "encoder.dropout is 1.0: at least 0 and below 1"),
        ({"dropout": -0.1}, "encoder.dropout is -0.1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_sizes_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        SMALL.replace(**changes)
