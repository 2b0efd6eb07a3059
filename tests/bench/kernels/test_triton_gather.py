import pytest
import torch

pytest.importorskip("triton")

from todm.bench.kernels import triton_gather

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _codes(N, K):
    return torch.randint(0, 16, (N, K), dtype=torch.uint8).to(DEVICE)


# A loop bound that was a number in the kernel is an array of one in the interpreter.
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
@pytest.mark.parametrize("ordered", [True, False], ids=["in order", "act order"])
def test_groups_in_any_order(ordered, monkeypatch):
    codes = _codes(35, 64)
    words = (codes.int().unflatten(1, (8, 8)) << 4 * torch.arange(8, device=DEVICE)).sum(2).int()
    scale, zero = torch.rand(2, 35, device=DEVICE).half(), _codes(2, 35)
    group = torch.arange(64, device=DEVICE).int() // 32
    group = group if ordered else group[torch.randperm(64)]
    x = torch.randn(18, 64, device=DEVICE)
    # Uninitialised memory reads as NaN, so what is never written shows.
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    got = triton_gather.product(x, words.t().contiguous(), scale, zero, None if ordered else group)
    weight = scale.double()[group] * (codes.t().double() - zero.double()[group])
    want = x.double() @ weight
    assert got.shape == want.shape
    assert (got.double() - want).norm() / want.norm() < 2e-6
