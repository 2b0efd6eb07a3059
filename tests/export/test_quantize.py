"""Blockwise forms of a graph against float64 arithmetic written out, and what stays as it was."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from todm.device.bundle import load_session
from todm.errors import BundleError
from todm.export.quantize import BLOCK, quantize_blocks, quantize_int8

N, K = 7, 75  # no multiple of a block


def weight(seed=0):
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


def in_blocks(weight_NK, bits, folder):
    """The constants of the node that a product with this weight becomes: blob, scales, zero points."""
    ports = [
        onnx.helper.make_tensor_value_info(n, 1, [2, size]) for n, size in (("x", K), ("y", N))
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    constant = numpy_helper.from_array(np.ascontiguousarray(weight_NK.numpy().T), "w")
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:], [constant])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), str(folder / "a.onnx")
    )
    assert quantize_blocks(folder / "a.onnx", folder / "b.onnx", bits=bits) == 1
    made = onnx.load(str(folder / "b.onnx")).graph
    stored = {c.name: numpy_helper.to_array(c) for c in made.initializer}
    assert len(stored) == 3  # the float32 weight is gone
    return [stored[name] for name in made.node[0].input[1:]]


def dequantised(constants, bits):
    """The weight that the operator's documentation gives, element by element, float64 [N, K]."""
    blob, scales, zeros = constants
    out = np.zeros((N, K))
    for n in range(N):
        for k in range(K):
            block, at = divmod(k, BLOCK)
            if bits == 8:
                code, zero = int(blob[n, block, at]), int(zeros[n, block])
            else:
                code = int(blob[n, block, at // 2]) >> (4 * (at % 2)) & 15
                zero = int(zeros[n, block // 2]) >> (4 * (block % 2)) & 15
            out[n, k] = float(scales[n, block]) * (code - zero)
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_off_by_half_a_step_at_most(bits, tmp_path):
    given = weight()
    found = dequantised(in_blocks(given, bits, tmp_path), bits)
    padded = np.pad(given.double().numpy(), ((0, 0), (0, -K % BLOCK))).reshape(N, -1, BLOCK)
    step = (padded.max(2).clip(0) - padded.min(2).clip(max=0)) / (2**bits - 1)
    limit = (
        np.repeat(step, BLOCK, 1)[:, :K] * 1.02
    )  # half a step, and half a step of the zero point
    assert (np.abs(found - given.double().numpy()) <= limit).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_weights_stay_zero(bits, tmp_path):
    found = dequantised(in_blocks(torch.zeros(N, K), bits, tmp_path), bits)
    assert (found == 0).all()


def test_a_shared_weight_is_stored_once(tmp_path):
    ports = [onnx.helper.make_tensor_value_info(n, 1, [2, K]) for n in "xyz"]
    nodes = [
        onnx.helper.make_node("MatMul", [x, "w"], [y], f"product.{x}")
        for x, y in (("x", "y"), ("y", "z"))
    ]
    constant = numpy_helper.from_array(weight()[:1].expand(K, K).numpy().copy(), "w")
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[2:], [constant])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), str(tmp_path / "a.onnx")
    )
    for quantize in (quantize_int8, lambda a, b: quantize_blocks(a, b, bits=4)):
        assert quantize(tmp_path / "a.onnx", tmp_path / "b.onnx") == 2
        load_session(tmp_path / "b.onnx")


@pytest.mark.runtime
@pytest.mark.parametrize(("bits", "least"), [(8, 35), (4, 12)])
def test_encoder_in_blocks(toy_bundle, tmp_path, bits, least):
    source, target = toy_bundle / "encoder.onnx", tmp_path / "blocks.onnx"
    assert quantize_blocks(source, target, bits=bits) == 2
    before, after = (onnx.load(str(path)) for path in (source, target))
    assert list(before.metadata_props) == list(after.metadata_props)
    assert after.ir_version == 8
    nodes = [n for n in after.graph.node if n.op_type == "MatMulNBits"]
    levels = {a.i for n in nodes for a in n.attribute if a.name == "accuracy_level"}
    assert levels == {4}  # anything less is as slow as float32
    sizes = [numpy_helper.to_array(c).nbytes for c in after.graph.initializer]
    assert target.stat().st_size < source.stat().st_size
    assert max(sizes) < 12 * 400 * 4  # the float32 matrix is gone
    rng = np.random.default_rng(3)
    feed = {
        "x": rng.normal(-8, 6, (2, 32, 80)).astype(np.float32),
        "state0": rng.standard_normal((1, 2, 12)).astype(np.float32),
        "state1": rng.standard_normal((1, 2, 80)).astype(np.float32),
    }
    exact, rounded = (
        onnxruntime.InferenceSession(str(path)).run(None, feed)[0] for path in (source, target)
    )
    assert 10 * np.log10((exact**2).sum() / ((rounded - exact) ** 2).sum()) > least


@pytest.mark.runtime
def test_operators_on_carried_states_stay_float32(toy_bundle, tmp_path):
    """An error in them would last as long as the state does."""
    quantize_blocks(toy_bundle / "encoder.onnx", tmp_path / "blocks.onnx", bits=4)
    graph = onnx.load(str(tmp_path / "blocks.onnx")).graph
    stacks = [c for c in graph.initializer if len(c.dims) == 3 and c.data_type == 1]
    assert any(list(c.dims) == [12, 8, 8] for c in stacks)
    assert "MatMul" in {node.op_type for node in graph.node}


@pytest.mark.parametrize("quantize", [quantize_int8, lambda a, b: quantize_blocks(a, b, bits=4)])
def test_graph_without_matrices_is_refused(tmp_path, quantize):
    ports = [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "g", *[[p] for p in ports]
    )
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "a.onnx"))
    with pytest.raises(BundleError, match="no matrix"):
        quantize(tmp_path / "a.onnx", tmp_path / "b.onnx")
