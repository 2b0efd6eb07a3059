"""The pass int8: scales against loops, ranges, masks, and what stays as it is."""

import pytest
import torch
from torch import nn

from todm.compress import int8, prune
from todm.compress.calibrate import Block, Call, Histogram
from todm.compress.config import Int8Config, PruneConfig
from todm.compress.packed import Int8Linear
from todm.errors import ConfigError


def _work(module, layers, inputs, masks=None):
    calls = [Call((x,), {}) for x in inputs]
    return Block("b", module.eval(), layers=layers, calls=calls, masks=masks or {})


def _heavy(rows=500, inputs=37):
    """Rows of which a few have a large entry."""
    x = torch.randn(rows, inputs)
    x[::50, 3] = 12.0
    return x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("range_", ["absmax", "percentile", "mse"])
def test_the_layer_is_replaced_and_nearly_the_same(bias, activations, range_):
    block, x = nn.Sequential(nn.Linear(37, 11, bias=bias)), _heavy()
    with torch.no_grad():
        wanted = block(x)
    config = Int8Config(activations=activations, range=range_)
    done = int8.run(_work(block, ["b.0"], x.split(90)), config)
    assert isinstance(block[0], Int8Linear)
    assert (block[0].act_scale is None) == (activations == "dynamic")
    assert (
        done["b.0"].what == f"int8 {'dynamic' if activations == 'dynamic' else f'static {range_}'}"
    )
    error = (block(x) - wanted).square().sum() / wanted.square().sum()
    assert error < 2e-3


def test_dynamic_scales_of_absmax_weights_by_hand():
    block, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(4, 5)
    weight, bias = block[0].weight.detach(), block[0].bias.detach()
    int8.run(_work(block, ["b.0"], []), Int8Config(range="absmax"))
    for m in range(4):
        for n in range(3):
            a, w = x[m].abs().max() / 127, weight[n].abs().max() / 127
            total = sum(float((x[m, k] / a).round() * (weight[n, k] / w).round()) for k in range(5))
            wanted = total * float(a) * float(w) + float(bias[n])
            assert float(block(x[m])[n]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("range_", ["absmax", "percentile", "mse"])
def test_static_ranges(range_):
    block, x = nn.Sequential(nn.Linear(37, 11)), _heavy()
    config = Int8Config(activations="static", range=range_, percentile=99.0)
    done = int8.run(_work(block, ["b.0"], x.split(90)), config)
    histogram = Histogram()
    histogram.add(x)
    largest = {
        "absmax": float(x.abs().max()),
        "percentile": float(x.abs().flatten().double().quantile(0.99)),
        "mse": histogram.mse_range(),
    }[range_]
    assert float(block[0].act_scale) == pytest.approx(largest / 127, rel=5e-3)
    assert done["b.0"].figures["range"] == pytest.approx(largest, rel=5e-3)


def test_the_range_of_least_error_is_better_than_absmax():
    x = torch.randn(3000, 20)
    x[0, 0] = 60.0
    errors = {}
    for range_ in ("absmax", "mse"):
        torch.manual_seed(1)
        block = nn.Sequential(nn.Linear(20, 9))
        with torch.no_grad():
            wanted = block(x[1:])
        int8.run(_work(block, ["b.0"], [x]), Int8Config(activations="static", range=range_))
        errors[range_] = float((block(x[1:]) - wanted).square().sum())
    assert errors["mse"] < 0.7 * errors["absmax"]


def test_the_scale_of_least_error_of_a_weight():
    weight = torch.randn(6, 300, dtype=torch.float64)
    weight[2, 5] = 7.0
    found = int8.mse_scale(weight)
    for row, scale in zip(weight, found, strict=True):
        errors = {}
        for percent in range(50, 101):
            s = float(row.abs().max()) / 127 * percent / 100
            errors[percent] = sum(
                (max(-127, min(127, round(float(w) / s))) * s - float(w)) ** 2 for w in row
            )
        best = float(row.abs().max()) / 127 * min(errors, key=errors.get) / 100
        assert float(scale) == pytest.approx(best, rel=1e-5)


def test_a_row_of_zeros_has_a_scale():
    assert bool((int8.mse_scale(torch.zeros(2, 5)) > 0).all())


@pytest.mark.parametrize("range_", ["absmax", "mse"])
def test_a_mask_is_kept_and_used(range_):
    block, x = nn.Sequential(nn.Linear(38, 9)), torch.randn(200, 38)
    work = _work(block, ["b.0"], [x])
    prune.run(work, PruneConfig())
    mask = work.masks["b.0"]
    done = int8.run(work, Int8Config(range=range_))
    assert block[0].sparse24
    assert done["b.0"].what.endswith(" 2:4")
    assert not (block[0].dense_weight()[~mask] != 0).any()


def test_other_masks_stay_zero_in_a_dense_layer():
    block = nn.Sequential(nn.Linear(32, 9))
    work = _work(block, ["b.0"], [])
    prune.run(work, PruneConfig(n=4, m=8, method="magnitude"))
    int8.run(work, Int8Config())
    assert not block[0].sparse24
    assert not (block[0].dense_weight()[~work.masks["b.0"]] != 0).any()


def test_what_cannot_be_done_says_why():
    block = nn.ModuleDict(
        {
            "conv": nn.Conv1d(4, 4, 1),
            "norm": nn.LayerNorm(4),
            "unseen": nn.Linear(4, 4),
            "zero": nn.Linear(4, 4),
        }
    )
    work = _work(block, [f"b.{name}" for name in block], [torch.zeros(3, 4)])
    work.run = lambda call: block["zero"](call.args[0])
    done = int8.run(work, Int8Config(activations="static"))
    assert done["b.conv"].why_not == "a convolution has no kernel for int8"
    assert "LayerNorm" in done["b.norm"].why_not
    assert "static scale needs some" in done["b.unseen"].why_not
    assert "all zero" in done["b.zero"].why_not
    assert not any(isinstance(module, Int8Linear) for module in block.values())


def test_a_weight_that_is_not_finite_is_refused_before_anything_changes():
    block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    block[1].weight.data[0, 0] = float("inf")
    with pytest.raises(ConfigError, match=r"b\.1: its weight holds"):
        int8.run(_work(block, ["b.0", "b.1"], []), Int8Config())
    assert isinstance(block[0], nn.Linear)
