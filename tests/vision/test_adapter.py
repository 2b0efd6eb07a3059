import itertools
import math

import numpy as np
import pytest
import torch

from todm.errors import CorpusError
from todm.vision import data

SWIGLU = {"mlp_layer": "swiglu"}


@torch.no_grad()
def _check_folds(adapter):
    """A factor moved into the place before changes no output of a block, in float64."""
    for block in adapter.model.blocks.double():
        x = torch.randn(3, 5, 32, dtype=torch.float64)
        before = block(x)
        for fold in adapter.folds(block):
            if fold.into is None:
                continue
            layers = [block.get_submodule(n) for n in fold.layers]
            into = block.get_submodule(fold.into)
            factor = torch.rand(layers[0].in_features, dtype=torch.float64) + 0.5
            for layer in layers:
                layer.weight.mul_(factor)
            into.weight[-len(factor) :].div_(factor.reshape(-1, *[1] * (into.weight.ndim - 1)))
            into.bias[-len(factor) :].div_(factor)
            torch.testing.assert_close(block(x), before, rtol=1e-10, atol=1e-10)
            assert block.get_submodule(fold.inspect) is not None


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"init_values": 0.5}])
def test_folds_are_exact(make, changes):
    from tests.vision.conftest import ARGUMENTS

    adapter = make(arguments={**ARGUMENTS, **changes})
    folds = adapter.folds(adapter.model.blocks[0])
    assert [(f.layers, f.into) for f in folds] == [
        (("attn.qkv",), "norm1"),
        (("attn.proj",), "attn.qkv"),
        (("mlp.fc1",), "norm2"),
        (("mlp.fc2",), None),
    ]
    _check_folds(adapter)


@pytest.mark.parametrize("kind", ["SwiGLU", "SwiGLUPacked", "GluMlp"])
def test_folds_of_gated_blocks_are_exact(make, kind):
    import timm.layers

    from tests.vision.conftest import ARGUMENTS

    adapter = make(arguments={**ARGUMENTS, "mlp_layer": getattr(timm.layers, kind)})
    into = adapter.folds(adapter.model.blocks[0])[-1].into
    assert into == {"SwiGLU": "mlp.fc1_x", "SwiGLUPacked": "mlp.fc1", "GluMlp": None}[kind]
    _check_folds(adapter)


def test_blocks_that_norm_elsewhere_fold_nothing(make):
    from timm.models.vision_transformer import ResPostBlock

    from tests.vision.conftest import ARGUMENTS

    adapter = make(arguments={**ARGUMENTS, "block_fn": ResPostBlock})
    assert adapter.folds(adapter.model.blocks[0]) == []


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_losses_against_loops(make, task):
    adapter, teacher = make(task), make(task).model
    classes = len(adapter.config.classes)
    height, width = adapter.config.size
    shape = (3,) if task == "classification" else (3, height, width)
    batch = data.Batch(torch.randn(3, 1, height, width), torch.randint(0, classes, shape))
    found = adapter.losses(batch, adapter.model, teacher, temperature=2.5)
    with torch.no_grad():
        ours, theirs = (m(batch.images_BCHW).double() for m in (adapter.model, teacher))
    ours, theirs = (t.movedim(1, -1).reshape(-1, classes).tolist() for t in (ours, theirs))
    labels = batch.labels.reshape(-1).tolist()
    hard = np.mean(
        [math.log(sum(map(math.exp, o))) - o[y] for o, y in zip(ours, labels, strict=True)]
    )
    soft = np.mean([_kl(_softened(t), _softened(o)) for o, t in zip(ours, theirs, strict=True)])
    assert found["hard"].item() == pytest.approx(hard, rel=1e-5)
    assert found["soft"].item() == pytest.approx(2.5**2 * soft, rel=1e-5)
    found["soft"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert set(adapter.losses(batch, adapter.model, None, temperature=1.0)) == {"hard"}


def _softened(logits):
    powers = [math.exp(v / 2.5) for v in logits]
    return [p / sum(powers) for p in powers]


def _kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_batches_are_the_same_for_a_seed(make):
    adapter = make(shift=1)
    one, two, other = (
        torch.cat([b.images_BCHW for b in itertools.islice(adapter.batches(s), 60)])
        for s in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert len(one) > 800  # more than an epoch


def test_calibration(make, tmp_path):
    adapter = make()
    batches = adapter.calibration(21, None)
    assert [len(b.images_BCHW) for b in batches] == [16, 5]
    with pytest.raises(CorpusError, match="digits has 800 images and calibration needs 900"):
        adapter.calibration(900, None)
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8))
    assert adapter.calibration(3, tmp_path / "x.npz")[0].labels is None
    with pytest.raises(CorpusError, match="has 4 images"):
        adapter.calibration(5, tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("task", "metric"), [("classification", "accuracy"), ("segmentation", "miou")]
)
def test_evaluation_and_graph(make, task, metric):
    adapter = make(task)
    found = adapter.evaluate(adapter.model, split="dev", limit=40)
    assert found["images"] == 40
    assert found["error"] == pytest.approx(1 - found[metric])
    (graph,) = adapter.graphs(adapter.model)
    with torch.no_grad():
        again = graph.module(*[p.example for p in graph.inputs])
    assert torch.equal(again, graph.outputs[0].example)


def test_running_leaves_the_mode_of_a_model(make):
    adapter = make(arguments={**_arguments(), "drop_path_rate": 0.9})
    batch = adapter.calibration(4, None)[0]
    adapter.model.train()
    one, two = (adapter.run(adapter.model, batch) for _ in range(2))
    assert torch.equal(one, two)
    assert adapter.model.training


def _arguments():
    from tests.vision.conftest import ARGUMENTS

    return ARGUMENTS
