"""Compressed models on disk: artifacts of kind `compressed`.

The tensors are the model's `state_dict`, in which packed layers are stored as they are packed. The
config is that of the model it was made from, so that the same modality builds it;
`info["compressed"]` has the settings of the passes, the format of every packed layer, and the reports
of all passes. Tensors that a model shares between two names are stored once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from todm import artifact
from todm.artifact import Artifact
from todm.compress import packed
from todm.compress.config import CompressConfig
from todm.compress.report import PassReport
from todm.errors import ArtifactError

KIND = "compressed"
_FIELDS = {"settings": dict, "of": str, "layers": dict, "tied": dict, "reports": list}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compressed:
    """The account of its compression in an artifact.

    Attributes:
        settings: of the passes, with their sequence.
        of: kind of the artifact it was made from.
        layers: format of every packed layer, by name.
        tied: names of shared tensors, and the name each is stored by.
        reports: one per pass.
    """

    settings: Mapping[str, Any]
    of: str
    layers: Mapping[str, packed.Format]
    tied: Mapping[str, str]
    reports: Sequence[PassReport]

    @property
    def words(self) -> str:
        """The passes, as in `sparse24,int8`."""
        return ",".join(self.settings["passes"])


def save(
    path: str | Path,
    model: nn.Module,
    *,
    parent: Artifact,
    config: CompressConfig,
    reports: Sequence[PassReport],
    metrics: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    write: Callable[[Path], None] | None = None,
) -> Artifact:
    """Write a compressed model.

    Args:
        path: the directory to make; an artifact already there is replaced.
        model: as `driver.compress` left it.
        parent: the artifact it was made from; its config and info are kept.
        config: the passes.
        reports: one per pass.
        metrics: figures of merit.
        info: anything else a later stage needs.
        write: puts the modality's files, and others, into the directory.

    Raises:
        ArtifactError: `path` exists and is not an artifact.
    """
    tensors, tied = _stored(model)
    compressed = {
        "settings": config.to_json(),
        "of": parent.kind,
        "layers": {name: layer.format() for name, layer in packed.layers_of(model).items()},
        "tied": tied,
        "reports": [report.to_json() for report in reports],
    }
    return artifact.save(
        path,
        kind=KIND,
        config=parent.config,
        parent=parent.hash,
        metrics=metrics,
        info={**parent.info, **(info or {}), "compressed": compressed},
        tensors=tensors,
        write=write,
    )


def read(source: Artifact) -> Compressed:
    """What an artifact of kind `compressed` says of its compression.

    Raises:
        ArtifactError: it is of another kind, or damaged.
    """
    table = source.info.get("compressed")
    if source.kind != KIND or not isinstance(table, dict):
        raise ArtifactError(f"{source.path} is a {source.kind}, and no compressed model")
    try:
        if not all(isinstance(table[name], kind) for name, kind in _FIELDS.items()):
            raise TypeError
        if "sparse24" in table["settings"]:
            raise ArtifactError(
                f"{source.path} was written by an older todm, in which the pass `prune` was called "
                "`sparse24`: compress the model again"
            )
        reports = [PassReport.from_json(report) for report in table["reports"]]
        return Compressed(**{**{name: table[name] for name in _FIELDS}, "reports": reports})
    except (KeyError, TypeError):
        raise ArtifactError(
            f"{source.path} does not say how its layers are packed: compress the model again"
        ) from None


def refuse_compressed(source: Artifact) -> None:
    """Say that a compressed model cannot be compressed again.

    Raises:
        ArtifactError: it is one.
    """
    if source.kind == KIND:
        raise ArtifactError(
            f"{source.path} is compressed already ({read(source).words}): give the model it was made "
            "of, with all passes at once, as in  --passes prune,int8"
        )


def load_weights(model: nn.Module, source: Artifact) -> None:
    """Put an artifact's weights into the model that its config describes, packed ones too.

    Args:
        model: as the modality builds it, changed in place.
        source: a dense artifact, or a compressed one, whose packed layers replace the model's.

    Raises:
        ArtifactError: the weights do not fit the configuration, or are damaged.
    """
    tensors = source.tensors()
    if source.kind == KIND:
        stored = read(source)
        _check_tied(stored, tensors, source)
        tensors |= {name: tensors[first] for name, first in stored.tied.items()}
        for name, form in stored.layers.items():
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if _of(name, k)}
            _replace(model, name, packed.build(form, own), source)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[:2])
        raise ArtifactError(
            f"the weights in {source.path} do not fit its configuration: {first}"
        ) from None


def _stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to write, and for those left out the name of the same tensor."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.data_ptr() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor
    return tensors, tied


def _check_tied(stored: Compressed, tensors: Mapping[str, Tensor], source: Artifact) -> None:
    missing = [first for first in stored.tied.values() if first not in tensors]
    if missing:
        raise ArtifactError(f"{source.path} has no tensor {missing[0]!r}: compress the model again")


def _of(layer: str, tensor: str) -> bool:
    """Whether a tensor belongs to a packed layer, which has no layers in it."""
    return tensor.startswith(f"{layer}.") and "." not in tensor.removeprefix(f"{layer}.")


def _replace(model: nn.Module, name: str, layer: packed.PackedLinear, source: Artifact) -> None:
    try:
        old = model.get_submodule(name)
    except AttributeError:
        raise ArtifactError(
            f"{source.path} has a packed layer {name}, and its configuration none: do not trust "
            "it, compress the model again"
        ) from None
    weight = getattr(old, "weight", None)
    shape = (layer.out_features, layer.in_features)
    if not isinstance(weight, torch.Tensor) or tuple(weight.shape) != shape:
        raise ArtifactError(
            f"{source.path}: the packed layer {name} is {shape[0]} x {shape[1]}, and its "
            "configuration says otherwise: compress the model again"
        )
    model.set_submodule(name, layer.train(old.training))
