import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.streaming import StreamingEncoder
from todm.asr.model.transducer import Rnnt, RnntConfig, extract
from todm.backend import Graph, Port
from todm.compress.int8_emulation import (
    QuantConfig,
    cap_outliers,
    int8_copy,
    layer_outliers,
    weight_outliers,
)
from todm.errors import ConfigError
from todm.supernet.space import Subnet

CHUNK = 16


@pytest.fixture
def model():
    sizes = EncoderConfig(d_model=32, ffn=(64, 64), pairs=(2, 2), dropout=0.0)
    return Rnnt(RnntConfig(vocab_size=24, joiner_dim=32, encoder=sizes, ctc=False)).eval()


@torch.no_grad()
def _plant(model, times):
    """One weight of one channel, so many times the channel's rms."""
    channel = model.encoder.blocks[-1].up.weight[3]
    channel[5] = times * channel.square().mean().sqrt()


@torch.no_grad()
def _encode(model, features_BTF, subnet=None):
    lens = torch.full((len(features_BTF),), features_BTF.shape[1])
    enc, _ = model.encode(features_BTF, lens, subnet=subnet, chunk=CHUNK)
    return model.project_encoder(enc)


def _distance(a, b):
    return float((a - b).norm() / b.norm())


def test_ratio_of_a_channel_by_hand():
    layer = nn.Linear(4, 2)
    layer.weight.data = torch.tensor([[1.0, -1.0, 1.0, -1.0], [3.0, 1.0, -1.0, 1.0]])
    found = weight_outliers(layer)
    assert found["outlier_max"] == pytest.approx(3 / 3**0.5)
    assert found["outlier_median"] == pytest.approx(1.0)  # the lower of two


@pytest.mark.parametrize("row", [[0.0] * 4, [0.0, 2.0, 0.0, 0.0]], ids=["dead", "sparse"])
def test_zeros_are_no_reason_for_an_outlier(row):
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([row])
    assert weight_outliers(layer)["outlier_max"] == 1.0
    assert cap_outliers(layer, 1.5) == 0
    assert layer.weight.tolist() == [row]


def test_without_a_matrix_there_is_nothing_to_watch():
    assert weight_outliers(nn.LayerNorm(4)) == {}


def test_a_planted_outlier_is_found(model):
    before = weight_outliers(model)
    _plant(model, 30.0)
    after = weight_outliers(model)
    assert before["outlier_max"] < 5 < after["outlier_max"]
    assert after["outlier_median"] == pytest.approx(before["outlier_median"], rel=0.01)
    worst = layer_outliers(model.state_dict())
    assert next(iter(worst)) == "encoder.blocks.1.up"
    assert worst["encoder.blocks.1.up"] == after["outlier_max"]


def test_the_int8_error_grows_with_an_outlier_and_the_cap_takes_it_away(model):
    """The error of a layer in int8, relative to what it should give."""
    x = torch.randn(4, 200, 32)
    layer = model.encoder.blocks[1].up

    @torch.no_grad()
    def error():
        want = layer(x)[..., 3] - layer.bias[3]
        with int8_copy(model):
            got = layer(x)[..., 3] - layer.bias[3]
        # Only what the other 31 weights of the channel give.
        spike = layer.weight[3, 5] * x[..., 5]
        return float((got - want).norm() / (want - spike).norm())

    errors = []
    for times in (1.0, 30.0, 300.0):
        _plant(model, times)
        errors.append(error())
    assert errors[0] < 0.02
    assert errors[0] < errors[1] / 3 < errors[2] / 9
    assert cap_outliers(model, 4.0) == 1
    assert weight_outliers(model)["outlier_max"] <= 4.0 * 1.001
    assert error() < 0.02
    assert cap_outliers(model, 4.0) == 0


@pytest.mark.parametrize("cap", [1.2, 2.0, 3.0])
def test_the_cap_holds_for_every_channel_and_touches_no_more_than_it_must(cap):
    layer = nn.Linear(50, 40)
    layer.weight.data = torch.randn(40, 50) ** 3
    before = layer.weight.detach().clone()
    count = cap_outliers(layer, cap)
    changed = layer.weight.detach() != before
    assert count == int(changed.sum()) > 0
    rms = layer.weight.detach().square().mean(1).sqrt()
    peak = layer.weight.detach().abs().amax(1)
    assert bool((peak <= cap * rms * 1.001).all())
    torch.testing.assert_close(peak[changed.any(1)], (cap * rms)[changed.any(1)])
    assert bool((layer.weight.detach().sign() == before.sign()).all())


def test_inside_weights_are_as_they_were_and_outside_the_model_is(model):
    features = torch.randn(2, 64, 80)
    want, weights = _encode(model, features), [p.clone() for p in model.parameters()]
    with int8_copy(model):
        assert not torch.equal(_encode(model, features), want)
        for now, before in zip(model.parameters(), weights, strict=True):
            assert torch.equal(now, before)
    assert torch.equal(_encode(model, features), want)


def test_an_exception_leaves_the_model_as_it_was(model):
    features = torch.randn(1, 64, 80)
    want = _encode(model, features)
    with pytest.raises(RuntimeError, match="in the middle"), int8_copy(model):
        raise RuntimeError("in the middle")
    assert torch.equal(_encode(model, features), want)


def test_other_models_are_not_touched(model):
    other, x = nn.Linear(8, 8), torch.randn(3, 8)
    want = other(x)
    with int8_copy(model):
        assert torch.equal(other(x), want)


def test_weights_that_change_inside_are_rounded_anew():
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    with int8_copy(layer), torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        assert not torch.equal(layer(x), before)


def test_a_subnet_has_the_scales_of_its_extracted_form(model):
    """A wide channel's peak may lie in inputs that the narrow net does not have."""
    subnet = Subnet(blocks=(0, 1), widths=(("ffn", (32, 16)), ("pairs", (1, 2))))
    with torch.no_grad():
        model.encoder.blocks[0].down.weight[:, -1] *= 100
    plain, features = extract(model, subnet), torch.randn(2, 128, 80)
    with int8_copy(model):
        inside = _encode(model, features, subnet)
    with int8_copy(plain):
        torch.testing.assert_close(inside, _encode(plain, features))


def test_a_recording_is_rounded_as_if_it_were_alone_and_chunk_by_chunk(model):
    x = torch.randn(2, 3 * CHUNK, 32)
    x[1] *= 50
    layer = model.encoder.blocks[0].up
    with int8_copy(model, chunk=CHUNK), torch.no_grad():
        together = layer(x)
        alone = [layer(part) for part in x[:1].split(CHUNK, 1)]
    torch.testing.assert_close(together[:1], torch.cat(alone, 1))


def test_embedding_tables_have_one_scale(model):
    table = model.predictor.embedding.weight.detach()
    with int8_copy(model), torch.no_grad():
        rounded = F.embedding(torch.arange(24), table)
    steps = (table.max() - table.min()) / 255
    multiples = rounded / steps
    torch.testing.assert_close(multiples, multiples.round(), atol=1e-3, rtol=0.0)
    assert float((rounded - table).abs().max()) <= float(steps) * 0.51


@pytest.mark.slow
def test_equals_the_exported_int8_graph(model, tmp_path):
    """Run by ONNX's own reference, since a CPU without VNNI saturates sums of full int8."""
    from onnx.reference import ReferenceEvaluator

    from todm.export.quantize import quantize_int8
    from todm.export.to_onnx import graph_to_onnx

    model = extract(model, Subnet(blocks=(1,), widths=(("ffn", (64,)), ("pairs", (2,)))))
    _plant(model, 30.0)
    encoder = StreamingEncoder(model, CHUNK).eval()
    states = [torch.zeros(1, 2, size) for size in encoder.state_sizes]
    inputs = (
        Port(name="x", example=torch.randn(2, 4 * CHUNK, 80), dynamic={0: "N"}),
        *(Port(name=f"state{i}", example=s, dynamic={1: "N"}) for i, s in enumerate(states)),
    )
    outputs = (
        Port(name="encoder_out", example=torch.zeros(2, CHUNK, 32), dynamic={0: "N"}),
        *(Port(name=f"new{i}", example=s, dynamic={1: "N"}) for i, s in enumerate(states)),
    )
    graph_to_onnx(
        Graph(name="encoder", module=encoder, inputs=inputs, outputs=outputs), tmp_path / "f.onnx"
    )
    quantize_int8(tmp_path / "f.onnx", tmp_path / "q.onnx")
    session = ReferenceEvaluator(str(tmp_path / "q.onnx"))
    features = torch.randn(1, 8 * CHUNK, 80)
    carried, chunks = [np.zeros((1, 1, s), np.float32) for s in encoder.state_sizes], []
    for part in features.split(4 * CHUNK, 1):
        out, *carried = session.run(
            None, {"x": part.numpy(), "state0": carried[0], "state1": carried[1]}
        )
        chunks.append(torch.from_numpy(out))
    deployed, want = torch.cat(chunks, 1), _encode(model, features)
    with int8_copy(model, chunk=CHUNK):
        predicted = _encode(model, features)
    lost = _distance(deployed, want)
    assert lost > 1e-3
    assert _distance(predicted, deployed) < 0.1 * lost


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"every": 0.0}, "quant.every is 0"), ({"outlier_cap": 1.0}, "quant.outlier_cap is 1.0")],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**settings)
