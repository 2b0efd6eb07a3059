"""ScaledAdam, and AdamW as its baseline, behind one interface.

ScaledAdam is Adam with steps relative to the size of each tensor, and which learns that size as well
(Yao et al., Zipformer, arXiv 2310.11230). Per tensor p with gradient g at step k:

    v <- b2 v + (1 - b2) g^2
    d = -lr max(rms, min_rms) g / (sqrt(v / (1 - b2^k)) + eps)
    every 4th step, with s_k = sum(p g) of the last four:
        u <- b2^4 u + (1 - b2^4) mean(s^2)
        a = -0.1 lr sqrt(1 - (b2^4)^(k/4)) sum(s) / (sqrt(u) + eps)
        a clamped to +-0.1, 0 if rms < min_rms, at most (max_rms - rms) / rms
        d <- d + a p
    m <- b1 m + (1 - b1) d
    p <- p + m

rms is that of the whole tensor, refreshed every 4th step. Tensors of one element use 0.1 instead of
rms, have no size update, and stay within +-10. A missing gradient counts as zeros: moments decay and
momentum still moves the weights.

The limit (max - rms) / rms pulls every tensor down to an rms of 3, which would destroy tensors that
are meant to be large (the frequencies and time scales of a state-space layer). Parameters with the
attribute `_plain_adam = True` therefore go to a group of ordinary Adam, see `param_groups`.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from todm.compress.config import TuneConfig
from todm.config import Config
from todm.train.guards import GuardedOptimizer, MedianClip

SIZE_PERIOD = 4
SCALAR_MAX = 10.0
SSM_RATIO = 40  # of the default `lr` to the default `ssm_lr`


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """Peak learning rates and the settings of the optimizer.

    `lr` is that of scaled_adam, relative to a tensor's rms; `adamw_lr` is absolute, so that one
    setting, `name`, changes the optimizer. `ssm_lr` is that of the plain Adam group in both.
    `clipping_scale` (scaled_adam) is a multiple of the median gradient norm, `clip_norm` (adamw) an
    absolute norm; 0 turns either off. `min_rms` is the least size a tensor is counted with, so that
    tensors that start as zeros grow.
    """

    name: Literal["scaled_adam", "adamw"] = "scaled_adam"
    lr: float = 0.04
    adamw_lr: float = 1e-3
    ssm_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    clipping_scale: float = 2.0
    min_rms: float = 1e-5
    max_rms: float = 3.0
    weight_decay: float = 1e-2
    clip_norm: float = 5.0

    def __post_init__(self) -> None:
        positive = ("lr", "adamw_lr", "ssm_lr", "eps", "min_rms", "max_rms")
        self.check("optim", positive, holds=lambda v: v > 0, allowed="it must be above 0")
        others = ("clipping_scale", "weight_decay", "clip_norm")
        self.check("optim", others, holds=lambda v: v >= 0, allowed="it must not be negative")
        allowed = "two values in [0, 1) are needed"
        self.check("optim", ("betas",), holds=lambda v: 0 <= min(v) <= max(v) < 1, allowed=allowed)


def build_optimizer(config: OptimConfig, model: nn.Module) -> "ScaledAdam | ClippedAdamW":
    """The optimizer of a model, its parameters sorted into groups by `param_groups`."""
    groups = param_groups(config, model)
    if config.name == "adamw":
        return ClippedAdamW(groups, betas=config.betas, eps=config.eps, clip_norm=config.clip_norm)
    return ScaledAdam(
        groups,
        config.lr,
        betas=config.betas,
        eps=config.eps,
        clipping_scale=config.clipping_scale,
        min_rms=config.min_rms,
        max_rms=config.max_rms,
    )


def for_tuning(model: nn.Module, config: TuneConfig) -> "ScaledAdam | ClippedAdamW":
    """ScaledAdam for the training passes of `todm.compress`, which clip gradients themselves."""
    plain = config.lr / SSM_RATIO
    scaled = OptimConfig(lr=config.lr, ssm_lr=plain, clipping_scale=0.0)
    return build_optimizer(scaled, model)


def param_groups(config: OptimConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Named groups: ordinary parameters (AdamW: with and without weight decay), then plain Adam ones."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [item for item in named if getattr(item[1], "_plain_adam", False)]
    rest = [item for item in named if not getattr(item[1], "_plain_adam", False)]
    ssm = {"params": plain, "lr": config.ssm_lr, "weight_decay": 0.0, "plain": True}
    if config.name == "scaled_adam":
        groups = [{"params": rest, "lr": config.lr, "plain": False}, ssm]
    else:
        matrices = [item for item in rest if item[1].ndim > 1]
        vectors = [item for item in rest if item[1].ndim <= 1]
        groups = [
            {"params": matrices, "lr": config.adamw_lr, "weight_decay": config.weight_decay},
            {"params": vectors, "lr": config.adamw_lr, "weight_decay": 0.0},
            ssm,
        ]
    return [group for group in groups if group["params"]]


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak (`base_lr`)."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class ScaledAdam(GuardedOptimizer):
    """Adam with steps relative to the size of each tensor, see the head of this file.

    `last_norm` weights each tensor's gradient with its rms and leaves plain groups out; the factor of
    `MedianClip` applies to all groups.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.03,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        clipping_scale: float = 2.0,
        min_rms: float = 1e-5,
        max_rms: float = 3.0,
        scalar_lr_scale: float = 0.1,
    ) -> None:
        """Take named parameters, or groups of them; a group with `plain=True` is ordinary Adam."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "plain": False, "step": 0}
        sizes = {"min_rms": min_rms, "max_rms": max_rms, "scalar_lr_scale": scalar_lr_scale}
        super().__init__(params, defaults | sizes)
        self._setup()
        self._clip = MedianClip(clipping_scale)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one update of all groups, or none if a gradient is not finite or their norm too large."""
        if closure is not None:
            raise TypeError("ScaledAdam.step takes no closure")
        grads = [[_grad(p) for p in group["params"]] for group in self.param_groups]
        measured, finite = self._measure(grads)
        norm = self._norm(measured)
        if not finite or self._refuses(norm):
            self.skip(norm if finite else math.nan)
            return
        clip = self._clip.factor(norm)
        self.after_clip(clip)
        for group, grad, values in zip(self.param_groups, grads, measured, strict=True):
            if group["plain"]:
                self._plain_step(group, grad, clip)
            else:
                self._scaled_step(group, grad, clip, dots=values["dots"], sizes=values["sizes"])
            group["step"] += 1
        self._accept(norm, clip)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, keyed by parameter name."""
        return {**super().state_dict(), "clip": {**vars(self._clip)}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state_dict)
        vars(self._clip).update({k: v for k, v in state_dict["clip"].items() if k != "scale"})

    def _measure(self, grads: list[list[Tensor]]) -> tuple[list[dict[str, list[float]]], bool]:
        """Per group and tensor |g|, sum(p g) and, when due, |p|, in one transfer to the host."""
        lists: list[list[Tensor]] = []
        for group, grad in zip(self.param_groups, grads, strict=True):
            params, scaled = group["params"], not group["plain"]
            flat = zip(params, grad, strict=True) if scaled else ()
            dots = [torch.dot(p.reshape(-1), g.reshape(-1)) for p, g in flat]
            due = scaled and (group["step"] == 0 or _is_size_step(group["step"]))
            sizes = torch._foreach_norm(params) if due else []
            lists += [list(torch._foreach_norm(grad)), dots, list(sizes)]
        values = torch.stack([t for part in lists for t in part]).tolist()
        at, parts = 0, []
        for part in lists:
            parts.append(values[at : at + len(part)])
            at += len(part)
        named = [
            {"norms": parts[i], "dots": parts[i + 1], "sizes": parts[i + 2]}
            for i in range(0, len(parts), 3)
        ]
        return named, math.isfinite(sum(values))

    def _norm(self, measured: list[dict[str, list[float]]]) -> float:
        """The norm of gradients in units of each tensor's own size; plain groups are left out."""
        total = 0.0
        for group, values in zip(self.param_groups, measured, strict=True):
            if group["plain"]:
                continue
            if group["step"] == 0:
                self._init_scaled(group, values["sizes"])
            for p, norm in zip(group["params"], values["norms"], strict=True):
                size = self.state[p]["rms"] if p.numel() > 1 else group["scalar_lr_scale"]
                total += norm * size * norm * size
        return math.sqrt(total)

    def _init_scaled(self, group: dict[str, Any], sizes: list[float]) -> None:
        for p, size in zip(group["params"], sizes, strict=True):
            state = self.state[p]
            state["momentum"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["rms"] = size / math.sqrt(p.numel())
            state["scale_sum"], state["scale_sumsq"], state["scale_square"] = 0.0, 0.0, 0.0

    def _scaled_step(
        self,
        group: dict[str, Any],
        grads: list[Tensor],
        clip: float,
        *,
        dots: list[float],
        sizes: list[float],
    ) -> None:
        params, states = group["params"], [self.state[p] for p in group["params"]]
        momentum, squares = [s["momentum"] for s in states], [s["square"] for s in states]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(momentum, beta1)
        for state, dot in zip(states, dots, strict=True):
            state["scale_sum"] += clip * dot
            state["scale_sumsq"] += clip * dot * clip * dot
        if _is_size_step(group["step"]):
            scales = [
                (1 - beta1) * _size_step(group, state, p.numel(), size)
                for p, state, size in zip(params, states, sizes, strict=True)
            ]
            torch._foreach_add_(momentum, torch._foreach_mul(params, scales))
        denominators = _denominators(group, squares, grads, clip)
        rate = -group["lr"] * (1 - beta1) * clip * math.sqrt(1 - beta2 ** (group["step"] + 1))
        rates = [rate * _relative(group, p, s) for p, s in zip(params, states, strict=True)]
        torch._foreach_addcdiv_(momentum, grads, denominators, rates)
        torch._foreach_add_(params, momentum)
        for p in params:
            if p.numel() == 1:
                p.clamp_(-SCALAR_MAX, SCALAR_MAX)

    def _plain_step(self, group: dict[str, Any], grads: list[Tensor], clip: float) -> None:
        """Adam with both bias corrections and no weight decay."""
        params = group["params"]
        if group["step"] == 0:
            for p in params:
                self.state[p]["mean"] = torch.zeros_like(p)
                self.state[p]["square"] = torch.zeros_like(p)
        means = [self.state[p]["mean"] for p in params]
        (beta1, beta2), step = group["betas"], group["step"] + 1
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=(1 - beta1) * clip)
        squares = [self.state[p]["square"] for p in params]
        denominators = _denominators(group, squares, grads, clip)
        rate = -group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        torch._foreach_addcdiv_(params, means, denominators, value=rate)


class ClippedAdamW(GuardedOptimizer, torch.optim.AdamW):
    """AdamW that clips by the global norm and skips steps with non-finite gradients."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        clip_norm: float = 5.0,
    ) -> None:
        """Take named parameters, or groups of them."""
        torch.optim.AdamW.__init__(self, params, lr=lr, betas=betas, eps=eps, foreach=True)
        self._setup()
        self._clip_norm = clip_norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one update of all groups, or none if a gradient is not finite or their norm too large."""
        if closure is not None:
            raise TypeError("ClippedAdamW.step takes no closure")
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(grads)).norm().item() if grads else 0.0
        if self._refuses(norm):
            self.skip(norm)
            return
        clip = min(1.0, self._clip_norm / max(norm, 1e-20)) if self._clip_norm else 1.0
        if clip < 1:
            torch._foreach_mul_(grads, clip)
        self.after_clip(1.0)
        torch.optim.AdamW.step(self)
        self._accept(norm, clip)


def _grad(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _is_size_step(step: int) -> bool:
    return step % SIZE_PERIOD == SIZE_PERIOD - 1


def _relative(group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> float:
    """The size that the step of a tensor is relative to."""
    return max(state["rms"], group["min_rms"]) if p.numel() > 1 else group["scalar_lr_scale"]


def _size_step(group: dict[str, Any], state: dict[str, Any], numel: int, size: float) -> float:
    """The relative change of a tensor's size, from the last four sums of p g; refreshes its rms."""
    state["rms"] = rms = size / math.sqrt(numel)
    total, mean = state["scale_sum"], state["scale_sumsq"] / SIZE_PERIOD
    state["scale_sum"], state["scale_sumsq"] = 0.0, 0.0
    if numel == 1:
        return 0.0
    beta = group["betas"][1] ** SIZE_PERIOD
    state["scale_square"] = beta * state["scale_square"] + (1 - beta) * mean
    bias = math.sqrt(1 - beta ** ((group["step"] + 1) // SIZE_PERIOD))
    rate = group["lr"] * group["scalar_lr_scale"]
    change = -rate * bias * total / (math.sqrt(state["scale_square"]) + group["eps"])
    change = 0.0 if rms < group["min_rms"] else min(max(change, -0.1), 0.1)
    return min(change, (group["max_rms"] - rms) / max(rms, 1e-20))


def _denominators(
    group: dict[str, Any], squares: list[Tensor], grads: list[Tensor], clip: float
) -> list[Tensor]:
    """Update second moments with clipped gradients; their roots plus eps.

    The bias correction c is moved into the step: g / (sqrt(v / c) + eps) equals
    sqrt(c) g / (sqrt(v) + sqrt(c) eps), which saves a pass over all parameters.
    """
    beta2 = group["betas"][1]
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=(1 - beta2) * clip * clip)
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_add_(roots, group["eps"] * math.sqrt(1 - beta2 ** (group["step"] + 1)))
    return roots
