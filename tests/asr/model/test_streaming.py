"""Letters: B streams, C frames of a chunk (25 a second), J joiner width."""

import pytest
import torch

from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.streaming import Decoder, Joiner, StreamingEncoder
from todm.asr.model.transducer import Rnnt, RnntConfig


def _model(**changes):
    sizes = {"d_model": 32, "ffn": (32, 48), "pairs": (2, 1), "state": 4, **changes}
    model = Rnnt(RnntConfig(vocab_size=9, joiner_dim=16, encoder=EncoderConfig(**sizes))).eval()
    with torch.no_grad():
        model.encoder.subsampling.mean.uniform_(-8, -4)
        model.encoder.subsampling.scale.uniform_(0.2, 0.5)
    return model


def _features(*shape):
    return torch.randn(*shape, 80) * 3 - 6


def _stream(encoder, features):
    """All chunks of a batch of streams, one after the other, from zero states."""
    size0, size1 = encoder.state_sizes
    state0, state1 = torch.zeros(1, len(features), size0), torch.zeros(1, len(features), size1)
    outs = []
    for part in features.split(encoder.num_frames, 1):
        out, state0, state1 = encoder(part, state0, state1)
        assert state0.shape == (1, len(features), size0)
        assert state1.shape == (1, len(features), size1)
        outs.append(out)
    return torch.cat(outs, 1)


def _offline(model, features, chunk):
    lens = torch.full((len(features),), features.shape[1])
    return model.project_encoder(model.encode(features, lens, chunk=chunk)[0])


@pytest.mark.parametrize("context", [4, 5, 8])
@pytest.mark.parametrize("lookahead", ["chunk", "none"])
@pytest.mark.parametrize("chunk", [8, 16, 32])
@torch.no_grad()
def test_chunk_by_chunk_equals_offline_in_chunks(chunk, lookahead, context):
    model = _model(lookahead=lookahead, context=context)
    features = _features(2, 5 * 4 * chunk)
    streamed = _stream(StreamingEncoder(model, chunk), features)
    torch.testing.assert_close(streamed, _offline(model, features, chunk), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("context", [6, 7])
@torch.no_grad()
def test_any_look_back_of_the_front_end(context):
    model, features = _model(context=context), _features(1, 4 * 8 * 3)
    streamed = _stream(StreamingEncoder(model, 8), features)
    torch.testing.assert_close(streamed, _offline(model, features, 8), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_minute_does_not_drift():
    model, features = _model(), _features(1, 6016)
    streamed = _stream(StreamingEncoder(model, 16), features)
    torch.testing.assert_close(streamed, _offline(model, features, 16), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_smallest_chunk_of_a_causal_model():
    model, features = _model(lookahead="none"), _features(1, 40)
    streamed = _stream(StreamingEncoder(model, 1), features)
    torch.testing.assert_close(streamed, _offline(model, features, 0), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_streams_of_a_batch_know_nothing_of_each_other():
    model, features = _model(), _features(3, 128)
    encoder = StreamingEncoder(model, 8)
    together = _stream(encoder, features)
    for row, alone in zip(together, features, strict=True):
        torch.testing.assert_close(row, _stream(encoder, alone[None])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_states_are_of_the_size_they_say():
    sizes = _model(lookahead="none", context=4)
    assert StreamingEncoder(sizes, 8).state_sizes == (2 * (4 + 2) * 8 * 16, 1)
    assert StreamingEncoder(_model(context=6), 8).state_sizes[1] == 2 * 80


def test_a_stream_needs_a_chunk():
    with pytest.raises(ValueError, match="at least one frame"):
        StreamingEncoder(_model(), 0)


@torch.no_grad()
def test_decoder_and_joiner_are_the_models():
    model = _model()
    context, enc = torch.tensor([[-1, 0], [3, 4]]), torch.randn(2, 16)
    pred = Decoder(model)(context)
    torch.testing.assert_close(pred, model.predict(context))
    torch.testing.assert_close(Joiner(model)(enc, pred), model.joint(enc, pred))
