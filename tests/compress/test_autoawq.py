"""AutoAWQ's layout against its description, written out bit by bit."""

import pytest
import torch
from torch import nn

from todm.compress import autoawq
from todm.compress.packed import SparseLinear, W4Linear
from todm.errors import ArtifactError, ConfigError
from todm.kernels import matmul_24
from todm.kernels.matmul_w4 import quantise_rtn

N, K, GROUP = 24, 96, 32
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embed = nn.Embedding(11, K)
        self.layer = layer
        self.head = nn.Linear(N, 11)


def _model(*, bits=4, group=GROUP, pre_quant_scale=False, symmetric=False, bias=True, shape=(N, K)):
    torch.manual_seed(0)
    pre_quant_scale_K = torch.rand(shape[1]) + 0.5 if pre_quant_scale else None
    weight = quantise_rtn(
        torch.randn(*shape),
        bits,
        group=group,
        symmetric=symmetric,
        pre_quant_scale_K=pre_quant_scale_K,
    )
    return Model(W4Linear(weight, torch.randn(shape[0]) if bias else None))


def _dequantised(qweight, qzeros, scales):
    """W[k, n] from the words, one at a time."""
    weight = torch.empty(N, K)
    for n in range(N):
        nibble = ORDER.index(n % 8)
        for k in range(K):
            g = k // GROUP
            code = (int(qweight[k, n // 8]) >> 4 * nibble) & 15
            zero = (int(qzeros[g, n // 8]) >> 4 * nibble) & 15
            weight[n, k] = (code - zero) * float(scales[g, n])
    return weight


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_words_are_those_of_the_layout(symmetric):
    model = _model(symmetric=symmetric)
    found = autoawq.tensors_of(model)
    parts = [found[f"layer.{name}"] for name in ("qweight", "qzeros", "scales")]
    assert [tuple(p.shape) for p in parts] == [(K, N // 8), (K // GROUP, N // 8), (K // GROUP, N)]
    assert [p.dtype for p in parts] == [torch.int32, torch.int32, torch.float16]
    assert torch.equal(_dequantised(*parts), model.layer.dense_weight())
    assert found["layer.bias"].dtype == torch.float16
    assert set(found) == {
        "embed.weight", "head.weight", "head.bias",
        "layer.qweight", "layer.qzeros", "layer.scales", "layer.bias",
    }  # fmt: skip


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_there_and_back_loses_nothing(symmetric, bias):
    model = _model(symmetric=symmetric, bias=bias)
    table = autoawq.quantization_config(model)
    layers, rest = autoawq.layers_from(autoawq.tensors_of(model, dtype=torch.float32), table)
    assert set(rest) == {"embed.weight", "head.weight", "head.bias"}
    assert torch.equal(rest["embed.weight"], model.embed.weight)
    before, after = model.layer.state_dict(), layers["layer"].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = autoawq.tensors_of(Model(layers["layer"]))
    for name in ("qweight", "qzeros", "scales"):
        assert torch.equal(again[f"layer.{name}"], autoawq.tensors_of(model)[f"layer.{name}"])


def test_the_table_is_autoawqs():
    assert autoawq.quantization_config(_model()) == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["head"],
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, r"layer has 3 bits: an AWQ checkpoint holds 4"),
        ({"pre_quant_scale": True}, r"layer keeps a pre_quant_scale.*awq\.scale=false"),
        ({"shape": (24, 80)}, r"layer has 80 inputs.*multiple of the group 32"),
        ({"shape": (20, 96)}, r"layer has 20 outputs.*packs 8 at a time"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        autoawq.tensors_of(_model(**settings))


def test_other_models_are_refused():
    sparse = torch.zeros(N, K)
    sparse[:, ::2] = 1
    with pytest.raises(ConfigError, match="layer is sparse24"):
        autoawq.check(Model(SparseLinear(matmul_24.pack(sparse), None)))
    with pytest.raises(ConfigError, match="no layer has 4 bits"):
        autoawq.check(Model(nn.Linear(K, N)))
    both = Model(
        nn.ModuleList([_model(shape=(8, 64)).layer, _model(shape=(8, 64), group=64).layer])
    )
    with pytest.raises(ConfigError, match="groups of 32 and of 64"):
        autoawq.check(both)
    model = _model()
    model.head.weight.data[0, 0] = 1e6
    with pytest.raises(ConfigError, match=r"head\.weight holds numbers that torch\.float16 cannot"):
        autoawq.tensors_of(model)


@pytest.mark.parametrize(
    "change",
    [
        {"quant_method": "gptq"}, {"version": "gemv"}, {"bits": 8}, {"group_size": -1},
        {"group_size": None}, {"group_size": 96},
    ],
)  # fmt: skip
def test_checkpoints_quantised_otherwise_are_refused(change):
    model = _model()
    table = autoawq.quantization_config(model) | change
    with pytest.raises(ArtifactError, match="give the model it was made of"):
        autoawq.layers_from(autoawq.tensors_of(model), table)


def test_other_spellings_of_the_table_are_read():
    table = {"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM"}
    assert autoawq.group_of(table) == 128


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_damaged_layer_is_refused(part):
    model = _model()
    table, tensors = autoawq.quantization_config(model), autoawq.tensors_of(model)
    cut = tensors | {f"layer.{part}": tensors[f"layer.{part}"][:-1]}
    with pytest.raises(ArtifactError, match="AWQ layer layer is damaged"):
        autoawq.layers_from(cut, table)
    del cut[f"layer.{part}"]
    with pytest.raises(ArtifactError, match="AWQ layer layer is damaged"):
        autoawq.layers_from(cut, table)
