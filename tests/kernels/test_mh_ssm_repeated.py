"""The state after a looped input, against really repeating it.

Letters: H heads, B sequences, P channels, N modes, L frames of the loop.
"""

import importlib.util
import math

import pytest
import torch

from todm.kernels.mh_ssm import Loop, Ssm, discretise, mh_ssm

H, N, P = 3, 3, 2
TIMES = (0, 1, 2, 9)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
IMPLS = ["torch", "reference", pytest.param("triton", marks=needs_triton)]


def _rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


def _raw():
    """Raw parameters: time constants of 2 to 2000 frames, modes up to several radians per frame."""
    log_dt_H = torch.linspace(math.log(1e-3), math.log(1.0), H, dtype=torch.float64)
    log_neg_re_HN = math.log(0.5) + 0.3 * _rand(H, N)
    im_HN = math.pi * torch.arange(N, dtype=torch.float64) + 0.1 * _rand(H, N)
    im_HN[:, 0] = 0  # as a new net has it
    return [log_dt_H, log_neg_re_HN, im_HN, _rand(H, N, 2), _rand(H)]


def _ssm(log_decay, angle=0.0):
    """One head with one mode."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return Ssm(log_decay * one, angle * one, one, one, one[0])


def _after_loops(impl):
    """Entering state, output and last state of a loop that was heard before, for every number of times."""

    def run(u_HLBP, *raw):
        ssm, frames = discretise(*raw), u_HLBP.shape[1]
        entering = Loop.of(ssm, frames, torch.tensor(TIMES, device=u_HLBP.device)).state(u_HLBP)
        y, last = mh_ssm(u_HLBP, ssm, state_H2NBP=entering, impl=impl)
        return torch.cat([entering.flatten(), y.flatten(), last.flatten()])

    return run


def _by_repeating(u_HLBP, *raw):
    """The same by hearing every loop."""
    ssm, frames = discretise(*raw), u_HLBP.shape[1]
    found = [[], [], []]
    for row, times in enumerate(TIMES):
        alone = u_HLBP[:, :, row : row + 1]
        entering = torch.zeros_like(alone[:, :1]).expand(-1, 2 * N, -1, -1)
        if times:
            entering = mh_ssm(alone.repeat(1, times, 1, 1), ssm, impl="reference")[1]
        y, last = mh_ssm(alone.repeat(1, times + 1, 1, 1), ssm, impl="reference")
        for parts, value in zip(found, (entering, y[:, -frames:], last), strict=True):
            parts.append(value)
    return torch.cat([torch.cat(parts, 2).flatten() for parts in found])


@pytest.mark.parametrize("frames", [1, 7, 16])
@pytest.mark.parametrize("impl", IMPLS)
def test_states_outputs_and_gradients_are_those_of_repeating(check_op, device, impl, frames):
    args = [_rand(H, frames, len(TIMES), P), *_raw()]
    place = device if impl == "triton" else "cpu"
    check_op(_after_loops(impl), _by_repeating, [a.to(place) for a in args], rtol=1e-10)


@pytest.mark.parametrize("frames", [1, 7, 16])
def test_gradients_are_those_of_differences(frames):
    state = _rand(H, 2 * N, len(TIMES), P).requires_grad_()
    ssm = discretise(*_raw())
    rates = [p.detach().requires_grad_() for p in (ssm.log_decay_HN, ssm.angle_HN)]

    def run(state, log_decay, angle):
        given = ssm._replace(log_decay_HN=log_decay, angle_HN=angle)
        return Loop.of(given, frames, torch.tensor(TIMES)).repeated(state)

    assert torch.autograd.gradcheck(run, (state, *rates))


@pytest.mark.parametrize("frames", [1, 7, 16])
@pytest.mark.parametrize("log_decay", [-1e-5, -1e-3, -0.02, -0.7, -5.0])
@pytest.mark.parametrize("angle", [0.0, 0.3, 3.1])
def test_any_number_of_times_is_a_geometric_sum(frames, log_decay, angle):
    """Few loops, those around which e^-40 is reached, and years of them."""
    edge = int(40 / (-log_decay * frames))
    times = sorted({0, 1, 3, max(edge - 1, 1), edge + 1, edge + 2, 10**8})
    pole = torch.tensor([log_decay, angle], dtype=torch.float64) * frames
    a = torch.polar(pole[0].exp(), pole[1])
    want = [(1 - a**n) / (1 - a) if n else 0 * a for n in times]
    state = torch.tensor([1.0, 0.0]).double().view(1, 2, 1, 1).expand(-1, -1, len(times), -1)
    got = Loop.of(_ssm(log_decay, angle), frames, torch.tensor(times)).repeated(state)
    got = torch.complex(got[0, 0, :, 0], got[0, 1, :, 0])
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-9, atol=0)


@pytest.mark.parametrize("times", [0, 1, 10**6])
@pytest.mark.parametrize("log_decay", [-100.0, -1e-7])
def test_extreme_decays_have_gradients(log_decay, times):
    ssm = _ssm(torch.tensor(log_decay).double().requires_grad_())
    got = Loop.of(ssm, 8, torch.tensor([times])).repeated(torch.ones(1, 2, 1, 1).double())
    got.sum().backward()
    assert got.isfinite().all()


@pytest.mark.parametrize("times", [1, 5, 10**4])
def test_slow_modes_keep_their_digits_in_single_precision(times):
    """1 - a^L is a small difference of two numbers near 1."""
    ssm = _ssm(-1e-5)
    state = _rand(1, 2, 1, 3)
    want = Loop.of(ssm, 8, torch.tensor([times])).repeated(state)
    single = Ssm(*(p.float() for p in ssm))
    got = Loop.of(single, 8, torch.tensor([times])).repeated(state.float())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_autocast_leaves_it_alone():
    ssm, u = Ssm(*(p.float() for p in discretise(*_raw()))), torch.randn(H, 8, 2, P)
    times = torch.tensor([3, 11_250])
    want = Loop.of(ssm, 8, times).state(u)
    with torch.autocast("cpu", torch.bfloat16):
        got = Loop.of(ssm, 8, times).state(u)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("frames", [1, 7, 77, 129, 200])
@pytest.mark.parametrize("entered", [False, True])
def test_an_unwanted_state_changes_nothing_else(frames, entered):
    ssm = tuple(p.requires_grad_() for p in _ssm_of(3, 5))
    u = torch.randn(3, frames, 2, 4, requires_grad=True)
    state = torch.randn(3, 10, 2, 4, requires_grad=True) if entered else None
    leaves = [u, *ssm, *([state] if entered else [])]
    found = []
    for want_state in (True, False):
        y, last = mh_ssm(u, Ssm(*ssm), state_H2NBP=state, want_state=want_state, impl="torch")
        assert (last is not None) == want_state
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _ssm_of(heads, modes):
    return Ssm(
        -torch.rand(heads, modes) - 0.01, torch.rand(heads, modes) * 3,
        torch.randn(heads, modes), torch.randn(heads, modes), torch.randn(heads),
    )  # fmt: skip
