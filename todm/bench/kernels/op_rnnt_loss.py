"""Cases of rnnt_loss, forward and backward with the joiner's output layer; distillation on every node."""

import dataclasses
import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor

from todm.bench.kernels.case import Absent, Case, Checked, Op, Subject, Work, compare
from todm.bench.kernels.linears import impls
from todm.kernels.rnnt_loss import Teacher, rnnt_loss

DISTILLED = " + distillation"
"""Ends the names of subjects that have a teacher."""
PEERS = ("torchaudio", "k2")
SHAPES = {
    "issue": {"B": 8, "T": 400, "U": 80, "V": 500, "J": 512},
    "commands": {"B": 32, "T": 70, "U": 10, "V": 96, "J": 128},
    "gpu": {"B": 32, "T": 400, "U": 80, "V": 500, "J": 512},
}
_SMALL = {"B": 3, "T": 7, "U": 4, "V": 13, "J": 24}
_ALLOWED = {"float32": 1e-4, "bfloat16": 2e-2}  # tests/kernels/test_rnnt_loss.py
_DISTILLED_ALLOWED = 1e-3
"""Float32, many nodes: where both alphas diverge equally, rounding may choose the gradient of the other."""
_PEER_ALLOWED = 2e-3
"""torchaudio computes in float32; its gradients have an error of 1.3e-4 at T = 400, U = 80."""
_CHECKED = 2
"""Utterances of the timed problem that are compared."""


def _cases(device: str) -> list[Case]:
    dtype = "bfloat16" if device == "cuda" else "float32"
    medium = {"B": 2, "T": 100, "U": 20, "V": 500, "J": 256}
    sizes = [("quick", SHAPES["commands"]), ("quick", medium), *SHAPES.items()]
    return [
        Case(op="rnnt_loss", shape=name, sizes=s, dtype=dtype, quick=name == "quick")
        for name, s in sizes
        if name != "commands" and (device == "cuda" or name != "gpu")
    ]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Positional arguments of the op, the first four with gradients, and a teacher."""

    inputs: tuple[Tensor, ...]
    teacher: Teacher
    dtype: str

    @classmethod
    def draw(cls, sizes: Mapping[str, int], *, device: str, dtype: str) -> "Problem":
        """Normal numbers from one seed; all utterances have the full length."""
        B, T, U, V, J = (sizes[k] for k in "BTUVJ")
        draws = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = torch.randn(shape, generator=draws) * scale
            return drawn.to(device).requires_grad_()

        parts = normal(B, T, J), normal(B, U + 1, J), normal(V, J, scale=J**-0.5)
        bias_V = normal(V, scale=0.1)
        targets_BU = torch.randint(1, V, (B, U), generator=draws).to(device)
        inputs = *parts, bias_V, targets_BU, torch.full((B,), T), torch.full((B,), U)
        # Every node has a weight: the most work that distillation can need.
        ones = torch.ones(B, T, U + 1, device=device)
        teacher = Teacher(*(x.detach() * 0.9 for x in inputs[:4]), occupancy=ones)
        return cls(inputs, teacher, dtype)

    def run(self, name: str, *, first: int | None = None) -> tuple[Tensor, ...]:
        """Loss and divergence of the `first` utterances, and the gradients of their sum."""
        impl, _, distilled = name.partition(" + ")
        teacher = self.teacher if distilled else None
        kind = self.inputs[0].device.type
        # Peers do not support bfloat16 and require float32.
        enabled = self.dtype == "bfloat16" and impl not in PEERS
        with torch.autocast(kind, torch.bfloat16, enabled=enabled):
            out = rnnt_loss(*self.inputs, teacher=teacher, impl=impl)
            losses_B, divergences_B = out.loss_B[:first], out.divergence_B[:first]
            total = losses_B.sum() + divergences_B.sum()
        grads = torch.autograd.grad(total, self.inputs[:4])
        return losses_B, divergences_B, *grads

    def wide(self, count: int | None = None) -> "Problem":
        """The first utterances, in float64."""
        enc, pred, weight, bias, *rest = self.inputs
        floats = [x.detach().double() for x in (enc[:count], pred[:count], weight, bias)]
        t = self.teacher
        assert t.occupancy is not None
        given = (t.enc_BTJ[:count], t.pred_BUJ[:count], t.weight_VJ, t.bias_V)
        teacher = Teacher(*(x.double() for x in given), occupancy=t.occupancy[:count].double())
        inputs = (*(x.requires_grad_() for x in floats), *(x[:count] for x in rest))
        return Problem(inputs, teacher, "float64")

    def check(self, name: str) -> Checked:
        """`check_small`, then the timed problem.

        The reference visits nodes one by one. The first utterances of the timed problem are therefore
        compared with `torch` in float64, which the small lattice and the tests compare with the reference.
        """
        small = self.check_small(name)
        if name == "k2" or not small.passed:  # pruned: only a bound, except on small lattices
            return small
        return self._compare(name, oracle="torch", count=_CHECKED)

    def check_small(self, name: str) -> Checked:
        """Losses and every gradient on a small lattice against the reference."""
        kind = self.inputs[0].device.type
        small = Problem.draw(_SMALL, device=kind, dtype=self.dtype)
        return small._compare(name, oracle="reference", count=None)

    def _compare(self, name: str, *, oracle: str, count: int | None) -> Checked:
        impl, _, teacher = name.partition(" + ")
        loss, divergence, enc, pred, *grads = self.run(name, first=count)
        want = self.wide(count).run(name.replace(impl, oracle, 1))
        allowed = _PEER_ALLOWED if impl in PEERS else _ALLOWED[self.dtype]
        if teacher and count is not None:
            allowed = max(allowed, _DISTILLED_ALLOWED)
        got = (loss, divergence, enc[:count], pred[:count], *grads)
        return compare(got, want, allowed=allowed, whole=[enc, pred])


def _subjects(case: Case, device: str) -> list[Subject | Absent]:
    problem = Problem.draw(case.sizes, device=device, dtype=case.dtype)
    first, *others = impls(device)
    names = (first, first + DISTILLED, *others, *PEERS)
    return [_subject(problem, case, name) for name in names]


def _subject(problem: Problem, case: Case, name: str) -> Subject | Absent:
    if name in PEERS and importlib.util.find_spec(name) is None:
        return Absent(name, f"{name} is not installed")
    unit = "float32" if name in PEERS else case.dtype
    return Subject(
        name=name,
        run=lambda: problem.run(name),
        check=lambda: problem.check(name),
        work=_work(case.sizes["U"], problem.inputs, teacher=DISTILLED in name, unit=unit),
        ours=name not in PEERS,
    )


def _work(num_labels: int, inputs: tuple[Tensor, ...], *, teacher: bool, unit: str) -> Work:
    """6 N J V for the output layer's three products, 2 N J V more for a teacher's logits."""
    enc, pred, weight = inputs[:3]
    nodes = enc.shape[0] * enc.shape[1] * (num_labels + 1)
    flops = (8.0 if teacher else 6.0) * nodes * weight.numel()
    # Each input is read and its gradient written; a teacher's inputs are only read.
    moved = (3 if teacher else 2) * sum(x.nbytes for x in (enc, pred, weight))
    return Work(flops=flops, bytes=float(moved), unit=unit)


OP = Op("rnnt_loss", _cases, _subjects, baseline="torchaudio")
