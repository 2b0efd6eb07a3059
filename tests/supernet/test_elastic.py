import math

import pytest
import torch
from torch import nn

from todm.supernet.elastic import AdaptiveDropout, ElasticLinear, drop, extract_blocks
from todm.supernet.space import Subnet


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("inputs", [1, 5, 8])
@pytest.mark.parametrize("outputs", [None, 1, 4, 6])
def test_a_prefix_is_the_sliced_dense_layer(inputs, outputs, bias):
    layer, x = ElasticLinear(8, 6, bias=bias), torch.randn(2, 3, inputs)
    dense = nn.Linear(inputs, outputs or 6, bias=bias)
    with torch.no_grad():
        dense.weight.copy_(layer.weight[: outputs or 6, :inputs])
        if bias:
            dense.bias.copy_(layer.bias[: outputs or 6])
    torch.testing.assert_close(layer(x, out_features=outputs), dense(x))


def test_only_the_prefix_gets_gradients():
    layer = ElasticLinear(8, 6)
    layer(torch.randn(4, 5), out_features=3).sum().backward()
    assert (layer.weight.grad[:3, :5] != 0).all()
    assert (layer.weight.grad[3:] == 0).all()
    assert (layer.weight.grad[:, 5:] == 0).all()
    assert (layer.bias.grad[3:] == 0).all()


RULES = ("adaptive", "constant", "off_for_students", "none")


@pytest.mark.parametrize(
    ("rule", "students", "largest"),
    [
        ("adaptive", {0.25: 0.05, 0.5: 0.1, 1.0: 0.2}, 0.2),
        ("constant", {0.25: 0.2, 0.5: 0.2, 1.0: 0.2}, 0.2),
        ("off_for_students", {0.25: 0.0, 0.5: 0.0, 1.0: 0.0}, 0.2),
        ("none", {0.25: 0.0, 0.5: 0.0, 1.0: 0.0}, 0.0),
    ],
    ids=RULES,
)
def test_the_rate_follows_the_width_as_the_rule_says(rule, students, largest):
    """A student has layers of full width too: it may lack blocks, or be narrow elsewhere."""
    dropout = AdaptiveDropout(0.2, rule)
    found = {ratio: dropout.rate(ratio, student=True) for ratio in students}
    assert found == pytest.approx(students)
    assert dropout.rate(1.0, student=False) == largest


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_dropped_in_evaluation(rule):
    x = torch.randn(1000)
    assert AdaptiveDropout(0.5, rule)(x, ratio=1.0, student=False, training=False) is x


def test_a_rate_of_zero_keeps_everything():
    x, call = torch.randn(1000), {"ratio": 0.5, "student": True, "training": True}
    assert AdaptiveDropout(0.5, "off_for_students")(x, **call) is x
    assert (AdaptiveDropout(0.5)(x, **call) == 0).any()


@pytest.mark.parametrize("p", [0.004, 0.05, 0.1, 0.5, 0.9])
def test_dropped_elements_are_as_many_as_they_should_be(p):
    """Within five standard deviations of the binomial, for the rate rounded to 1/256."""
    num, rate = 200_003, max(1, round(256 * p)) / 256  # no multiple of eight
    dropped = int((drop(torch.ones(num), p) == 0).sum())
    assert abs(dropped - num * rate) < 5 * math.sqrt(num * rate * (1 - rate))
    assert abs(rate - p) <= 1 / 512


@pytest.mark.parametrize("p", [0.05, 0.3, 0.75])
def test_the_mean_stays(p):
    num, rate = 200_000, round(256 * p) / 256
    x = drop(torch.ones(num), p)
    assert len(x.unique()) == 2
    deviation = math.sqrt(rate / (1 - rate) / num)
    assert abs(float(x.mean()) - 1) < 5 * deviation


def test_neighbours_are_dropped_independently():
    """Eight elements share a draw of 64 bits; no two of them may share a fate."""
    kept = (drop(torch.ones(80_000), 0.5) != 0).double().reshape(-1, 8)
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(len(kept))


def test_gradients_are_dropped_alike():
    x = torch.randn(4, 50).requires_grad_()
    y = drop(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y / x).detach())


def test_the_seed_decides(seed):
    x = torch.ones(100)
    first = drop(x, 0.5)
    assert not torch.equal(drop(x, 0.5), first)
    torch.manual_seed(seed)
    assert torch.equal(drop(x, 0.5), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 2)], ids=str)
def test_any_shape_and_type(shape, dtype):
    y = drop(torch.ones(shape, dtype=dtype), 0.5)
    assert (tuple(y.shape), y.dtype) == (shape, dtype)


@pytest.mark.parametrize("p", [0.997, 0.9999])
def test_almost_everything_can_be_dropped(p):
    assert torch.isfinite(drop(torch.ones(1000), p)).all()


def test_blocks_are_kept_renumbered_and_cut():
    state = {f"stack.{i}.up": torch.full((6, 2), float(i)) for i in range(4)}
    state |= {f"stack.{i}.norm": torch.full((2,), float(i)) for i in range(4)}
    state["head"] = torch.ones(3)
    subnet = Subnet(blocks=(0, 2), widths=(("w", (1, 3)),))
    found = extract_blocks(state, "stack.", {"up": {0: ("w", 2)}}, subnet)
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {
        "stack.0.up": (2, 2), "stack.1.up": (6, 2), "stack.0.norm": (2,), "stack.1.norm": (2,),
        "head": (3,),
    }  # fmt: skip
    assert found["stack.1.up"][0, 0] == 2
    found["head"][0] = 5
    assert state["head"][0] == 1
