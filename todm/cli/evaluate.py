"""`todm evaluate ARTIFACT [CORPUS]`: word error rate of a supernet, a subnet or a bundle."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.cli.progress import Report, progress_report

if TYPE_CHECKING:
    from todm.artifact import Artifact

Rows = list[tuple[str, str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("artifact", type=Path, help="a supernet, subnet or bundle")
    parser.add_argument(
        "corpus",
        type=Path,
        nargs="?",
        help="directory that  todm prepare  wrote (default: the one trained on)",
    )
    parser.add_argument(
        "--split", choices=("train", "dev", "test"), default="test", help="default: test"
    )
    parser.add_argument(
        "--search", choices=("greedy", "beam"), default="greedy", help="beam keeps 4 hypotheses"
    )
    parser.add_argument("--limit", type=int, default=0, help="at most this many utterances; 0: all")
    parser.add_argument("--out", type=Path, help="directory for figures and alignments")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a line for each precision."""
    from todm import artifact
    from todm.asr.loading import corpus_of
    from todm.errors import ConfigError

    if args.limit < 0:
        raise ConfigError(f"--limit is {args.limit}: 0 (all) or more")
    found = artifact.load(args.artifact, kind=("supernet", "subnet", "bundle"))
    corpus = corpus_of(found, args.corpus)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    asked = {
        "artifact": found.hash,
        "corpus": corpus.hash,
        "split": args.split,
        "search": args.search,
        "limit": args.limit,
    }
    if args.out and (done := _read(args.out, asked)) is not None:
        print(f"done already: {args.out}")
        _show(done)
        return 0
    with progress_report() as report:
        results = (_of_bundle if found.kind == "bundle" else _of_model)(found, corpus, args, report)
    figures = _write(args.out, results, asked)
    _show(figures)
    return 0


def _of_model(
    found: "Artifact", corpus: "Artifact", args: argparse.Namespace, report: Report
) -> dict[str, tuple[Rows, dict[str, Any]]]:
    """Decode with torch."""
    from todm.asr.loading import backend_of, load_model

    backend = backend_of(found, corpus=corpus.path, report=report)
    model = load_model(found, backend)
    _, rows = backend.recognise(
        model, subnet=None, split=args.split, limit=args.limit, search=args.search
    )
    return {"torch": (rows, {})}


def _of_bundle(
    found: "Artifact", corpus: "Artifact", args: argparse.Namespace, report: Report
) -> dict[str, tuple[Rows, dict[str, Any]]]:
    """Decode with onnxruntime, chunk by chunk, in fp32 and int8; measure what it costs.

    Of the two int8 encoders it is the one this processor computes right (`best_int8`).
    """
    import dataclasses

    from todm.asr.evaluation import decode_bundle, references
    from todm.bench.runtime import measure
    from todm.device.bundle import best_int8, open_bundle

    bundle = open_bundle(found.path)
    utterances = references(found, corpus, args.split, args.limit)
    results = {}
    for precision in ("fp32", best_int8(bundle)) if "int8" in bundle.precisions() else ("fp32",):
        rows = decode_bundle(
            bundle,
            utterances,
            precision=precision,
            beam=4 if args.search == "beam" else 1,
            progress=lambda done, total, name=precision: report(
                f"{found.path.name} {name}", done, total
            ),
        )
        cost = measure(found.path, [u.audio for u in utterances[:20]], precision=precision)
        results[precision.partition(".")[0]] = (rows, dataclasses.asdict(cost))
    return results


def _write(
    out: Path | None, results: dict[str, tuple[Rows, dict[str, Any]]], asked: dict[str, Any]
) -> dict[str, Any]:
    """Figures of every precision; alignments and figures go to `out` if there is one."""
    from todm.artifact import write_text
    from todm.asr.backend import figures
    from todm.asr.wer import score, write_alignments

    found: dict[str, Any] = {"asked": asked, "results": {}}
    if out:
        out.mkdir(parents=True, exist_ok=True)
    for precision, (rows, cost) in results.items():
        ids, refs, hyps = (list(column) for column in zip(*rows, strict=True))
        if out:
            write_alignments(out / f"alignments-{precision}.txt", ids, refs, hyps)
        found["results"][precision] = {**figures(score(refs, hyps)), **cost}
    if out:
        write_text(out / "figures.json", json.dumps(found, indent=1) + "\n")
    return found


def _read(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of an earlier call that asked for the same."""
    try:
        found = json.loads((out / "figures.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return found if found.get("asked") == asked else None


def _show(found: dict[str, Any]) -> None:
    for precision, row in found["results"].items():
        print(
            f"{precision:6} WER {row['error']:7.2%}  [{row['low']:.2%}, {row['high']:.2%}]  "
            f"{row['words']} words: "
            f"{row['insertions']} ins, {row['deletions']} del, {row['substitutions']} sub"
        )
