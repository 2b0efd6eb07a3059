"""The pass int4: round to nearest and GPTQ, all grids, masks, and what stays as it is."""

import pytest
import torch
from torch import nn

from todm.compress import int4, prune
from todm.compress.calibrate import Block, Call
from todm.compress.config import Int4Config, PruneConfig
from todm.compress.packed import W4Linear
from todm.errors import CorpusError
from todm.kernels.matmul_w4 import quantise_rtn


def _work(module, layers, inputs):
    calls = [Call((x,), {}) for x in inputs]
    return Block("b", module.eval(), layers=layers, calls=calls, masks={})


def _correlated(rows=600, inputs=150):
    return torch.randn(rows, 20) @ torch.randn(20, inputs) + 0.3 * torch.randn(rows, inputs)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rtn_is_the_nearest_code(bits, group, symmetric):
    block = nn.Sequential(nn.Linear(150, 7))
    weight = block[0].weight.detach().clone()
    config = Int4Config(bits=bits, group=group, symmetric=symmetric)
    done = int4.run(_work(block, ["b.0"], []), config)
    assert done["b.0"].what == f"int{bits} rtn g{group}"
    assert isinstance(block[0], W4Linear)
    wanted = quantise_rtn(weight, bits, group=group, symmetric=symmetric).dequantise()
    assert torch.equal(block[0].dense_weight(), wanted)
    step = block[0].scale_NG.float().repeat_interleave(group, 1)[:, :150]
    assert ((weight - wanted).abs() <= step * 0.502).all()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_is_better_than_rtn_on_correlated_inputs(bits, symmetric):
    x, errors = _correlated(), {}
    for method in ("rtn", "gptq"):
        torch.manual_seed(3)
        block = nn.Sequential(nn.Linear(150, 17))
        with torch.no_grad():
            wanted = block(x)
        config = Int4Config(bits=bits, group=64, symmetric=symmetric, method=method)
        int4.run(_work(block, ["b.0"], x.split(200)), config)
        errors[method] = float((block(x) - wanted).square().sum())
    assert errors["gptq"] < 0.7 * errors["rtn"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_a_mask_is_kept(method, symmetric, n, m):
    block, x = nn.Sequential(nn.Linear(150, 9)), _correlated()
    work = _work(block, ["b.0"], [x])
    prune.run(work, PruneConfig(n=n, m=m))
    mask = work.masks["b.0"]
    done = int4.run(work, Int4Config(method=method, symmetric=symmetric))
    assert not (block[0].dense_weight()[~mask] != 0).any()
    assert block[0].sparse24 == done["b.0"].what.endswith(" 2:4") == ((n, m) != (4, 8))


def test_gptq_with_a_mask_is_better_than_rtn_with_it():
    x, errors = _correlated(), {}
    for method in ("rtn", "gptq"):
        torch.manual_seed(3)
        block = nn.Sequential(nn.Linear(150, 17))
        work = _work(block, ["b.0"], [x])
        prune.run(work, PruneConfig())
        with torch.no_grad():
            wanted = block(x)
        int4.run(work, Int4Config(method=method))
        errors[method] = float((block(x) - wanted).square().sum())
    assert errors["gptq"] < 0.7 * errors["rtn"]


def test_what_cannot_be_done_says_why():
    block = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1), "unseen": nn.Linear(40, 4)})
    work = _work(block, ["b.conv", "b.unseen"], [])
    done = int4.run(work, Int4Config(method="gptq", bits=3))
    assert done["b.conv"].why_not == "a convolution has no kernel for int3"
    assert "gptq needs some" in done["b.unseen"].why_not


def test_few_rows_and_bad_rows():
    block, x = nn.Sequential(nn.Linear(150, 9)), _correlated()
    done = int4.run(_work(block, ["b.0"], [x[:20]]), Int4Config(method="gptq", group=32))
    assert done["b.0"].what == "int4 gptq, few rows: 20 for 150 inputs g32"
    block, x[5, 7] = nn.Sequential(nn.Linear(150, 9)), float("nan")
    with pytest.raises(CorpusError, match=r"b\.0: calibration batch 2"):
        int4.run(_work(block, ["b.0"], [x[:5], x[5:]]), Int4Config(method="gptq"))
    assert isinstance(block[0], nn.Linear)
