"""Figures of  todm evaluate  on the terminal."""

from typing import Any

from todm.files import markdown_table


def show(rows: dict[str, dict[str, Any]], *, table: bool) -> None:
    """Print an evaluation: a table that compares its results, or a line for each."""
    if table:
        print(_table(rows))
        return
    for name, row in rows.items():
        print(
            f"{name:6} WER {row['error']:7.2%}  [{row['low']:.2%}, {row['high']:.2%}]  "
            f"{row['words']} words: "
            f"{row['insertions']} ins, {row['deletions']} del, {row['substitutions']} sub"
            f"{other_speech(row)}"
        )
        for line in unseen_lines(row):
            print(f"{name:6} {line}")


def unseen_lines(row: dict[str, Any]) -> list[str]:
    """What the voices of engines that training did not hear give, or that there is none; empty elsewhere."""
    if "unseen" not in row:
        return []
    if not row["unseen"]:
        return ["WER on a voice never heard: not measured: one engine (pip install hibari-tts)"]
    return [
        f"WER {found['error']:7.2%}  [{found['low']:.2%}, {found['high']:.2%}]  "
        f"{found['words']} words, on a voice never heard ({engine})"
        for engine, found in row["unseen"].items()
    ]


def other_speech(row: dict[str, Any]) -> str:
    """What was recognised in speech that is no command, and what a threshold makes of it."""
    told, others, decision = "", row.get("other_speech"), row.get("decision")
    if others:
        told = (
            f"; words in {others['accepts']} of {others['utterances']} utterances of other speech"
        )
    if decision:
        told += f"; its threshold loses {decision['lost']:.1%} of {decision['exact']} right ones"
        told += f" and leaves words in {decision['accepts']}" if others else ""
    return told


def _table(rows: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown; latencies in seconds."""
    first = next(iter(rows))
    heads = ["", "WER", "95 % interval", f"difference to {first}", "95 % interval", "p"]
    delayed = any("latency" in row for row in rows.values())
    if delayed:
        for what in ("word delay, s", "last word, s", "final text, s"):
            heads += [what, "p50", "p90"]
        heads.append("words measured")
    lines = []
    for name, row in rows.items():
        cells = [name, f"{row['error']:.2%}", f"{row['low']:.2%} to {row['high']:.2%}"]
        cells += _difference(row.get("against_first"))
        lines.append(cells + (_latency(row.get("latency")) if delayed else []))
    return markdown_table(heads, lines)


def _difference(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    change = found["difference"]
    return [
        f"{change['value']:+.2%}",
        f"{change['low']:+.2%} to {change['high']:+.2%}",
        f"{found['p']:.3f}",
    ]


def _latency(found: dict[str, Any] | None) -> list[str]:
    """Means, medians and 90th percentiles of words, last words and final texts, and how many words."""
    if found is None:
        return [""] * 10
    cells = []
    for delay in (found["words"], found["last"], found["final"]):
        cells += [f"{delay[k]:.2f}" for k in ("mean", "p50", "p90")] if delay else [""] * 3
    return [*cells, f"{found['words']['num']} of {found['words']['of']}"]
