import random

import pytest
import torch
from torch import nn

from todm.search.choice import Choice
from todm.search.cost import Prices, StackCosts, costs
from todm.search.latency import LatencyModel


@pytest.mark.parametrize("seed", range(3))
def test_parameters_are_those_of_the_extracted_model(make_backend, num_params, seed):
    backend = make_backend()
    subnet = backend.space.sample(random.Random(seed))
    found = costs(lambda: backend.build(subnet))
    buffers = 2 * 80  # mean and scale of the features
    assert found == {"params": num_params(subnet), "size": 4 * (num_params(subnet) + buffers)}


def test_int8_is_smaller(make_backend):
    backend = make_backend()
    for subnet in (backend.space.smallest, backend.space.largest):
        plain, int8 = (costs(lambda: backend.build(subnet), how) for how in ("none", "int8"))  # noqa: B023
        assert int8["params"] == plain["params"]
        assert plain["size"] / 4 < int8["size"] < plain["size"]


def test_int8_counts_a_byte_a_weight_and_five_an_output():
    build = lambda: nn.Sequential(nn.Linear(10, 4), nn.LayerNorm(4), nn.Linear(4, 3, bias=False))  # noqa: E731
    weights, others, outputs = 40 + 12, 4 + 8, 4 + 3
    assert costs(build, "int8")["size"] == weights + 4 * others + 5 * outputs


def test_nothing_is_allocated(make_backend):
    devices = []

    def build():
        model = make_backend().build(None)
        devices.extend({p.device.type for p in model.parameters()})
        return model

    costs(build)
    assert devices == ["meta"]
    assert torch.empty(1).device.type == "cpu"


def test_int4_counts_half_a_byte_and_what_groups_of_32_need():
    build = lambda: nn.Sequential(nn.Linear(40, 4), nn.LayerNorm(4))  # noqa: E731
    groups = 4 * 2  # 40 inputs are two groups for each of 4 outputs
    assert costs(build, "int4")["size"] == groups * (16 + 4.5) + 4 * (4 + 8)


def test_costs_by_addition_are_exact(make_backend, price):
    space, rng = make_backend().space, random.Random(1)
    by_addition = StackCosts(price)
    for subnet in [space.smallest, *(space.sample(rng) for _ in range(5))]:
        assert by_addition(subnet) == price(subnet)


class Device(LatencyModel):
    """Latency in proportion to depth, half of it in int8."""

    def __init__(self):
        pass

    def latency(self, choice):
        return choice.subnet.depth * (0.5 if choice.compression == "int8" else 1.0)

    def rtf(self, choice):
        return self.latency(choice) / 10


def test_all_costs_of_a_choice(space, price):
    prices = Prices(price, {"pi5": Device()})
    own, found = price(space.largest), prices(Choice(space.largest, "int8"))
    assert found == {
        "params": own["params"],
        "size": own["size int8"],
        "macs": own["macs"],
        "state": own["state"],
        "memory": 11 * 2**20 + 1.6 * own["size int8"] + 2 * own["state"],
        "latency@pi5": 2.0,
        "rtf@pi5": 0.2,
    }
    assert prices(Choice(space.largest))["size"] == own["size none"] > found["size"]
