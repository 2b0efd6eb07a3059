"""timm's vision transformers under compression: the `ModelAdapter` of vision."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Graph
from todm.compress import storage
from todm.compress.adapter import Fold, logits_graph
from todm.compress.train.distill import soft_loss
from todm.errors import CorpusError
from todm.vision import data
from todm.vision.config import VisionConfig, build
from todm.vision.data import Batch
from todm.vision.scores import confusion, error_rate, overlap_error

LABELS = "labels.json"


class VisionAdapter:
    """A vision transformer and its images."""

    def __init__(self, config: VisionConfig, model: nn.Module) -> None:
        """Args: model is as `build(config)` makes it, with trained weights."""
        self.config, self.model = config, model

    @classmethod
    def load(cls, source: Artifact) -> "VisionAdapter":
        """From an artifact of kind `model`, or a compressed one.

        Raises:
            ArtifactError: its weights are not those of its config.
        """
        config = VisionConfig.from_json(source.config)
        model = build(config)
        storage.load_weights(model, source)
        return cls(config, model.eval())

    def save(self, path: Path, *, metrics: Mapping[str, Any] | None = None) -> Artifact:
        """Write the (dense) model as an artifact of kind `model`."""
        return artifact.save(
            path,
            kind="model",
            config=self.config.to_json(),
            metrics=metrics,
            tensors=self.model.state_dict(),
            write=self.write_assets,
        )

    @property
    def backend(self) -> str:
        """Its name in artifacts."""
        return "vision"

    @property
    def block_lists(self) -> Sequence[str]:
        """The transformer's blocks."""
        return ("encoder.blocks",) if self.config.task == "segmentation" else ("blocks",)

    @property
    def kept(self) -> Mapping[str, str]:
        """Everything outside the blocks, as in GPUSQ-ViT (arXiv 2305.10727), and in Apex for the head."""
        return {
            "*patch_embed*": "it sees the pixels: few inputs, and sensitive",
            "head*": "it gives the classes: few weights, and sensitive",
        }

    def folds(self, block: nn.Module) -> Sequence[Fold]:
        """Layers that read a norm, and layers whose input is linear in rows of the layer before."""
        from timm.layers import Attention, GluMlp, SwiGLU
        from timm.models.vision_transformer import Block

        # Other blocks have their norms elsewhere; their layers keep their factors.
        if not isinstance(block, Block) or not isinstance(block.attn, Attention):
            return []
        attn: Any = block.attn
        mlp: Any = block.mlp
        gate = ("attn.gate",) if attn.gate is not None else ()
        values = "attn.qkv" if isinstance(attn.norm, nn.Identity) else "attn.norm"
        first = ("mlp.fc1_g", "mlp.fc1_x") if isinstance(mlp, SwiGLU) else ("mlp.fc1",)
        linear = _linear_before_fc2(mlp, GluMlp)
        return [
            Fold(layers=("attn.qkv", *gate), inspect="attn", into="norm1"),
            # Attention weights sum over patches, so a factor of a row of v is one of proj's input.
            Fold(layers=("attn.proj",), inspect="attn.proj", into=values),
            Fold(layers=first, inspect="mlp", into="norm2"),
            Fold(layers=("mlp.fc2",), inspect="mlp.fc2", into=linear),
        ]

    def resident(self, prefix: str) -> AbstractContextManager[None]:
        """All of it is in memory."""
        del prefix
        return nullcontext()

    def calibration(self, num: int, file: Path | None) -> list[Batch]:
        """Images from `file`, or unaugmented training images; the same in every call."""
        if file is None:
            images, place = data.load(self.config, "train"), self.config.data
        else:
            images = data.from_file(file, split="train", classes=self.config.classes)
            place = str(file)
        if len(images) < num:
            raise CorpusError(
                f"{place} has {len(images)} images and calibration needs {num}: give more, or set "
                f"num_calibration={len(images)}"
            )
        chosen = np.random.default_rng(0).permutation(len(images))[:num].tolist()
        return list(images.batches(self.config, chosen))

    @torch.no_grad()
    def run(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits, [B, classes] or [B, classes, H, W]."""
        before = model.training
        try:
            return model.eval()(batch.images_BCHW)
        finally:
            model.train(before)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Training images, shifted at random, in a new order every epoch."""
        images = data.load(self.config, "train")
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(images), generator=generator).tolist()
            for batch in images.batches(self.config, order):
                yield data.shifted(batch, self.config, generator)

    def losses(
        self, batch: Batch, student: nn.Module, teacher: nn.Module | None, *, temperature: float
    ) -> dict[str, Tensor]:
        """Cross entropy, and `soft_loss` of the classes of images or pixels."""
        logits = student(batch.images_BCHW)
        terms: dict[str, Tensor] = {}
        if batch.labels is not None:
            terms["hard"] = F.cross_entropy(logits, batch.labels)
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(batch.images_BCHW)
            terms["soft"] = soft_loss(logits, wanted, temperature, dim=1)
        return terms

    def outputs(
        self, model: nn.Module, *, split: str, limit: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and true classes of every batch of a split, in order."""
        images = data.load(self.config, split)
        indices = range(min(limit, len(images)) if limit else len(images))
        for batch in images.batches(self.config, indices):
            assert batch.labels is not None
            yield self.run(model, batch), batch.labels

    def evaluate(self, model: nn.Module, *, split: str, limit: int = 0) -> dict[str, Any]:
        """Error rate, or 1 minus the mean intersection over union, with intervals."""
        parts = [self.score(*o) for o in self.outputs(model, split=split, limit=limit)]
        scores = np.concatenate(parts)
        return error_rate(scores) if scores.ndim == 1 else overlap_error(scores)

    def score(self, logits: Tensor, labels: Tensor) -> np.ndarray:
        """For each image, whether its class is wrong [B], or the confusions of its pixels [B, C, C]."""
        predicted, true = logits.argmax(1).numpy(), labels.numpy()
        if self.config.task == "classification":
            return (predicted != true).astype(np.float64)
        classes = len(self.config.classes)
        return np.stack([confusion(p, t, classes) for p, t in zip(predicted, true, strict=True)])

    def graphs(self, model: nn.Module) -> list[Graph]:
        """One: images to logits."""
        images = torch.rand(2, self.config.channels, *self.config.size)
        with torch.no_grad():
            logits = model.eval()(images)
        metadata = {
            "classes": json.dumps(self.config.classes),
            "mean": json.dumps(self.config.mean),
            "std": json.dumps(self.config.std),
        }
        return [logits_graph(model, {"images": images}, logits, metadata=metadata)]

    def write_assets(self, directory: Path) -> None:
        """Names of the classes."""
        (directory / LABELS).write_text(json.dumps(self.config.classes) + "\n")


def _linear_before_fc2(mlp: nn.Module, glu: type[nn.Module]) -> str | None:
    """The layer whose last rows the input of fc2 is linear in: of gated forms only."""
    if not isinstance(getattr(mlp, "norm", None), nn.Identity):
        return None
    if isinstance(mlp, glu):
        return None if mlp.gate_last else "mlp.fc1"
    return "mlp.fc1_x" if hasattr(mlp, "fc1_x") else None
