import random

import pytest
import torch
from torch import nn

from todm.search.cost import StackCosts, costs


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


@pytest.mark.parametrize("compression", ["none", "int8"])
def test_costs_by_addition_are_exact(make_backend, compression):
    backend, rng = make_backend(), random.Random(1)
    by_addition = StackCosts(backend.build, compression)
    for subnet in [backend.space.smallest, *(backend.space.sample(rng) for _ in range(5))]:
        assert by_addition(subnet) == costs(lambda: backend.build(subnet), compression)  # noqa: B023
