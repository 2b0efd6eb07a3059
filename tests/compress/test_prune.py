"""The pass prune on blocks of linear layers and convolutions, against loops and closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from todm.compress import prune
from todm.compress.calibrate import Block, Call
from todm.compress.config import PruneConfig
from todm.compress.masks import is_nm, nm_mask
from todm.errors import ConfigError, CorpusError
from todm.supernet.elastic import ElasticLinear

METHODS = ("magnitude", "wanda", "sparsegpt")


class _Mixed(nn.Module):
    """Layers of every kind, on inputs [B, 10, T]; one that never runs, one that no pass knows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(10, 12, 3, padding=1)
        self.grouped = nn.Conv1d(12, 12, 3, groups=2)
        self.depthwise = nn.Conv1d(12, 12, 3, groups=12)
        self.fc = ElasticLinear(12, 9)
        self.unused = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(9)

    def forward(self, x):
        x = self.depthwise(self.grouped(self.conv(x).relu()))
        return self.norm(self.fc(x.transpose(1, 2)))


LAYERS = ("conv", "grouped", "depthwise", "fc", "unused", "norm")


def _work(module, layers, inputs, name="blocks.0"):
    full = [f"{name}.{layer}" for layer in layers]
    calls = [Call((x,), {}) for x in inputs]
    return Block(name, module.eval(), layers=full, calls=calls, masks={})


def _linear(rows=600, inputs=60, outputs=16):
    """A linear layer as a block, and correlated rows of very different sizes."""
    common = torch.randn(rows, 9) @ torch.randn(9, inputs) + 0.2 * torch.randn(rows, inputs)
    x = common * torch.logspace(-1, 1, inputs)[torch.randperm(inputs)]
    return nn.Sequential(nn.Linear(inputs, outputs)), x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8)])
def test_every_layer_is_pruned_or_says_why_not(method, n, m):
    work = _work(_Mixed(), LAYERS, torch.randn(5, 2, 10, 20))
    done = prune.run(work, PruneConfig(n=n, m=m, method=method))
    assert set(done) == set(work.layers)
    for layer in ("conv", "grouped", "fc"):
        name = f"blocks.0.{layer}"
        weight, mask = work.get(name).weight, work.masks[name]
        assert done[name].what.startswith(f"{n}:{m} {method}")
        assert mask.shape == weight.shape
        assert torch.equal(weight != 0, mask)
        assert is_nm(weight, n, m), name
    assert "reads 1 inputs" in done["blocks.0.depthwise"].why_not
    assert "LayerNorm is neither a linear layer" in done["blocks.0.norm"].why_not
    if method == "magnitude":
        assert done["blocks.0.unused"].what
    else:
        assert "no input" in done["blocks.0.unused"].why_not
    assert set(work.masks) == {name for name in done if done[name].what}


def test_magnitude_keeps_the_largest_and_leaves_them_as_they_are():
    module = _Mixed()
    before = module.conv.weight.detach().clone()
    work = _work(module, LAYERS, [])
    prune.run(work, PruneConfig(method="magnitude"))
    mask = nm_mask(before.abs(), 2, 4)
    assert torch.equal(module.conv.weight, before * mask)


def test_wanda_is_its_formula():
    block, x = _linear()
    weight = block[0].weight.detach().clone()
    work = _work(block, ["0"], x.split(150))
    prune.run(work, PruneConfig(method="wanda"))
    norm = np.sqrt((x.double().numpy() ** 2).mean(0))
    mask = work.masks["blocks.0.0"]
    for n in range(weight.shape[0]):
        for start in range(0, 60, 4):
            scores = [abs(float(weight[n, k])) * norm[k] for k in range(start, start + 4)]
            best = np.argsort(scores)[2:]
            assert mask[n, start : start + 4].nonzero().flatten().tolist() == sorted(best)
    assert torch.equal(block[0].weight, weight * mask)


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_of_a_convolution_is_its_formula(groups):
    conv = nn.Conv1d(12, 6, 3, padding=1, groups=groups)
    x = torch.randn(4, 12, 15) * torch.logspace(-1, 1, 12)[:, None]
    weight = conv.weight.detach().clone()
    work = _work(nn.Sequential(conv), ["0"], x.split(2))
    prune.run(work, PruneConfig(method="wanda"))
    padded = nn.functional.pad(x, (1, 1)).double()
    outputs, channels = 6 // groups, 12 // groups
    scores = torch.zeros_like(weight, dtype=torch.float64)
    for o in range(6):
        for c in range(channels):
            for p in range(3):
                row = padded[:, (o // outputs) * channels + c, p : p + 15]
                scores[o, c, p] = weight[o, c, p].abs() * row.square().mean().sqrt()
    assert torch.equal(work.masks["blocks.0.0"], nm_mask(scores, 2, 4))
    assert torch.equal(conv.weight, weight * work.masks["blocks.0.0"])


def _error(layer, before, x):
    with torch.no_grad():
        return float((layer(x) - before(x)).square().sum())


def test_each_method_is_better_than_the_simpler_one():
    errors = {}
    block, x = _linear()
    dense = nn.Linear(60, 16)
    dense.load_state_dict(block[0].state_dict())
    for method in METHODS:
        block[0].load_state_dict(dense.state_dict())
        prune.run(_work(block, ["0"], x.split(100)), PruneConfig(method=method))
        errors[method] = _error(block[0], dense, x)
    assert errors["wanda"] < 0.8 * errors["magnitude"]
    assert errors["sparsegpt"] < 0.5 * errors["wanda"]


@pytest.mark.parametrize(
    ("size", "options"),
    [(3, {"padding": 1}), ((3, 2), {"groups": 2, "stride": 2})],
    ids=["plain", "grouped"],
)
def test_sparsegpt_of_a_convolution_is_better_than_magnitude(size, options):
    conv = nn.Conv2d(10, 8, size, **options)  # made here, so that its weights are the test's seed
    mix = torch.randn(10, 4)
    x = torch.einsum("ck,bkhw->bchw", mix, torch.randn(6, 4, 12, 11))
    x = x + 0.2 * torch.randn_like(x)
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    with torch.no_grad():
        wanted = conv(x)
    errors = {}
    for method in ("magnitude", "sparsegpt"):
        conv.load_state_dict(state)
        prune.run(_work(nn.Sequential(conv), ["0"], x.split(2)), PruneConfig(method=method))
        with torch.no_grad():
            errors[method] = float((conv(x) - wanted).square().sum())
        assert is_nm(conv.weight, 2, 4)
    assert errors["sparsegpt"] < 0.8 * errors["magnitude"]


def test_pairs():
    block, x = _linear()
    work = _work(block, ["0"], [x])
    done = prune.run(work, PruneConfig(n=4, m=8, pairs=True))
    mask = work.masks["blocks.0.0"].view(16, -1, 2)
    assert torch.equal(mask[..., 0], mask[..., 1])
    assert done["blocks.0.0"].what == "4:8 in pairs sparsegpt"
    with pytest.raises(ConfigError, match="must be even"):
        PruneConfig(n=1, m=4, pairs=True)
    with pytest.raises(ConfigError, match="have no pairs"):
        PruneConfig(n=4, m=8, pairs=True, method="sr_ste")


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_bfloat16_keeps_its_dtype(method):
    block, x = _linear()
    block[0].to(torch.bfloat16)
    work = _work(block, ["0"], [x.bfloat16()])
    prune.run(work, PruneConfig(method=method))
    assert block[0].weight.dtype == torch.bfloat16
    assert is_nm(block[0].weight, 2, 4)


def test_few_rows_are_said():
    block, x = _linear()
    done = prune.run(_work(block, ["0"], [x[:7]]), PruneConfig(method="sparsegpt"))
    assert done["blocks.0.0"].what == "2:4 sparsegpt, few rows: 7 for 60 inputs"
    assert done["blocks.0.0"].figures["rows"] == 7


def test_numbers_that_are_not_finite_are_refused_before_anything_changes():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module[1].weight.data[3, 2] = float("nan")
    before = module[0].weight.detach().clone()
    with pytest.raises(ConfigError, match=r"blocks\.0\.1: its weight holds NaN"):
        prune.run(_work(module, ["0", "1"], []), PruneConfig(method="magnitude"))
    assert torch.equal(module[0].weight, before)
    block, x = _linear()
    x[3] = float("inf")
    with pytest.raises(CorpusError, match=r"blocks\.0\.0: calibration batch 1"):
        prune.run(_work(block, ["0"], [x]), PruneConfig())
