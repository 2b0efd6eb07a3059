"""The training loop of passes that train: cosine steps with a warm-up over a modality's batches.

With a directory it writes a checkpoint every minute and resumes from it exactly after Ctrl-C or
kill -9; a finished training is not repeated.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from todm.compress.config import TuneConfig
from todm.compress.train import checkpoint
from todm.compress.train.distill import Distiller
from todm.compress.train.sr_ste import SrSte
from todm.errors import ConfigError, TrainingError
from todm.files import Progress

Optimizers = Mapping[str, Callable[[nn.Module, TuneConfig], torch.optim.Optimizer]]
"""Optimizers by name: (model, settings) -> one whose groups have the peak learning rate."""

WARMUP = 0.05
MAX_BAD = 20
_CHECKPOINT_SECONDS = 60.0
_LINES = 200  # of a curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How trainings are run.

    Attributes:
        optimizers: beside adamw.
        directory: where checkpoints are kept; None for none.
        progress: see `todm.files.Progress`.
        seed: of batches and dropout.
    """

    optimizers: Optimizers = dataclasses.field(default_factory=dict[str, Any])
    directory: Path | None = None
    progress: Progress | None = None
    seed: int = 0


class Masks(NamedTuple):
    """The masks of a sparse training.

    Attributes:
        learnt: masks that are renewed.
        fixed: weights, masked already, and their masks.
    """

    learnt: SrSte
    fixed: list[tuple[nn.Parameter, Tensor]]

    @torch.no_grad()
    def on_gradients(self) -> None:
        """Keep pruned weights out of the norm of the gradient."""
        for weight, mask in self.fixed:
            if weight.grad is not None:
                weight.grad.mul_(mask)

    @torch.no_grad()
    def on_weights(self) -> None:
        """Undo what momentum and noise did to pruned weights."""
        for weight, mask in self.fixed:
            weight.mul_(mask)


def tune(
    distiller: Distiller,
    config: TuneConfig,
    masks: Masks,
    *,
    name: str,
    options: Options,
) -> list[dict[str, float]]:
    """Train the student of a distiller, in place, and leave it in evaluation mode.

    Args:
        distiller: the student, its teacher, the adapter and the loss.
        config: how long and how fast.
        masks: of its weights.
        name: of the pass, and of its checkpoint.
        options: optimizers, checkpoints, progress, seed.

    Returns:
        A line of figures every few updates: means of the loss and its terms since the line before;
        learning rate, gradient norm, skipped updates, flip rate and drift of masks at it.

    Raises:
        ConfigError: an unknown optimizer, or a checkpoint of another training.
        TrainingError: too many updates in a row whose loss or gradient is not finite.
    """
    training = _Training(distiller, config, masks, name=name, options=options)
    training.resume()
    return training.run()


class _Training:
    """The state of a training: the student, the optimizer, masks and figures."""

    def __init__(
        self,
        distiller: Distiller,
        config: TuneConfig,
        masks: Masks,
        *,
        name: str,
        options: Options,
    ) -> None:
        self.distiller, self.config, self.masks = distiller, config, masks
        self.student, self.name, self.options = distiller.student, name, options
        self.optimizer = _optimizer(self.student, config, options.optimizers)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.update, self.skipped, self.bad, self.norm = 0, 0, 0, 0.0
        self.curves: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.path = options.directory and options.directory / f"{name}.pt"
        self.origin = self._origin() if self.path else {}

    def resume(self) -> None:
        """Resume from a checkpoint, if there is one."""
        state = checkpoint.read(self.path) if self.path else None
        if state is None:
            return
        if state["origin"] != self.origin:
            raise ConfigError(
                f"{self.path} is a checkpoint of another training (other settings, or another model): "
                "remove it, or choose another --out"
            )
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.masks.learnt.load_state_dict(state["masks"])
        self.distiller.blocks = state["blocks"]
        for key in ("update", "skipped", "bad", "curves", "sums"):
            setattr(self, key, state[key])

    def run(self) -> list[dict[str, float]]:
        """The updates that are left."""
        total, saved = self.config.updates, time.monotonic()
        stream = self.distiller.adapter.batches(self.options.seed) if self.update < total else ()
        for batch in islice(stream, self.update, total):
            self._step(batch)
            self.update += 1
            last = self.update == total
            if last or self.update % max(1, total // _LINES) == 0:
                self._log()
            if last or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()
            if self.options.progress:
                self.options.progress(f"{self.name}, training", self.update, total)
        if self.update < total:
            raise TrainingError(f"{self.name}: batches end after {self.update} of {total} updates")
        self.optimizer.zero_grad(set_to_none=True)
        self.student.eval()
        return self.curves

    def _step(self, batch: Any) -> None:  # noqa: ANN401 - the modality's own
        """One update, or none if the loss or the gradient is not finite."""
        # Dropout is a function of the update, so a checkpoint needs no random state.
        torch.manual_seed(self.options.seed * 2**32 + self.update)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor(self.update, self.config.updates)
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        sparse = self.masks.learnt
        sparse.enter(self.update)
        # A generator of batches may wait inside its own torch.no_grad().
        with torch.enable_grad(), sparse.masked():
            loss, terms = self.distiller.loss(batch)
            loss.backward()
        self.masks.on_gradients()
        limit = self.config.clip_norm or math.inf
        self.norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(float(loss.detach())) or not math.isfinite(self.norm):
            self._skip()
            return
        self.bad = 0
        sparse.pull(self.optimizer)
        self.optimizer.step()
        self.masks.on_weights()
        for key, value in {"loss": float(loss.detach()), **terms, "count": 1.0}.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def _skip(self) -> None:
        self.skipped += 1
        self.bad += 1
        if self.bad >= MAX_BAD:
            raise TrainingError(
                f"{self.name}: the loss or its gradient was not finite in {MAX_BAD} updates in a row, "
                f"the last {self.update}: lower {self.name}.tune.lr, or look at the data"
            )

    def _log(self) -> None:
        """A line of the curve."""
        count = self.sums.pop("count", 0.0)
        means = {key: value / count for key, value in self.sums.items()}
        self.sums = {}
        line = {"update": self.update, **means, "lr": self.optimizer.param_groups[0]["lr"]}
        norm = {"grad_norm": self.norm} if math.isfinite(self.norm) else {}
        masks = self.masks.learnt.figures
        self.curves.append({**line, **norm, "skipped": self.skipped, **masks})

    def _save(self) -> None:
        if self.path is None:
            return
        state = {
            "origin": self.origin,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "masks": self.masks.learnt.state_dict(),
            "blocks": self.distiller.blocks,
        }
        kept = ("update", "skipped", "bad", "curves", "sums")
        checkpoint.write(self.path, {**state, **{key: getattr(self, key) for key in kept}})

    def _origin(self) -> dict[str, Any]:
        """The identity of this training, which its checkpoint must share."""
        settings = {"tune": self.config.to_json(), "sparse": self.masks.learnt.config.to_json()}
        settings |= {"seed": self.options.seed}
        return {"settings": json.dumps(settings), "model": _digest(self.student)}


def lr_factor(update: int, total: int) -> float:
    """The learning rate of an update over its peak: a linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARMUP * total))
    rise = min(1.0, (update + 1) / warm)
    return rise * 0.5 * (1 + math.cos(math.pi * max(0, update - warm) / max(1, total - warm)))


def _optimizer(
    model: nn.Module, config: TuneConfig, optimizers: Optimizers
) -> torch.optim.Optimizer:
    make = {"adamw": _adamw, **optimizers}.get(config.optimizer)
    if make is None:
        raise ConfigError(
            f"tune.optimizer is {config.optimizer!r}, and only adamw is available here: set it, or pass "
            "the other as optimizers= of compress()"
        )
    return make(model, config)


def _adamw(model: nn.Module, config: TuneConfig) -> torch.optim.Optimizer:
    """AdamW of torch; matrices alone decay, and no logarithms of scales."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.ndim > 1 and n.endswith("weight")]
    decayed = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in decayed]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=(0.9, 0.98))


def _digest(model: nn.Module) -> str:
    """A hash of the weights at the start."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
