"""The loss in Triton: compiled on a GPU, elsewhere in the interpreter, which needs small lattices."""

import functools
import math

import pytest
import torch

from tests.kernels.lattices import (
    KINDS,
    TOPOLOGIES,
    assert_same,
    draw_inputs,
    results,
    spoil_padding,
)
from todm.errors import ConfigError
from todm.kernels.rnnt_loss import Teacher, rnnt_loss
from todm.kernels.rnnt_loss.lattice import occupancy

pytest.importorskip("triton")
from todm.kernels.rnnt_loss import triton_impl, triton_lattice


@pytest.fixture
def inputs(device):
    """`inputs(lens)`: positional arguments of the op; values beyond an utterance's end are NaN."""

    def make(lens, **sizes):
        return [x.to(device) for x in spoil_padding(draw_inputs(lens, **sizes))]

    return make


def _teacher(inputs, *, J=6):
    enc, pred, weight, bias = (x + 0.7 * torch.randn_like(x) for x in inputs[:4])
    # A joiner wider than the student's.
    wider = [torch.cat([x, 0.5 * x[..., : J - x.shape[-1]]], -1) for x in (enc, pred, weight)]
    weights = torch.rand(*enc.shape[:2], pred.shape[1]).to(enc)
    weights[:, ::3] = 0.0  # frames that are left out
    return Teacher(*wider, bias, weights)


def _run(inputs, *, impl="triton", **options):
    return results(functools.partial(rnnt_loss, impl=impl, **options), inputs)


def _oracle(inputs, *, teacher=None, **options):
    """The same by the reference in float64."""
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    teacher = None if teacher is None else Teacher(*(x.double() for x in teacher))
    return _run(wide, teacher=teacher, impl="reference", **options)


# Of a single node's gradient little but rounding may be left.
_assert_same = functools.partial(assert_same, floor=1e-6)


@pytest.mark.parametrize(
    ("lens", "topology"),
    [
        ([(1, 0)], "standard"),
        ([(1, 1)], "one_symbol"),
        ([(3, 2), (2, 0), (1, 1)], "standard"),
        ([(3, 3), (2, 1), (1, 0)], "one_symbol"),
        ([(65, 0)], "standard"),
        ([(63, 1)], "one_symbol"),
        ([(1, 65)], "standard"),
        ([(2, 63)], "standard"),
    ],
    ids=str,
)
def test_matches_the_reference(inputs, lens, topology):
    given = inputs(lens)
    options = {"topology": topology, "fastemit": 0.3, "delay_penalty": 0.2}
    options["teacher"] = _teacher(given)
    _assert_same(_run(given, **options), _oracle(given, **options))


@pytest.mark.parametrize("divergence", KINDS.values(), ids=KINDS)
def test_every_divergence(inputs, divergence):
    given = inputs([(3, 1)])
    options = {"teacher": _teacher(given), "divergence": divergence}
    _assert_same(_run(given, **options), _oracle(given, **options))


@pytest.mark.parametrize("kind", ["alpha", "collapsed"])
def test_blocks_that_do_not_divide(inputs, kind):
    given = inputs([(2, 1)], V=300, J=130)
    options = {"teacher": _teacher(given, J=131), "divergence": KINDS[kind]}
    _assert_same(_run(given, **options), _oracle(given, **options))


@pytest.mark.parametrize("rows", [3, 5])
def test_tiles_that_cut_frames(inputs, monkeypatch, rows):
    given = inputs([(2, 1), (1, 0), (2, 2)])
    options = {"teacher": _teacher(given)}
    monkeypatch.setattr(triton_impl, "_row_bytes", lambda *_: triton_impl._TILE_BYTES // rows)
    _assert_same(_run(given, **options), _oracle(given, **options))


def test_float32_is_near_float64(inputs):
    given = inputs([(4, 2), (2, 0)], V=33, J=16, dtype=torch.float32)
    options = {"teacher": _teacher(given, J=16)}
    _assert_same(_run(given, **options), _oracle(given, **options), rtol=1e-5)


def test_bfloat16_inputs_have_float32_scores(inputs):
    given = inputs([(4, 2), (2, 0)], V=33, J=16, dtype=torch.bfloat16)
    options = {"teacher": _teacher(given, J=16)}
    got = _run(given, **options)
    assert [x.dtype for x in got] == [torch.float32] * 3 + [torch.bfloat16] * 4
    _assert_same(got, _oracle(given, **options), rtol=2e-2)


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(inputs, device):
    given = inputs([(3, 2)], V=33, J=16, dtype=torch.float32)
    options = {"teacher": _teacher(given, J=16)}
    with torch.autocast(device, torch.bfloat16):
        got = _run(given, **options)
    assert all(x.dtype == torch.float32 for x in got)
    assert not torch.equal(got[0], _run(given, **options)[0])
    _assert_same(got, _oracle(given, **options), rtol=2e-2)


def test_strides_of_the_inputs_do_not_matter(inputs):
    given = inputs([(2, 2), (3, 1)])
    teacher = _teacher(given)

    def turned(x):
        return x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim > 1 else x

    want = _run(given, teacher=teacher)
    strided = [turned(x) for x in given]
    assert not any(x.is_contiguous() for x in strided[:3])
    got = _run(strided, teacher=Teacher(*map(turned, teacher)))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_same_call_same_bits(inputs):
    given = inputs([(3, 2), (2, 1)], V=33, J=16, dtype=torch.float32)
    teacher = _teacher(given, J=16)
    first, again = (_run(given, teacher=teacher) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_nan_shows_in_its_utterance_alone(inputs, impl):
    given = inputs([(2, 1), (3, 1)])
    given[0][1, 1, 0] = math.nan
    loss, _, _, enc, *_ = _run(given, impl=impl)
    assert loss.isnan().tolist() == [False, True]
    assert enc[1].isnan().any()
    assert not enc[0].isnan().any()


def test_extreme_scores_stay_finite(inputs):
    given = inputs([(3, 1)], dtype=torch.float32)
    teacher = _teacher(given)
    for x in (*given[2:4], *teacher[2:4]):
        x *= 300
    assert all(x.isfinite().all() for x in _run(given, teacher=teacher))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_long_lattice_keeps_its_digits(device, topology):
    """Scores of a real size, whose sums over paths are in the hundreds."""
    lens = {"enc_lens_B": torch.tensor([70]), "target_lens_B": torch.tensor([20])}
    label_BTU, blank_BTU = 4 * torch.randn(2, 1, 72, 23).log_softmax(-1) - 2
    frames, labels = (x[:, None] for x in lens.values())
    valid_BTU = (torch.arange(72) < frames)[:, :, None] & (torch.arange(23) <= labels)[:, None]
    want = occupancy(
        label_BTU.double(), blank_BTU.double(), **lens, valid_BTU=valid_BTU, topology=topology
    )
    got = triton_lattice.occupancy(
        label_BTU.masked_fill(~valid_BTU, math.nan).to(device),
        blank_BTU.masked_fill(~valid_BTU, math.nan).to(device),
        **{k: v.int().to(device) for k, v in lens.items()},
        topology=topology,
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-6, atol=1e-6)


def test_nothing_of_the_size_of_the_logits_is_kept(inputs):
    T, U1, V = 5, 3, 500
    given = inputs([(T, U1 - 1)], V=V, dtype=torch.float32)
    kept = []

    def pack(x):
        kept.append(x.numel())
        return x

    leaves = [x.requires_grad_() for x in given[:4]]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        rnnt_loss(*leaves, *given[4:], teacher=_teacher([x.detach() for x in given]), impl="triton")
    # Log-sum-exps, visits of nodes and of arcs; the divergence and three for its gradient.
    assert sum(kept) - sum(x.numel() for x in leaves) == 7 * T * U1


def test_without_gradients(inputs):
    given = inputs([(3, 2)])
    with torch.no_grad():
        out = rnnt_loss(*given, impl="triton")
    torch.testing.assert_close(out.loss_B, rnnt_loss(*given, impl="reference").loss_B)


def test_more_nodes_than_32_bits_count(device):
    shapes = ((1, 70000, 1), (1, 32001, 1), (2, 1), (2,))
    given = [torch.zeros(s, device=device) for s in shapes]
    given += [torch.ones(1, 32000, dtype=torch.int64, device=device)]
    with pytest.raises(ConfigError, match="2240070000 lattice nodes"):
        rnnt_loss(*given, torch.tensor([70000]), torch.tensor([32000]), impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_issue_size_on_a_gpu(inputs, topology):
    given = inputs([(400, 80), (333, 51)], V=500, J=512, dtype=torch.float32)
    teacher = _teacher(given, J=512)
    options = {"topology": topology, "teacher": teacher}
    _assert_same(_run(given, **options), _run(given, impl="torch", **options), rtol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        _assert_same(_run(given, **options), _run(given, impl="torch", **options), rtol=3e-2)
