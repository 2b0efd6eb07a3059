"""k2's pruned loss. Where k2 is installed: with every position kept it is the reference."""

import functools
import importlib.util
import sys
from importlib import metadata

import pytest
import torch

from tests.kernels.lattices import TOPOLOGIES, assert_same, draw_inputs, results, spoil_padding
from todm.errors import ConfigError
from todm.kernels.k2_package import MissingK2, load_k2
from todm.kernels.rnnt_loss import Divergence, Teacher, rnnt_loss

K2 = importlib.util.find_spec("k2") and metadata.version("k2")
needs_k2 = pytest.mark.skipif(K2 is None, reason="k2 is not installed (todm/kernels/k2_package.py)")
NO_LABELS = pytest.mark.skipif(
    K2 is not None and K2.startswith("1.23"), reason="before 1.24 k2 needs a label in every batch"
)


def _inputs(lens):
    return spoil_padding(draw_inputs(lens))


def _teacher(inputs, impl, topology):
    tensors = [x + 0.7 * torch.randn_like(x) for x in inputs[:4]]
    out = rnnt_loss(*tensors, *inputs[4:], topology=topology, impl=impl)
    return Teacher(*tensors, out.occupancy)


@needs_k2
@pytest.mark.parametrize("kind", ["alpha", "kl", "collapsed"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "lens", [[(9, 4), (5, 1), (6, 0)], [(1, 1)], pytest.param([(6, 0)], marks=NO_LABELS)], ids=str
)
def test_with_every_position_it_is_the_reference(lens, topology, kind):
    inputs = _inputs(lens)
    teacher = _teacher(inputs, "reference", topology)
    options = {"topology": topology, "teacher": teacher, "divergence": Divergence(kind=kind)}
    options |= {"fastemit": 0.1, "delay_penalty": 0.2}
    ops = (functools.partial(rnnt_loss, impl=impl, **options) for impl in ("k2", "reference"))
    assert_same(*(results(op, inputs) for op in ops), rtol=1e-9)


@needs_k2
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_pruned_loss_is_that_of_fewer_paths(topology):
    inputs = _inputs([(30, 12), (25, 9)])
    pruned, full = (
        rnnt_loss(*inputs, topology=topology, impl=impl) for impl in ("k2", "reference")
    )
    assert bool((pruned.loss_B > full.loss_B).all())
    kept = pruned.occupancy > 0
    assert int(kept.sum(2).max()) <= 5
    visits = torch.tensor([30.0, 25.0]) + (topology == "standard") * torch.tensor([12.0, 9.0])
    torch.testing.assert_close(pruned.occupancy.sum((1, 2)), visits.double())


@needs_k2
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_student_is_compared_on_the_nodes_of_its_teacher(topology):
    """All of the teacher's probability is in its band, so the student's divergence includes it."""
    inputs = _inputs([(30, 12), (25, 9)])
    teacher = _teacher(inputs, "k2", topology)
    got, want = (
        rnnt_loss(*inputs, topology=topology, teacher=teacher, impl=impl)
        for impl in ("k2", "reference")
    )
    torch.testing.assert_close(got.divergence_B, want.divergence_B)
    kept = teacher.occupancy > 1e-12
    assert bool((got.occupancy[kept] >= 0).all())
    outside = (got.occupancy > 0) & ~kept
    assert int(outside.sum(2).max()) <= 4


@needs_k2
def test_more_labels_than_a_band_climbs_widen_it():
    inputs = _inputs([(20, 12), (3, 12)])
    loss = rnnt_loss(*inputs, impl="k2").loss_B
    assert bool(torch.isfinite(loss).all())


@needs_k2
def test_uniform_weights_are_refused():
    inputs = _inputs([(9, 4)])
    teacher = _teacher(inputs, "reference", "standard")
    with pytest.raises(
        ConfigError, match="does not support weighting='uniform', because its lattice is pruned"
    ):
        rnnt_loss(*inputs, teacher=teacher, divergence=Divergence(weighting="uniform"), impl="k2")


@pytest.mark.parametrize("error", [ImportError, OSError], ids=["absent", "of another torch"])
def test_without_k2_the_message_says_where_its_wheels_are(monkeypatch, error):
    monkeypatch.delitem(sys.modules, "todm.kernels.rnnt_loss.k2_impl", raising=False)
    monkeypatch.setitem(sys.modules, "k2", None)
    if error is OSError:
        monkeypatch.setattr("importlib.import_module", _raise(OSError("libc10.so")))
        with pytest.raises(MissingK2):
            load_k2("this")
        return
    version = torch.__version__.partition("+")[0]
    with pytest.raises(MissingK2) as raised:
        rnnt_loss(*_inputs([(2, 1)]), impl="k2")
    message = str(raised.value)
    assert message.startswith("rnnt_loss with impl='k2' needs the package 'k2' built for torch")
    assert "pip install k2==VERSION -f https://k2-fsa.github.io/k2/c" in message
    assert f".torch{version}" in message


def _raise(error):
    def fail(*args):
        raise error

    return fail
