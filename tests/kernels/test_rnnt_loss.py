import itertools
import math

import pytest
import torch

from tests.kernels.lattices import KINDS, TOPOLOGIES, assert_same, draw_inputs, results
from todm.errors import ConfigError
from todm.kernels.rnnt_loss import Divergence, Teacher, rnnt_loss, torch_impl
from todm.kernels.rnnt_loss.problem import Problem

TILES = {
    "one tile": {},
    "small tiles": {"tile_bytes": 1000},
    "recomputed": {"keep_bytes": 0},
    "a frame a tile, recomputed": {"tile_bytes": 1, "keep_bytes": 0},
}


def _teacher(inputs, *, noise=0.7):
    enc, pred, weight, bias = (x + noise * torch.randn_like(x) for x in inputs[:4])
    return Teacher(enc, pred, weight, bias, torch.rand(*enc.shape[:2], pred.shape[1]).to(enc))


def _problem(inputs, *, topology="standard", teacher=None, divergence=None):
    *tensors, enc_lens, target_lens = inputs
    return Problem(
        *tensors,
        enc_lens.tolist(),
        target_lens.tolist(),
        topology,
        teacher,
        divergence or Divergence(),
        fastemit=0.0,
        delay_penalty=0.0,
    )


def _brute_force(label_TU, blank_TU, topology):
    """Log of the sum over every order of blanks and labels, each walked by itself."""
    T, U = label_TU.shape
    steps = T + U if topology == "standard" else T
    scores = []
    for where in itertools.combinations(range(steps), U):
        t, u, score = 0, 0, 0.0
        for step in range(steps):
            if step in where and t < T:
                score, u = score + label_TU[t, u], u + 1
                t += topology == "one_symbol"
            elif step in where:
                score = -math.inf  # after the last blank no frame is left to emit from
            else:
                score, t = score + blank_TU[t, u], t + 1
        scores.append(float(score))
    return torch.tensor(scores, dtype=torch.float64).logsumexp(0)


@pytest.mark.parametrize("impl", ["reference", "torch", "triton"])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("lens", [(4, 3), (5, 2), (1, 1), (3, 0)], ids=str)
def test_loss_is_the_sum_over_paths(lens, topology, delay_penalty, impl, device):
    pytest.importorskip("triton" if impl == "triton" else "torch")
    inputs = draw_inputs([lens])
    enc, pred, weight, bias, targets = (
        x[0] if i in (0, 1, 4) else x for i, x in enumerate(inputs[:5])
    )
    logp_TUV = ((enc[:, None] + pred).tanh() @ weight.T + bias).log_softmax(2)
    T, U = lens
    label_TU = (
        torch.stack([logp_TUV[:, u, targets[u]] for u in range(U)], 1) if U else torch.empty(T, 0)
    )
    late_T = delay_penalty * ((T - 1) / 2 - torch.arange(T, dtype=torch.float64))
    want = -_brute_force(label_TU + late_T[:, None], logp_TUV[:, :, 0], topology)
    inputs = [x.to(device) for x in inputs]
    got = rnnt_loss(*inputs, topology=topology, delay_penalty=delay_penalty, impl=impl)
    torch.testing.assert_close(got.loss_B.cpu(), want[None])


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "lens",
    [
        [(1, 1)],
        [(1, 0), (2, 1)],
        [(63, 5), (1, 0), (40, 1)],
        [(65, 3), (64, 5)],
        [(65, 63)],
        [(63, 0)],
    ],
    ids=str,
)
def test_matches_the_reference(lens, topology):
    inputs = draw_inputs(lens)
    teacher = _teacher(inputs)

    def op(*args, impl):
        return rnnt_loss(*args, topology=topology, teacher=teacher, impl=impl)

    got, want = (results(lambda *a, i=i: op(*a, impl=i), inputs) for i in ("torch", "reference"))
    assert_same(got, want)


@pytest.mark.parametrize("lens", [[(1, 65), (2, 3)], [(3, 63)]], ids=str)
def test_more_labels_than_frames(lens):
    inputs = draw_inputs(lens)
    got, want = (
        results(lambda *a, i=i: rnnt_loss(*a, impl=i), inputs) for i in ("torch", "reference")
    )
    assert_same(got, want)


@pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)
@pytest.mark.parametrize("divergence", KINDS.values(), ids=KINDS)
def test_every_divergence_in_every_tiling(divergence, tiles):
    inputs = draw_inputs([(9, 4), (6, 0), (5, 5)])
    teacher = _teacher(inputs)

    def tiled(*args):
        problem = _problem(args, topology="one_symbol", teacher=teacher, divergence=divergence)
        return torch_impl.rnnt_loss(problem, **tiles)

    def oracle(*args):
        return rnnt_loss(
            *args, topology="one_symbol", teacher=teacher, divergence=divergence, impl="reference"
        )

    assert_same(results(tiled, inputs), results(oracle, inputs))


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_unclipped_gradient_is_that_of_the_definition(alpha, impl):
    inputs = draw_inputs([(4, 2)])
    teacher = _teacher(inputs, noise=0.2)
    divergence = Divergence(alpha_min=alpha, alpha_max=alpha, clip=1e9)

    def definition(enc, pred, weight, bias):
        q = ((enc[:, :, None] + pred[:, None]).tanh() @ weight.T + bias).softmax(3)
        t = teacher
        p = (
            (t.enc_BTJ[:, :, None] + t.pred_BUJ[:, None]).tanh() @ t.weight_VJ.T + t.bias_V
        ).softmax(3)
        if alpha == 1:
            nodes = (p * (p / q).log()).sum(3)
        elif alpha == 0:
            nodes = (q * (q / p).log()).sum(3)
        else:
            nodes = (q * ((p / q) ** alpha - 1)).sum(3) / (alpha * (alpha - 1))
        return (nodes * t.occupancy).sum()

    leaves = [x.clone().requires_grad_() for x in inputs[:4]]
    want = definition(*leaves)
    want_grads = torch.autograd.grad(want, leaves)
    out = rnnt_loss(*leaves, *inputs[4:], teacher=teacher, divergence=divergence, impl=impl)
    torch.testing.assert_close(out.divergence_B[0], want)
    torch.testing.assert_close(torch.autograd.grad(out.divergence_B.sum(), leaves), want_grads)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_float32_is_near_float64(check_op, topology):
    inputs = draw_inputs([(63, 9), (30, 1)], V=33, J=16, dtype=torch.float32)
    teacher = _teacher(inputs)
    wide = Teacher(*(x.double() for x in teacher))

    def run(teacher, impl):
        def op(*floats):
            out = rnnt_loss(*floats, *inputs[4:], topology=topology, teacher=teacher, impl=impl)
            return torch.cat([out.loss_B, out.divergence_B])

        return op

    check_op(run(teacher, "torch"), run(wide, "reference"), inputs[:4], rtol=2e-5)


def test_same_as_torchaudio():
    pytest.importorskip("torchaudio")
    inputs = draw_inputs([(21, 6), (9, 0), (13, 4)], V=17, J=8, dtype=torch.float32)
    got, want = (
        results(lambda *a, i=i: rnnt_loss(*a, impl=i), inputs) for i in ("torch", "torchaudio")
    )
    got[2] = want[2] = torch.ones(1)  # torchaudio gives no occupancy
    assert_same(got, want, rtol=1e-4)


@pytest.mark.parametrize("option", ["topology", "teacher", "fastemit", "dtype"])
def test_torchaudio_says_what_it_cannot(option):
    pytest.importorskip("torchaudio")
    inputs = draw_inputs([(4, 2)], dtype=torch.float64 if option == "dtype" else torch.float32)
    options = {
        "topology": {"topology": "one_symbol"},
        "teacher": {"teacher": _teacher(inputs)},
        "fastemit": {"fastemit": 0.1},
        "dtype": {},
    }
    with pytest.raises(ConfigError, match=rf"torchaudio.*{option}.*impl='torch'"):
        rnnt_loss(*inputs, **options[option], impl="torchaudio")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_occupancy_counts_the_steps_of_a_path(topology):
    inputs = draw_inputs([(9, 4), (6, 0), (5, 5)])
    occupancy = rnnt_loss(*inputs, topology=topology).occupancy
    steps = inputs[5] + (inputs[6] if topology == "standard" else 0)
    torch.testing.assert_close(occupancy.sum((1, 2)), steps.double())
    assert not occupancy.requires_grad
    assert not occupancy[1, 6:].any()
    assert not occupancy[1, :, 1:].any()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_fastemit_scales_label_gradients_only(topology):
    inputs = draw_inputs([(9, 4), (6, 0)])
    got, want = (
        results(lambda *a, i=i: rnnt_loss(*a, topology=topology, fastemit=0.4, impl=i), inputs)
        for i in ("torch", "reference")
    )
    assert_same(got, want)
    torch.testing.assert_close(got[0], rnnt_loss(*inputs, topology=topology).loss_B)


def test_teacher_equal_to_student_diverges_nowhere():
    inputs = draw_inputs([(9, 4)])
    own = rnnt_loss(*inputs)
    leaves = [x.requires_grad_() for x in inputs[:4]]
    out = rnnt_loss(*leaves, *inputs[4:], teacher=Teacher(*leaves, own.occupancy))
    grads = torch.autograd.grad(out.divergence_B.sum(), leaves)
    assert out.divergence_B.abs() < 1e-12
    assert all(g.abs().max() < 1e-10 for g in grads)


@pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)
def test_padding_is_never_read(tiles):
    inputs = draw_inputs([(9, 4), (6, 2)])
    teacher = _teacher(inputs)
    clean = results(lambda *a: torch_impl.rnnt_loss(_problem(a, teacher=teacher), **tiles), inputs)
    for tensors in (inputs, teacher):
        tensors[0][1, 6:] = math.nan
        tensors[1][1, 3:] = math.nan
    teacher.occupancy[1, 6:] = math.nan
    inputs[4][1, 2:] = -100
    dirty = results(lambda *a: torch_impl.rnnt_loss(_problem(a, teacher=teacher), **tiles), inputs)
    for a, b in zip(dirty, clean, strict=True):
        assert torch.equal(a, b)


def test_same_call_same_bits():
    inputs = draw_inputs([(30, 7), (21, 3)], V=33, J=16, dtype=torch.float32)
    teacher = _teacher(inputs)
    first, again = (results(lambda *a: rnnt_loss(*a, teacher=teacher), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_extreme_scores_stay_finite():
    inputs = draw_inputs([(12, 5)], V=9, J=4, dtype=torch.float32)
    teacher = _teacher(inputs)
    for x in (*inputs[2:4], *teacher[2:4]):
        x *= 300
    assert all(
        x.isfinite().all() for x in results(lambda *a: rnnt_loss(*a, teacher=teacher), inputs)
    )


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    inputs = draw_inputs([(20, 6), (11, 2)], V=33, J=16, dtype=torch.float32)
    teacher = _teacher(inputs)
    want = results(lambda *a: rnnt_loss(*a, teacher=teacher), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(lambda *a: rnnt_loss(*a, teacher=teacher), inputs)
    assert all(x.dtype == torch.float32 for x in got)
    assert_same(got, want, rtol=3e-2)


@pytest.mark.parametrize("labels", [3, 9])
def test_nothing_of_the_size_of_the_logits_is_kept(labels):
    inputs = draw_inputs([(40, labels)], V=500, J=8, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs[:4]]
    kept = []

    def pack(x):
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        torch_impl.rnnt_loss(_problem([*leaves, *inputs[4:]]), keep_bytes=0)
    assert sum(kept) - sum(x.numel() for x in leaves) <= 40 * (labels + 1) * 2


def test_without_gradients():
    inputs = draw_inputs([(9, 4)])
    with torch.no_grad():
        out = rnnt_loss(*inputs)
    torch.testing.assert_close(out.loss_B, rnnt_loss(*inputs, impl="reference").loss_B)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (5, [9, 10], "utterance 1 has 10 frames, allowed 1..9"),
        (5, [9, 0], "utterance 1 has 0 frames"),
        (6, [5, 2], "utterance 0 has 5 labels, allowed 0..4"),
        (5, [9, 1], "utterance 1 has 2 labels in 1 frames"),
        (4, [[1, 2, 3, 0], [1, 1, 1, 1]], "label 3 of utterance 0 is 0, allowed 1..6"),
        (4, [[1, 2, 3, 4], [1, 7, 1, 1]], "label 1 of utterance 1 is 7"),
        (4, [[1, 2, 3], [1, 1, 1]], r"pred_BUJ has shape \(2, 5, 5\).*must be \(2, 4, 5\)"),
        (5, [9], r"enc_lens_B has shape \(1,\)"),
    ],
)
def test_errors_name_the_utterance(index, value, message):
    inputs = draw_inputs([(9, 4), (6, 2)])
    inputs[index] = torch.tensor(value)
    with pytest.raises(ConfigError, match=message):
        rnnt_loss(*inputs, topology="one_symbol")


def test_divergence_needs_a_teacher():
    with pytest.raises(ConfigError, match="without a teacher"):
        rnnt_loss(*draw_inputs([(4, 2)]), divergence=Divergence())


def test_teacher_of_another_lattice_is_refused():
    inputs = draw_inputs([(9, 4)])
    teacher = _teacher(inputs)._replace(occupancy=torch.ones(1, 8, 5))
    with pytest.raises(ConfigError, match=r"teacher.occupancy has shape \(1, 8, 5\)"):
        rnnt_loss(*inputs, teacher=teacher)


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_cuda_is_the_same(topology, tiles):
    inputs = draw_inputs([(63, 9), (30, 1)], V=33, J=16)
    teacher = _teacher(inputs)
    on_gpu = Teacher(*(x.cuda() for x in teacher))

    def op(*args):
        problem = _problem(args, topology=topology, teacher=on_gpu)
        return torch_impl.rnnt_loss(problem, **tiles)

    want = results(lambda *a: rnnt_loss(*a, topology=topology, teacher=teacher), inputs)
    got = results(op, [x.cuda() for x in inputs])
    assert_same([x.cpu() for x in got], want)
