"""mh_ssm in Triton against the recurrence in float64; without a GPU, in Triton's interpreter.

Letters: H heads, T frames, B sequences, P channels, N modes.
"""

import math

import pytest
import torch

from todm.errors import ConfigError
from todm.kernels.mh_ssm import Ssm, discretise, mh_ssm

pytest.importorskip("triton")
from todm.bench.kernels.fft_ssm import fft_convolution
from todm.kernels.mh_ssm import triton_impl
from todm.kernels.mh_ssm.torch_impl import inner, operators


def _raw(heads=2, modes=3, dtype=torch.float64):
    """Raw parameters: fast and slow heads, modes up to several radians per frame."""
    shape = (heads, modes)
    log_dt_H = torch.linspace(math.log(1e-3), math.log(0.5), heads, dtype=dtype)
    log_neg_re_HN = math.log(0.5) + 0.3 * torch.randn(shape, dtype=dtype)
    im_HN = math.pi * torch.arange(modes, dtype=dtype) + 0.1 * torch.randn(shape, dtype=dtype)
    return [log_dt_H, log_neg_re_HN, im_HN, torch.randn(*shape, 2, dtype=dtype), _rand(heads)]


def _rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


def _state(heads=2, modes=3, batch=1, channels=3):
    return _rand(heads, 2 * modes, batch, channels)


@pytest.fixture
def check(check_op, device):
    """Outputs, last state and all gradients, of u [H, T, B, P], raw parameters and perhaps a state."""

    def run(args, *, rtol=1e-10, axes=(0, 1, 2, 3), **options):
        def op(impl):
            def call(u, log_dt, log_neg_re, im, c, skip, *state):
                ssm = discretise(log_dt, log_neg_re, im, c, skip)
                given = {"state_H2NBP": state[0]} if state else {}
                found = mh_ssm(u.permute(axes), ssm, impl=impl, **given, **options)
                return torch.cat([x.flatten() for x in found if x is not None])

            return call

        check_op(op("triton"), op("reference"), [x.to(device) for x in args], rtol=rtol)

    return run


@pytest.fixture
def _segments(monkeypatch):
    """Cut every sequence of more than one block into segments."""
    monkeypatch.setattr(triton_impl, "_SEGMENT_BLOCKS", 1)


@pytest.mark.parametrize("frames", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("how", ["forward", "from a state", "reverse"])
def test_outputs_state_and_gradients_are_the_references(check, frames, how):
    state = [_state()] if how == "from a state" else []
    check([_rand(2, frames, 1, 3), *_raw(), *state], reverse=how == "reverse")


@pytest.mark.usefixtures("_segments")
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_segments_of_a_sequence_pass_on_their_states(check, reverse):
    check([_rand(2, 200, 1, 3), *_raw()], reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("frames", "reset"), [(7, 1), (70, 10), (130, 65), (64, 64)])
def test_reset_starts_anew(check, frames, reset, reverse):
    check([_rand(2, frames, 1, 3), *_raw()], reverse=reverse, reset=reset)


@pytest.mark.parametrize("modes", [1, 5, 16, 17])
def test_modes_that_fill_no_tile(check, modes):
    check([_rand(1, 70, 1, 2), *_raw(1, modes), _state(1, modes, 1, 2)])


@pytest.mark.parametrize(
    ("batch", "channels"), [(5, 7), (3, 1), (0, 4)], ids=["two tiles", "per channel", "no batch"]
)
def test_columns_that_fill_no_tile(check, batch, channels):
    """With P = 1 every channel is its own head: the per-channel form."""
    check([_rand(2, 20, batch, channels), *_raw(), _state(2, 3, batch, channels)])


@pytest.mark.parametrize("channels", [3, 16], ids=["copied", "read in lines"])
@pytest.mark.parametrize("reset", [0, 16], ids=["carried", "reset"])
def test_an_input_with_strides(check, channels, reset):
    """Heads are views of a projection: [B, T, H, P] seen as [H, T, B, P]."""
    check([_rand(2, 80, 2, channels), *_raw()], axes=(2, 1, 0, 3), reset=reset, reverse=bool(reset))


def test_a_part_of_a_longer_input(device):
    u, ssm = _rand(2, 90, 2, 3).to(device), discretise(*(p.to(device) for p in _raw()))
    y, _ = mh_ssm(u[:, 5:75], ssm, impl="triton")
    want, _ = mh_ssm(u[:, 5:75], ssm, impl="reference")
    torch.testing.assert_close(y, want)


def test_only_what_was_used_has_a_gradient(device):
    """Of the last state alone, which a truncated stream passes on."""
    u, state = _rand(2, 70, 1, 3).to(device), _state().to(device)
    ssm, grads = discretise(*(p.to(device) for p in _raw())), []
    for impl in ("triton", "reference"):
        args = [x.clone().requires_grad_() for x in (u, state)]
        mh_ssm(args[0], ssm, state_H2NBP=args[1], impl=impl)[1].square().sum().backward()
        grads.append([x.grad for x in args])
    torch.testing.assert_close(*grads)


def test_single_precision(check):
    args = [_rand(2, 150, 1, 3), *_raw(), _state()]
    check([x.float() for x in args], rtol=1e-4)


def test_bfloat16_inputs(device):
    """Exact in TF32, so only y, the gradient of u and the states saved for it are rounded."""
    ssm = discretise(*(p.float().to(device) for p in _raw()))
    u = _rand(2, 150, 1, 3).to(device).bfloat16()
    outs = []
    for impl, x in (("triton", u), ("reference", u.float())):
        x.requires_grad_()
        leaves = [p.clone().requires_grad_() for p in ssm]
        y, state = mh_ssm(x, Ssm(*leaves), impl=impl)
        (y.float().square().sum() + state.square().sum()).backward()
        assert (y.dtype, state.dtype) == (x.dtype, torch.float32)
        outs.append([y, state, x.grad, *(p.grad for p in leaves)])
    for got, want in zip(*outs, strict=True):
        assert (got.float() - want).norm() < 0.01 * want.norm()


@pytest.mark.usefixtures("_segments")
def test_the_same_call_gives_the_same_bits(device):
    def run():
        leaves = [x.float().to(device).requires_grad_() for x in (u, *raw)]
        y, _ = mh_ssm(leaves[0], discretise(*leaves[1:]), impl="triton")
        y.square().sum().backward()
        return [y, *(x.grad for x in leaves)]

    u, raw = _rand(1, 130, 1, 33), _raw(1)
    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


def test_one_program_adds_up_all_tiles(check, monkeypatch):
    monkeypatch.setattr(triton_impl, "_PROGRAMS", 1)
    check([_rand(1, 70, 1, 33), *_raw(1)])


def test_the_operators_are_those_of_the_torch_implementation(device):
    ssm = discretise(*(p.to(device) for p in _raw()))
    u = _rand(2, 64, 1, 3).to(device)
    plan = triton_impl._Plan.choose(u, ssm, entered=True, reverse=False, reset=0)
    L, NP = plan.rows, plan.modes
    kernel, read_re, read_im, write_re, write_im = (
        triton_impl._Work(plan, u, tuple(ssm)).operators().split([L, *[L * NP] * 4], 1)
    )
    want = operators(ssm, L)
    torch.testing.assert_close(kernel, inner(ssm, L)[:, :, 0])
    read = torch.cat([x.reshape(2, L, NP)[..., :3] for x in (read_re, read_im)], 2)
    write = torch.cat([x.reshape(2, NP, L)[:, :3] for x in (write_re, write_im)], 1)
    torch.testing.assert_close((read, write), (want.read_HL2N, want.write_H2NL))


def test_the_fft_convolution_is_the_recurrence():
    u, ssm = _rand(2, 130, 2, 3), discretise(*_raw())
    want, _ = mh_ssm(u, ssm, impl="reference")
    torch.testing.assert_close(fft_convolution(u, ssm), want)


def test_float32_matmuls_follow_torchs_setting():
    assert triton_impl._precision(torch.float32) == "tf32x3"
    torch.set_float32_matmul_precision("high")
    try:
        assert triton_impl._precision(torch.float32) == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_more_modes_than_a_program_holds():
    with pytest.raises(ConfigError, match="at most 32 modes a head, 33 are given"):
        mh_ssm(_rand(2, 4, 1, 3), discretise(*_raw(2, 33)), impl="triton")
