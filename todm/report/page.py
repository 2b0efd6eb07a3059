"""The report of a run as one HTML file that needs no other: for a browser, a mail or an archive.

Everything on it is read from the artifacts and evaluations of the run; what was not made is shown as
missing. Text from artifacts is escaped: a bundle may come from a stranger.
"""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from todm import artifact
from todm.artifact import Artifact
from todm.errors import ArtifactError
from todm.report.tables import Row

PAGE = "report.html"
_KINDS = ("corpus", "supernet", "front", "subnet", "compressed", "bundle")
_VERBS = {
    "corpus": "todm prepare",
    "supernet": "todm train",
    "front": "todm search",
    "subnet": "todm extract-subnet",
    "compressed": "todm compress",
    "bundle": "todm export",
}


def page(run: Path, rows: Sequence[Row]) -> str:
    """The page.

    Args:
        run: directory of the run.
        rows: its evaluated bundles, as of `todm.report.tables.collect`.

    Raises:
        ArtifactError: an artifact of the run is damaged.
    """
    found = artifacts(run)
    sections = {
        "Bundles": _bundles(run, rows),
        "Training": _training(run, found["supernet"]),
        "Search": _pictures(found["front"]),
        "Compression": _compression(found["compressed"]),
        "Latency": _latency(run),
        "Run them": _commands(found["bundle"]),
        "Where it comes from": _origin(run, found),
    }
    shown = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{_slug(t)}">{_text(t)}</a>' for t in shown)
    body = "".join(f'<h2 id="{_slug(t)}">{_text(t)}</h2>{b}' for t, b in shown.items())
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(run.resolve().name)}: todm report</title><style>{style}</style></head><body><main>"
        f"<h1>{_text(run.resolve().name)}</h1>{_lead(rows)}<nav>{links}</nav>"
        f"{_flow(found)}{body}</main></body></html>\n"
    )


def artifacts(run: Path) -> dict[str, list[Artifact]]:
    """Artifacts of a run by kind, those of a kind by name.

    Raises:
        ArtifactError: one is damaged.
    """
    found: dict[str, list[Artifact]] = {kind: [] for kind in _KINDS}
    for depth in ("*", "*/*"):
        for file in sorted(run.glob(f"{depth}/{artifact.MANIFEST}")):
            one = artifact.load(file.parent)
            found.setdefault(one.kind, []).append(one)
    return found


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, best: int | None = None) -> str:
    """An HTML table of plain text.

    Args:
        heads: titles of the columns.
        rows: as many cells each.
        best: number of the row to be marked.
    """
    top = "".join(f"<th>{_text(h)}</th>" for h in heads)
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="best"' if number == best else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{_text(c)}</td>' for c in row)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def picture(path: Path, what: str) -> str:
    """A PNG inside the page; nothing if there is none."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img src="data:image/png;base64,{data}" alt="{_text(what)}"></p>'


def _lead(rows: Sequence[Row]) -> str:
    best = min(rows, key=lambda r: r.error)
    small = min(rows, key=lambda r: r.megabytes)
    return (
        f'<p class="soft">{len({r.path for r in rows})} bundles from one training. The most accurate, '
        f"{_text(best.name)} in {_text(best.precision)}, errs in {best.error:.2%} of "
        f"{best.words} words; the smallest, {_text(small.name)} in {_text(small.precision)}, has "
        f"{small.megabytes:.2f} MB and errs in {small.error:.2%}.</p>"
    )


def _flow(found: dict[str, list[Artifact]]) -> str:
    items = []
    for kind in _KINDS:
        ones = found[kind]
        names = ", ".join(one.path.name for one in ones) or "not made"
        absent = "" if ones else " absent"
        items.append(
            f'<li class="stage{absent}"><b>{kind}</b><small>{_text(_VERBS[kind])}</small>'
            f"<small>{_text(names)}</small></li>"
        )
    return f'<ol class="flow">{"".join(items)}</ol>'


def _bundles(run: Path, rows: Sequence[Row]) -> str:
    heads = [
        "bundle",
        "form",
        "parameters",
        "MB",
        "WER",
        "95 % interval",
        "p50 of a chunk, ms",
        "RTF",
    ]
    cells = [
        (
            r.name,
            r.precision,
            f"{r.params / 1e6:.2f}M",
            f"{r.megabytes:.2f}",
            f"{r.error:.2%}",
            f"{r.low:.2%} to {r.high:.2%}",
            f"{r.p50_ms:.2f}",
            f"{r.rtf:.4f}",
        )
        for r in rows
    ]
    best = min(range(len(rows)), key=lambda i: rows[i].error)
    note = (
        f'<p class="soft">WER on the {rows[0].words} words of the test split, decoded by onnxruntime chunk '
        "by chunk on one thread; RTF is seconds of computing per second of speech.</p>"
    )
    shown = picture(run / "report.png", "WER against size and real-time factor")
    return table(heads, cells, best=best) + note + shown


def _training(run: Path, supernets: Sequence[Artifact]) -> str:
    parts = []
    for one in supernets:
        metrics = one.metrics
        facts = [f"{metrics['updates']} updates"] if "updates" in metrics else []
        facts += [f"{name} dev WER {row['error']:.2%}" for name, row in _dev(metrics).items()]
        if facts:
            parts.append(f"<p>{_text(one.path.name)}: {_text(', '.join(facts))}.</p>")
    return "".join(parts) + picture(run / "curves.png", "curves of the training")


def _dev(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    dev = metrics.get("dev", {})
    rows = {k: v for k, v in dev.items() if isinstance(v, dict) and "error" in v}
    return rows or ({"largest": dev} if "error" in dev else {})


def _pictures(ones: Sequence[Artifact]) -> str:
    return "".join(
        picture(file, f"{one.path.name}: {file.stem}")
        for one in ones
        for file in sorted(one.path.glob("*.png"))
    )


def _compression(ones: Sequence[Artifact]) -> str:
    parts = []
    for one in ones:
        told = one.info.get("compressed", {})
        reports = told.get("reports", [])
        rows = [
            (
                report["name"],
                str(report["totals"]["layers_done"]),
                str(report["totals"]["layers_left"]),
                f"{report['totals']['bytes_before'] / 1e6:.2f}",
                f"{report['totals']['bytes_after'] / 1e6:.2f}",
                f"{report['totals']['size_ratio']:.2f}",
                f"{report['totals']['ops_ratio']:.1f}",
            )
            for report in reports
        ]
        heads = ["pass", "layers done", "left", "MB before", "MB after", "size ratio", "ops ratio"]
        parts.append(
            f'<section class="card"><h3>{_text(one.path.name)}</h3>{table(heads, rows)}'
            f"{picture(one.path / 'report.png', 'error of every layer')}{_layers(reports)}</section>"
        )
    return "".join(parts)


def _layers(reports: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            report["name"],
            row["name"],
            row["kind"],
            row["done"] or f"not done: {row['why_not']}",
            "" if row["after"] is None else f"{row['after']:.3%}",
        )
        for report in reports
        for row in report["rows"]
    ]
    heads = ["pass", "layer", "kind", "what was done", "error of its outputs"]
    return f"<details><summary>every layer</summary>{table(heads, rows)}</details>"


def _latency(run: Path) -> str:
    parts = []
    for folder in sorted(p for p in run.glob("bench/*") if p.is_dir()):
        shown = "".join(
            picture(f, f"{folder.name}: {f.stem}") for f in sorted(folder.glob("*.png"))
        )
        parts += [f"<h3>{_text(folder.name)}</h3>{shown}"] if shown else []
    return "".join(parts)


def _commands(bundles: Sequence[Artifact]) -> str:
    parts = []
    for one in bundles:
        sample = one.path / "test_wavs" / "0.wav"
        lines = [f"todm transcribe {one.path} {sample}", f"todm bench {one.path}"]
        if one.info.get("target") == "sherpa-onnx":
            lines.append(f"python export/sherpa_onnx/run.py {one.path} {sample}")
        card = "README.md" if (one.path / "README.md").is_file() else artifact.MANIFEST
        parts.append(
            f'<section class="card"><h3>{_text(one.path.name)}</h3>'
            f"<pre>{_text(chr(10).join(lines))}</pre>"
            f'<p class="soft">Its card: {_text(str(one.path / card))}</p></section>'
        )
    return "".join(parts)


def _origin(run: Path, found: dict[str, list[Artifact]]) -> str:
    rows = [
        (kind, one.path.relative_to(run).as_posix(), one.hash[:12], (one.parent or "")[:12])
        for kind in found
        for one in found[kind]
    ]
    versions = _versions(run, found)
    return table(["kind", "directory", "hash", "made of"], rows) + versions


def _versions(run: Path, found: dict[str, list[Artifact]]) -> str:
    """Of the last artifact that was made."""
    ones = [one for kind in _KINDS for one in found[kind]]
    if not ones:
        raise ArtifactError(f"{run} has no artifacts")
    manifest = json.loads((ones[-1].path / artifact.MANIFEST).read_text(encoding="utf-8"))
    versions = ", ".join(f"{k} {v}" for k, v in manifest.get("versions", {}).items())
    return f'<p class="soft">{_text(versions)}</p>'


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _text(value: str) -> str:
    return html.escape(str(value))
