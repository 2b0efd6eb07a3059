"""Graphs put together of pieces against real exports, in onnxruntime."""

from collections import Counter

import numpy as np
import pytest
import torch

from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.streaming import StreamingEncoder
from todm.asr.model.transducer import RnntConfig
from todm.device.bundle import load_session
from todm.export.quantize import quantize_int8
from todm.export.stitch import Stitcher, hollow, lower
from todm.export.to_onnx import graph_to_onnx
from todm.supernet.space import SpaceConfig

CONFIG = AsrConfig(
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=48, state=4, dropout=0.0)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (32, 96), "pairs": (1, 3)}),
    chunks=(8,),
    chunk=8,
)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    from todm.asr import tokens

    folder = tmp_path_factory.mktemp("tokens")
    tokens.train(["ON OFF UP DOWN", "DOWN UP"], tokens.TokensConfig(vocab_size=16), folder)
    return AsrBackend(CONFIG, folder)


@pytest.fixture(scope="module")
def stack(backend):
    torch.manual_seed(3)
    return backend.graph_parts()


@pytest.fixture(scope="module")
def models(stack):
    return lower(stack, int8=True)


@pytest.fixture(scope="module")
def plain(backend, stack):
    """A subnet with different widths in each block, and its model of the same weights as the pieces."""
    subnet = backend.space.subnet(3, {"ffn": (96, 32, 96), "pairs": (3, 1, 1)})
    model = backend.build(subnet).eval()
    shared = stack.whole.module.model
    state = {k: v for k, v in shared.state_dict().items() if not k.startswith("encoder.blocks.")}
    for i in range(3):
        mixer = stack.sublayers["pairs"][subnet.width("pairs", i)].module
        ffn = stack.sublayers["ffn"][subnet.width("ffn", i)].module.block
        at = f"encoder.blocks.{i}."
        state |= {f"{at}mixer.{k}": v for k, v in mixer.mixer.mixer.state_dict().items()}
        state |= {f"{at}mixer_norm.{k}": v for k, v in mixer.norm.state_dict().items()}
        for name in ("ffn_norm", "up", "down"):
            part = getattr(ffn, name).state_dict()
            state |= {f"{at}{name}.{k}": v for k, v in part.items()}
    model.load_state_dict(state)
    return subnet, model


def _run(path):
    session = load_session(path)
    draws = np.random.default_rng(0)
    feed = {
        port.name: draws.standard_normal(
            [n if isinstance(n, int) else 2 for n in port.shape]
        ).astype(np.float32)
        for port in session.get_inputs()
    }
    return [port.name for port in session.get_outputs()], session.run(None, feed)


def _operators(path):
    """Of the graph that onnxruntime makes of a file: constants are computed, operators are fused."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_stitched_graph_is_a_real_export(backend, stack, models, plain, precision, tmp_path):
    subnet, model = plain
    real, made = tmp_path / "real.onnx", tmp_path / "made.onnx"
    encoder = next(g for g in backend.graphs(model) if g.name == "encoder")
    assert isinstance(encoder.module, StreamingEncoder)
    graph_to_onnx(encoder, real)
    if precision == "int8":
        quantize_int8(real, real)
    made.write_bytes(Stitcher(stack, models[precision]).assemble(subnet).SerializeToString())
    assert _operators(made) == _operators(real)
    (names, ours), (expected_names, theirs) = _run(made), _run(real)
    assert names == expected_names
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5 if precision == "fp32" else 2e-2)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_hollow_graph_has_the_same_operators_and_sizes(stack, models, plain, precision, tmp_path):
    whole = Stitcher(stack, models[precision]).assemble(plain[0])
    empty = hollow(whole)
    paths = [tmp_path / "whole.onnx", tmp_path / "hollow.onnx"]
    for path, model in zip(paths, (whole, empty), strict=True):
        path.write_bytes(model.SerializeToString())
    whole_ops, hollow_ops = (_operators(path) for path in paths)
    assert hollow_ops == whole_ops
    assert paths[1].stat().st_size < 0.8 * paths[0].stat().st_size
    shapes = [[value.shape for value in _run(path)[1]] for path in paths]
    assert shapes[0] == shapes[1]
    assert all(np.isfinite(value).all() for value in _run(paths[1])[1])
