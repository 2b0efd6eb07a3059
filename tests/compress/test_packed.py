import copy

import pytest
import torch
from torch import nn

from todm.compress import packed
from todm.errors import ArtifactError, ConfigError
from todm.kernels import matmul_24, matmul_int8, matmul_w4

N, K, M = 13, 150, 7  # K is no multiple of 4, 8, 64 or 128


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_mask(weight):
    """The two largest of every four inputs, in a loop."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for row in range(weight.shape[0]):
        for first in range(0, weight.shape[1], 4):
            group = weight[row, first : first + 4].abs()
            for best in group.argsort(descending=True)[:2]:
                mask[row, first + int(best)] = True
    return mask


def w4(bits, group, *, symmetric, sparse24, pre_quant_scale=False):
    weight = draw(N, K) + 0.3
    if sparse24:
        weight = weight * sparse_mask(weight)
    pre_quant_scale_K = 0.5 + draw(K, seed=2).abs() if pre_quant_scale else None
    made = matmul_w4.quantise_rtn(
        weight, bits, group=group, symmetric=symmetric, pre_quant_scale_K=pre_quant_scale_K
    )
    return packed.W4Linear(made, draw(N, seed=3), sparse24=sparse24)


def int8(*, static, sparse24, bias=True):
    weight = draw(N, K)
    if sparse24:
        weight = weight * sparse_mask(weight)
    codes, scale = matmul_int8.quantise_weight(weight)
    act_scale = torch.tensor(0.02) if static else None
    bias_N = draw(N, seed=3) if bias else None
    return packed.Int8Linear(codes, scale, bias_N, act_scale=act_scale, sparse24=sparse24)


def sparse(dtype=torch.float32):
    weight = draw(N, K)
    made = matmul_24.pack((weight * sparse_mask(weight)).to(dtype))
    return packed.SparseLinear(made, draw(N, seed=3).to(dtype))


LAYERS = {
    "sparse": sparse,
    "int8": lambda: int8(static=False, sparse24=False),
    "int8 static": lambda: int8(static=True, sparse24=False, bias=False),
    "int8 2:4": lambda: int8(static=True, sparse24=True),
    "w4": lambda: w4(4, 64, symmetric=False, sparse24=False),
    "w4 pre_quant_scale": lambda: w4(4, 32, symmetric=True, sparse24=False, pre_quant_scale=True),
    "w3": lambda: w4(3, 128, symmetric=False, sparse24=False),
    "w4 2:4": lambda: w4(4, 64, symmetric=False, sparse24=True, pre_quant_scale=True),
    "w4 2:4 symmetric": lambda: w4(4, None, symmetric=True, sparse24=True),
    "w4 2:4 one group": lambda: w4(4, None, symmetric=False, sparse24=True),
    "w3 2:4": lambda: w4(3, 32, symmetric=False, sparse24=True),
}


@pytest.fixture(params=LAYERS, ids=str)
def layer(request):
    return LAYERS[request.param]()


def float64_output(layer, x):
    """The arithmetic of a layer as its docs say, from the stored numbers, in float64."""
    x = x.double()
    if isinstance(layer, packed.Int8Linear):
        static = layer.act_scale
        scale = x.abs().amax(1, keepdim=True) / 127 if static is None else static.double()
        x = (x / scale).round().clamp(-127, 127) * scale
        y = x @ (layer.codes().double() * layer.scale_N.double()[:, None]).t()
    else:
        y = x @ layer.dense_weight().double().t()
    return y if layer.bias is None else y + layer.bias.double()


def test_forward_is_the_documented_arithmetic(layer):
    x = draw(M, K, seed=5)
    expected = float64_output(layer, x)
    found = layer(x)
    assert found.dtype == x.dtype
    # A code on the edge between two may fall to the other side in float32: one step at most.
    assert ((found - expected).norm() / expected.norm()) < (
        1e-3 if isinstance(layer, packed.Int8Linear) else 2e-6
    )
    torch.testing.assert_close(layer(x.view(1, M, K)), found[None], rtol=0, atol=0)


def test_build_is_the_inverse_of_format_and_state_dict(layer):
    x = draw(M, K, seed=5)
    tensors = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    again = packed.build(layer.format(), tensors)
    assert again.format() == layer.format()
    assert torch.equal(again(x), layer(x))
    assert torch.equal(again.dense_weight(), layer.dense_weight())
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_load_state_dict_replaces_what_was_expanded(layer):
    x = draw(M, K, seed=5)
    other = copy.deepcopy(layer)
    other(x)
    layer.bias = None if layer.bias is None else layer.bias + 1
    name = next(n for n in layer.state_dict() if n.startswith("scale") or n == "values_NH")
    setattr(layer, name, layer.get_buffer(name) * 2)
    layer.release()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_casting_keeps_scales_exact(layer):
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    for name, tensor in cast.state_dict().items():
        if name not in ("bias", "values_NH") or tensor.dtype == torch.int8:
            assert torch.equal(tensor, before[name]), name
    found = cast(draw(M, K, seed=5).bfloat16())
    assert found.dtype == torch.bfloat16
    expected = float64_output(layer, draw(M, K, seed=5).bfloat16())
    assert (found - expected).norm() / expected.norm() < 1.2e-2


@pytest.mark.parametrize(
    ("bits_per_weight", "layer"),
    [
        (18, sparse(torch.bfloat16)),  # 36 of 64 bits
        (10, int8(static=True, sparse24=True)),  # 20 of 32 bits, GPUSQ-ViT's count in four weights
        (16, int8(static=False, sparse24=False)),
        (6, w4(4, 64, symmetric=False, sparse24=True)),
        (8, w4(4, 64, symmetric=False, sparse24=False)),
        (5, w4(3, 64, symmetric=False, sparse24=True)),
        (6, w4(3, 64, symmetric=False, sparse24=False)),
    ],
    ids=str,
)
def test_bytes_of_the_codes_are_counted_on_disk(bits_per_weight, layer, tmp_path):
    """Bits for two weights, with K filled up to what the layout takes."""
    from safetensors.torch import save_file

    codes = {"values_NH", "codes_NC", "codes_NK", "words_NJ", "kept_NP"}
    stored = {n: t for n, t in layer.state_dict().items() if n in codes}
    save_file(stored, tmp_path / "a.safetensors")
    head = 8 + int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    size = (tmp_path / "a.safetensors").stat().st_size - head
    filled = {"words_NJ": 256, "codes_NK": K}.get(next(iter(stored)), 152)
    assert size == N * -(-filled * bits_per_weight // 16)  # rows begin at a byte
    rest = {"bias"} | codes
    assert layer.num_bytes == size + sum(
        t.nbytes for n, t in layer.state_dict().items() if n not in rest
    )


def test_masked_weights_stay_zero():
    for name in ("w4 2:4", "w4 2:4 one group", "w3 2:4", "int8 2:4", "sparse"):
        mask = sparse_mask(draw(N, K) + 0.3 if name.startswith("w") else draw(N, K))
        assert not LAYERS[name]().dense_weight()[~mask].any()


def test_elastic_width_must_be_the_layer_s_own(layer):
    x = draw(M, K)
    assert torch.equal(layer(x, out_features=N), layer(x))
    with pytest.raises(ConfigError, match="5 outputs are requested from a compressed layer of 13"):
        layer(x, out_features=5)


def test_wrong_parts_are_refused():
    codes = torch.ones(N, K, dtype=torch.int8)
    with pytest.raises(ConfigError, match="2 of 4"):
        packed.Int8Linear(codes, torch.ones(N), sparse24=True)
    with pytest.raises(ConfigError, match=r"int8 \[N, K\]"):
        packed.Int8Linear(codes.float(), torch.ones(N))
    with pytest.raises(ConfigError, match="2 of 4"):
        packed.W4Linear(matmul_w4.quantise_rtn(draw(N, K)), sparse24=True)
    with pytest.raises(ConfigError, match="bias"):
        packed.Int8Linear(codes, torch.ones(N), torch.ones(N + 1))


def test_damaged_storage_is_refused(layer):
    form, tensors = layer.format(), dict(layer.state_dict())
    scale = next((n for n in tensors if n.startswith("scale")), "codes_NC")
    for wrong in (
        ({**form, "kind": "w5"}, tensors),
        ({**form, "shape": [N, K + 400]}, tensors),
        ({k: v for k, v in form.items() if k != "shape"}, tensors),
        (form, {k: v for k, v in tensors.items() if k != scale}),
        (form, {**tensors, "more": torch.zeros(1)}),
        (form, {**tensors, scale: tensors[scale][:-1]}),
    ):
        with pytest.raises(ArtifactError, match=r"compress|damaged"):
            packed.build(*wrong)


def test_layers_are_found_and_released():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(LAYERS["w4"](), LAYERS["int8 2:4"]()))
    assert list(packed.layers_of(model)) == ["1.0", "1.1"]
    model[1][0](draw(M, K))
    assert model[1][0]._ready.copies
    packed.release(model)
    assert model[1][0]._ready is None
