"""Tables in Markdown from rows alone, beside the published figures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.orders.listening import SPEECH
from benchmarks.studies.orders.plan import INGREDIENTS, runs
from benchmarks.studies.orders.recordings import NOISES, SNRS, conditions
from benchmarks.studies.orders.scoring import PARSES, mean_share, wilson
from todm.asr.decode.wer import Interval
from todm.files import markdown_table, read_json

INGREDIENT_ROWS, DIGIT_ROWS = "ingredients", "digits"
PUBLISHED = {
    "Picovoice Rhino": (0.935, 0.965, 0.980, 0.985, 0.985, 0.990, 0.990),
    "Microsoft LUIS": (0.845, 0.870, 0.895, 0.905, 0.915, 0.930, 0.930),
    "IBM Watson": (0.610, 0.800, 0.885, 0.925, 0.945, 0.950, 0.960),
    "Amazon Lex": (0.755, 0.830, 0.845, 0.870, 0.870, 0.870, 0.875),
    "Google Dialogflow": (0.665, 0.740, 0.770, 0.795, 0.815, 0.825, 0.825),
}
"""Mean of kitchen and cafe noise at `SNRS`, from the plot script (2022) of
github.com/Picovoice/speech-to-intent-benchmark, commit 47b1ca6 (Apache-2.0)."""
_MOST = 10
Row = dict[str, Any]


def report(folder: Path) -> Iterator[str]:
    """All tables, line by line."""
    places = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    yield "# Orders by voice"
    yield ""
    yield from _published()
    for place in places:
        if place.name not in (INGREDIENT_ROWS, DIGIT_ROWS):
            yield from _recordings(place.name, load(place))
    yield from _ingredients(load(folder / INGREDIENT_ROWS))
    yield from _digits(load(folder / DIGIT_ROWS))


def load(folder: Path) -> dict[str, Row]:
    """The rows of a folder by name."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}


def acceptance(row: Row, names: Sequence[str], parse: str) -> Interval | None:
    """The mean over conditions, with its interval; None if one of them is missing."""
    found = row["conditions"]
    if not names or any(name not in found for name in names):
        return None
    if len(names) == 1:
        num, wrong = found[names[0]]["num"], found[names[0]][parse]["wrong"]
        return wilson(num - len(wrong), num)
    return mean_share(right_CN(row, names, parse, _recording_names([row])))


def right_CN(row: Row, names: Sequence[str], parse: str, recordings: Sequence[str]) -> np.ndarray:
    """Whether each recording was accepted, 0 or 1, by condition and recording.

    Recordings that are never wrong have no names in a row; they fill the end.
    """
    num = row["conditions"][names[0]]["num"]
    right = np.ones((len(names), num))
    for condition, name in enumerate(names):
        wrong = row["conditions"][name][parse]["wrong"]
        right[condition, [recordings.index(w) for w in wrong]] = 0
    return right


def _recording_names(rows: Sequence[Row]) -> list[str]:
    """The names of all recordings that are wrong anywhere."""
    return sorted(
        {
            w
            for row in rows
            for c in row["conditions"].values()
            for p in PARSES
            for w in c[p]["wrong"]
        }
    )


def _published() -> Iterator[str]:
    yield "## Published"
    yield ""
    yield (
        "Mean of kitchen and cafe noise, on all 619 recordings of the benchmark "
        "([its repository](https://github.com/Picovoice/speech-to-intent-benchmark), commit 47b1ca6, 2022). "
        "The noise below is another: dishes and running water of Speech Commands, and babble of six readers "
        "of LibriSpeech."
    )
    yield ""
    heads = ("engine, %", *(f"{snr} dB" for snr in SNRS), "mean")
    cells = [
        (name, *(f"{100 * s:.1f}" for s in shares), f"{100 * float(np.mean(shares)):.1f}")
        for name, shares in PUBLISHED.items()
    ]
    yield markdown_table(heads, cells)
    yield ""


def _recordings(name: str, rows: dict[str, Row]) -> Iterator[str]:
    """What was measured on one folder of recordings."""
    rows = {n: row for n, row in rows.items() if row.get("conditions")}
    if not rows:
        return
    clean = [
        row["conditions"]["clean"]["num"] for row in rows.values() if "clean" in row["conditions"]
    ]
    yield f"## {name}: {max(clean, default=0)} recordings"
    yield ""
    heads = (
        "engine",
        "parse",
        "clean, %",
        "noise, %",
        "MB",
        "CPU s per s",
        "parsed, %",
        "slots right, %",
    )
    yield markdown_table(heads, [cell for n, row in rows.items() for cell in _summary(n, row)])
    yield ""
    yield (
        "Noise: mean over all noises and ratios, 6 to 24 dB (or those named), each recording with the same "
        "piece of noise for every engine. Intervals of 95 %: Wilson; of means by redrawing recordings. "
        "`nearest`: a text counts as the sentence of the grammar that is nearest by words. Parsed texts, "
        "right slots and CPU time are those of clean recordings."
    )
    yield ""
    for n, row in rows.items():
        yield from _by_noise(n, row)
    for n, row in rows.items():
        yield from _listening(n, row)
        yield from _confusions(n, row)


def _summary(name: str, row: Row) -> Iterator[tuple[str, ...]]:
    """A line for each parse."""
    noisy = [str(c) for c in conditions() if c.noise and str(c) in row["conditions"]]
    clean = row["conditions"].get("clean")
    for parse in PARSES:
        mean = acceptance(row, noisy, parse)
        ratios = sorted({int(n.split()[-2]) for n in noisy})
        partly = "" if len(noisy) == len(NOISES) * len(SNRS) else f" (at {_list(ratios)} dB)"
        yield (
            name,
            parse,
            _percent(acceptance(row, ["clean"], parse)),
            _percent(mean) + (partly if mean else ""),
            f"{row['engine']['megabytes']:.1f}",
            f"{clean['cpu_seconds'] / clean['audio_seconds']:.3f}" if clean else "-",
            f"{100 * clean['parsed'] / clean['num']:.1f}" if clean else "-",
            f"{100 * clean[parse]['slots_right'] / clean[parse]['slots']:.1f}" if clean else "-",
        )


def _by_noise(name: str, row: Row) -> Iterator[str]:
    """Acceptance by noise and ratio."""
    found = {str(c): c for c in conditions() if c.noise and str(c) in row["conditions"]}
    if not found:
        return
    ratios = sorted({c.snr_db for c in found.values() if c.snr_db is not None})
    heads = (f"{name}, %", "parse", *(f"{snr} dB" for snr in ratios), "mean")
    cells = []
    for noise in dict.fromkeys(c.noise for c in found.values()):
        for parse in PARSES:
            names = [f"{noise} {snr} dB" for snr in ratios]
            shares = [acceptance(row, [n], parse) if n in found else None for n in names]
            mean = acceptance(row, names, parse)
            plain = [f"{100 * s.value:.1f}" if s else "-" for s in shares]
            cells.append((str(noise), parse, *plain, _percent(mean)))
    yield markdown_table(heads, cells)
    yield ""


def _listening(name: str, row: Row) -> Iterator[str]:
    """False accepts, and orders after waits."""
    if accepts := row.get("false_accepts"):
        heads = (f"{name}: false accepts", "minutes", "segments", "an hour", "whole orders")
        cells = [
            (
                kind,
                f"{found['minutes']:.1f}",
                str(found["accepts"]),
                f"{found['per_hour']:.1f} ({found['low']:.1f} to {found['high']:.1f})",
                str(found["parsed"]) if kind == SPEECH else "",
            )
            for kind, found in accepts.items()
        ]
        yield markdown_table(heads, cells)
        yield ""
    if waits := row.get("waits"):
        heads = (f"{name}: after a wait in", "seconds", *(f"{p}, % (points)" for p in PARSES))
        cells = [
            (sound, f"{wait['seconds']:.0f}", *(_change(wait[p]) for p in PARSES))
            for sound, found in waits.items()
            for wait in found
        ]
        yield markdown_table(heads, cells)
        yield ""


def _confusions(name: str, row: Row) -> Iterator[str]:
    """What costs most, over all conditions."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for found in row["conditions"].values():
        for slot, label, heard, num in found["nearest"]["confusions"]:
            counts[slot, label, heard] += num
    if not counts:
        return
    yield f"{name}, what costs most over all conditions (slot: said -> heard):"
    yield ""
    for (slot, label, heard), num in counts.most_common(_MOST):
        yield f"- {num} {slot}: {label or 'nothing'} -> {heard or 'nothing'}"
    yield ""


def _ingredients(rows: dict[str, Row]) -> Iterator[str]:
    """Every ingredient against the row before it, on the same recordings."""
    yield "## Ingredients"
    yield ""
    heads = (
        "row",
        "adds",
        "updates",
        "clean, %",
        "noise, %",
        "against the row before, points",
        "CPU min",
    )
    cells, before = [], None
    for run in runs():
        row = rows.get(run.name)
        if row is None or "training" not in row:
            cells.append((run.name, run.adds, "missing", *[""] * (len(heads) - 3)))
            continue
        training, names = row["training"], list(row["conditions"])
        noisy = [n for n in names if n != "clean"]
        cells.append(
            (
                run.name,
                run.adds,
                f"{training['updates']:,}",
                _percent(acceptance(row, ["clean"], "nearest")),
                _percent(acceptance(row, noisy, "nearest")),
                _difference(row, before),
                f"{training['cpu_seconds'] / 60:.0f}",
            )
        )
        before = row
    yield markdown_table(heads, cells)
    yield ""
    yield (
        f"Largest net, int8, nearest parse; {len(INGREDIENTS)} ingredients, each beside all those above it. "
        "Paired intervals over all conditions that both rows have."
    )
    yield ""


def _difference(row: Row, before: Row | None) -> str:
    """A row minus another in points, with the paired interval."""
    if before is None:
        return ""
    names = [n for n in row["conditions"] if n in before["conditions"]]
    recordings = _recording_names([row, before])
    mine, theirs = (right_CN(r, names, "nearest", recordings) for r in (row, before))
    found = mean_share(mine - theirs)
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _digits(rows: dict[str, Row]) -> Iterator[str]:
    """Word error rates of bundles of digits."""
    if not rows:
        return
    yield "## Digits"
    yield ""
    groups = list(next(iter(rows.values()))["wer"])
    cells = [(name, *(_wer(row["wer"][group]) for group in groups)) for name, row in rows.items()]
    yield markdown_table(("bundle, WER in %", *groups), cells)
    yield ""


def _wer(found: Row) -> str:
    error, low, high = (100 * found[key] for key in ("error", "low", "high"))
    return f"{error:.1f} ({low:.1f} to {high:.1f}; {found['utterances']} strings)"


def _change(found: Row) -> str:
    return f"{found['right']:.1f} ({found['points']:+.1f}, {found['low']:+.1f} to {found['high']:+.1f})"


def _percent(found: Interval | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _list(items: Sequence[int]) -> str:
    return ", ".join(map(str, items))
