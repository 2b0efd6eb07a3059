import pytest
import torch

from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.search.cost import StackCosts
from todm.supernet.space import SpaceConfig

CONFIG = AsrConfig(
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=48, state=4)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (32, 96), "pairs": (1, 3)}),
    chunks=(8,),
    chunk=8,
)


@pytest.fixture(scope="module")
def backend(tiny_corpus):
    return AsrBackend(CONFIG, tiny_corpus)


def test_work_and_state_are_those_of_the_layers(backend):
    """The linear layers counted by hand, and the state by its shape; the rest is the recurrence."""
    subnet = backend.space.subnet(2, {"ffn": (32, 96), "pairs": (1, 3)})
    found = backend.work_and_state(subnet)
    plain = backend.deployed(subnet)
    linears = [m for m in plain.model.encoder.modules() if isinstance(m, torch.nn.Linear)]
    config = plain.model.config
    per_frame = sum(m.weight.numel() for m in [*linears, plain.model.project, plain.model.output])
    per_frame += config.joiner_dim**2
    frames_per_second = 25
    heads = 2 * (1 + 3)
    assert found["state"] == 4 * (heads * 2 * 2 * 4 * 16 + 4 * 80)
    assert found["macs"] > per_frame * frames_per_second
    recurrent = found["macs"] / frames_per_second - per_frame
    channels, size = heads * 16, 8 + 2 * 4  # a product of [h; state] gives [y; state; y back]
    most = 2 * channels * ((size + 8) * size / 8 + 2 * 16)
    assert 0.3 * most < recurrent <= most


def test_they_add_up_over_blocks(backend):
    stack = StackCosts(backend.work_and_state)
    subnet = backend.space.subnet(3, {"ffn": (96, 32, 96), "pairs": (3, 1, 1)})
    assert stack(subnet) == pytest.approx(backend.work_and_state(subnet), rel=1e-12)
