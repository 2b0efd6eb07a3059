"""Supernet + budgets -> the best subnets, and the front of all that were evaluated."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from todm.errors import ConfigError
from todm.files import Progress, no_progress, path_or_none

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.search.run import Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
    """The front as an artifact, and the search that it was written of."""

    front: "Artifact"
    found: "Found"


def search(
    supernet: str | Path,
    *,
    budget: Sequence[str],
    out: str | Path | None = None,
    corpus: str | Path | None = None,
    compression: str = "none,int8",
    evaluations: int = 24,
    limit: int = 0,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Searched:
    """Search a supernet for the best subnet of every budget, and write the front.

    What was evaluated is kept beside the front, so that a killed search goes on where it was.

        >>> found = stages.search(run / "supernet", budget=["0.5M"], evaluations=2, limit=2)
        >>> found.front.path.name
        'front'

    Args:
        supernet: what  todm train  wrote.
        budget: one for each subnet that is wanted, such as `2M` or `latency=20ms@local,size=3MiB`.
        out: directory of the front; by default beside the supernet.
        corpus: corpus whose dev split decides; by default the one the supernet was trained on.
        compression: what may be chosen: `none`, `int8`, or both.
        evaluations: subnets to evaluate, for each budget.
        limit: dev utterances to score on; 0 for all.
        seed: of all draws.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm import artifact
    from todm.asr.loading import backend_of, check_numbers, load_model
    from todm.search.budget import parse
    from todm.search.choice import compressions_of
    from todm.search.devices import Devices
    from todm.search.evaluations import in_supernet
    from todm.search.explore import SearchConfig
    from todm.search.front import default_place, write_front
    from todm.search.run import search as search_all

    check_numbers(evaluations=evaluations)
    if limit < 0:
        raise ConfigError(f"--limit is {limit}: 0 (all) or more")
    compressions = compressions_of(compression)
    found = artifact.load(supernet, kind="supernet")
    place = Path(out) if out else default_place(found.path)
    artifact.existing(place, kind="front")  # refuses what must not be replaced, before any work
    config = SearchConfig(evaluations=evaluations, seed=seed)
    backend = backend_of(found, corpus=path_or_none(corpus), report=progress)
    devices = Devices(backend, progress)
    result = search_all(
        devices.problems([parse(text) for text in budget], compressions),
        in_supernet(
            backend,
            load_model(found, backend),
            limit=limit,
            key=f"{found.hash} {backend.corpus and backend.corpus.resolve()}",
            path=place.with_name(f"{place.name}.evaluations.jsonl"),
        ),
        config,
        progress=progress,
    )
    front = write_front(
        place,
        result,
        found,
        config,
        tables=devices.tables,
        asked={"corpus": str(backend.corpus), "limit": limit, "compression": compressions},
    )
    return Searched(front=front, found=result)
