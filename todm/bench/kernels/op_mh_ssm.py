"""Cases of mh_ssm, forward and backward, beside the convolution by FFT.

Letters as in `todm.kernels.mh_ssm`: H heads, T frames, B sequences, P channels per head, N modes.
"""

import dataclasses
import functools

import torch
from torch import Tensor

from todm.bench.kernels.case import Absent, Case, Checked, Op, Subject, Work, compare
from todm.bench.kernels.fft_ssm import fft_convolution
from todm.bench.kernels.linears import impls
from todm.kernels.mh_ssm import Ssm, discretise, mh_ssm

# 32 heads of 16 channels are the largest mixer of `full960`; 128 are 2048 channels.
_HEADS = {"encoder-512": 32, "encoder-1024": 64, "encoder-2048": 128}
_FRAMES = (512, 1024, 2048, 4096)
_ALLOWED = {"float32": 1e-4, "bfloat16": 2e-2}  # tests/kernels/test_mh_ssm.py
_FLOPS = 10
"""Of a frame, channel and mode: x' = a x + u takes 7 and the output 3; the backward pass twice that."""


def _cases(device: str) -> list[Case]:
    quick = [_case("quick", H=4, T=T, B=2) for T in (512, 1024)]
    if device == "cpu":
        return quick + [_case("encoder-512", H=32, T=T, B=2) for T in (512, 1024)]
    return quick + [
        _case(name, H=H, T=T, B=32 if name == "encoder-512" else 8, dtype=dtype)
        for name, H in _HEADS.items()
        for T in _FRAMES
        for dtype in ("float32", "bfloat16")
    ]


def _case(shape: str, *, H: int, T: int, B: int, dtype: str = "float32") -> Case:
    sizes = {"H": H, "T": T, "B": B, "P": 16, "N": 16}
    return Case(op="mh_ssm", shape=shape, sizes=sizes, dtype=dtype, quick=shape == "quick")


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Inputs and cotangent; u and the parameters, which are float32, require gradients."""

    u_HTBP: Tensor
    ssm: Ssm
    dy_HTBP: Tensor

    @classmethod
    def draw(cls, case: Case, device: str) -> "_Problem":
        draw = torch.Generator(device).manual_seed(0)
        H, T, B, P, N = case.sizes.values()

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, device=device)

        # An encoder's initial values: S4D-Lin's poles and time steps of 4e-3 to 6e-2.
        log_dt_H = torch.linspace(-5.5, -2.8, H, device=device)
        poles_HN = torch.full((H, N), -0.7, device=device)
        im_HN = (torch.pi * torch.arange(N, device=device)).expand(H, N)
        ssm = discretise(log_dt_H, poles_HN, im_HN, normal(H, N, 2), normal(H))
        parameters = Ssm(*(p.detach().requires_grad_() for p in ssm))
        u, dy = (normal(H, T, B, P).to(getattr(torch, case.dtype)) for _ in range(2))
        return cls(u.requires_grad_(), parameters, dy)

    def run(self, impl: str) -> tuple[Tensor, ...]:
        """Output and all gradients of one of our implementations, or of the FFT."""
        if impl == "FFT":
            y = fft_convolution(self.u_HTBP.float(), self.ssm).to(self.u_HTBP.dtype)
        else:
            y = mh_ssm(self.u_HTBP, self.ssm, impl=impl)[0]
        return (y, *torch.autograd.grad(y, (self.u_HTBP, *self.ssm), self.dy_HTBP))

    def check(self, impl: str, *, allowed: float) -> Checked:
        """Run all sequences, as in the timed call, but compare only the first.

        The cotangent is zero for the others, so that gradients of parameters come from the first sequence.
        """
        first = torch.zeros_like(self.dy_HTBP)
        first[:, :, :1] = self.dy_HTBP[:, :, :1]
        y, du, *rest = dataclasses.replace(self, dy_HTBP=first).run(impl)
        alone = (y[:, :, :1], du[:, :, :1], *rest)
        return compare(alone, self._reference, allowed=allowed, whole=[y, du])

    @functools.cached_property
    def _reference(self) -> tuple[Tensor, ...]:
        def wide(x: Tensor) -> Tensor:
            return x.detach().double().requires_grad_()

        u, ssm = wide(self.u_HTBP[:, :, :1]), Ssm(*(wide(p) for p in self.ssm))
        y = mh_ssm(u, ssm, impl="reference")[0]
        dy = self.dy_HTBP[:, :, :1].double()
        return (y, *torch.autograd.grad(y, (u, *ssm), dy))


def _subjects(case: Case, device: str) -> list[Subject | Absent]:
    problem, allowed = _Problem.draw(case, device), _ALLOWED[case.dtype]
    u = problem.u_HTBP
    # Forward reads u and writes y; backward reads u and dy and writes du.
    work = Work(
        flops=3.0 * _FLOPS * u.numel() * case.sizes["N"],
        bytes=5.0 * u.nbytes,
        unit="float32" if device == "cpu" else "tf32",
    )
    return [
        Subject(
            name=name,
            run=lambda name=name: problem.run(name),
            check=lambda name=name: problem.check(name, allowed=allowed),
            work=work,
            ours=name != "FFT",
            graph=True,
        )
        for name in (*impls(device), "FFT")
    ]


OP = Op("mh_ssm", _cases, _subjects, baseline="FFT")
