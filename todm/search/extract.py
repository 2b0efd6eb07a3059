"""Supernet + choice -> subnet artifact: cut out, prove equal, write."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Backend
from todm.errors import ArtifactError
from todm.search.choice import Choice
from todm.supernet.space import Subnet

TOLERANCE = 1e-5


def extract_subnet(
    backend: Backend,
    found: Artifact,
    choice: Choice,
    out: Path,
    *,
    same: Callable[[nn.Module, nn.Module, Subnet], float],
    costs: Mapping[str, float],
    info: Mapping[str, Any],
) -> Artifact:
    """Write a subnet of a supernet as a plain model.

    Args:
        backend: the modality, with data to evaluate on.
        found: the supernet.
        choice: what to cut; its compression is kept for the stages that apply it.
        out: directory of the subnet artifact.
        same: largest output difference of (supernet, plain model, subnet).
        costs: predicted for the choice.
        info: further facts for the manifest: what was asked for, what else was looked at.

    Raises:
        ArtifactError: the plain model's outputs differ from the supernet's.
    """
    supernet = backend.build(None)
    supernet.load_state_dict(found.tensors())
    supernet.eval()
    plain = backend.extract(supernet, choice.subnet)
    with torch.no_grad():
        difference = same(supernet, plain, choice.subnet)
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
            "costs": dict(costs),
            "corpus": found.info["corpus"],
            **_sparsity(found),
            **info,
        },
        tensors=plain.state_dict(),
        write=backend.write_assets,
    )


def _sparsity(found: Artifact) -> dict[str, object]:
    """N:M of a supernet that was trained so: groups lie along inputs, and every prefix has them too."""
    sparse = found.info.get("sparse")
    return {"sparse": {"n": sparse["n"], "m": sparse["m"]}} if sparse else {}
