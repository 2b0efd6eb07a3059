"""From an artifact on disk to the backend and the model in it."""

import json
from pathlib import Path

import torch
from torch import nn

from todm import artifact
from todm.artifact import Artifact
from todm.asr.backend import AsrBackend
from todm.asr.config import config_of
from todm.asr.model.transducer import Rnnt
from todm.compress import storage
from todm.errors import ArtifactError, ConfigError
from todm.files import Progress, no_progress
from todm.supernet.space import SearchSpace, Subnet


def backend_of(
    source: Artifact,
    *,
    corpus: Path | None = None,
    with_data: bool = True,
    chunk: int | None = None,
    report: Progress = no_progress,
) -> AsrBackend:
    """The backend that made a supernet or subnet.

    Args:
        source: the artifact, compressed or not.
        corpus: its data; by default the corpus it was trained on.
        with_data: whether a corpus is needed at all.
        chunk: C of exported graphs; by default the configuration's.
        report: see `AsrBackend`.

    Raises:
        ArtifactError: not a speech recogniser; see `corpus_of`.
        ConfigError: the artifact's configuration is one of another todm, or the chunk was not trained.
    """
    if "asr" not in source.config:
        raise ArtifactError(
            f"{source.path} is not a speech recogniser: its configuration has no asr"
        )
    config = config_of(source)
    config = config if chunk is None else config.at_chunk(chunk)
    place = corpus_of(source, corpus).path if with_data else None
    return AsrBackend(config, source.path, corpus=place, report=report)


def corpus_of(source: Artifact, given: Path | None = None) -> Artifact:
    """The given corpus, else the one that a supernet or subnet was trained on.

    Raises:
        ArtifactError: there is no corpus; bundles do not record theirs.
    """
    place = given or source.info.get("corpus")
    if place is None:
        raise ArtifactError(f"{source.path} does not say what to evaluate it on: name a corpus")
    if given is None and not (Path(place) / artifact.MANIFEST).is_file():
        raise ArtifactError(
            f"the corpus {source.path} was trained on is not at {place} any more: name a corpus"
        )
    return artifact.load(place, kind="corpus")


def load_model(source: Artifact, backend: AsrBackend) -> Rnnt:
    """The supernet, or the plain model of a subnet (compressed or not), ready to evaluate.

    Raises:
        ArtifactError: the weights do not fit the configuration.
    """
    subnet = None if source.kind == "supernet" else Subnet.from_json(source.info["subnet"])
    model = backend.build(subnet)
    storage.load_weights(model, source)
    return model.eval()


def subnet_of(text: str, space: SearchSpace) -> Subnet:
    """The subnet that a user names: `largest`, `smallest`, its JSON, or a file with its JSON.

    Raises:
        ConfigError: none of these, or not in the space.
    """
    if text in ("largest", "smallest"):
        return space.largest if text == "largest" else space.smallest
    try:
        given = text if text.lstrip().startswith("{") else Path(text).read_text()
        subnet = Subnet.from_json(json.loads(given))
        same = space.subnet(subnet.depth, dict(subnet.widths))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"--subnet is {text!r}: largest, smallest, or blocks and widths as JSON or in a file"
        ) from None
    if same.blocks != subnet.blocks:
        raise ConfigError(f"blocks {list(subnet.blocks)} are not kept by any subnet of this space")
    return subnet


@torch.no_grad()
def same_outputs(supernet: nn.Module, plain: nn.Module, subnet: Subnet) -> float:
    """Largest difference between a supernet's subnet and the plain model, on fixed noise."""
    assert isinstance(supernet, Rnnt)
    assert isinstance(plain, Rnnt)
    draws = torch.Generator().manual_seed(0)
    mean, scale = plain.encoder.subsampling.mean, plain.encoder.subsampling.scale
    features = torch.randn(3, 333, 80, generator=draws) / scale + mean
    lens = torch.tensor([333, 200, 64])
    ours, _ = supernet.encode(features, lens, subnet=subnet)
    theirs, _ = plain.encode(features, lens)
    a, b = (m.output(torch.tanh(m.project(e))) for m, e in ((supernet, ours), (plain, theirs)))
    return float(max((ours - theirs).abs().max(), (a - b).abs().max()))


def check_numbers(**values: int) -> None:
    """Raise ConfigError for flags that must be at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"--{name} is {value}: at least 1")
