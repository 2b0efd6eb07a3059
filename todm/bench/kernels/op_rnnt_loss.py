"""Cases of rnnt_loss, forward and backward with the joiner's output layer; distillation on every node."""

import dataclasses
import importlib.util

import torch
from torch import Tensor

from benchmarks.studies.rnnt_loss import SHAPES, make_inputs
from todm.bench.kernels.case import Absent, Case, Checked, Op, Subject, Work, compare
from todm.bench.kernels.linears import impls
from todm.kernels.rnnt_loss import Teacher, rnnt_loss

DISTILLED = " + distillation"
"""Ends the names of subjects that have a teacher."""
_PEERS = ("torchaudio", "k2")
_SMALL = {"B": 3, "T": 7, "U": 4, "V": 13, "J": 24}
_ALLOWED = {"float32": 1e-4, "bfloat16": 2e-2}  # tests/kernels/test_rnnt_loss.py
_DISTILLED_ALLOWED = 1e-3
"""Float32, many nodes: where both alphas diverge alike, rounding takes the other one's gradient."""
_PEER_ALLOWED = 2e-3
"""torchaudio's gradients are 1.3e-4 off at T = 400, U = 80; they are float32 throughout."""
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
class _Problem:
    """Positional arguments of the op, the first four with gradients, and a teacher."""

    inputs: tuple[Tensor, ...]
    teacher: Teacher
    dtype: str

    @classmethod
    def draw(cls, sizes: dict[str, int], *, device: str, dtype: str) -> "_Problem":
        inputs = make_inputs(**sizes, device=device)
        # Every node weighs: the most work that distillation can ask for.
        ones = torch.ones(sizes["B"], sizes["T"], sizes["U"] + 1, device=device)
        teacher = Teacher(*(x.detach() * 0.9 for x in inputs[:4]), occupancy=ones)
        return cls(inputs, teacher, dtype)

    def run(self, name: str, *, first: int | None = None) -> tuple[Tensor, ...]:
        """Loss and divergence of each utterance, and the gradients of the sum over the `first` ones."""
        impl, _, distilled = name.partition(" + ")
        teacher = self.teacher if distilled else None
        kind = self.inputs[0].device.type
        # Peers know no bfloat16 and ask for float32.
        enabled = self.dtype == "bfloat16" and impl not in _PEERS
        with torch.autocast(kind, torch.bfloat16, enabled=enabled):
            out = rnnt_loss(*self.inputs, teacher=teacher, impl=impl)
            losses_B, divergences_B = out.loss_B[:first], out.divergence_B[:first]
            total = losses_B.sum() + divergences_B.sum()
        grads = torch.autograd.grad(total, self.inputs[:4])
        return losses_B, divergences_B, *grads

    def wide(self, count: int | None = None) -> "_Problem":
        """The first utterances, in float64."""
        enc, pred, weight, bias, *rest = self.inputs
        floats = [x.detach().double() for x in (enc[:count], pred[:count], weight, bias)]
        t = self.teacher
        assert t.occupancy is not None
        given = (t.enc_BTJ[:count], t.pred_BUJ[:count], t.weight_VJ, t.bias_V)
        teacher = Teacher(*(x.double() for x in given), occupancy=t.occupancy[:count].double())
        inputs = (*(x.requires_grad_() for x in floats), *(x[:count] for x in rest))
        return _Problem(inputs, teacher, "float64")

    def check(self, name: str) -> Checked:
        """Every gradient on a small lattice against the reference, then on the timed one.

        The reference visits nodes one by one, so that in the timed problem the first utterances are
        held against `torch` in float64, which the small lattice and the tests hold against the reference.
        """
        kind = self.inputs[0].device.type
        small = _Problem.draw(_SMALL, device=kind, dtype=self.dtype)
        found = [self._against(small, name, oracle="reference", count=None)]
        if name != "k2":  # pruned: a bound and not the loss on all but small lattices
            found.append(self._against(self, name, oracle="torch", count=_CHECKED))
        return next((c for c in found if not c.passed), found[-1])

    def _against(
        self, problem: "_Problem", name: str, *, oracle: str, count: int | None
    ) -> Checked:
        impl, _, teacher = name.partition(" + ")
        loss, divergence, enc, pred, *grads = problem.run(name, first=count)
        want = problem.wide(count).run(name.replace(impl, oracle, 1))
        allowed = _PEER_ALLOWED if impl in _PEERS else _ALLOWED[self.dtype]
        if teacher and count is not None:
            allowed = max(allowed, _DISTILLED_ALLOWED)
        got = (loss, divergence, enc[:count], pred[:count], *grads)
        return compare(got, want, allowed=allowed, whole=[enc, pred])


def _subjects(case: Case, device: str) -> list[Subject | Absent]:
    problem = _Problem.draw(dict(case.sizes), device=device, dtype=case.dtype)
    first, *others = impls(device)
    names = (first, first + DISTILLED, *others, *_PEERS)
    return [_subject(problem, case, name) for name in names]


def _subject(problem: _Problem, case: Case, name: str) -> Subject | Absent:
    if name in _PEERS and importlib.util.find_spec(name) is None:
        return Absent(name, f"{name} is not installed")
    unit = "float32" if name in _PEERS else case.dtype
    return Subject(
        name=name,
        run=lambda: problem.run(name),
        check=lambda: problem.check(name),
        work=_work(case.sizes["U"], problem.inputs, teacher=DISTILLED in name, unit=unit),
        ours=name not in _PEERS,
    )


def _work(num_labels: int, inputs: tuple[Tensor, ...], *, teacher: bool, unit: str) -> Work:
    """6 N J V of the output layer's three products, 2 N J V more for a teacher's logits."""
    enc, pred, weight = inputs[:3]
    nodes = enc.shape[0] * enc.shape[1] * (num_labels + 1)
    flops = (8.0 if teacher else 6.0) * nodes * weight.numel()
    # Read, and a gradient written for each; a teacher's are read.
    moved = (3 if teacher else 2) * sum(x.nbytes for x in (enc, pred, weight))
    return Work(flops=flops, bytes=float(moved), unit=unit)


OP = Op("rnnt_loss", _cases, _subjects, baseline="torchaudio")
