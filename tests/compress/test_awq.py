"""AWQ against loops in float64 that follow the paper, and folds against the outputs they must keep."""

import copy
import math

import pytest
import torch
from torch import nn

from todm.compress import awq, folds
from todm.compress.adapter import Fold
from todm.compress.calibrate import Block, Call
from todm.compress.config import AwqConfig, CompressConfig
from todm.compress.driver import compress
from todm.compress.masks import nm_mask
from todm.compress.packed import W4Linear
from todm.errors import ConfigError, CorpusError

K, INNER = 80, 72  # 80 inputs in groups of 32: the last group is short


class Plus1Norm(nn.Module):
    """Gemma's: the stored weight lacks 1."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(width))

    def forward(self, x):
        return x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + self.weight)


class Gated(nn.Module):
    """Norm, a gated unit (up is linear, gate is not), a layer back."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.gate, self.up = nn.Linear(K, INNER), nn.Linear(K, INNER + 8)
        self.down = nn.Linear(INNER, K)

    def forward(self, x, shift=0.0):
        h = self.norm(x)
        gated = nn.functional.silu(self.gate(h)) * self.up(h)[..., -INNER:]
        return x + shift + self.down(gated)


FOLDS = (
    Fold(layers=("gate", "up"), inspect="", into="norm"),
    Fold(layers=("down",), inspect="down", into="up"),
)


def _work(norm=None, *, layers=("b.gate", "b.up", "b.down"), fold=FOLDS, num=3):
    torch.manual_seed(0)
    norm = norm or nn.LayerNorm(K)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(0.2 * torch.randn_like(p))
    module = Gated(norm).eval()
    # A few channels are much larger than others, which is what AWQ is for.
    loud = torch.ones(K)
    loud[::17] = 12
    calls = [Call((torch.randn(2, 7, K) * loud,), {"shift": 0.5}) for _ in range(num)]
    return Block("b", module, layers=layers, calls=calls, masks={}, folds=fold)


def _round64(weight_NK, bits, group, *, symmetric=False):
    """Round to nearest, one weight after another, in float64; scales are float16 as stored."""
    found = torch.empty_like(weight_NK, dtype=torch.float64)
    top = 2**bits - 1
    for n in range(weight_NK.shape[0]):
        for start in range(0, weight_NK.shape[1], group):
            w = weight_NK[n, start : start + group].double()
            low, high = min(float(w.min()), 0.0), max(float(w.max()), 0.0)
            if symmetric:
                scale, zero = float(w.abs().max()) / (2 ** (bits - 1) - 1), 2 ** (bits - 1)
            else:
                scale, zero = (high - low) / top, None
            scale = float(torch.tensor(scale, dtype=torch.float16))
            zero = round(-low / scale) if zero is None else zero
            codes = ((w / scale).round() + zero).clamp(0, top)
            found[n, start : start + group] = (codes - zero) * scale
    return found


def _output64(block, x, weights):
    """`Block` without its residual, in float64."""
    module = copy.deepcopy(block.module).double()
    with torch.no_grad():
        for name, weight in weights.items():
            getattr(module, name).weight.copy_(weight)
        return module(x.double())


@pytest.mark.parametrize("bits", [3, 4])
def test_the_search_finds_what_a_loop_finds(bits):
    block = _work()
    config = AwqConfig(bits=bits, group=32, grid=6)
    found = awq.search(block, FOLDS[0], ["b.gate", "b.up"], config)
    with torch.no_grad():
        x = torch.cat([c.args[0] for c in block.calls]).double()
        h = copy.deepcopy(block.module.norm).double()(x).flatten(0, 1)
    s_x = [float(h[:, k].abs().mean()) for k in range(K)]
    weights = {n: getattr(block.module, n).weight.detach() for n in ("gate", "up")}
    both = torch.cat([*weights.values()]).double().abs()
    w_mean = []
    for k in range(K):
        start = 32 * (k // 32)
        w_mean.append(float((both[:, k] / both[:, start : start + 32].amax(1)).mean()))
    shift = 0.5
    wanted = _output64(block, x, {}) + shift
    tried = {}
    for duo in (False, True):
        for i in range(3):
            r = i / 3
            s = [
                a**r / ((w ** (1 - r) + 1e-4) if duo else 1)
                for a, w in zip(s_x, w_mean, strict=True)
            ]
            level = math.sqrt(max(s) * min(s))
            s_K = torch.tensor([v / level for v in s], dtype=torch.float64)
            trial = {n: _round64((w * s_K).float(), bits, 32) / s_K for n, w in weights.items()}
            error = float((_output64(block, x, trial) + shift - wanted).square().sum())
            tried[duo, r] = (error / float(wanted.square().sum()), s_K)
    (duo, ratio), (error, s_K) = min(tried.items(), key=lambda item: item[1][0])
    assert (found.duo, found.ratio) == (duo, pytest.approx(ratio))
    assert found.error == pytest.approx(error, rel=1e-2)
    assert found.plain == pytest.approx(tried[False, 0.0][0], rel=1e-2)
    torch.testing.assert_close(found.s_K.double(), s_K, rtol=1e-4, atol=1e-6)
    assert found.error < 0.8 * found.plain


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rows", [7, 600])
def test_clipping_finds_what_a_loop_finds(symmetric, rows):
    torch.manual_seed(1)
    weight_NK = torch.randn(5, K) ** 3
    x_SK = torch.randn(rows, K) * torch.linspace(0.1, 3, K)
    config = AwqConfig(bits=3, group=32, symmetric=symmetric)
    found_NK, share = awq.clip(weight_NK, x_SK, config)
    clipped = 0
    for n in range(5):
        for start in range(0, K, 32):
            w, x = weight_NK[n, start : start + 32], x_SK[:, start : start + 32].double()
            best, least = None, float("inf")
            for i in range(10):
                limit = float(w.abs().max()) * (1 - i / 20)
                trial = _round64(w.clamp(-limit, limit)[None], 3, 32, symmetric=symmetric)[0]
                error = sum(float((row * (trial - w.double())).sum()) ** 2 for row in x) / rows
                if error < least:
                    best, least = limit, error
            torch.testing.assert_close(found_NK[n, start : start + 32], w.clamp(-best, best))
            clipped += best < float(w.abs().max())
    assert share == pytest.approx(clipped / 15)
    assert share > 0


@pytest.mark.parametrize("norm", [nn.LayerNorm(K), Plus1Norm(K)], ids=["layer", "gemma"])
def test_a_fold_keeps_the_output(norm):
    block = _work(norm)
    before = block.call(block.calls[1])
    offset = float(isinstance(norm, Plus1Norm))
    s_K, s_H = (torch.rand(n) * 5 + 0.2 for n in (K, INNER))
    first = Fold(layers=("gate", "up"), inspect="gate", into="norm", offset=offset)
    assert folds.fold(block, first, s_K) == (True, None)
    done, factor_N = folds.fold(block, FOLDS[1], s_H)
    assert done
    assert torch.equal(factor_N[:8], torch.ones(8))
    torch.testing.assert_close(factor_N[8:], 1 / s_H)
    torch.testing.assert_close(block.call(block.calls[1]), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        Fold(layers=("down",), inspect="down", into="gate"),  # a SiLU lies between
        Fold(layers=("up",), inspect="up", into="norm"),  # gate reads the norm as well
        Fold(layers=("gate", "up"), inspect="up", into="down"),
        Fold(layers=("gate", "up"), inspect="up"),
    ],
)
def test_a_fold_that_would_change_the_output_is_taken_back(wrong):
    block = _work()
    before = copy.deepcopy(block.module.state_dict())
    num = INNER if wrong.layers == ("down",) else K
    assert folds.fold(block, wrong, torch.rand(num) + 0.5) == (False, None)
    for name, tensor in block.module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_scales_are_folded_and_layers_are_packed():
    block = _work()
    before = block.call(block.calls[0])
    done = awq.run(block, AwqConfig(group=32))
    assert [done[n].what for n in block.layers] == [
        "int4 awq g32, scales in norm, clipped",
        "int4 awq g32, scales in norm, clipped",
        "int4 awq g32, scales in up, clipped",
    ]
    for name in block.layers:
        module = block.get(name)
        assert isinstance(module, W4Linear)
        assert module.pre_quant_scale_K is None
        assert done[name].figures["error"] <= done[name].figures["error of rounding"]
    after = block.call(block.calls[0])
    assert float((after - before).square().mean() / before.square().mean()) < 2e-3
    assert done["b.up"].output_factor_N is not None
    assert done["b.gate"].output_factor_N is None


@pytest.mark.parametrize(("fold", "config"), [((), {}), (FOLDS, {"fold": False})])
def test_where_nothing_folds_the_layer_keeps_inv_s(fold, config):
    block = _work(fold=fold)
    dense = {n: block.get(n).weight.detach().clone() for n in block.layers}
    norm = block.module.norm.weight.detach().clone()
    done = awq.run(block, AwqConfig(group=32, **config))
    assert torch.equal(block.module.norm.weight, norm)
    for name in block.layers:
        module = block.get(name)
        assert ", pre_quant_scale" in done[name].what
        assert done[name].input_factor_K is None
        assert module.pre_quant_scale_K.shape == (dense[name].shape[1],)
        error = (module.dense_weight() - dense[name]).square().mean() / dense[name].square().mean()
        assert float(error) < 0.05


def test_awq_is_better_than_rounding_on_loud_channels():
    """Each of scale and clip lowers the error of what the block puts out."""
    errors = []
    for settings in ({"scale": False, "clip": False}, {"clip": False}, {}):
        block = _work(num=6)
        before = [block.call(c) for c in block.calls]
        awq.run(block, AwqConfig(bits=3, group=32, **settings))
        after = [block.call(c) for c in block.calls]
        errors.append(
            sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
        )
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < errors[1]


@pytest.mark.parametrize("fold", [True, False])
def test_masks_are_kept(fold):
    block = _work()
    for name in block.layers:
        layer = block.get(name)
        block.masks[name] = nm_mask(layer.weight.detach().abs(), 2, 4)
        layer.weight.data *= block.masks[name]
    done = awq.run(block, AwqConfig(group=32, fold=fold))
    for name in block.layers:
        module = block.get(name)
        assert module.sparse24
        assert done[name].what.endswith(" 2:4")
        assert bool((module.dense_weight()[~block.masks[name]] == 0).all())
        assert float((module.dense_weight() != 0).float().mean()) > 0.3


def test_queries_and_keys_are_not_clipped():
    for name in ("q_proj", "k_proj", "query", "key", "Wqkv", "qkv"):
        assert awq._NOT_CLIPPED.fullmatch(name)
    for name in ("v_proj", "o_proj", "link_proj", "up", "down", "w_in"):
        assert not awq._NOT_CLIPPED.fullmatch(name)


def test_a_layer_that_is_not_chosen_takes_its_share():
    block = _work(layers=("b.gate", "b.down"))
    before = block.call(block.calls[0])
    done = awq.run(block, AwqConfig(group=32))
    assert set(done) == {"b.gate", "b.up", "b.down"}
    assert isinstance(block.module.up, nn.Linear)
    assert done["b.up"].what == ""
    assert done["b.up"].input_factor_K is not None
    assert done["b.up"].output_factor_N is not None
    after = block.call(block.calls[0])
    assert float((after - before).square().mean() / before.square().mean()) < 2e-3


def test_a_report_of_a_folded_model_shows_small_errors(toy):
    for block in toy.model.blocks:
        block.norm.weight.data[::7] = 10
    config = CompressConfig(passes=("awq",), num_calibration=32, awq=AwqConfig(group=32))
    rows = {row.name: row for row in compress(toy, config).reports[0].rows}
    for name in ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"):
        assert rows[name].weight_bits == 4
        assert 0 < rows[name].after < 0.02
    assert "scales in norm" in rows["blocks.0.up"].done


def test_an_excluded_layer_is_reported_unchanged_in_function(toy):
    config = CompressConfig(
        passes=("awq",), num_calibration=32, exclude=("blocks.0.up",), awq=AwqConfig(group=32)
    )
    rows = {row.name: row for row in compress(toy, config).reports[0].rows}
    assert rows["blocks.0.up"].done == ""
    assert rows["blocks.0.up"].after < 1e-8


def test_silent_channels_do_no_harm():
    block = _work(fold=(Fold(layers=("down",), inspect="down", into="up"),), layers=("b.down",))
    with torch.no_grad():
        block.module.up.weight[20:30], block.module.up.bias[20:30] = 0, 0
    before = block.call(block.calls[0])
    awq.run(block, AwqConfig(group=32))
    after = block.call(block.calls[0])
    assert bool(after.isfinite().all())
    assert float((after - before).square().mean() / before.square().mean()) < 2e-3


def test_inputs_that_are_not_finite_are_refused_before_a_layer_is_touched():
    block = _work()
    block.calls[2].args[0][0, 0, 0] = float("nan")
    with pytest.raises(CorpusError, match=r"calibration batch 3 brings NaN"):
        awq.run(block, AwqConfig(group=32))
    assert all(isinstance(block.get(n), nn.Linear) for n in block.layers)


def test_a_weight_that_is_not_finite_is_refused():
    block = _work()
    block.module.down.weight.data[0, 0] = float("inf")
    with pytest.raises(ConfigError, match=r"b\.down: its weight holds NaN or infinity"):
        awq.run(block, AwqConfig(group=32))


def test_a_layer_that_nothing_reaches_is_left():
    block = _work(layers=("b.gate", "b.spare"))
    block.module.spare = nn.Linear(4, 4)
    done = awq.run(block, AwqConfig(group=32))
    assert done["b.spare"].why_not == "no input of the calibration data reached it"
    assert done["b.gate"].what
