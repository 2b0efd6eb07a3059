"""Letters: H heads, T frames, B sequences, P channels, N modes, L frames of a block."""

import math

import pytest
import torch

from todm.errors import ConfigError
from todm.kernels.mh_ssm import Prepared, Ssm, discretise, mh_ssm, prepare
from todm.kernels.mh_ssm.torch_impl import inner, operators, run_block

H, N, B, P = 3, 4, 2, 3
# Around the block of 64 frames and the 128 up to which a single block is used.
LENGTHS = (1, 7, 63, 64, 65, 128, 129, 200)


def _raw(dtype=torch.float64):
    """The five raw parameters: fast and slow heads, modes up to several radians per frame."""
    log_dt_H = torch.linspace(math.log(1e-3), math.log(0.5), H, dtype=dtype)
    log_neg_re_HN = math.log(0.5) + 0.3 * torch.randn(H, N, dtype=dtype)
    im_HN = math.pi * torch.arange(N, dtype=dtype) + 0.1 * torch.randn(H, N, dtype=dtype)
    c_HN2 = torch.randn(H, N, 2, dtype=dtype)
    return [log_dt_H, log_neg_re_HN, im_HN, c_HN2, torch.randn(H, dtype=dtype)]


def _input(frames, dtype=torch.float64):
    return torch.randn(H, frames, B, P, dtype=dtype)


def _state(dtype=torch.float64):
    return torch.randn(H, 2 * N, B, P, dtype=dtype)


def _op(impl, **options):
    """The op as a function of u, the raw parameters and perhaps a state; all it returns, in a row."""

    def run(u_HTBP, log_dt, log_neg_re, im, c, skip, *state):
        ssm = discretise(log_dt, log_neg_re, im, c, skip)
        given = {"state_H2NBP": state[0]} if state else {}
        found = mh_ssm(u_HTBP, ssm, impl=impl, **given, **options)
        return torch.cat([x.flatten() for x in found if x is not None])

    return run


def _check(check_op, args, *, rtol, **options):
    check_op(_op("torch", **options), _op("reference", **options), args, rtol=rtol)


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("how", ["forward", "forward from a state", "reverse"])
def test_outputs_state_and_gradients_are_the_references(check_op, frames, how):
    state = [_state()] if how == "forward from a state" else []
    args = [_input(frames), *_raw(), *state]
    _check(check_op, args, rtol=1e-10, reverse=how == "reverse")


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("frames", "reset"), [(7, 1), (7, 7), (64, 16), (130, 65), (192, 64)])
def test_reset_starts_anew(check_op, frames, reset, reverse):
    _check(check_op, [_input(frames), *_raw()], rtol=1e-10, reverse=reverse, reset=reset)


@pytest.mark.parametrize("frames", [65, 200])
def test_single_precision(check_op, frames):
    args = [a.float() for a in (_input(frames), *_raw(), _state())]
    _check(check_op, args, rtol=1e-4)


@pytest.mark.parametrize("reset", [0, 16], ids=["carried", "reset"])
def test_an_input_with_strides(check_op, reset):
    """Heads are views of a projection: [B, T, H, P] seen as [H, T, B, P]."""
    op = lambda u, *rest: _op("torch", reset=reset)(u.permute(2, 1, 0, 3), *rest)  # noqa: E731
    oracle = lambda u, *rest: _op("reference", reset=reset)(u.permute(2, 1, 0, 3), *rest)  # noqa: E731
    u_BTHP = torch.randn(B, 144, H, P, dtype=torch.float64)
    check_op(op, oracle, [u_BTHP, *_raw()], rtol=1e-10)


def test_parameters_of_leading_axes():
    """Stages and directions are discretised in one call."""
    raw = [torch.stack([a, b]) for a, b in zip(_raw(), _raw(), strict=True)]
    both = discretise(*raw)
    for i in range(2):
        one = discretise(*(p[i] for p in raw))
        for got, want in zip(both, one, strict=True):
            torch.testing.assert_close(got[i], want, rtol=0, atol=0)


def test_bfloat16_inputs():
    u, ssm = _input(150, torch.float32), discretise(*(p.float() for p in _raw()))
    y, state = mh_ssm(u.bfloat16(), ssm)
    want, _ = mh_ssm(u.bfloat16().float(), ssm)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert (y.float() - want).norm() < 0.02 * want.norm()
    again, _ = mh_ssm(u[:, :9].bfloat16(), ssm, state_H2NBP=state)
    assert again.dtype == torch.bfloat16


def test_autocast_leaves_the_recurrence_alone():
    u, ssm = _input(70, torch.float32), discretise(*(p.float() for p in _raw()))
    want, _ = mh_ssm(u, ssm)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = mh_ssm(u, ssm)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 8, 16, 32])
def test_chunk_by_chunk_equals_the_whole(chunk):
    u, ssm = _input(160), discretise(*_raw())
    want, last = mh_ssm(u, ssm)
    ops, state, ys = operators(ssm, chunk), torch.zeros(H, 2 * N, B, P).double(), []
    for part in u.split(chunk, 1):
        y, state = run_block(part, ops, state)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), want)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("chunk", [1, 8, 40])
def test_a_stream_through_the_op_is_the_references(check_op, chunk):
    """Gradients flow back through all chunks, as in truncated training on long audio."""

    def stream(impl):
        def run(u_HTBP, log_dt, log_neg_re, im, c, skip, state):
            ssm, ys = discretise(log_dt, log_neg_re, im, c, skip), []
            for part in u_HTBP.split(chunk, 1):
                y, state = mh_ssm(part, ssm, state_H2NBP=state, impl=impl)
                ys.append(y.flatten())
            return torch.cat([*ys, state.flatten()])

        return run

    check_op(stream("torch"), stream("reference"), [_input(43), *_raw(), _state()], rtol=1e-10)


@pytest.mark.parametrize("cut", [1, 64, 90, 129])
def test_a_sequence_may_be_cut_anywhere(cut):
    u, ssm = _input(200), discretise(*_raw())
    want, last = mh_ssm(u, ssm)
    first, state = mh_ssm(u[:, :cut], ssm)
    rest, end = mh_ssm(u[:, cut:], ssm, state_H2NBP=state)
    torch.testing.assert_close(torch.cat([first, rest], 1), want)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("reset", [0, 32], ids=["whole", "chunks"])
def test_zeros_beyond_the_end_change_nothing(reverse, reset):
    """A short sequence beside a long one, zeroed beyond its end, gives the same output as alone."""
    u, ssm, length = _input(192), discretise(*_raw()), 96
    u[:, length:, 0] = 0
    together, _ = mh_ssm(u, ssm, reverse=reverse, reset=reset)
    alone, _ = mh_ssm(u[:, :length, :1], ssm, reverse=reverse, reset=reset)
    torch.testing.assert_close(together[:, :length, :1], alone)


@pytest.mark.parametrize("frames", [50, 150], ids=["one block", "blocks"])
def test_nothing_flows_against_the_direction(frames):
    u, ssm = _input(frames).requires_grad_(), discretise(*_raw())
    for reverse in (False, True):
        y, _ = mh_ssm(u, ssm, reverse=reverse)
        (grad,) = torch.autograd.grad(y[:, 20].sum(), u)
        unseen = grad[:, :20] if reverse else grad[:, 21:]
        assert (unseen == 0).all()


def test_the_kernel_matrix_is_toeplitz_and_lower():
    K_HLL = inner(discretise(*_raw()), 9)
    assert (K_HLL.triu(1) == 0).all()
    torch.testing.assert_close(K_HLL[:, 1:, 1:], K_HLL[:, :-1, :-1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_discretise_is_the_zero_order_hold(dtype):
    """exp([[lambda, 1], [0, 0]] dt) holds a above and, beside it, the integral (a - 1) / lambda."""
    raw = _raw(dtype)
    ssm = discretise(*raw)
    log_dt, log_neg_re, im, c, skip = (p.double() for p in raw)
    pole = torch.complex(-log_neg_re.exp(), im)
    system = torch.zeros(H, N, 2, 2, dtype=torch.complex128)
    system[..., 0, 0], system[..., 0, 1] = pole, 1
    held = torch.linalg.matrix_exp(system * log_dt.exp()[:, None, None, None])
    a, gain = held[..., 0, 0], 2 * torch.view_as_complex(c) * held[..., 0, 1]
    rtol = 1e-10 if dtype == torch.float64 else 1e-3  # a - 1 loses digits where dt is small
    for got, want in (
        (torch.polar(ssm.log_decay_HN.double().exp(), ssm.angle_HN.double()), a),
        (torch.complex(ssm.gain_re_HN.double(), ssm.gain_im_HN.double()), gain),
        (ssm.skip_H.double(), skip),
    ):
        assert ((got - want).abs() / want.abs()).max() < rtol


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((H + 1, 8, B, P), {}, r"u is \(4, 8, 2, 3\) for 3 heads: \[H, T, B, P\] is needed"),
        ((H, 8, B), {}, r"u is \(3, 8, 2\) for 3 heads"),
        ((H, 10, B, P), {"reset": 4}, "10 frames are not a multiple of the reset period 4"),
        ((H, 0, B, P), {}, "u has no frames"),
        ((H, 8, B + 1, P), {"state": True}, r"the state is \(3, 8, 2, 3\): .* \(3, 8, 3, 3\) is"),
        ((H, 8, B, P), {"state": True, "reverse": True}, "a state is carried only by the forward"),
        ((H, 8, B, P), {"state": True, "reset": 4}, "a state is carried only by the forward"),
    ],
    ids=[
        "heads",
        "axes",
        "reset",
        "frames",
        "state of another batch",
        "state in reverse",
        "state with reset",
    ],
)
def test_what_does_not_fit_is_named(shape, options, words):
    options = dict(options)
    if options.pop("state", False):
        options["state_H2NBP"] = _state()
    with pytest.raises(ValueError, match=words):
        mh_ssm(torch.zeros(shape, dtype=torch.float64), discretise(*_raw()), **options)


def test_unknown_impl():
    with pytest.raises(ConfigError, match="impl asks for 'cuda', which mh_ssm does not have"):
        mh_ssm(_input(4), discretise(*_raw()), impl="cuda")


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_reverse_and_reset_leave_no_state(impl):
    ssm = Ssm(*discretise(*_raw()))
    assert mh_ssm(_input(8), ssm, reverse=True, impl=impl)[1] is None
    assert mh_ssm(_input(8), ssm, reset=4, impl=impl)[1] is None
    assert mh_ssm(_input(8), ssm, impl=impl)[1].shape == (H, 2 * N, B, P)


@pytest.mark.parametrize("frames", [8, 48, 128, 136, 200])
@pytest.mark.parametrize("way", ["ahead", "from a state", "back", "blocks of 8"])
@pytest.mark.parametrize("heads", [1, H])
def test_prepared_runs_are_the_same(frames, way, heads):
    """Of all heads, and of the first one with the first part of what was prepared for all."""
    ssm = discretise(*_raw())
    options = {"reverse": way in ("back", "blocks of 8"), "reset": 8 * (way == "blocks of 8")}
    entered = way == "from a state"
    prepared = prepare(ssm, frames, reset=options["reset"], from_state=entered)
    prepared = Prepared(*(None if x is None else x[:heads] for x in prepared))
    first = Ssm(*(p[:heads] for p in ssm))
    u = torch.randn(heads, frames, B, P).double()
    if entered:
        options["state_H2NBP"] = torch.randn(heads, 2 * N, B, P).double()
    got, last = mh_ssm(u, first, prepared=prepared, **options)
    want, want_last = mh_ssm(u, first, impl="reference", **options)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert (last is None) == (want_last is None)
    if last is not None:
        torch.testing.assert_close(last, want_last, rtol=1e-10, atol=1e-10)


def test_other_implementations_have_nothing_to_prepare():
    assert prepare(discretise(*_raw()), 48, impl="reference") is None
