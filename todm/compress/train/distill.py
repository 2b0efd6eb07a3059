"""The mixed distillation of passes that train (GPUSQ-ViT, arXiv 2305.10727).

    loss = hard * L_hard + soft * L_soft + feature * sum_i w_i |F_t - F_s|^2 / (|F_t|^2 + eps)

L_hard is against labels (hard = 0: the unsupervised form) and L_soft against the dense teacher's
outputs; the modality computes both. F are outputs of chosen blocks i of teacher and student. The distance is
relative to the teacher's power (SquareHead, arXiv 2310.06927), so that one weight serves all models.
The blocks are those with the largest distance before training, instead of the paper's class activation
maps, for models without classes. In the second stage, that of quantisation, a block weighs

    w_i = |C| l_i / sum_j l_j,    from 0.25 to 4

by the distance l_i that the first stage left.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from todm.compress.adapter import ModelAdapter
from todm.compress.config import TuneConfig
from todm.errors import ConfigError

_EPS = 1e-8
_LEAST, _MOST = 0.25, 4.0


class Taps:
    """Inside, records the outputs of some modules of a model, call by call."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Args: names of modules; of an output that is a tuple the first part is recorded."""
        self.outputs: dict[str, list[Tensor]] = {name: [] for name in names}
        self._model, self._stack = model, ExitStack()

    def __enter__(self) -> Self:
        for name, kept in self.outputs.items():

            def keep(
                _module: nn.Module, _args: object, output: object, kept: list[Tensor] = kept
            ) -> None:
                first = output[0] if isinstance(output, tuple) else output
                assert isinstance(first, Tensor)
                kept.append(first)

            hook = self._model.get_submodule(name).register_forward_hook(keep)
            self._stack.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, *, dim: int = -1) -> Tensor:
    """T^2 KL(teacher || student) of logits divided by T (Hinton et al., arXiv 1503.02531, 2.1).

    A sum over the classes `dim`, a mean over the rest.
    """
    target = (teacher / temperature).log_softmax(dim)
    guess = (student / temperature).log_softmax(dim)
    return temperature**2 * (target.exp() * (target - guess)).sum(dim).mean()


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """|F_t - F_s|^2 / (|F_t|^2 + eps), a scalar; no gradient goes to the teacher."""
    wanted = teacher.detach().float()
    return (wanted - student.float()).square().sum() / (wanted.square().sum() + _EPS)


def distances(teacher: Taps, student: Taps) -> dict[str, Tensor]:
    """The distance at every module, a mean over its calls."""
    by_name: dict[str, Tensor] = {}
    for name, wanted in teacher.outputs.items():
        pairs = list(zip(wanted, student.outputs[name], strict=True))
        assert pairs, f"{name} was not called"
        by_name[name] = torch.stack([distance(t, s) for t, s in pairs]).mean()
    return by_name


@torch.no_grad()
def residuals(
    adapter: ModelAdapter,
    student: nn.Module,
    teacher: nn.Module,
    *,
    batches: Sequence[Any],
    names: Sequence[str],
) -> dict[str, float]:
    """The distance at every block, a mean over calibration batches."""
    sums = dict.fromkeys(names, 0.0)
    for batch in batches:
        with Taps(teacher, names) as wanted, Taps(student, names) as got:
            adapter.run(teacher, batch)
            adapter.run(student, batch)
        for name, value in distances(wanted, got).items():
            sums[name] += float(value) / len(batches)
    return sums


def choose(residual: Mapping[str, float], share: float) -> list[str]:
    """The share of blocks with the largest residuals, at least one unless it is 0; in their order."""
    count = min(len(residual), math.ceil(share * len(residual) - 1e-9))
    best = sorted(residual, key=lambda name: -residual[name])[:count]
    return [name for name in residual if name in best]


def weights(left: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """w_i of the chosen blocks, from the residuals after an earlier stage."""
    total = sum(left[name] for name in names)
    if not total > 0:
        return dict.fromkeys(names, 1.0)
    raw = {name: len(names) * left[name] / total for name in names}
    return {name: min(max(w, _LEAST), _MOST) for name, w in raw.items()}


class Distiller:
    """The loss of a student, and its terms."""

    def __init__(
        self,
        adapter: ModelAdapter,
        student: nn.Module,
        *,
        teacher: nn.Module,
        config: TuneConfig,
        blocks: Mapping[str, float],
    ) -> None:
        """Args: blocks are those to be mimicked, with their weights w_i."""
        self.adapter, self.student, self.config = adapter, student, config
        self.blocks = dict(blocks) if config.feature else {}
        self.teacher = teacher if config.soft or self.blocks else None

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:  # noqa: ANN401 - the modality's
        """The loss to go backward from, and its terms before they are weighted.

        Raises:
            ConfigError: the data has no labels and no other term has a weight.
        """
        config = self.config
        with ExitStack() as stack:
            taps = [
                stack.enter_context(Taps(model, self.blocks))
                for model in (self.teacher, self.student)
                if model is not None and self.blocks
            ]
            terms = self.adapter.losses(
                batch, self.student, self.teacher, temperature=config.temperature
            )
        if taps:
            by_block = distances(*taps)
            terms["feature"] = torch.stack([by_block[n] * w for n, w in self.blocks.items()]).sum()
        scales = {"hard": config.hard, "soft": config.soft, "feature": config.feature}
        parts = [scales[name] * term for name, term in terms.items() if scales[name]]
        if not parts:
            raise ConfigError(
                "nothing is left to train for: without labels, tune.soft or tune.feature must be "
                "above 0"
            )
        figures = {name: float(term.detach()) for name, term in terms.items()}
        return torch.stack(parts).sum(), figures
