"""The configuration of a vision model: architecture, task and images; and the network built from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from todm.errors import ConfigError, MissingExtra
from todm.vision.segmentation import Segmenter


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The config of an artifact, enough to build the model again.

    Not a `Config`: the arguments of an architecture are timm's, and of any type.

    Attributes:
        architecture: a name of timm, such as deit_tiny_patch16_224.
        arguments: of timm's `create_model`, beside the number of classes.
        task: a class for an image, or one for every pixel.
        classes: their names, in the order of the outputs.
        size: height and width of an image.
        channels: 1 (grey) or 3.
        mean: of the values from 0 to 1, subtracted; one for every channel.
        std: divisor after that.
        crop: share of the shorter side that the central crop keeps.
        data: digits; canvas (images composed of digits); a folder or an .npz file; "" for none.
        shift: pixels by which training images are moved at most.
        batch: images of a training batch.
    """

    architecture: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    task: Literal["classification", "segmentation"] = "classification"
    classes: tuple[str, ...] = ()
    size: tuple[int, int] = (224, 224)
    channels: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop: float = 1.0
    data: str = ""
    shift: int = 0
    batch: int = 64

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with the backend's name."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"backend": "vision", **fields, "arguments": dict(self.arguments)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "VisionConfig":
        """The inverse of `to_json`.

        Raises:
            ConfigError: an unknown setting, or one that is missing.
        """
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "backend"
        }
        known = {f.name for f in dataclasses.fields(cls)}
        if not set(fields) <= known or "architecture" not in fields:
            odd = sorted(set(fields) - known) or ["no architecture"]
            raise ConfigError(f"a vision model has {odd[0]!r}: allowed are {', '.join(known)}")
        return cls(**fields)


def build(config: VisionConfig) -> nn.Module:
    """A model with fresh weights; nothing is downloaded.

    Raises:
        ConfigError: timm does not have it, or it is not a plain vision transformer.
        MissingExtra: timm is not installed.
    """
    try:
        import timm
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        raise MissingExtra("timm", "vision", "a vision model") from None
    # A name with a scheme ("hf-hub:...") would be fetched: `is_model` knows plain names only.
    if not timm.is_model(config.architecture):
        near = timm.list_models(f"*{config.architecture.partition('_')[0]}*tiny*")[:3]
        raise ConfigError(
            f"timm has no architecture {config.architecture!r}: give one of timm.list_models()"
            + (f", such as {', '.join(near)}" if near else "")
        )
    number = 0 if config.task == "segmentation" else len(config.classes)
    try:
        encoder = timm.create_model(
            config.architecture, pretrained=False, num_classes=number, **config.arguments
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{config.architecture} cannot be built so: {error}") from None
    if not isinstance(encoder, VisionTransformer):
        raise ConfigError(
            f"{config.architecture} is a {type(encoder).__name__}: give a plain vision transformer "
            "(vit_* or deit_*)"
        )
    if config.task == "classification":
        return encoder
    side = encoder.patch_embed.patch_size[0]
    return Segmenter(encoder, width=encoder.embed_dim, side=side, num_classes=len(config.classes))
