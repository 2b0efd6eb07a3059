"""Letters: B batch, T frames, U labels, K context, J joiner width."""

import random

import pytest
import torch

from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import Predictor, Rnnt, RnntConfig, extract
from todm.supernet.space import SearchSpace, SpaceConfig

SPACE = SearchSpace(SpaceConfig(depths=(2, 3, 4), widths={"ffn": (16, 32, 64), "pairs": (1, 2, 3)}))
LARGEST = EncoderConfig(d_model=32, state=4, dropout=0.0).narrow(SPACE.largest)
CONFIG = RnntConfig(vocab_size=13, joiner_dim=24, encoder=LARGEST)


def _subnets():
    rng = random.Random(4)
    mixed = SPACE.subnet(3, {"ffn": (16, 64, 32), "pairs": (3, 1, 2)})
    return [SPACE.largest, SPACE.smallest, mixed, SPACE.sample(rng), SPACE.sample(rng)]


@pytest.fixture
def supernet():
    model = Rnnt(CONFIG).eval()
    with torch.no_grad():
        model.encoder.subsampling.mean.uniform_(-8, -4)
        model.encoder.subsampling.scale.uniform_(0.2, 0.5)
    return model


def _batch():
    return torch.randn(3, 150, 80) * 3 - 6, torch.tensor([150, 77, 128])


@pytest.mark.parametrize("chunk", [8, 16, 0])
@pytest.mark.parametrize("subnet", _subnets(), ids=str)
@torch.no_grad()
def test_extraction_equals_the_supernet(supernet, subnet, chunk):
    plain = extract(supernet, subnet)
    features, lens = _batch()
    ours, ours_lens = supernet.encode(features, lens, subnet=subnet, chunk=chunk)
    theirs, theirs_lens = plain.encode(features, lens, chunk=chunk)
    assert torch.equal(ours_lens, theirs_lens)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    logits = [m.joint(m.project_encoder(ours), torch.zeros(24)) for m in (supernet, plain)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_subnets_differ(supernet):
    features, lens = _batch()
    outs = [supernet.encode(features, lens, subnet=s)[0] for s in _subnets()]
    assert all((a - outs[0]).abs().max() > 1e-2 for a in outs[1:])
    whole, _ = supernet.encode(features, lens)
    assert torch.equal(whole, outs[0])


@torch.no_grad()
def test_an_extracted_model_stands_alone(supernet):
    plain = extract(supernet, SPACE.smallest)
    assert plain.ctc is None
    assert not any(name.startswith("ctc") for name in plain.state_dict())
    assert not plain.training
    for p in supernet.parameters():
        p.fill_(float("nan"))
    assert all(p.isfinite().all() for p in plain.parameters())


@torch.no_grad()
def test_a_subnet_of_a_subnet_with_its_own_numbering(supernet):
    """An extracted model is a plain `Rnnt`: it can be read back with nothing but its config."""
    plain = extract(supernet, _subnets()[2])
    again = Rnnt(RnntConfig.from_json(plain.config.to_json())).eval()
    again.load_state_dict(plain.state_dict())
    features, lens = _batch()
    assert torch.equal(again.encode(features, lens)[0], plain.encode(features, lens)[0])
    assert plain.config.encoder.ffn == (16, 64, 32)


def test_the_train_only_head_is_not_cut_out(supernet):
    sizes = [
        sum(p.numel() for p in m.parameters()) for m in (supernet, extract(supernet, SPACE.largest))
    ]
    assert sizes[0] - sizes[1] == 32 * 13 + 13


@pytest.mark.parametrize("context_size", [1, 2, 3])
@torch.no_grad()
def test_a_sequence_is_predicted_as_step_by_step(context_size):
    model = Rnnt(CONFIG.replace(context_size=context_size)).eval()
    targets_BU = torch.randint(3, 13, (2, 6))
    want = model.predict_sequence(targets_BU)
    assert want.shape == (2, 7, 24)
    context = torch.full((2, context_size), -1)
    context[:, -1] = 0
    for u in range(7):
        torch.testing.assert_close(model.predict(context), want[:, u])
        if u < 6:
            context = torch.cat([context[:, 1:], targets_BU[:, u : u + 1]], 1)


def test_an_empty_sequence_has_the_start():
    model = Rnnt(CONFIG).eval()
    out = model.predict_sequence(torch.zeros(2, 0, dtype=torch.int64))
    torch.testing.assert_close(out[:, 0], model.predict(torch.tensor([[-1, 0]] * 2)))


def test_nothing_in_the_context_adds_nothing():
    predictor = Predictor(CONFIG)
    with torch.no_grad():
        predictor.embedding.weight.normal_()
    out = predictor(torch.tensor([[-1, 5]]))
    known = predictor.embedding.weight[5] * predictor.taps[1]
    want = predictor.project(torch.relu(known))
    torch.testing.assert_close(out[0], want)
    out.sum().backward()
    grad = predictor.embedding.weight.grad.abs().sum(1)
    assert (grad > 0).tolist() == [i == 5 for i in range(13)]


def test_blank_in_the_context_is_an_embedding_of_its_own():
    predictor = Predictor(CONFIG)
    with torch.no_grad():
        predictor.taps.fill_(1)
    assert not torch.allclose(predictor(torch.tensor([-1, 0])), predictor(torch.tensor([-1, -1])))


def _context(labels, node, size, resets):
    """The context of a node as the device has it: a queue that starts again at every reset."""
    start = [-1] * (size - 1) + [0]
    queue = list(start)
    for u in range(node + 1):
        if resets[u]:
            queue = list(start)
        if u < node:
            queue = [*queue[1:], labels[u]]
    return queue


@pytest.mark.parametrize("context_size", [1, 2, 3])
@torch.no_grad()
def test_a_context_starts_again_where_it_is_told(context_size):
    model = Rnnt(CONFIG.replace(context_size=context_size)).eval()
    targets_BU = torch.randint(3, 13, (40, 7))
    reset_BU = torch.rand(40, 8) < torch.linspace(0, 1, 40)[:, None]
    got = model.predict_sequence(targets_BU, reset_BU)
    rows = zip(targets_BU.tolist(), reset_BU.tolist(), strict=True)
    contexts = [[_context(t, u, context_size, r) for u in range(8)] for t, r in rows]
    assert torch.equal(got, model.predict(torch.tensor(contexts)))
    plain = model.predict_sequence(targets_BU)
    assert torch.equal(got[0], plain[0])
    assert not torch.equal(got[-1], plain[-1])


@pytest.mark.parametrize("context_size", [1, 2, 3])
@pytest.mark.parametrize("num_labels", [0, 1, 5])
def test_no_reset_is_as_none_given(context_size, num_labels):
    model = Rnnt(CONFIG.replace(context_size=context_size)).eval()
    targets_BU = torch.randint(3, 13, (3, num_labels))
    nowhere = torch.zeros(3, num_labels + 1, dtype=torch.bool)
    want = model.predict_sequence(targets_BU)
    assert torch.equal(model.predict_sequence(targets_BU, nowhere), want)
    nowhere[:, 0] = True  # where it starts anyway
    assert torch.equal(model.predict_sequence(targets_BU, nowhere), want)


def test_only_what_is_seen_has_a_gradient():
    """The label before a reset does not reach the nodes after it."""
    model = Rnnt(CONFIG)
    out = model.predict_sequence(
        torch.tensor([[5, 6, 7]]), torch.tensor([[False, False, True, False]])
    )
    out[0, 2:].sum().backward()
    seen = model.predictor.embedding.weight.grad.abs().sum(1) > 0
    assert torch.nonzero(seen).flatten().tolist() == [0, 7]
