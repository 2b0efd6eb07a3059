"""Settings of compression: which passes, in which order, and the settings of each."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Literal, Self

from todm.config import Config
from todm.errors import ConfigError

PASSES = ("prune", "int8", "int4", "awq")
ALIASES = {"sparse24": "prune"}
"""Other words for passes on the command line; by default, pruning keeps 2 of 4."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(Config):
    """Training of a pass, with GPUSQ-ViT's distillation (arXiv 2305.10727).

    Attributes:
        updates: 0 for a pass without training.
        optimizer: adamw is torch's; scaled_adam is this project's.
        lr: peak learning rate; falls to zero as a cosine after 5 % of warm-up.
        weight_decay: of adamw.
        clip_norm: largest norm of the gradient.
        hard: weight of the loss against labels; 0 is the unsupervised form.
        soft: weight of the loss against the dense model's outputs.
        feature: weight of feature mimicry at the outputs of blocks.
        feature_blocks: share of the blocks that are mimicked, those with the largest residual.
        temperature: of the soft loss.
    """

    updates: int = 0
    optimizer: Literal["adamw", "scaled_adam"] = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.0
    clip_norm: float = 5.0
    hard: float = 1.0
    soft: float = 1.0
    feature: float = 1.0
    feature_blocks: float = 0.34
    temperature: float = 1.0

    def __post_init__(self) -> None:
        names = ("updates", "weight_decay", "clip_norm", "hard", "soft", "feature")
        self.check("tune", names, holds=lambda v: v >= 0, allowed="0 or more is needed")
        names = ("lr", "temperature")
        self.check("tune", names, holds=lambda v: v > 0, allowed="above 0 is needed")
        names, allowed = ("feature_blocks",), "a share from 0 to 1 is needed"
        self.check("tune", names, holds=lambda v: 0 <= v <= 1, allowed=allowed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig(Config):
    """N:M sparsity along the inputs of a layer: of every m weights n are kept.

    Attributes:
        n: weights kept.
        m: of how many. 2:4 is what hardware runs; others are for accuracy and storage.
        method: how the mask is chosen. magnitude; wanda (arXiv 2306.11695); sparsegpt (arXiv
            2301.00774), which also updates the weights left; sr_ste (arXiv 2102.04010), which learns it
            in training and needs tune.updates.
        decay: lambda of sr_ste, the pull on pruned weights; 0 is plain STE.
        refresh: updates between new masks (sr_ste).
        freeze: share of the updates at whose end the mask stays (sr_ste).
        pairs: keep or drop two neighbours at a time, as GPUSQ-ViT's 4:8 for int4; n and m are even.
        tune: training, with the mask frozen unless it is sr_ste's.
    """

    n: int = 2
    m: int = 4
    method: Literal["magnitude", "wanda", "sparsegpt", "sr_ste"] = "sparsegpt"
    decay: float = 0.02
    refresh: int = 40
    freeze: float = 0.15
    pairs: bool = False
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m <= 32:
            raise ConfigError(f"prune keeps {self.n} of {self.m}: 0 < n < m <= 32 is needed")
        if self.pairs and (self.n % 2 or self.m % 2):
            raise ConfigError(f"prune.pairs with {self.n}:{self.m}: both numbers must be even")
        if self.pairs and self.method == "sr_ste":
            raise ConfigError(
                "prune.pairs with sr_ste: learnt masks have no pairs; choose magnitude, wanda "
                "or sparsegpt, and train with prune.tune.updates"
            )
        self.check("prune", ("decay",), holds=lambda v: v >= 0, allowed="0 or more")
        self.check("prune", ("refresh",), holds=lambda v: v >= 1, allowed="at least 1")
        allowed = "a share from 0 to 1"
        self.check("prune", ("freeze",), holds=lambda v: 0 <= v <= 1, allowed=allowed)
        if self.method == "sr_ste" and self.tune.updates == 0:
            raise ConfigError("prune.method=sr_ste learns its mask: set prune.tune.updates")

    @property
    def is_24(self) -> bool:
        """Whether it is the pattern that hardware runs and that packed layers store."""
        return (self.n, self.m) == (2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Config(Config):
    """Weights and activations of 8 bits, symmetric; weights have a scale per output.

    Attributes:
        activations: dynamic: a scale per row, found at run time. static: one per layer, from the
            calibration data, which is what TensorRT and QDQ files need.
        range: how a static scale, and with `mse` also a weight's, is found: absmax, a percentile of
            the magnitudes, or the least squared error.
        percentile: in per cent.
        tune: quantisation-aware training with learnt scales (LSQ, arXiv 1902.08153).
    """

    activations: Literal["dynamic", "static"] = "dynamic"
    range: Literal["absmax", "percentile", "mse"] = "percentile"
    percentile: float = 99.99
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"int8.percentile is {self.percentile}: above 50, at most 100")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int4Config(Config):
    """Weights of 4 or 3 bits in groups of inputs; activations stay as they are.

    Attributes:
        bits: 4 or 3.
        group: inputs that share a scale: 32, 64 or 128.
        symmetric: no zero points.
        method: rtn rounds to nearest; gptq (arXiv 2210.17323) updates the rest of a row after each
            rounded weight. With tune.updates, training starts from these scales.
        learn_zeros: whether training moves zero points as well as scales.
        tune: quantisation-aware training.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    method: Literal["rtn", "gptq"] = "rtn"
    learn_zeros: bool = False
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        _check_grid("int4", self.bits, self.group)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AwqConfig(Config):
    """Activation-aware weights of 4 or 3 bits (AWQ, arXiv 2306.00978).

    Attributes:
        bits: 4 or 3.
        group: inputs that share a scale: 32, 64 or 128.
        symmetric: no zero points.
        scale: whether to search for scales of the inputs.
        clip: whether to search for the range of every group.
        grid: points of the scale search, both families together.
        fold: put scales into the layer before where that is exact; otherwise every layer keeps a
            `pre_quant_scale`.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    scale: bool = True
    clip: bool = True
    grid: int = 20
    fold: bool = True

    def __post_init__(self) -> None:
        _check_grid("awq", self.bits, self.group)
        if self.grid < 2:
            raise ConfigError(f"awq.grid is {self.grid}: at least 2 points are needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressConfig(Config):
    """A sequence of passes and their settings.

    Attributes:
        passes: among prune, int8, int4 and awq, in order; at most one that quantises, and last.
        include: layers to compress although the modality would keep them dense; a layer named without
            wildcards that cannot be compressed is an error.
        exclude: layers to leave unchanged (names or patterns).
        num_calibration: items (utterances, images, texts) of calibration data.
        sequential: whether a block is calibrated on the outputs of compressed blocks before it.
        seed: of training and of calibration data.
    """

    passes: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    num_calibration: int = 128
    sequential: bool = True
    seed: int = 0
    prune: PruneConfig = dataclasses.field(default_factory=PruneConfig)
    int8: Int8Config = dataclasses.field(default_factory=Int8Config)
    int4: Int4Config = dataclasses.field(default_factory=Int4Config)
    awq: AwqConfig = dataclasses.field(default_factory=AwqConfig)

    def __post_init__(self) -> None:
        for name in self.passes:
            if name not in PASSES:
                raise ConfigError(_unknown_pass(name))
        if len(set(self.passes)) < len(self.passes):
            raise ConfigError(f"passes are {','.join(self.passes)}: each at most once")
        if any(name != "prune" for name in self.passes[:-1]):
            raise ConfigError(
                f"passes are {','.join(self.passes)}: a pass that quantises (int8, int4, awq) comes "
                "last, and there is at most one"
            )
        if self.num_calibration < 1:
            raise ConfigError(f"num_calibration is {self.num_calibration}: at least 1 is needed")

    @classmethod
    def parse(
        cls,
        passes: Iterable[str],
        settings: Iterable[str] = (),
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> Self:
        """The configuration that the words of a command line describe; `ALIASES` are understood.

        Args:
            passes: their names, in order.
            settings: as `prune.method=wanda`.
            include: see the attribute.
            exclude: see the attribute.

        Raises:
            ConfigError: an unknown pass or setting, or a value that cannot be used.
        """
        names = tuple(ALIASES.get(name.strip(), name.strip()) for name in passes)
        base = cls(passes=names, include=tuple(include), exclude=tuple(exclude))
        split = [setting.partition(".") for setting in settings]
        return base.override([f"{ALIASES.get(head, head)}{dot}{rest}" for head, dot, rest in split])


def _unknown_pass(name: str) -> str:
    aliases = {known: word for word, known in ALIASES.items()}
    known = [f"{p} (alias {aliases[p]})" if p in aliases else p for p in PASSES]
    near = difflib.get_close_matches(name, [*PASSES, *ALIASES], 1)
    hint = f" (did you mean {ALIASES.get(name, near[0])}?)" if near else ""
    return f"unknown pass {name!r}; choose from {', '.join(known)}{hint}"


def _check_grid(name: str, bits: int, group: int) -> None:
    if bits not in (3, 4) or group not in (32, 64, 128):
        raise ConfigError(
            f"{name}.bits is {bits} and {name}.group {group}: 3 or 4, and 32, 64 or 128"
        )
