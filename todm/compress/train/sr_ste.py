"""N:M masks learnt while a model trains (SR-STE, arXiv 2102.04010).

With W the dense weight, E its mask of the n largest of every m neighbours, and W~ = E W (eq. 9):

    forward and backward use W~;    g = dL/dW~ is taken as the gradient of W (straight-through)
    W <- W - lr (g + decay (1 - E) W)

The pull `decay` on pruned entries keeps them from returning again and again; 0 is the plain
straight-through estimator. It is added after clipping, and replaces the weight decay of pruned entries
(2by4, arXiv 2404.01847, which also renews masks only every 40 updates).

No module changes: weights are masked in place for a step while the dense ones are set aside, so names
of parameters, checkpoints and extraction are unaffected. A group of m never spans outputs, so every
prefix of outputs or inputs of an elastic weight is N:M with the same mask.

What the pull means to an optimizer. SGD: pruned entries decay by lr * decay. Adam (`ClippedAdamW`)
divides it, with the gradient, by the root of the gradient's second moment: what counts is decay |w|
against the usual |g|, so `decay` goes with the scale of the loss, and an entry with a gradient of
nothing but the pull moves by lr however small `decay` is. `ScaledAdam` multiplies that step with the
rms of the whole tensor, pruned entries included: lr and pull become relative to it, and shrink with
it as pruned entries do. Its momentum is one of updates, so a pull goes on for some updates after an
entry is kept again. Its step of a tensor's size multiplies kept and pruned entries alike, which
changes no mask; it follows the loss alone, since sum(w g) is measured before the pull is added.
"""

import contextlib
import dataclasses
import fnmatch
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from todm.compress.layers import LAYERS
from todm.compress.masks import nm_mask, sad
from todm.config import Config
from todm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SrSteConfig(Config):
    """N:M sparsity learnt in training.

    Attributes:
        n: weights kept of every m; 0 trains dense.
        m: neighbours along the inputs of which n are kept.
        decay: the pull on pruned weights, in units of the gradient; 0 is plain STE. 2e-5 to 2e-4, which
            are published for Adam over 1e5 updates, change nothing over hundreds
            (`benchmarks.studies.sr_ste`).
        refresh: updates between new masks.
        freeze: share of the updates, at the end, during which masks are fixed.
        begin: fraction of the updates after which weights are masked; 0 is from scratch.
        layers: names or patterns (as of `fnmatch`) of linear layers and convolutions.
    """

    n: int = 0
    m: int = 4
    decay: float = 2e-2
    refresh: int = 40
    freeze: float = 0.15
    begin: float = 0.0
    layers: tuple[str, ...] = ("*blocks.*",)

    def __post_init__(self) -> None:
        if self.n and not 0 < self.n < self.m <= 32:
            raise ConfigError(
                f"sparse keeps {self.n} of {self.m}: 0 < n < m <= 32, or n=0 for a dense training"
            )
        self.check("sparse", ("decay",), holds=lambda v: v >= 0, allowed="0 or more")
        self.check("sparse", ("refresh",), holds=lambda v: v >= 1, allowed="at least 1")
        names, allowed = ("freeze", "begin"), "a fraction from 0 to 1"
        self.check("sparse", names, holds=lambda v: 0 <= v <= 1, allowed=allowed)
        if self.n and not self.layers:
            raise ConfigError("sparse.layers is empty: name layers, or set sparse.n=0")


class SrSte:
    """The masks of some weights of a model, and the steps of a training that maintain them.

    An update is: `enter`; forward and backward inside `masked`; clipping; `pull`; the optimizer's
    step. `finish` leaves the masked weights in the model.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], config: SrSteConfig, *, num_updates: int
    ) -> None:
        """See the attributes.

        Args:
            weights: [N, K, ...] by the name of their layer; none for a dense training.
            config: n, m and when.
            num_updates: planned updates.

        Attributes:
            masks: bool by layer, True where a weight is kept; empty before the first.
        """
        self.config, self._weights, self._total = config, dict(weights), num_updates
        self._begin = round(config.begin * num_updates)
        self._freeze = num_updates - round(config.freeze * num_updates)
        self.masks: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self._figures: dict[str, dict[str, float]] = {}
        self._dense: list[Tensor] = []

    @classmethod
    def of(cls, model: nn.Module, config: SrSteConfig, *, num_updates: int) -> "SrSte":
        """For the layers of a model that the configuration names.

        Raises:
            ConfigError: a pattern fits no layer with more than n inputs.
        """
        weights: dict[str, nn.Parameter] = {}
        for pattern in config.layers if config.n else ():
            matching = {
                name: layer.weight
                for name, layer in model.named_modules()
                if isinstance(layer, LAYERS)
                and (name == pattern or fnmatch.fnmatchcase(name, pattern))
                and layer.weight.shape[1] > config.n
            }
            if not matching:
                raise ConfigError(
                    f"sparse.layers has {pattern!r}, which fits no linear layer or convolution of more "
                    f"than {config.n} inputs: layers are such as {', '.join(_names(model)[:3])}"
                )
            weights.update(matching)  # pyright: ignore[reportCallIssue, reportArgumentType] - a layer's weight is a parameter
        return cls(weights, config, num_updates=num_updates)

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(self._weights)

    def enter(self, update: int) -> bool:
        """Renew the masks if that is due at this update (from 0); returns whether it was."""
        since = update - self._begin
        if not self._weights or since < 0:
            return False
        if self.masks and (update >= self._freeze or since % self.config.refresh):
            return False
        self.renew()
        return True

    @torch.no_grad()
    def renew(self) -> None:
        """Take the n largest of every m of the dense weights as the new masks."""
        assert not self._dense, "masks come from dense weights, and these are masked"
        for name, weight in self._weights.items():
            new = nm_mask(weight.detach().abs(), self.config.n, self.config.m)
            self._first.setdefault(name, new)
            flips, size = sad(self.masks.get(name, new), new), new.numel()
            since = sad(self._first[name], new)
            self._figures[name] = {"flip_rate": flips / size, "sad": flips, "sad_first": since}
            self.masks[name] = new

    @contextlib.contextmanager
    def masked(self) -> Iterator[None]:
        """Inside, the model has the masked weights; the dense ones come back afterwards."""
        self.apply()
        try:
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def apply(self) -> None:
        """Mask the weights in place, and set the dense ones aside."""
        assert not self._dense, "the weights are masked already"
        for name, mask in self.masks.items():
            weight = self._weights[name]
            self._dense.append(weight.detach().clone())
            weight.mul_(mask)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the dense weights back."""
        for name, dense in zip(self.masks, self._dense, strict=True):
            self._weights[name].copy_(dense)
        self._dense = []

    @torch.no_grad()
    def pull(self, optimizer: torch.optim.Optimizer, *, clip: float = 1.0) -> None:
        """Add the pull on pruned entries to the gradients, and take their weight decay away.

        Called with dense weights, after clipping. A weight without a gradient is left alone.

        Args:
            optimizer: whose `weight_decay` is taken away, decoupled (AdamW) or in the gradient.
            clip: factor that the optimizer itself will apply to gradients.
        """
        assert not self._dense, "the pull is on dense weights, and these are masked"
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for name, mask in self.masks.items():
            weight = self._weights[name]
            group: dict[str, Any] = groups.get(id(weight), {})
            if weight.grad is None:
                continue
            loss, pull = group.get("weight_decay", 0.0), self.config.decay
            if group.get("decoupled_weight_decay"):
                weight.copy_(torch.where(mask, weight, weight / (1 - group["lr"] * loss)))
            else:
                pull -= loss
            weight.grad.add_(weight * ~mask, alpha=pull / clip)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the masked weights in the model for good."""
        for name, mask in self.masks.items():
            self._weights[name].mul_(mask)

    @property
    def by_layer(self) -> dict[str, dict[str, float]]:
        """Of the last renewal, a layer each: flip_rate, sad (against the mask before), sad_first."""
        return self._figures

    @property
    def figures(self) -> dict[str, float]:
        """Of the last renewal, all layers together; shares of all entries, empty before the first.

        `flip_rate` is SAD against the masks before, `mask_drift` that against the first ones.
        """
        if not self._figures:
            return {}
        size = sum(mask.numel() for mask in self.masks.values())
        sums = {k: sum(f[k] for f in self._figures.values()) for k in ("sad", "sad_first")}
        return {"flip_rate": sums["sad"] / size, "mask_drift": sums["sad_first"] / size}

    @property
    def info(self) -> dict[str, Any]:
        """For the manifest of an artifact: `sparse`, with n, m, density and the layers masked."""
        if not self.masks:
            return {}
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        density = kept / sum(mask.numel() for mask in self.masks.values())
        sizes = {"n": self.config.n, "m": self.config.m, "density": density}
        return {"sparse": {**sizes, "layers": list(self.masks)}}

    def digest(self) -> str:
        """A hash of all masks."""
        digest = hashlib.sha256()
        for mask in self.masks.values():
            digest.update(mask.cpu().numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "masks": dict(self.masks),
            "first": dict(self._first),
            "figures": {name: dict(row) for name, row in self._figures.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        assert state["masks"].keys() <= self._weights.keys()

        def placed(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: masks[n].to(w.device) for n, w in self._weights.items() if n in masks}

        self.masks, self._first = placed(state["masks"]), placed(state["first"])
        self._figures = {name: dict(row) for name, row in state["figures"].items()}


def _names(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
