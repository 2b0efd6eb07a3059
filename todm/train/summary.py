"""One page about a run: model and corpus, course of training, results, next commands."""

import datetime
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from todm import artifact
from todm.artifact import WEIGHTS, Artifact
from todm.compress.int8_emulation import layer_outliers
from todm.errors import ArtifactError
from todm.files import markdown_table, write_text
from todm.train.curves import INT8
from todm.train.monitor import CURVES, METRICS, read_metrics

SUMMARY = "summary.md"
_SUPERNET = "supernet"
_WORST = 5  # layers listed
_MAX_EVENTS = 10  # listed one by one
_BYTES = 4  # of a weight

Row = dict[str, Any]


def write_summary(out: Path, *, standard: Mapping[str, Any] | None = None) -> Path:
    """Write `out/summary.md` from the metrics and the supernet of a finished run.

    Args:
        out: directory of the run.
        standard: the named recipe as JSON types; settings that differ from it are listed.

    Returns:
        The file written.

    Raises:
        ArtifactError: the run has no supernet yet.
    """
    net = artifact.load(out / _SUPERNET, kind="supernet")
    rows = read_metrics(out / METRICS)
    train = [r for r in rows if r["kind"] == "train"]
    parts = [
        f"# {out.name}: a training of `{net.config.get('name', 'unnamed')}`",
        markdown_table(("what", "value"), _facts(net, train)),
        f"![curves]({CURVES})" if (out / CURVES).is_file() else "",
        "## Dev WER\n\n"
        + markdown_table(("net", "WER", "95 % interval", "in int8"), _errors(rows)),
        "## Weights for int8\n\n" + _outliers(net, rows),
        _sparsity(net, rows),
        _events([r for r in rows if r["kind"] == "event"]),
        _settings(net.config, standard),
        "## Next\n\n" + _commands(out, net),
    ]
    path = out / SUMMARY
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")
    return path


def differences(given: Any, standard: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401 - JSON
    """Settings that differ: (name, standard, given); None where one side lacks the setting."""
    if isinstance(given, Mapping) and isinstance(standard, Mapping):
        for key in [*standard, *(k for k in given if k not in standard)]:
            name = f"{where}.{key}" if where else str(key)
            yield from differences(given.get(key), standard.get(key), name)
    elif given != standard:
        yield where, standard, given


def _facts(net: Artifact, train: Sequence[Row]) -> Iterator[tuple[str, str]]:
    yield "recipe", f"`{net.config.get('name', 'unnamed')}`, seed {net.info.get('seed')}"
    yield "corpus", _corpus(net)
    if "init" in net.info:
        yield "initialised from", f"an artifact with hash `{net.info['init'][:12]}`"
    yield "parameters", f"{_parameters(net) / 1e6:.2f}M in the supernet"
    yield "updates", f"{net.metrics['updates']}"
    yield "skipped steps", f"{net.metrics.get('skipped', 0)}"
    if train:
        seconds = datetime.timedelta(seconds=round(_seconds(train)))
        yield "time", f"{seconds} of updates, evaluations not counted"
    pace = [r["audio_hours_per_hour"] for r in train if "audio_hours_per_hour" in r]
    if pace:
        yield "throughput", f"{statistics.median(pace):.0f} hours of audio per hour (median)"


def _corpus(net: Artifact) -> str:
    """Path, size and hash; the size only if the corpus is unchanged."""
    path, digest = net.info.get("corpus"), f"hash `{(net.parent or '')[:12]}`"
    if path is None:
        return digest
    try:
        corpus = artifact.load(path, kind="corpus")
    except ArtifactError:
        return f"`{path}` (no longer there), {digest}"
    split = corpus.info.get("splits", {}).get("train")
    if corpus.hash != net.parent or split is None:
        return f"`{path}` (replaced by another since), {digest}"
    return f"`{path}`, {split['hours']:.4g} hours in {split['num']} utterances, {digest}"


def _seconds(train: Sequence[Row]) -> float:
    """Every logged update stands for all updates since the one before it."""
    updates = [0, *(r["update"] for r in train)]
    steps = [b - a for a, b in itertools.pairwise(updates)]
    return sum(n * r.get("seconds", 0.0) for n, r in zip(steps, train, strict=True))


def _errors(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """The last evaluation of each net, and of its int8 copy."""
    last: dict[str, tuple[int, Row]] = {}
    for row in rows:
        nets = (
            {k: v for k, v in row.items() if isinstance(v, dict)} if row["kind"] == "eval" else {}
        )
        last.update({name: (row["update"], figures) for name, figures in nets.items()})
    for name, (update, net) in last.items():
        if name.endswith(INT8):
            continue
        interval = f"{net['low']:.2%} to {net['high']:.2%}" if "low" in net else ""
        at, copy = last.get(name + INT8, (update, None))
        when = "" if at == update else f" at update {at}"
        yield name, f"{net['error']:.2%}", interval, f"{copy['error']:.2%}{when}" if copy else ""


def _outliers(net: Artifact, rows: Sequence[Row]) -> str:
    """Peak over rms of channels: over time, and of the worst layers at the end."""
    worst = list(layer_outliers(net.tensors()).items())[:_WORST]
    text = (
        "Largest weight of a channel over the channel's rms; a normal distribution reaches 3 to 4."
    )
    watched = [r["outlier_max"] for r in rows if "outlier_max" in r]
    if watched:
        text += f" The worst was {watched[0]:.1f} at the start and {watched[-1]:.1f} at the end."
    layers = ((f"`{name}`", f"{ratio:.1f}") for name, ratio in worst)
    return f"{text}\n\n{markdown_table(('worst layers', 'peak over rms'), layers)}"


def _sparsity(net: Artifact, rows: Sequence[Row]) -> str:
    """How masks changed: flips at each renewal should decrease, or `decay` is too low."""
    sparse = net.info.get("sparse")
    renewals = [r for r in rows if r["kind"] == "masks"][1:]  # the first has no masks before it
    if sparse is None:
        return ""
    text = (
        f"{sparse['n']}:{sparse['m']} in {len(sparse['layers'])} layers, {sparse['density']:.1%} of their "
        "weights kept."
    )
    if not renewals:
        return f"## Sparsity\n\n{text}"
    means = [statistics.mean(f["flip_rate"] for f in r["layers"].values()) for r in renewals]
    share = max(1, len(means) // 5)
    early, late = statistics.mean(means[:share]), statistics.mean(means[-share:])
    text += (
        f" Masks were renewed {len(renewals)} times; {early:.2%} of their entries changed at a "
        f"renewal in the first fifth, {late:.2%} in the last."
    )
    if late >= early > 0:
        text += " That is no decrease: raise `train.sparse.decay`."
    worst = sorted(renewals[-1]["layers"].items(), key=lambda item: -item[1]["flip_rate"])[:_WORST]
    cells = ((f"`{n}`", f"{f['flip_rate']:.2%}", f"{f['sad_first']:.0f}") for n, f in worst)
    head = ("layers that changed most at the end", "flip rate", "SAD against the first mask")
    return f"## Sparsity\n\n{text}\n\n{markdown_table(head, list(cells))}"


def _events(events: Sequence[Row]) -> str:
    if not events:
        return ""
    lines = [_event(row) for row in events[:_MAX_EVENTS]]
    if len(events) > _MAX_EVENTS:
        lines.append(f"- and {len(events) - _MAX_EVENTS} more in `{METRICS}`")
    return "## Events\n\n" + "\n".join(lines)


def _event(row: Row) -> str:
    when = f"at update {row['update']}" if "update" in row else f"after update {row['after']}"
    rest = {k: v for k, v in row.items() if k not in ("kind", "event", "update", "after", "time")}
    text = ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in rest.items())
    return f"- {row['event']} {when}" + (f": {text}" if text else "")


def _settings(config: Mapping[str, Any], standard: Mapping[str, Any] | None) -> str:
    if standard is None:
        return ""
    cells = [
        (f"`{name}`", f"`{json.dumps(theirs)}`", f"`{json.dumps(ours)}`")
        for name, theirs, ours in differences(config, standard)
    ]
    heading = f"## Settings that differ from `{standard.get('name', 'the recipe')}`\n\n"
    return heading + (markdown_table(("setting", "recipe", "here"), cells) if cells else "None.")


def _commands(out: Path, net: Artifact) -> str:
    corpus = net.info.get("corpus", "CORPUS")
    return "\n".join(
        [
            "```sh",
            f"extract-subnet {out / _SUPERNET} --budget {_parameters(net) / 1.5e6:.2g}M "
            f"--corpus {corpus} --out {out}/subnets/small",
            f"todm export {out}/subnets/small --target sherpa-onnx --out {out}/bundles/small",
            f"todm evaluate {out}/bundles/small {corpus} --out {out}/evaluation/small",
            f"tensorboard --logdir {out}  # needs: pip install 'todm[tensorboard]'",
            "```",
        ]
    )


def _parameters(net: Artifact) -> float:
    return net.file(WEIGHTS).stat().st_size / _BYTES
