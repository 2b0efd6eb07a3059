import math

import pytest
import torch

from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.supernet.space import SpaceConfig

CONFIG = AsrConfig(
    loader=LoaderConfig(batch_size=4, num_buckets=3, speeds=(1.0,)),
    model=RnntConfig(joiner_dim=16, encoder=EncoderConfig(d_model=32, state=4)),
    space=SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}),
    chunks=(8,),
    chunk=8,
    endpoint_seconds=0.2,
)


@pytest.fixture(scope="module")
def backend(tiny_corpus):
    backend = AsrBackend(CONFIG, tiny_corpus, corpus=tiny_corpus)
    backend.prepare()
    return backend


@pytest.fixture(scope="module")
def supernet(backend):
    torch.manual_seed(4)
    return backend.build(None).eval()


def test_the_error_is_that_of_an_evaluation(backend, supernet):
    scorer = backend.scorer(supernet)
    for subnet in (backend.space.smallest, backend.space.largest):
        found = scorer(subnet)
        known = backend.evaluate(supernet, subnet=subnet, split="dev", limit=0)
        assert {name: found[name] for name in known} == known
        rate = (known["error"] * known["words"] + 0.5) / known["words"]
        assert found["score"] == pytest.approx(math.sqrt(rate * found["loss"]))


def test_the_loss_is_that_of_the_extracted_subnet(backend, supernet):
    subnet = backend.space.smallest
    inside = backend.scorer(supernet)(subnet)
    plain = backend.extract(supernet, subnet)
    assert backend.scorer(plain)(None)["loss"] == pytest.approx(inside["loss"], rel=1e-5)


def test_a_better_net_has_a_lower_loss(backend, supernet):
    """Most frames are blank: a net that never says so loses."""
    before = backend.scorer(supernet)(backend.space.largest)["loss"]
    bias = supernet.output.bias.detach().clone()
    with torch.no_grad():
        supernet.output.bias[0] -= 20
        worse = backend.scorer(supernet)(backend.space.largest)["loss"]
        supernet.output.bias.copy_(bias)
    assert worse > before + 5


def test_the_number_of_utterances_is_limited(backend, supernet):
    assert backend.scorer(supernet, limit=2)(backend.space.smallest)["utterances"] == 2
