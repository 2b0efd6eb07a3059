"""References: finite differences of what LSQ's gradient is the derivative of, and the packed layers."""

import pytest
import torch
from torch import nn

from todm.compress.masks import nm_mask
from todm.compress.packed import Int8Linear, W4Linear
from todm.compress.train import qat
from todm.errors import ConfigError
from todm.kernels.matmul_int8 import quantise_weight
from todm.kernels.matmul_w4 import pack, quantise_rtn

N, K, M = 5, 37, 6


def _layer(inputs=K):
    torch.manual_seed(3)
    return nn.Linear(inputs, N)


def _mask(layer):
    return nm_mask(layer.weight.detach().abs(), 2, 4)


def _masked(layer, masked):
    mask = _mask(layer) if masked else None
    if masked:
        with torch.no_grad():
            layer.weight.mul_(mask)
    return mask


def _int8(layer, *, static=True, masked=False, shrink=0.7):
    """With scales so narrow that some weights and activations are clipped."""
    mask = _masked(layer, masked)
    scale = layer.weight.detach().abs().amax(1) / 127 * shrink
    codes, scale = quantise_weight(layer.weight, scale_N=scale)
    act = torch.tensor([1.5 / 127]) if static else None
    return Int8Linear(codes, scale, layer.bias, act_scale=act, sparse24=masked), mask


def _w4(layer, *, bits=4, symmetric=False, masked=False, group=32):
    mask = _masked(layer, masked)
    weight = quantise_rtn(layer.weight, bits, group=group, symmetric=symmetric)
    return W4Linear(weight, layer.bias, sparse24=masked), mask


def _frozen(v, scale, low, high, zero=0.0):
    """Rounding errors and clipped ends of LSQ, held fixed: a smooth function of v, scale and zero."""
    raw = v / scale + zero
    inside = (raw > low) & (raw < high)
    rest = raw.round() - raw
    end = torch.where(raw >= high, high, low)
    return lambda v, scale, zero: torch.where(inside, v + scale * rest, scale * (end - zero))


def _differences(function, values, step=1e-6):
    """Central differences of a scalar by each of several tensors, float64."""
    found = []
    for at, value in enumerate(values):
        grad = torch.zeros_like(value)
        for i in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = [v.clone() for v in values]
                moved[at].view(-1)[i] += sign * step
                ends.append(function(*moved))
            grad.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
        found.append(grad)
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_a_static_int8_layer(masked):
    layer = _layer()
    packed, mask = _int8(layer, masked=masked)
    fake = qat.start(layer, packed, mask)
    with torch.no_grad():
        fake.log_scale_N.copy_(torch.randn(N) * 0.1)
        fake.log_act_scale.fill_(0.05)
    x = torch.randn(M, K).requires_grad_()
    out = torch.randn(M, N)
    (fake(x) * out).sum().backward()

    kept = torch.ones(N, K).double() if mask is None else mask.double()
    w, s = fake.weight.detach().double() * kept, fake.scale_N.detach().double()
    xs, a = x.detach().double(), fake.act_scale.detach().double()
    weight = _frozen(w, s[:, None], -127.0, 127.0)
    inputs = _frozen(xs, a, -127.0, 127.0)

    def loss(w, log_s, xs, log_a):
        scale = packed.scale_N.double() * log_s.exp()
        act = packed.act_scale.double() * log_a.exp()
        y = inputs(xs, act, 0.0) @ (weight(w * kept, scale[:, None], 0.0)).T
        return (y * out.double()).sum()

    logs = fake.log_scale_N.detach().double(), fake.log_act_scale.detach().double()
    want = _differences(loss, [w, logs[0], xs, logs[1]])
    assert ((xs / a).abs() > 127).any()
    assert ((w / s[:, None]).abs() > 127).any()
    close = {"rtol": 2e-3, "atol": 2e-4}
    torch.testing.assert_close(fake.weight.grad.double(), want[0], **close)
    torch.testing.assert_close(
        fake.log_scale_N.grad.double(), want[1] / (kept.sum(1) * 127).sqrt(), **close
    )
    torch.testing.assert_close(x.grad.double(), want[2], **close)
    torch.testing.assert_close(
        fake.log_act_scale.grad.double(), want[3] / (K * 127) ** 0.5, **close
    )
    assert mask is None or (fake.weight.grad[~mask] == 0).all()


def test_rows_of_a_dynamic_layer_pass_their_gradient_on():
    layer = _layer()
    packed, _ = _int8(layer, static=False)
    fake = qat.start(layer, packed)
    x = torch.randn(M, K).requires_grad_()
    fake(x).sum().backward()
    weight = packed.dense_weight()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(M, K))
    assert fake.act_scale is None


@pytest.mark.parametrize("learn_zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 3])
def test_gradients_of_groups(bits, learn_zeros):
    layer = _layer()
    packed, _ = _w4(layer, bits=bits)
    fake = qat.start(layer, packed, learn_zeros=learn_zeros)
    with torch.no_grad():
        fake.log_scale_NG.fill_(-0.3)  # so that some weights are clipped
    x, out = torch.randn(M, K), torch.randn(M, N)
    (fake(x) * out).sum().backward()

    high, spread = float((1 << bits) - 1), lambda v: v.repeat_interleave(32, 1)[:, :K]
    w, zero = fake.weight.detach().double(), fake.zero_NG.detach().double()
    s = fake.scale_NG.detach().double()
    weight = _frozen(w, spread(s), 0.0, high, spread(zero))

    def loss(w, s, zero):
        return (x.double() @ weight(w, spread(s), spread(zero)).T * out.double()).sum()

    raw = w / spread(s) + spread(zero)
    assert ((raw < 0) | (raw > high)).any()
    want = _differences(loss, [w, s, zero])
    count = torch.tensor([32.0, K - 32.0]).double()
    close = {"rtol": 2e-3, "atol": 2e-4}
    torch.testing.assert_close(fake.weight.grad.double(), want[0], **close)
    unrounded = packed.scale_NG.double() * (-0.3 * torch.ones_like(s)).exp()
    torch.testing.assert_close(
        fake.log_scale_NG.grad.double(), want[1] * unrounded / (count * high).sqrt(), **close
    )
    if learn_zeros:
        torch.testing.assert_close(fake.zero_move_NG.grad.double(), want[2] * high, **close)
        assert (want[2] != 0).any()
    else:
        assert fake.zero_move_NG is None


def test_lsq_by_hand():
    """Eq. 3: inside (0.6 of a step), above and below the range, and 1 / sqrt(n Q_p)."""
    start, log = torch.tensor([0.5]), torch.zeros(1, requires_grad=True)
    v = torch.tensor([0.3, 9.0, -9.0], requires_grad=True)
    scale = qat.learnt_scale(start, log, count=torch.tensor([3.0]), largest=7)
    (qat.codes(v, scale, -7, 7) * scale).sum().backward()
    assert v.grad.tolist() == [1.0, 0.0, 0.0]
    by_scale = (1 - 0.6) + 7 - 7
    torch.testing.assert_close(log.grad, torch.tensor([0.5 * by_scale / 21**0.5]))


def _trained(fake):
    """As after a training: everything has moved."""
    with torch.no_grad():
        for name, parameter in fake.named_parameters():
            scale = 0.02 if name.startswith("log") or name == "zero_move_NG" else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
    return fake


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_the_int8_layer_that_runs_computes_what_was_trained(static, masked):
    layer = _layer()
    packed, mask = _int8(layer, static=static, masked=masked)
    x = torch.randn(2, M, K)
    fake = qat.start(layer, packed, mask)
    with torch.no_grad():
        assert torch.equal(fake(x), packed(x))  # it starts where training left off
        done = _trained(fake).pack()
        assert torch.equal(fake(x), done(x))
    assert not torch.equal(done.codes(), packed.codes())
    assert done.sparse24 == masked
    assert mask is None or (done.codes()[~mask] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 3])
def test_the_w4_layer_that_runs_computes_what_was_trained(bits, symmetric, masked):
    layer = _layer()
    packed, mask = _w4(layer, bits=bits, symmetric=symmetric, masked=masked)
    x = torch.randn(2, M, K)
    fake = qat.start(layer, packed, mask, learn_zeros=True)
    with torch.no_grad():
        assert torch.equal(fake(x), packed(x))
        done = _trained(fake).pack()
        assert torch.equal(fake(x), done(x))
    assert not torch.equal(done.weight_w4.codes_NK(), packed.weight_w4.codes_NK())
    assert done.scale_NG.dtype == torch.float16
    assert mask is None or (done.dense_weight()[~mask] == 0).all()


def test_beyond_exact_sums_it_is_within_a_step_of_float32():
    """1500 inputs: the kernel's sums are exact, those of floating codes are rounded."""
    layer = _layer(1500)
    packed, _ = _int8(layer, static=False)
    x = torch.randn(M, 1500)
    fake = qat.start(layer, packed)
    with torch.no_grad():
        torch.testing.assert_close(fake(x), fake.pack()(x), rtol=1e-6, atol=1e-6)


def test_it_starts_from_codes_that_are_not_those_of_rounding():
    """As GPTQ's: a weight goes just so far that it gets its code, and no further."""
    layer = _layer()
    near = quantise_rtn(layer.weight, 4, group=32)
    codes = near.codes_NK().clone()
    codes[1, 3] = 3 if codes[1, 3] > 7 else 12
    zero, scale = near.zero_NG, near.scale_NG
    packed = W4Linear(pack(codes, scale, zero_NG=zero, bits=4, group=32), layer.bias)
    fake = qat.start(layer, packed)
    assert torch.equal(fake.pack().weight_w4.codes_NK(), codes)
    moved = fake.weight != layer.weight
    assert moved[1, 3]
    assert moved.sum() == 1
    step = (fake.weight.detach()[1, 3] / scale[1, 0].float()) - (codes[1, 3].float() - zero[1, 0])
    assert abs(float(step)) == pytest.approx(0.49, abs=1e-4)


def test_a_scale_stays_above_zero_and_its_change_is_told():
    layer = _layer()
    packed, _ = _w4(layer)
    fake = qat.start(layer, packed)
    assert qat.scale_change(fake) == 0.0
    with torch.no_grad():
        fake.log_scale_NG.fill_(-100.0)
    assert (fake.scale_NG > 0).all()
    assert fake(torch.randn(2, K)).isfinite().all()


def test_another_width_is_refused():
    packed, _ = _int8(_layer())
    fake = qat.start(_layer(), packed)
    assert fake(torch.randn(2, K), out_features=N).shape == (2, N)
    with pytest.raises(ConfigError, match="4 outputs are requested from a compressed layer of 5"):
        fake(torch.randn(2, K), out_features=4)
