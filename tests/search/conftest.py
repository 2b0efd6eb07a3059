"""A backend whose models are real and whose errors are made up."""

import pytest
import torch

from todm.asr.encoder import EncoderConfig
from todm.asr.model import Rnnt, RnntConfig, extract
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
