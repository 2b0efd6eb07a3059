"""Supernet + budget -> subnet artifact: choose, cut out, prove equal, write."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Backend
from todm.errors import ArtifactError
from todm.search.budget import Budget
from todm.search.cost import Compression
from todm.search.select import Candidate, candidates, choose
from todm.supernet.space import Subnet

TOLERANCE = 1e-5


def extract_subnet(  # noqa: PLR0913 - what to cut, from what, by which rule
    backend: Backend,
    found: Artifact,
    budget: Budget,
    out: Path,
    *,
    compression: Compression = "none",
    num_candidates: int = 12,
    limit: int = 150,
    same: Callable[[nn.Module, nn.Module, Subnet], float],
    asked: Mapping[str, object],
    progress: Callable[[int, int], None] | None = None,
) -> Artifact:
    """Write the best subnet found for a budget as a plain model.

    Args:
        backend: the modality, with data to score candidates on.
        found: the supernet.
        budget: limits.
        out: directory of the subnet artifact.
        compression: what `size` is counted in.
        num_candidates: subnets to score.
        limit: dev examples to score on.
        same: largest output difference of (supernet, plain model, subnet).
        asked: what was asked for, kept so that a second call can tell that it is done.
        progress: called with (scored, all).

    Raises:
        BudgetError: no subnet keeps the budget.
        ArtifactError: the plain model's outputs differ from the supernet's.
    """
    supernet = backend.build(None)
    supernet.load_state_dict(found.tensors())
    supernet.eval()
    seed = int(found.info.get("seed", 0))
    shortlist = candidates(backend, budget, num=num_candidates, seed=seed, compression=compression)
    ranked = choose(backend, supernet, shortlist, limit=limit, progress=progress)
    best = ranked[0]
    plain = backend.extract(supernet, best.subnet)
    with torch.no_grad():
        difference = same(supernet, plain, best.subnet)
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
            "subnet": best.subnet.to_json(),
            "asked": dict(asked),
            "costs": dict(best.costs),
            "corpus": found.info["corpus"],
            **_sparsity(found),
            "candidates": [_row(c) for c in ranked],
        },
        tensors=plain.state_dict(),
        write=backend.write_assets,
    )


def _sparsity(found: Artifact) -> dict[str, object]:
    """N:M of a supernet that was trained so: groups lie along inputs, and every prefix has them too."""
    sparse = found.info.get("sparse")
    return {"sparse": {"n": sparse["n"], "m": sparse["m"]}} if sparse else {}


def _row(candidate: Candidate) -> dict[str, object]:
    return json.loads(
        json.dumps(
            {
                "subnet": candidate.subnet.to_json(),
                "costs": dict(candidate.costs),
                "error": candidate.error,
            }
        )
    )
