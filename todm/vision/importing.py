"""timm checkpoints as artifacts, offline and weights only.

A checkpoint is a folder as on the hub (config.json and model.safetensors), or a .safetensors file and
the name of its architecture.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from todm.artifact import Artifact
from todm.errors import ArtifactError, ConfigError
from todm.vision.adapter import VisionAdapter
from todm.vision.config import VisionConfig, build

WEIGHTS = "model.safetensors"
PICKLES = {".pth", ".pt", ".bin", ".tar", ".ckpt", ".pkl"}


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    architecture: str = "",
    arguments: Mapping[str, Any] | None = None,
    data: str = "",
) -> Artifact:
    """Write an artifact of kind `model`.

    Args:
        source: a folder with config.json and model.safetensors, or a .safetensors file.
        out: the artifact's place.
        architecture: timm's name; needed for a file, and overrides a folder's.
        arguments: of timm's `create_model`, such as img_size; override a folder's.
        data: what the model is evaluated on, as in `VisionConfig`.

    Raises:
        ArtifactError: no such checkpoint, a pickle, or weights that do not fit.
        ConfigError: an architecture that cannot be built.
    """
    file, described = _locate(source)
    tensors = _read(file)
    name = architecture or described.get("architecture", "")
    if not name:
        raise ConfigError(
            f"{source} does not say its architecture: name it, as in  --architecture vit_tiny_patch16_224"
        )
    config = _config(
        name, {**described.get("model_args", {}), **(arguments or {})}, described, tensors
    )
    config = VisionConfig(**{**vars(config), "data": data})
    model = build(config)
    _fit(model, tensors, file)
    return VisionAdapter(config, model.eval()).save(out)


def _locate(source: Path) -> tuple[Path, dict[str, Any]]:
    """The file of weights, and the content of a config.json beside it."""
    if source.suffix in PICKLES and source.is_file():
        raise ArtifactError(
            f"{source} is a pickle, which can run any code: convert it to .safetensors where you trust it"
        )
    if source.is_file() and source.suffix == ".safetensors":
        return source, {}
    if not source.is_dir():
        raise ArtifactError(
            f"{source} is neither a folder nor a .safetensors file: give one of these"
        )
    try:
        described: Any = json.loads((source / "config.json").read_text())
        assert isinstance(described, dict)
    except (OSError, ValueError, AssertionError):
        raise ArtifactError(
            f"{source} has no config.json of timm: give the folder that has"
        ) from None
    if not (source / WEIGHTS).is_file():
        pickles = sorted(p.name for p in source.iterdir() if p.suffix in PICKLES)
        also = f" (its {pickles[0]} is a pickle, and is not read)" if pickles else ""
        raise ArtifactError(f"{source} has no {WEIGHTS}{also}: save the model with safetensors")
    return source / WEIGHTS, cast("dict[str, Any]", described)


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None


def _config(
    name: str,
    arguments: Mapping[str, Any],
    described: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> VisionConfig:
    """From the folder's config.json, else from timm's defaults for the architecture and the weights."""
    probe = build(VisionConfig(architecture=name, arguments=arguments, classes=("0",)))
    defaults: dict[str, Any] = dict(getattr(probe, "pretrained_cfg", None) or {})
    known: dict[str, Any] = {**defaults, **described.get("pretrained_cfg", {})}
    head = tensors.get("head.weight")
    number = described.get("num_classes", 0) or (1000 if head is None else head.shape[0])
    labels = [str(n) for n in known.get("label_names") or range(number)]
    embed = cast("nn.Module", probe.patch_embed)
    size = cast("tuple[int, int]", embed.img_size or tuple(known["input_size"][1:]))
    return VisionConfig(
        architecture=name,
        arguments=arguments,
        classes=tuple(labels) if len(labels) == number else tuple(map(str, range(number))),
        size=(int(size[0]), int(size[1])),
        channels=int(cast("nn.Conv2d", embed.proj).in_channels),
        mean=tuple(known.get("mean", (0.5, 0.5, 0.5))),
        std=tuple(known.get("std", (0.5, 0.5, 0.5))),
        crop=float(known.get("crop_pct", 1.0)),
    )


def _fit(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load the weights, all of them and nothing else.

    Raises:
        ArtifactError: one is missing, unexpected or of another shape.
    """
    wanted = model.state_dict()
    for name in [*wanted, *tensors]:
        ours, theirs = wanted.get(name), tensors.get(name)
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            continue
        there = "nothing" if theirs is None else str(list(theirs.shape))
        here = "nothing" if ours is None else str(list(ours.shape))
        raise ArtifactError(
            f"{file} does not fit its architecture: {name} is {there}, and {here} is needed; name "
            "another architecture or other arguments"
        )
    model.load_state_dict({k: v.to(wanted[k].dtype) for k, v in tensors.items()})
