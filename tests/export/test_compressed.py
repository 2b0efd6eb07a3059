"""Packed layers in ONNX files: the codes are those that went in, and onnxruntime gives torch's outputs."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from todm.backend import Graph, Port
from todm.compress import packed
from todm.errors import BundleError
from todm.export import nbits
from todm.export.compressed import is_rounding, lowered
from todm.export.to_onnx import graph_to_onnx
from todm.kernels import matmul_24, matmul_int8, matmul_w4

pytestmark = pytest.mark.runtime

N, K = 24, 70  # K is no multiple of four, of a block, or of a group


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(seed, *, sparse24=False):
    drawn = draw(N, K, seed=seed)
    return drawn * (torch.arange(K) % 4 < 2) if sparse24 else drawn


def sparse(seed):
    return packed.SparseLinear(matmul_24.pack(weight(seed, sparse24=True)), draw(N))


def int8(seed, *, static=False, sparse24=False):
    codes, scale = matmul_int8.quantise_weight(weight(seed, sparse24=sparse24))
    act_scale = torch.tensor(0.015) if static else None
    return packed.Int8Linear(codes, scale, draw(N), act_scale=act_scale, sparse24=sparse24)


def w4(seed=0, bits=4, *, group=32, symmetric=False, pre_quant_scale=False, sparse24=False):
    pre_quant_scale_K = 0.5 + draw(K, seed=seed).abs() if pre_quant_scale else None
    options = {"group": group, "symmetric": symmetric, "pre_quant_scale_K": pre_quant_scale_K}
    made = matmul_w4.quantise_rtn(weight(seed, sparse24=sparse24), bits, **options)
    return packed.W4Linear(made, None if symmetric else draw(N), sparse24=sparse24)


LAYERS = {
    "sparse": sparse(1),
    "int8": int8(2),
    "int8 static": int8(3, static=True),
    "int8 2:4": int8(4, sparse24=True),
    "w4": w4(5),
    "w4 symmetric pre_quant_scale": w4(6, symmetric=True, pre_quant_scale=True, group=64),
    "w4 2:4": w4(7, sparse24=True, group=128),
    "w3": w4(8, 3),
    "w3 symmetric": w4(9, 3, symmetric=True),
}


class Net(nn.Module):
    """Packed layers side by side; they are called as this project's elastic layers are."""

    def __init__(self, layers):
        super().__init__()
        self.first, self.layers = nn.Linear(9, K), nn.ModuleList(layers)

    def forward(self, x):
        h = self.first(x)
        return tuple(layer(h, out_features=N) for layer in self.layers)


def export(layers, path, *, rows):
    net = Net(layers).eval()
    x = draw(2, *rows, 9, seed=4)
    with torch.no_grad():
        ports = [Port(name=f"y{i}", example=y, dynamic={0: "batch"}) for i, y in enumerate(net(x))]
    x_port = Port(name="x", example=x, dynamic={0: "batch"})
    graph = Graph(name="model", module=net, inputs=(x_port,), outputs=tuple(ports))
    graph_to_onnx(graph, path)
    return net


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All layers in one file: (path, network, constants by name, nodes)."""
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    torch.manual_seed(0)
    net = export(LAYERS.values(), path, rows=(3,))
    graph = onnx.load(str(path)).graph
    return path, net, {t.name: numpy_helper.to_array(t) for t in graph.initializer}, graph.node


def constant(made, name, part):
    return made[2][f"layers.{list(LAYERS).index(name)}.{part}"]


def test_the_model_is_put_back_together(made):
    assert list(made[1].layers) == list(LAYERS.values())


def test_onnxruntime_gives_torch_s_outputs(made):
    path, net, *_ = made
    x = 3 * draw(11, 3, 9, seed=5)
    x[0, 0] = 0
    with torch.no_grad():
        expected = [y.numpy() for y in net(x)]
    for name, ours, theirs in zip(LAYERS, expected, run(path, x), strict=True):
        # Where an activation lies on the edge of two codes, the difference is one step.
        allowed = 3e-2 if is_rounding(nn.Sequential(LAYERS[name])) else 2e-5
        assert np.abs(ours - theirs).max() < allowed, name
        assert np.abs(ours - theirs).mean() < 2e-5, name


def test_matrices_are_lowered_as_sequences_are(tmp_path):
    layers = [LAYERS["int8"], LAYERS["w4"]]
    net = export(layers, tmp_path / "m.onnx", rows=())
    x = draw(7, 9, seed=5)
    with torch.no_grad():
        for ours, theirs in zip(net(x), run(tmp_path / "m.onnx", x), strict=True):
            assert np.abs(ours.numpy() - theirs).max() < 3e-2


@pytest.mark.parametrize("name", [n for n in LAYERS if n.startswith("int8")])
def test_int8_codes_in_the_file_are_those_that_went_in(made, name):
    layer, codes = LAYERS[name], constant(made, name, "codes_KN")
    assert codes.dtype == np.uint8  # about 128: exact on every processor
    assert np.array_equal(codes.T.astype(int) - 128, layer.codes().numpy())
    assert np.array_equal(constant(made, name, "scale_N"), layer.scale_N.numpy())


def test_a_static_layer_is_qdq(made):
    ops = {node.output[0]: node for node in made[3]}
    (quantize,) = [node for node in made[3] if node.op_type == "QuantizeLinear"]
    assert ops[quantize.input[0]].op_type == "Clip"
    assert np.float32(0.015) == made[2][quantize.input[1]]
    pairs = [node for node in made[3] if node.op_type == "DequantizeLinear"]
    assert [node.input[0] for node in pairs if node.input[0] in ops] == [quantize.output[0]]
    (weights,) = [node for node in pairs if node.input[0] in made[2]]
    assert (made[2][weights.input[2]] == 128).all()
    assert made[2][quantize.input[2]] == 128


def unpack(constants, *, bits):
    """The packed weight of a node's constants; a symmetric one with its zero points written out."""

    def single(bytes_NP):
        return torch.stack([bytes_NP & 15, bytes_NP >> 4], -1).flatten(1)

    blob, scale_NG, zero_NP = constants
    return matmul_w4.pack(
        single(blob.flatten(1))[:, :K].contiguous(),
        scale_NG.half(),
        zero_NG=single(zero_NP)[:, : scale_NG.shape[1]].contiguous(),
        bits=bits,
        group=2 * blob.shape[2],
    )


@pytest.mark.parametrize("name", [n for n in LAYERS if n.startswith("w")])
def test_4_bit_codes_go_into_the_file_and_come_back(made, name):
    layer = LAYERS[name]
    stored = [torch.from_numpy(constant(made, name, p).copy()) for p in nbits.NBits._fields]
    found = unpack(nbits.NBits(*stored), bits=layer.bits)
    written = layer.weight_w4
    assert torch.equal(found.codes_NK(), written.codes_NK())
    assert torch.equal(found.words_NJ, written.words_NJ)
    assert torch.equal(found.scale_NG, written.scale_NG)
    assert torch.equal(found.dequantise(), written.dequantise())
    if written.zero_NG is not None:
        assert torch.equal(found.zero_NG, written.zero_NG)


def test_nbits_by_hand():
    """The documented place of a code: byte k // 2 of its block, low bits first."""
    made = w4(5).weight_w4
    blob, _, zero = nbits.to_nbits(made)
    codes = made.codes_NK()
    for n, k in ((0, 0), (3, 33), (N - 1, K - 1), (7, 31)):
        byte = int(blob[n, k // 32, k % 32 // 2])
        assert (byte >> 4 * (k % 2)) & 15 == int(codes[n, k])
        assert (int(zero[n, k // 64]) >> 4 * (k // 32 % 2)) & 15 == int(made.zero_NG[n, k // 32])


def test_zeros_of_2_4_are_in_the_file(made):
    dense = LAYERS["sparse"].dense_weight().numpy()
    assert any(np.array_equal(w, dense) or np.array_equal(w.T, dense) for w in made[2].values())


def test_groups_without_an_operator_are_refused():
    net = nn.Sequential(w4(), w4(group=None))
    with (
        pytest.raises(BundleError, match="groups of 70 inputs have no ONNX operator"),
        lowered(net),
    ):
        pass
    assert all(isinstance(layer, packed.W4Linear) for layer in net)


def test_another_dtype_is_refused():
    net = nn.Sequential(w4())
    with lowered(net), pytest.raises(BundleError, match="cast it to float32 first"):
        net(draw(2, K).half())


def test_a_layer_in_two_places_is_lowered_in_both():
    layer = w4()
    net = nn.ModuleDict({"a": nn.Sequential(layer), "b": nn.Sequential(layer)})
    with lowered(net):
        assert net["a"][0] is net["b"][0]
        assert net["a"][0] is not layer
    assert net["a"][0] is net["b"][0] is layer
