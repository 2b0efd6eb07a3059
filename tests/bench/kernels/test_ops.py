"""The checks of the real ops pass, and can fail."""

import dataclasses

import pytest
import torch

from tests.bench.kernels.made_up import case_of
from todm.bench.kernels import op_matmul_w4, op_mh_ssm, op_rnnt_loss, run
from todm.bench.kernels.case import Subject, compare, peer
from todm.bench.kernels.linears import Layer


def test_a_nan_anywhere_fails():
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert compare([one], [one], allowed=0.0).passed
    assert not compare([one, nan, one], [one] * 3, allowed=9.0).passed
    assert not compare([one], [one], allowed=9.0, whole=[nan]).passed


@pytest.mark.parametrize("name", list(run.OPS))
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
def test_every_subject_of_the_smallest_case_passes(name, device):
    op = run.OPS[name]
    case = next(c for c in op.cases(device) if c.quick)
    subjects = [s for s in op.subjects(case, device) if isinstance(s, Subject)]
    assert {op.baseline} < {s.name for s in subjects}
    found = {s.name: s.check() for s in subjects}
    assert [name for name, checked in found.items() if not checked.passed] == []
    assert all(s.work.flops > 0 and s.work.bytes > 0 for s in subjects)


def _failed(op, case, name):
    subject = next(s for s in op.subjects(case, "cpu") if s.name == name)
    return not subject.check().passed


def test_the_check_of_a_layer_sees_one_wrong_output():
    layer = Layer.draw(case_of(M=16, N=32, K=32), "cpu")

    def off():
        y = layer.x_MK @ layer.weight_NK.t()
        y[-1, -1] += 1
        return y

    assert not layer.check(off, layer.product(layer.weight_NK)).passed


def test_the_check_of_mh_ssm_sees_a_wrong_gradient(monkeypatch):
    def wrong(u, ssm):
        return op_fft(u, ssm._replace(angle_HN=ssm.angle_HN.detach() + 0 * ssm.angle_HN))

    op_fft = op_mh_ssm.fft_convolution
    case = dataclasses.replace(
        next(iter(op_mh_ssm.OP.cases("cpu"))), sizes={**dict.fromkeys("HTBPN", 4)}
    )
    assert not _failed(op_mh_ssm.OP, case, "FFT")
    monkeypatch.setattr(op_mh_ssm, "fft_convolution", wrong)
    assert _failed(op_mh_ssm.OP, case, "FFT")


def test_the_check_of_rnnt_loss_sees_a_wrong_gradient(monkeypatch):
    def wrong(enc, *rest, impl, **options):
        frozen = enc.detach() + 0 * enc if impl == "torchaudio" else enc
        return op_rnnt(frozen, *rest, impl=impl, **options)

    op_rnnt = op_rnnt_loss.rnnt_loss
    case = dataclasses.replace(case_of("rnnt_loss"), sizes={"B": 2, "T": 6, "U": 3, "V": 9, "J": 8})
    monkeypatch.setattr(op_rnnt_loss, "rnnt_loss", wrong)
    assert not _failed(op_rnnt_loss.OP, case, "torch + distillation")
    assert _failed(op_rnnt_loss.OP, case, "torchaudio")


def test_a_peer_is_absent_with_its_reason():
    def refuse():
        raise RuntimeError("needs compute capability 9.0\n(stack)")

    assert peer("x", "no_such_package", refuse).reason == "no_such_package is not installed"
    assert peer("x", "torch", refuse).reason == "needs compute capability 9.0"


def test_words_of_the_gathering_kernel_hold_eight_inputs():
    codes = torch.randint(0, 16, (3, 32), dtype=torch.uint8)
    words = op_matmul_w4.words(codes)
    assert words.shape == (4, 3)
    back = torch.stack([words[k // 8] >> 4 * (k % 8) & 15 for k in range(32)], 1)
    assert torch.equal(back.to(torch.uint8), codes)
