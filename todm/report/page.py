"""The report of a run as a single HTML file: for a browser, a mail or an archive.

Everything on it comes from the artifacts and evaluations of the run; a stage that was not run is shown
as missing. The template escapes text from artifacts: a bundle may come from a stranger.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm import artifact
from todm.artifact import Artifact
from todm.errors import ArtifactError, MissingExtra
from todm.report.tables import HEADS, Row, beside

if TYPE_CHECKING:
    import jinja2

PAGE = "report.html"
VERBS = {
    "corpus": "todm prepare",
    "supernet": "todm train",
    "front": "todm search",
    "subnet": "todm extract-subnet",
    "compressed": "todm compress",
    "bundle": "todm export",
}
"""What makes each kind of artifact."""
_BUNDLE_HEADS = (*HEADS[:-1], "p50 of a chunk, ms", "RTF")
_PASS_HEADS = ("pass", "layers done", "left", "MB before", "MB after", "size ratio", "ops ratio")
_LAYER_HEADS = ("pass", "layer", "kind", "what was done", "error of its outputs")
_Reports = Sequence[Mapping[str, Any]]


def page(run: Path, rows: Sequence[Row]) -> str:
    """The page.

    Args:
        run: directory of the run.
        rows: its evaluated bundles, from `todm.report.tables.collect`.

    Raises:
        ArtifactError: an artifact of the run is damaged, or there are none.
        MissingExtra: jinja2 is not installed.
    """
    found = artifacts(run)
    made = [(kind, one) for kind in found for one in found[kind]]
    if not made:
        raise ArtifactError(f"{run} has no artifacts")
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            run=run,
            rows=rows,
            found=found,
            verbs=VERBS,
            best=min(rows, key=lambda r: r.error),
            beside=beside(rows),
            small=min(rows, key=lambda r: r.megabytes),
            bundle_heads=_BUNDLE_HEADS,
            bundle_cells=[(*r.cells()[:-1], f"{r.p50_ms:.2f}", r.cells()[-1]) for r in rows],
            training_facts=list(_training(found["supernet"])),
            pass_heads=_PASS_HEADS,
            pass_cells=_pass_cells,
            layer_heads=_LAYER_HEADS,
            layer_cells=_layer_cells,
            origin_cells=[
                (kind, one.path.relative_to(run).as_posix(), one.hash[:12], (one.parent or "")[:12])
                for kind, one in made
            ],
            versions=_versions([one for kind, one in made if kind in VERBS][-1]),
        )
    )


def templates() -> "jinja2.Environment":
    """The templates of this folder, which escape whatever is inserted.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtra("jinja2", "train", "todm report") from None
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    found.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    return found


def artifacts(run: Path) -> dict[str, list[Artifact]]:
    """Artifacts of a run by kind, those of a kind by name.

    Raises:
        ArtifactError: one is damaged.
    """
    found: dict[str, list[Artifact]] = {kind: [] for kind in VERBS}
    for depth in ("*", "*/*"):
        for file in sorted(run.glob(f"{depth}/{artifact.MANIFEST}")):
            one = artifact.load(file.parent)
            found.setdefault(one.kind, []).append(one)
    return found


def _training(supernets: Sequence[Artifact]) -> Iterator[str]:
    for one in supernets:
        metrics = one.metrics
        dev = metrics.get("dev", {})
        rows = {k: v for k, v in dev.items() if isinstance(v, dict) and "error" in v}
        if not rows and "error" in dev:
            rows = {"largest": dev}
        facts = [f"{metrics['updates']} updates"] if "updates" in metrics else []
        facts += [f"{name} dev WER {row['error']:.2%}" for name, row in rows.items()]
        if facts:
            yield f"{one.path.name}: {', '.join(facts)}."


def _pass_cells(reports: _Reports) -> Iterator[tuple[str, ...]]:
    for report in reports:
        totals = report["totals"]
        yield (
            report["name"],
            str(totals["layers_done"]),
            str(totals["layers_left"]),
            f"{totals['bytes_before'] / 1e6:.2f}",
            f"{totals['bytes_after'] / 1e6:.2f}",
            f"{totals['size_ratio']:.2f}",
            f"{totals['ops_ratio']:.1f}",
        )


def _layer_cells(reports: _Reports) -> Iterator[tuple[str, ...]]:
    for report in reports:
        for row in report["rows"]:
            done = row["done"] or f"not done: {row['why_not']}"
            error = "" if row["after"] is None else f"{row['after']:.3%}"
            yield report["name"], row["name"], row["kind"], done, error


def _versions(last: Artifact) -> str:
    """Versions of the packages that made an artifact."""
    manifest = json.loads((last.path / artifact.MANIFEST).read_text(encoding="utf-8"))
    return ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
