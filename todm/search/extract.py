"""Supernet + choice -> subnet artifact: proved equal to the supernet, evaluated, written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Backend
from todm.errors import ArtifactError
from todm.search.choice import Choice

TOLERANCE = 1e-5


def write_subnet(
    out: Path,
    plain: nn.Module,
    *,
    backend: Backend,
    found: Artifact,
    choice: Choice,
    difference: float,
    info: Mapping[str, Any],
) -> Artifact:
    """Write a subnet of a supernet as a plain model, with its error on the whole dev split.

    Args:
        out: directory of the subnet artifact.
        plain: the subnet, as `Backend.extract` gives it.
        backend: the modality, with data to evaluate on.
        found: the supernet.
        choice: what was cut; its compression is kept for the stages that apply it.
        difference: largest difference between the outputs of the supernet and the plain model.
        info: further facts for the manifest: costs, the request, the other candidates.

    Raises:
        ArtifactError: the plain model's outputs differ from the supernet's.
    """
    if not difference <= TOLERANCE:
        raise ArtifactError(
            f"the subnet cut from {found.path} differs from it by {difference:.1e} "
            f"(allowed {TOLERANCE:.0e}): "
            "this is a fault of todm, please report it"
        )
    return artifact.save(
        out,
        kind="subnet",
        config=found.config,
        parent=found.hash,
        metrics={
            "dev": backend.evaluate(plain, subnet=None, split="dev", limit=0),
            "difference": difference,
        },
        info={
            **choice.to_json(),
            "corpus": found.info["corpus"],
            **_provenance(found),
            **_sparsity(found),
            **info,
        },
        tensors=plain.state_dict(),
        write=backend.write_assets,
    )


def _provenance(found: Artifact) -> dict[str, object]:
    """What the supernet learnt from; earlier versions do not say."""
    return {name: found.info[name] for name in ("provenance",) if name in found.info}


def _sparsity(found: Artifact) -> dict[str, object]:
    """N:M of a supernet trained with it: groups lie along inputs, so every prefix of them is N:M too."""
    sparse = found.info.get("sparse")
    return {"sparse": {"n": sparse["n"], "m": sparse["m"]}} if sparse else {}
