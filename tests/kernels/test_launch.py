"""Rules for every launch of a Triton kernel, in all ops."""

import contextlib

import pytest
import torch

from todm.errors import ConfigError
from todm.kernels.matmul_24 import matmul_24, pack
from todm.kernels.matmul_int8 import matmul_int8, quantise_activation, quantise_weight
from todm.kernels.matmul_w4 import matmul_w4, quantise_rtn
from todm.kernels.mh_ssm import Ssm, mh_ssm
from todm.kernels.rnnt_loss import Teacher, rnnt_loss

pytest.importorskip("triton")
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction


def _rnnt_loss(device):
    shapes = ((1, 2, 5), (1, 2, 5), (4, 5), (4,))
    tensors = [torch.randn(s, device=device).requires_grad_() for s in shapes]
    lens = [torch.tensor(x, device=device) for x in ([[1]], [2], [1])]
    teacher = Teacher(*tensors, torch.ones(1, 2, 2, device=device))
    out = rnnt_loss(*tensors, *lens, teacher=teacher, impl="triton")
    (out.loss_B + out.divergence_B).sum().backward()


def _mh_ssm(device):
    shapes = ((1, 1), (1, 1), (1, 1), (1, 1), (1,))
    ssm = Ssm(*(-torch.rand(s, device=device).requires_grad_() for s in shapes))
    mh_ssm(torch.randn(1, 3, 1, 2, device=device), ssm, impl="triton")[0].sum().backward()


def _matmul_int8(device):
    weight = quantise_weight(torch.randn(3, 8, device=device))
    for rows in (2, 5):
        matmul_int8(torch.randn(rows, 8, device=device), *weight, impl="triton")
    quantise_activation(torch.randn(2, 8, device=device), impl="triton")


def _matmul_w4(device):
    weight = quantise_rtn(torch.randn(3, 1100, device=device))
    for rows in (1, 2, 20):
        matmul_w4(torch.randn(rows, 1100, device=device), weight, impl="triton")
    matmul_w4(torch.randn(2, 1100, device=device), weight, algorithm="dense", impl="triton")


OPS = (_rnnt_loss, _mh_ssm, _matmul_int8, _matmul_w4)
CALLS = {f.__name__[1:]: f for f in OPS}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_launch_is_on_the_tensors_device(monkeypatch, device, call):
    """Triton launches on the current device, which may not be the tensors' with several GPUs."""
    current, seen = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    owner, name = (JITFunction, "run") if device == "cuda" else (GridExecutor, "__call__")
    launch = getattr(owner, name)

    def watched(*args, **kwargs):
        seen.append(bool(current) and current[-1].type == device)
        return launch(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(owner, name, watched)
    call(device)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_cpu_is_refused_outside_the_interpreter(monkeypatch, call):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"impl 'triton' runs on CUDA devices.*'cpu'"):
        call("cpu")


def test_a_backward_pass_under_autocast_keeps_its_dtypes(device):
    """Autocast around `backward` must not change the dtype in which the losses are summed."""
    grads = []
    for autocast in (False, True):
        torch.manual_seed(0)
        shapes = ((1, 3, 16), (1, 3, 16), (9, 16), (9,))
        leaves = [torch.randn(s, device=device).requires_grad_() for s in shapes]
        lens = [torch.tensor(x, device=device) for x in ([[1, 2]], [3], [2])]
        loss = rnnt_loss(*leaves, *lens, impl="triton").loss_B.sum()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss.backward()
        grads.append([x.grad for x in leaves])
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_scales_and_biases_may_have_gaps(device, impl):
    """A kernel that assumed contiguous memory would read the values in the gaps."""
    x, pairs = torch.randn(6, 8, device=device), torch.rand(5, 2, device=device) + 0.5
    codes = torch.randint(-127, 128, (5, 8), dtype=torch.int8, device=device)
    codes[:, 2:4] = codes[:, 4:6] = 0
    gaps, lines = [pairs[:, 0], pairs[:, 1]], [c.clone() for c in pairs.unbind(1)]
    for few in (x[:2], x):
        got, want = (
            matmul_int8(few, codes, scale, bias_N=bias, impl=impl) for scale, bias in (gaps, lines)
        )
        assert torch.equal(got, want)
    got, want = (
        matmul_24(x, pack(codes, scale_N=scale), bias_N=bias, impl="torch")
        for scale, bias in (gaps, lines)
    )
    assert torch.equal(got, want)
