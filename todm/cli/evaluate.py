"""`todm evaluate ARTIFACT [CORPUS]`: word error rate and latency of a supernet, a subnet or a bundle.

`todm evaluate A --compare B` sets two evaluations (their `--out`) against each other.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.cli import false_accepts
from todm.cli.progress import progress_report
from todm.cli.tables import show
from todm.files import Progress

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.decode.search import Search
    from todm.asr.decode.utterances import Decoded
    from todm.asr.decode.word_ends import Timed
    from todm.asr.tokens import Tokenizer

_LONGEST = 1500  # frames of 40 ms: a minute
_FIGURES, _UTTERANCES = "figures.json", "utterances-{}.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One column: what was recognised, at which chunk size (None: not told), and what it cost."""

    found: "list[Decoded]"
    chunk: int | None = None
    cost: dict[str, Any] = dataclasses.field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "artifact",
        type=Path,
        help="a supernet, a subnet (compressed or not) or a bundle; with --compare the directory of an "
        "evaluation",
    )
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
        "--search",
        choices=("greedy", "beam", "fast_beam"),
        default="greedy",
        help="beam keeps 4 hypotheses; fast_beam is k2's, and not for bundles",
    )
    parser.add_argument(
        "--phrases",
        type=Path,
        metavar="FILE",
        help="phrases that fast_beam favours, one a line",
    )
    parser.add_argument("--limit", type=int, default=0, help="at most this many utterances; 0: all")
    parser.add_argument(
        "--chunks",
        help="chunk sizes in frames of 40 ms, 0 for whole utterances: 8,16,32,0 "
        "(default: the one it is exported at, or 0 if trained on whole utterances only); the others "
        "are compared with the first",
    )
    parser.add_argument(
        "--subnet", help="of a supernet: largest (default), smallest, or JSON, or a file with it"
    )
    parser.add_argument(
        "--latency", action="store_true", help="seconds from the end of a word to its text"
    )
    parser.add_argument(
        "--aligner",
        type=Path,
        help="supernet or subnet that says where words end, if the corpus does not (default: the "
        "evaluated one; name one for all whose latency you compare)",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="B", help="an earlier evaluation to compare ARTIFACT's with"
    )
    false_accepts.add_arguments(parser)
    parser.add_argument("--out", type=Path, help="directory for figures, alignments and utterances")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a line, or a row of a table, for each precision or chunk size."""
    from todm import artifact
    from todm.asr.loading import corpus_of
    from todm.errors import ConfigError

    if args.limit < 0:
        raise ConfigError(f"--limit is {args.limit}: 0 (all) or more")
    if args.compare:
        return _compare(args.artifact, args.compare)
    if args.reject:
        return false_accepts.run(args)
    found = artifact.load(args.artifact, kind=("supernet", "subnet", "compressed", "bundle"))
    chunks = _chunks(args, found)
    _check_search(args, found)
    aligner = _aligner(args, found)
    corpus = corpus_of(found, args.corpus)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    asked = {
        "artifact": found.hash,
        "corpus": corpus.hash,
        "split": args.split,
        "search": args.search,
        "phrases": args.phrases and hashlib.sha256(args.phrases.read_bytes()).hexdigest(),
        "limit": args.limit,
        "chunks": args.chunks,
        "subnet": args.subnet,
        "latency": aligner and aligner.hash,
    }
    if args.out and (done := _read(args.out, asked)) is not None:
        print(f"done already: {args.out}")
        show(done)
        return 0
    with progress_report() as report:
        if found.kind == "bundle":
            results = _of_bundle(found, corpus, args, report)
        else:
            results = _of_model(found, corpus, chunks, args, report)
        # A limit takes the first utterances for a bundle, and others for a model.
        limit = 0 if found.kind == "bundle" else args.limit
        ends = _ends(aligner, corpus, args, limit, report) if aligner else None
    show(_write(args.out, results, ends, asked))
    return 0


def _chunks(args: argparse.Namespace, found: "Artifact") -> list[int]:
    """The chunk sizes asked for, empty if none."""
    from todm.errors import ConfigError

    if found.kind == "bundle" and (args.chunks or args.subnet):
        raise ConfigError(
            f"{found.path} is a bundle, and has the chunk and subnet it was exported with: "
            "give --chunks and --subnet with a supernet"
        )
    if found.kind in ("subnet", "compressed") and args.subnet:
        raise ConfigError(f"{found.path} is a single net already: leave out --subnet")
    words = args.chunks.split(",") if args.chunks else []
    chunks = [int(w) if w.strip().isdecimal() else -1 for w in words]
    if not all(0 <= c <= _LONGEST for c in chunks) or len(set(chunks)) < len(chunks):
        raise ConfigError(
            f"--chunks is {args.chunks!r}: different whole numbers up to {_LONGEST}, as in 8,16,32,0"
        )
    return chunks


def _check_search(args: argparse.Namespace, found: "Artifact") -> None:
    from todm.errors import ConfigError

    if args.phrases and args.search != "fast_beam":
        raise ConfigError("--phrases is for --search fast_beam: give both or neither")
    if args.search == "fast_beam" and found.kind == "bundle":
        raise ConfigError(
            f"{found.path} is a bundle, which knows --search greedy and beam: give fast_beam with the "
            "supernet or subnet it was made of"
        )


def _aligner(args: argparse.Namespace, found: "Artifact") -> "Artifact | None":
    """The model that says where words end, if latency is asked for."""
    from todm import artifact
    from todm.errors import ConfigError

    if not args.latency:
        if args.aligner:
            raise ConfigError("--aligner is for --latency: give both or neither")
        return None
    if args.aligner:
        return artifact.load(args.aligner, kind=("supernet", "subnet", "compressed"))
    if found.kind == "bundle":
        raise ConfigError("--latency of a bundle needs a model to align with: give --aligner")
    return found


def _of_model(
    found: "Artifact",
    corpus: "Artifact",
    chunks: list[int],
    args: argparse.Namespace,
    report: Progress,
) -> dict[str, Result]:
    """Decode with torch, at each chunk size."""
    from todm.asr.loading import backend_of, load_model, subnet_of

    backend = backend_of(found, corpus=corpus.path, report=report)
    model = load_model(found, backend)
    subnet = subnet_of(args.subnet, backend.space) if args.subnet else None
    search = _search(args, backend.tokenizer)
    results = {}
    for number, chunk in enumerate(chunks or [backend.config.eval_chunk], 1):
        decoded = backend.recognise(
            model, subnet=subnet, split=args.split, limit=args.limit, chunk=chunk, search=search
        )
        name = _name(chunk) if chunks else "torch"
        results[name] = Result(found=decoded, chunk=chunk)
        if chunks:
            report("chunk sizes", number, len(chunks))
    return results


def _search(args: argparse.Namespace, tokenizer: "Tokenizer") -> "Search":
    from todm.asr.decode.search import beam_search, greedy_search
    from todm.asr.decode.search_k2 import favour

    if args.search == "fast_beam":
        return favour(args.phrases, tokenizer)
    return beam_search if args.search == "beam" else greedy_search


def _of_bundle(
    found: "Artifact", corpus: "Artifact", args: argparse.Namespace, report: Progress
) -> dict[str, Result]:
    """Decode with onnxruntime, chunk by chunk, in every form; measure what it costs.

    Of the encoders int8 and int8.rr it is the one this processor computes right (`forms_here`).
    """
    from todm.asr.decode.evaluate import decode_bundle, references
    from todm.device.bundle import forms_here, open_bundle
    from todm.device.profiler import machine
    from todm.device.timing import Runtime, megabytes, time_bundle

    bundle = open_bundle(found.path)
    utterances = references(found, corpus, args.split, args.limit)
    timed = [u.samples() for u in utterances[:20]]
    results = {}
    for precision in forms_here(bundle):
        decoded = decode_bundle(
            bundle,
            utterances,
            precision=precision,
            beam=4 if args.search == "beam" else 1,
            progress=lambda done, total, name=precision: report(
                f"{found.path.name} {name}", done, total
            ),
        )
        timing = time_bundle(bundle, timed, precision=precision)
        cost = Runtime(timing=timing, megabytes=megabytes(bundle, precision), machine=machine())
        name = "compressed" if bundle.info.get("compressed") else precision.removesuffix(".rr")
        results[name] = Result(
            found=decoded, chunk=round(timing.chunk_seconds * 25), cost=dataclasses.asdict(cost)
        )
    return results


def _ends(
    aligner: "Artifact", corpus: "Artifact", args: argparse.Namespace, limit: int, report: Progress
) -> "dict[str, Timed]":
    """Where the words of the split end."""
    from todm.asr.loading import backend_of, load_model

    backend = backend_of(aligner, corpus=corpus.path, report=report)
    return backend.word_ends(
        load_model(aligner, backend),
        split=args.split,
        limit=limit,
        progress=lambda done, total: report("word ends", done, total),
    )


def _write(
    out: Path | None,
    results: dict[str, Result],
    ends: "dict[str, Timed] | None",
    asked: dict[str, Any],
) -> dict[str, Any]:
    """Figures of every result; what was recognised and the figures go to `out` if there is one."""
    from todm.asr.decode.latency import measure
    from todm.asr.decode.utterances import paired, score_all, write_utterances
    from todm.asr.decode.wer import compare, figures, write_alignments
    from todm.files import write_text

    written: dict[str, Any] = {"asked": asked, "results": {}}
    first = next(iter(results.values())).found
    for name, result in results.items():
        if out:
            rows = ((u.id, u.reference, u.hypothesis) for u in result.found)
            columns = (list(column) for column in zip(*rows, strict=True))
            write_alignments(out / f"alignments-{name}.txt", *columns)
            write_utterances(out / _UTTERANCES.format(name), result.found)
        row = {**figures(score_all(result.found)), **result.cost, "chunk": result.chunk}
        if result.found is not first:
            row["against_first"] = dataclasses.asdict(compare(*paired(result.found, first)))
        if ends is not None:
            latency = measure(result.found, ends, chunk=result.chunk or 0)
            row["latency"] = latency and dataclasses.asdict(latency)
        written["results"][name] = row
    if out:
        write_text(out / _FIGURES, json.dumps(written, indent=1) + "\n")
    return written


def _read(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Figures of an earlier call that asked for the same."""
    try:
        found = json.loads((out / _FIGURES).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return found if found.get("asked") == asked else None


def _compare(ours: Path, theirs: Path) -> int:
    """Print a line for every result that two evaluations have in common."""
    from todm.asr.decode.utterances import paired, read_utterances
    from todm.asr.decode.wer import compare

    for name, a, b in _pairs(ours, theirs):
        first, second = paired(read_utterances(a), read_utterances(b))
        found = compare(first, second)
        print(
            f"{name}: {found.relative:+.1%} relative [{found.low:+.1%}, {found.high:+.1%}], "
            f"p {found.p:.3f} ({first.rate:.2%} against {second.rate:.2%}, {first.words} words)"
        )
    return 0


def _pairs(ours: Path, theirs: Path) -> list[tuple[str, Path, Path]]:
    """The files that two evaluations have in common, or the only file of each."""
    from todm.errors import ConfigError

    for path in (ours, theirs):
        if not path.exists():
            raise ConfigError(f"{path} is not there: run  todm evaluate ... --out {path}  first")
    sides = [_files(path) for path in (ours, theirs)]
    if [len(side) for side in sides] == [1, 1]:
        (a,), (b,) = (list(side.values()) for side in sides)
        return [(f"{ours} against {theirs}", a, b)]
    common = [name for name in sides[0] if name in sides[1]]
    if not common:
        raise ConfigError(
            f"{ours} has {', '.join(sides[0]) or 'no utterances'} and {theirs} has "
            f"{', '.join(sides[1]) or 'no utterances'}: name two files utterances-*.jsonl"
        )
    return [(name, sides[0][name], sides[1][name]) for name in common]


def _files(path: Path) -> dict[str, Path]:
    """The utterances of an evaluation by the name of the result."""
    if not path.is_dir():
        return {path.stem: path}
    before, after = _UTTERANCES.split("{}")
    found = sorted(path.glob(_UTTERANCES.format("*")))
    return {f.name.removeprefix(before).removesuffix(after): f for f in found}


def _name(chunk: int) -> str:
    return f"{40 * chunk}ms" if chunk else "offline"
