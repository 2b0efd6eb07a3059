"""A backend whose models are real and whose errors are made up."""

import pytest
import torch

from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import Rnnt, RnntConfig, extract
from todm.search.budget import parse
from todm.search.choice import Choice
from todm.search.cost import Prices, StackCosts, sizes
from todm.search.problem import Problem
from todm.supernet.space import SearchSpace, SpaceConfig

SPACE = SearchSpace(
    SpaceConfig(depths=(2, 3, 4), widths={"ffn": (16, 32, 48, 64), "pairs": (1, 2, 3)})
)
SUPERNET = RnntConfig(
    vocab_size=20,
    joiner_dim=32,
    encoder=EncoderConfig(d_model=32, state=4, dropout=0.0).narrow(SPACE.largest),
)


class FakeBackend:
    """`error(subnet)` stands for an evaluation; a plain model's error is 0.25."""

    space = SPACE

    def __init__(self, error):
        self.error, self.evaluated = error, []

    def build(self, subnet):
        if subnet is None:
            return Rnnt(SUPERNET)
        return Rnnt(SUPERNET.replace(encoder=SUPERNET.encoder.narrow(subnet), ctc=False))

    def deployed(self, subnet):
        return self.build(subnet)

    def extract(self, model, subnet):
        return extract(model, subnet)

    def evaluate(self, model, *, subnet, split, limit):
        self.evaluated.append((subnet, split, limit))
        return {"error": 0.25 if subnet is None else self.error(subnet)}

    def write_assets(self, directory):
        (directory / "tokens.txt").write_text("<blk> 0\n")


@pytest.fixture
def make_backend():
    """Makes a backend, by default with an error that falls with the number of kept blocks."""
    return lambda error=lambda subnet: 1 / subnet.depth: FakeBackend(error)


@pytest.fixture
def num_params():
    """Parameters of the plain model of a subnet, counted on the model itself."""

    def count(subnet):
        torch.manual_seed(0)
        return sum(p.numel() for p in extract(Rnnt(SUPERNET), subnet).parameters())

    return count


@pytest.fixture
def space():
    """The space of the fake backend."""
    return SPACE


@pytest.fixture
def price(make_backend):
    """Own figures of a subnet; work and state are made up, and add up over blocks."""
    backend = make_backend()

    def count(subnet):
        work = sum(f * 1e3 for f in dict(subnet.widths)["ffn"]) + 1e4
        state = 8.0 + sum(100 * p for p in dict(subnet.widths)["pairs"])
        return {**sizes(lambda: backend.build(subnet)), "macs": work, "state": state}

    return count


@pytest.fixture
def problem(space, price):
    """Makes a problem of a budget; prices are kept."""
    prices = Prices(StackCosts(price), {})

    def make(text, compressions=("none", "int8")):
        return Problem(space, parse(text), compressions, prices)

    return make


@pytest.fixture
def figures():
    """Made-up figures of a choice: wide ffn early and many pairs late are good, int8 is a bit worse."""

    def score(choice: Choice):
        subnet = choice.subnet
        good = sum(
            subnet.width("ffn", i) / 64 * (4 - block) + subnet.width("pairs", i) / 3 * block
            for i, block in enumerate(subnet.blocks)
        )
        value = 2.0 ** (-good / 4) * (1.1 if choice.compression == "int8" else 1.0)
        parts = [value * level for level in (0.5, 1.0, 2.0)]
        return {
            "score": value,
            "parts": parts,
            "error": value / 2,
            "low": value / 3,
            "high": value,
        }

    return score
