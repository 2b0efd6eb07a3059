"""The 2:4 zeros of a model, looked for in the ONNX file: kept along the inputs, or found out."""

import importlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from todm.backend import Graph, Port
from todm.compress import packed
from todm.errors import BundleError
from todm.export.sparsity import is_24, matrices_24, require_24
from todm.export.to_onnx import graph_to_onnx
from todm.kernels import matmul_24, matmul_int8

N, K = 12, 22  # no multiple of four


def layer_of_another_graph():
    return packed.SparseLinear(matmul_24.pack(weight()), None)


class Two(nn.Module):
    """A dense layer, a layer of zeros, and one that is not run."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.second = nn.Linear(5, K), layer
        self.unused = layer_of_another_graph()

    def forward(self, x):
        return self.second(self.first(x))


def weight():
    torch.manual_seed(5)
    return torch.randn(N, K) * (torch.arange(K) % 4 % 2 == 1)


def layer(kind):
    if kind == "float":
        return packed.SparseLinear(matmul_24.pack(weight()), None)
    codes, scale = matmul_int8.quantise_weight(weight())
    act_scale = torch.tensor(0.02) if kind == "qdq" else None
    return packed.Int8Linear(codes, scale, torch.randn(N), act_scale=act_scale, sparse24=True)


def export(model, path):
    x = torch.randn(2, 3, 5)
    with torch.no_grad():
        y = model(x)
    ports = [Port(name=n, example=e, dynamic={0: "B"}) for n, e in (("x", x), ("y", y))]
    graph = Graph(name="two", module=model, inputs=(ports[0],), outputs=(ports[1],))
    graph_to_onnx(graph, path)
    return graph


@pytest.mark.parametrize("kind", ["qdq", "rows", "float"])
def test_zeros_are_kept_along_the_inputs(tmp_path, kind):
    graph = export(Two(layer(kind)).eval(), tmp_path / "m.onnx")
    assert sorted(matrices_24(tmp_path / "m.onnx").values()) == [False, True]
    assert require_24(tmp_path / "m.onnx", graph) == 1


def _run_exact(path, feed):
    """Without optimisations, so that no sums of int8 overflow on x86 without VNNI."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options).run(None, feed)[0]


@pytest.fixture
def signed(repo, monkeypatch):
    """What makes codes about 128 codes about 0."""
    monkeypatch.syspath_prepend(repo / "export" / "onnx")
    return importlib.import_module("trtexec").signed


def test_codes_about_zero_stay(signed):
    """Those of a bundle of an older todm, without a zero point."""
    codes = numpy_helper.from_array(np.array([-3, 5], np.int8), "codes")
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    port = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    node = helper.make_node("DequantizeLinear", ["codes", "scale"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [port], [codes, scale]))
    assert signed(model).graph.initializer[0] == codes


def test_qdq_file_has_what_an_engine_looks_for(tmp_path, signed):
    """Weights behind a DequantizeLinear, not folded into floats; `trtexec.py` makes them int8 about 0."""
    export(Two(layer("qdq")).eval(), tmp_path / "unsigned.onnx")
    onnx.save(signed(onnx.load(str(tmp_path / "unsigned.onnx"))), str(tmp_path / "m.onnx"))
    feed = {"x": np.ones((2, 3, 5), np.float32)}
    before, after = (_run_exact(tmp_path / name, feed) for name in ("unsigned.onnx", "m.onnx"))
    np.testing.assert_allclose(before, after, atol=1e-6)
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    points = [n.input[2] for n in graph.node if n.op_type.endswith("uantizeLinear")]
    stored = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    assert all(stored[name].dtype == np.int8 and not stored[name].any() for name in points)
    (name,) = [n for n, kept in matrices_24(tmp_path / "m.onnx").items() if kept]
    (codes,) = [numpy_helper.to_array(c) for c in graph.initializer if c.name == name]
    assert codes.dtype == np.int8
    assert codes.shape == (K, N)
    (node,) = [n for n in graph.node if name in n.input]
    assert node.op_type == "DequantizeLinear"


def test_zeros_along_the_outputs_are_found_out(tmp_path):
    """As many zeros, on the axis where they are worth nothing."""
    wrong_KN = np.ones((8, 16), np.float32) * (np.arange(16) % 4 < 2)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size])
        for name, size in (("x", 8), ("y", 16))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    constant = numpy_helper.from_array(wrong_KN, "w")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [constant])
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    assert matrices_24(tmp_path / "m.onnx") == {"w": False}
    with pytest.raises(BundleError, match=r"0 matrices with 2:4 zeros .* 1 such layers"):
        require_24(tmp_path / "m.onnx", export(Two(layer("float")), tmp_path / "other.onnx"))


def test_gemm_with_outputs_first(tmp_path):
    right_NK = np.ones((6, 8), np.float32) * (np.arange(8) % 4 > 1)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size])
        for name, size in (("x", 8), ("y", 6))
    ]
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    constant = numpy_helper.from_array(right_NK, "w")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [constant])
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    assert matrices_24(tmp_path / "m.onnx") == {"w": True}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [([1, 1, 0, 0], True), ([1, 1, 1, 0], False), ([0, 0, 1, 1, 1, 1], True), ([0] * 4 + [1] * 3, False)],
)  # fmt: skip
def test_two_of_four(row, wanted):
    assert is_24(np.array([row], bool)) is wanted
