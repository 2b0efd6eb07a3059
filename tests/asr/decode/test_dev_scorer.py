import pytest
import torch

from todm.asr.backend import AsrBackend
from todm.asr.config import AsrConfig
from todm.asr.data.batch import LoaderConfig, eval_batches
from todm.asr.decode.dev_scorer import ALTERED_SPEEDS, NUM_PARTS
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.kernels.rnnt_loss import rnnt_loss
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


def test_the_loss_is_that_of_the_extracted_subnet(backend, supernet):
    subnet = backend.space.smallest
    inside = backend.scorer(supernet)(subnet)
    plain = backend.extract(supernet, subnet)
    assert backend.scorer(plain)(None)["score"] == pytest.approx(inside["score"], rel=1e-5)


def test_a_better_net_has_a_lower_loss(backend, supernet):
    """Most frames are blank: a net that never says so loses."""
    before = backend.scorer(supernet)(backend.space.largest)["score"]
    bias = supernet.output.bias.detach().clone()
    with torch.no_grad():
        supernet.output.bias[0] -= 20
        worse = backend.scorer(supernet)(backend.space.largest)["score"]
        supernet.output.bias.copy_(bias)
    assert worse > before + 5


def test_the_number_of_utterances_is_limited(backend, supernet):
    assert backend.scorer(supernet, limit=2)(backend.space.smallest)["utterances"] == 2


@torch.no_grad()
def test_the_score_is_the_loss_at_three_speeds(backend, supernet):
    """Each speed alone, with the loss of its batches, gives the mean over all labels."""
    subnet, nats, labels = backend.space.largest, 0.0, 0
    objective = backend.config.objective
    for speed in (1.0, *ALTERED_SPEEDS):
        store = backend.store("dev", speed)
        assert {u.speed for u in store.utterances} == {speed}
        for batch in eval_batches(store, backend._encode, tail_seconds=0.8):
            enc, lens = supernet.encode(
                batch.features_BTF, batch.feature_lens_B, subnet=subnet, chunk=8
            )
            joiner = supernet.joiner_inputs(enc, supernet.predict_sequence(batch.targets_BU))
            targets = batch.targets_BU, lens, batch.target_lens_B
            nats += float(rnnt_loss(*joiner, *targets, topology=objective.topology).loss_B.sum())
            labels += int(batch.target_lens_B.sum())
    found = backend.scorer(supernet)(subnet)
    assert found["score"] == pytest.approx(nats / labels, rel=1e-5)


def test_parts_are_of_all_utterances_and_each_at_all_speeds(backend, supernet):
    """The parts, weighted by their labels, are the whole: of 3 utterances 3 parts, each with 3 speeds."""
    found = backend.scorer(supernet, limit=3)(backend.space.smallest)
    assert len(found["parts"]) == 3
    assert min(found["parts"]) <= found["score"] <= max(found["parts"])
    assert len(backend.scorer(supernet)(backend.space.smallest)["parts"]) == min(
        NUM_PARTS, len(backend.store("dev"))
    )
