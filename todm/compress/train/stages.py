"""The passes that train: sparse fine-tuning, learnt masks, quantisation-aware training.

GPUSQ-ViT's two stages (arXiv 2305.10727): `prune` trains with masked weights, `int8` and `int4`
with rounded ones. Both distil from the dense model, and the second weighs blocks by the distance that
the first left (`distill.py`). The loop is in `tune.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from torch import nn

from todm.compress import int4, int8, prune
from todm.compress.adapter import ModelAdapter
from todm.compress.calibrate import Block
from todm.compress.config import Int4Config, Int8Config, PruneConfig, TuneConfig
from todm.compress.layers import LAYERS, LayerResult, weight_of
from todm.compress.packed import PackedLinear
from todm.compress.train import distill, qat
from todm.compress.train.sr_ste import SrSte, SrSteConfig
from todm.compress.train.tune import Masks, Options, tune


class Trained(NamedTuple):
    """What a training leaves beside the changed model: results by layer, and its curves."""

    done: dict[str, LayerResult]
    curves: list[dict[str, float]]


class Tuner:
    """The trainings of one `compress`."""

    def __init__(
        self, adapter: ModelAdapter, teacher: nn.Module, blocks: Sequence[str], options: Options
    ) -> None:
        """Before any training.

        Args:
            adapter: the model and its modality.
            teacher: a copy of the dense model.
            blocks: names of the blocks.
            options: how trainings are run.
        """
        self.adapter, self.teacher, self.options = adapter, teacher.eval(), options
        self.left: dict[str, float] = {}
        self._blocks = blocks

    def run(
        self, name: str, settings: PruneConfig | Int8Config | Int4Config, work: Block
    ) -> Trained:
        """Train a pass on the whole model, and leave it masked, or packed.

        Args:
            name: of the pass.
            settings: its own, with `tune`.
            work: the whole model, its layers and calibration batches.

        Raises:
            ConfigError: an optimizer that is not there, or a checkpoint of another training.
            TrainingError: too many updates in a row whose loss or gradient is not finite.
        """
        with self._in_memory():
            if isinstance(settings, PruneConfig):
                return self._sparse(name, settings, work)
            return self._quantised(name, settings, work)

    def _sparse(self, name: str, settings: PruneConfig, work: Block) -> Trained:
        """Masked training: with learnt masks, or with those of the one-shot pass."""
        learnt = settings.method == "sr_ste"
        done = {n: LayerResult(why_not=prune.why_not(work.get(n), settings)) for n in work.layers}
        weights = {n: weight_of(work.get(n)) for n, result in done.items() if not result.why_not}
        sizes = {k: getattr(settings, k) for k in ("n", "m", "decay", "refresh", "freeze")}
        chosen = weights if learnt else {}
        sparse = SrSte(chosen, SrSteConfig(**sizes), num_updates=settings.tune.updates)
        sparse.enter(0)
        with sparse.masked():
            blocks = dict.fromkeys(self._choose(work, settings.tune, self._residuals(work)), 1.0)
        curves = self._train(name, settings.tune, work, blocks=blocks, sparse=sparse)
        sparse.finish()
        work.masks.update(sparse.masks)
        self.left = self._residuals(work)
        for layer in [n for n in done if n in work.masks]:
            what = f"{prune.what(settings)} trained"
            figures = sparse.by_layer.get(layer, {})
            density = float(work.masks[layer].float().mean())
            done[layer] = LayerResult(what=what, figures={"density": density, **figures})
        # For layers that the one-shot pass left alone, its own result has the reason.
        kept = done if learnt else {n: result for n, result in done.items() if result.what}
        return Trained(kept, curves)

    def _quantised(self, name: str, settings: Int8Config | Int4Config, work: Block) -> Trained:
        """Training with rounded weights, from the scales found after training, and packing."""
        floats = {n: work.get(n) for n in work.layers}
        if isinstance(settings, Int8Config):
            done, zeros = int8.run(work, settings), False
        else:
            done, zeros = int4.run(work, settings), settings.learn_zeros
        left = self.left or self._residuals(work)
        fakes: dict[str, qat.FakeQuantLinear] = {}
        for layer, packed in ((n, work.get(n)) for n in work.layers):
            if isinstance(packed, PackedLinear):
                before = floats[layer]
                assert isinstance(before, nn.Linear)
                mask_NK = work.masks.get(layer)
                fakes[layer] = qat.start(before, packed, mask_NK, learn_zeros=zeros)
                work.replace(layer, fakes[layer])
        blocks = distill.weights(left, self._choose(work, settings.tune, left))
        sparse = SrSte({}, SrSteConfig(), num_updates=settings.tune.updates)
        curves = self._train(name, settings.tune, work, blocks=blocks, sparse=sparse)
        for layer, fake in fakes.items():
            work.replace(layer, fake.pack())
            figures = {**done[layer].figures, "scale_change": qat.scale_change(fake)}
            done[layer] = LayerResult(what=f"{done[layer].what} trained", figures=figures)
        return Trained(done, curves)

    def _train(
        self,
        name: str,
        config: TuneConfig,
        work: Block,
        *,
        blocks: Mapping[str, float],
        sparse: SrSte,
    ) -> list[dict[str, float]]:
        """Train the whole model; layers with a mask that is not learnt keep their zeros."""
        fixed = {
            n: (weight_of(work.get(n)), mask)
            for n, mask in work.masks.items()
            if isinstance(work.get(n), LAYERS)
        }
        student = self.adapter.model
        distiller = distill.Distiller(
            self.adapter, student, teacher=self.teacher, config=config, blocks=blocks
        )
        masks = Masks(sparse, list(fixed.values()))
        with _trainable(student):
            return tune(distiller, config, masks, name=name, options=self.options)

    def _residuals(self, work: Block) -> dict[str, float]:
        """Distances of all blocks from the teacher's, on calibration data."""
        self.adapter.model.eval()
        return distill.residuals(
            self.adapter,
            self.adapter.model,
            self.teacher,
            batches=[call.args[0] for call in work.calls],
            names=self._blocks,
        )

    def _choose(self, work: Block, config: TuneConfig, residual: dict[str, float]) -> list[str]:
        return distill.choose(residual, config.feature_blocks) if work.calls else []

    @contextmanager
    def _in_memory(self) -> Iterator[None]:
        with ExitStack() as stack:
            for prefix in ("", *self._blocks):
                stack.enter_context(self.adapter.resident(prefix))
            yield


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Inside, all parameters require a gradient."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(requires_grad=True)
    try:
        yield
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(before[name])
