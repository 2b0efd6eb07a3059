"""Supernet, subnet or bundle + corpus -> word error rate, latency and cost; and two of these compared."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from todm.errors import ConfigError
from todm.files import Progress, no_progress, path_or_none, read_json, write_text

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.backend import AsrBackend
    from todm.asr.decode.latency import Clock
    from todm.asr.decode.search import Search as Decode
    from todm.asr.decode.utterances import Decoded
    from todm.asr.decode.wer import Comparison, Wer
    from todm.asr.decode.word_ends import Timed

Split = Literal["train", "dev", "test"]
Search = Literal["greedy", "beam", "fast_beam"]
_LONGEST = 1500  # frames of 40 ms: a minute
_BEAM = 4
_FIGURES, _UTTERANCES = "figures.json", "utterances-{}.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation.

    Attributes:
        results: by precision or chunk size, as JSON: `error` with its interval, counts, and what else
            was measured.
        existed: whether `out` held it already.
    """

    results: dict[str, dict[str, Any]]
    existed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """A result that two evaluations have in common: each one's errors, and how they differ."""

    name: str
    ours: "Wer"
    theirs: "Wer"
    comparison: "Comparison"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Result:
    """What was recognised, when its labels were out, and what it cost."""

    utterances: "list[Decoded]"
    clock: "Clock"
    cost: dict[str, Any] = dataclasses.field(default_factory=dict)
    unseen: "dict[str, list[Decoded]] | None" = None
    """By engines that training did not hear; None where the test is not of such a corpus."""


@dataclasses.dataclass(frozen=True)
class _Request:
    """How to decode; see `evaluate`."""

    split: Split
    search: Search
    phrases: str | Path | None
    limit: int
    chunks: Sequence[int]
    subnet: str | None

    def check(self, found: "Artifact") -> None:
        """Raise ConfigError for what cannot be, or not of this artifact."""
        if self.limit < 0:
            raise ConfigError(f"--limit is {self.limit}: 0 (all) or more")
        chunks = ",".join(map(str, self.chunks))
        if found.kind == "bundle" and (chunks or self.subnet):
            raise ConfigError(
                f"{found.path} is a bundle, and has the chunk and subnet it was exported with: "
                "give --chunks and --subnet with a supernet"
            )
        if found.kind in ("subnet", "compressed") and self.subnet:
            raise ConfigError(f"{found.path} is a single net already: leave out --subnet")
        different = len(set(self.chunks)) == len(self.chunks)
        if not different or not all(0 <= c <= _LONGEST for c in self.chunks):
            raise ConfigError(
                f"--chunks is '{chunks}': different whole numbers up to {_LONGEST}, as in 8,16,32,0"
            )
        if self.phrases and self.search != "fast_beam":
            raise ConfigError("--phrases is for --search fast_beam: give both or neither")
        if self.search == "fast_beam" and found.kind == "bundle":
            raise ConfigError(
                f"{found.path} is a bundle, which knows --search greedy and beam: give fast_beam with "
                "the supernet or subnet it was made of"
            )

    def to_json(self) -> dict[str, Any]:
        """All that decides what is recognised."""
        phrases = self.phrases and hashlib.sha256(Path(self.phrases).read_bytes()).hexdigest()
        chunks = ",".join(map(str, self.chunks)) or None
        return {**dataclasses.asdict(self), "phrases": phrases, "chunks": chunks}

    def decode(self, backend: "AsrBackend") -> "Decode":
        """The search from encoder outputs to labels."""
        from todm.asr.decode.search import beam_search, greedy_search

        if self.search == "fast_beam":
            from todm.asr.decode.search_k2 import favour

            return favour(path_or_none(self.phrases), backend.tokenizer)
        search = beam_search if self.search == "beam" else greedy_search
        return functools.partial(search, endpoint=backend.config.endpoint_frames)


def evaluate(
    model: str | Path,
    corpus: str | Path | None = None,
    *,
    split: Split = "test",
    search: Search = "greedy",
    phrases: str | Path | None = None,
    limit: int = 0,
    chunks: Sequence[int] = (),
    subnet: str | None = None,
    latency: bool = False,
    aligner: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress = no_progress,
) -> Evaluated:
    """Measure the word error rate on a corpus: of a bundle in every precision, or of a model in torch.

        >>> found = stages.evaluate(run / "supernet", split="dev", limit=2)
        >>> 0 <= found.results["torch"]["error"]
        True

    Args:
        model: a supernet, a subnet (compressed or not) or a bundle.
        corpus: by default the one the model was trained on; a bundle needs one.
        split: of the corpus.
        search: beam keeps 4 hypotheses; fast_beam is k2's, and not for bundles.
        phrases: file of phrases that fast_beam favours, one a line.
        limit: at most so many utterances; 0 for all.
        chunks: chunk sizes in frames of 40 ms, 0 for whole utterances; all are compared with the first.
        subnet: of a supernet: largest (default), smallest, or JSON, or a file with it.
        latency: measure the seconds from the end of a word to its text, and of the last one to the
            endpoint, at which the text is final.
        aligner: supernet or subnet that says where words end, if the corpus does not; by default the
            evaluated model.
        out: directory for figures, alignments and utterances.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm import artifact
    from todm.asr.loading import corpus_of

    found = artifact.load(model, kind=("supernet", "subnet", "compressed", "bundle"))
    request = _Request(split, search, phrases, limit, chunks, subnet)
    request.check(found)
    timed_by = _aligner(found, aligner, latency=latency)
    by = timed_by.hash if timed_by else "the corpus"
    data = corpus_of(found, path_or_none(corpus))
    place = path_or_none(out)
    if place:
        place.mkdir(parents=True, exist_ok=True)
    asked = {
        "artifact": found.hash,
        "corpus": data.hash,
        "latency": f"text and endpoint, by {by}" if latency else None,
        **request.to_json(),
    }
    done = read_json(place / _FIGURES) if place else {}
    if done.get("asked") == asked:
        return Evaluated(results=done["results"], existed=True)
    ends = None
    if latency and timed_by is None:
        ends = _known_ends(found, data, split)
    decode = _of_bundle if found.kind == "bundle" else _of_model
    decoded = decode(found, data, request, progress)
    if timed_by:
        # A limit takes the first utterances for a bundle, and others for a model.
        most = 0 if found.kind == "bundle" else limit
        ends = _word_ends(timed_by, data, split, most, progress)
    results = {name: _row(name, decoded, ends) for name in decoded}
    if place:
        _write(place, decoded, {"asked": asked, "results": results})
    return Evaluated(results=results, existed=False)


def compare(ours: str | Path, theirs: str | Path) -> list[Compared]:
    """Compare two evaluations, utterance by utterance.

    Args:
        ours: the `out` of an evaluation, or one of its files of utterances.
        theirs: likewise.

    Raises:
        ConfigError: they have nothing in common.
    """
    from todm.asr.decode.utterances import paired, read_utterances
    from todm.asr.decode.wer import compare as compare_errors

    rows = []
    for name, a, b in _pairs(Path(ours), Path(theirs)):
        first, second = paired(read_utterances(a), read_utterances(b))
        comparison = compare_errors(first, second)
        rows.append(Compared(name=name, ours=first, theirs=second, comparison=comparison))
    return rows


def _aligner(found: "Artifact", given: str | Path | None, *, latency: bool) -> "Artifact | None":
    """The model that says where words end, if latency is measured; a bundle leaves it to the corpus."""
    from todm import artifact

    if not latency:
        if given:
            raise ConfigError("--aligner is for --latency: give both or neither")
        return None
    if given:
        return artifact.load(given, kind=("supernet", "subnet", "compressed"))
    return None if found.kind == "bundle" else found


def _of_model(
    found: "Artifact", corpus: "Artifact", request: _Request, progress: Progress
) -> dict[str, _Result]:
    """Decode with torch, at each chunk size."""
    from todm.asr.decode.latency import Clock
    from todm.asr.loading import backend_of, load_model, subnet_of

    backend = backend_of(found, corpus=corpus.path, report=progress)
    model = load_model(found, backend)
    subnet = subnet_of(request.subnet, backend.space) if request.subnet else None
    search = request.decode(backend)
    results, chunks = {}, request.chunks
    for number, chunk in enumerate(chunks or [backend.config.eval_chunk], 1):
        utterances = backend.recognise(
            model,
            subnet=subnet,
            split=request.split,
            limit=request.limit,
            chunk=chunk,
            search=search,
        )
        name = (f"{40 * chunk}ms" if chunk else "offline") if chunks else "torch"
        results[name] = _Result(utterances=utterances, clock=Clock.of(backend.config, chunk))
        if chunks:
            progress("chunk sizes", number, len(chunks))
    return results


def _of_bundle(
    found: "Artifact", corpus: "Artifact", request: _Request, progress: Progress
) -> dict[str, _Result]:
    """Decode with onnxruntime, chunk by chunk, in every form; measure what it costs.

    Of the encoders int8 and int8.rr it is the one this processor computes right (`forms_here`).
    """
    from todm.asr.decode.evaluate import decode_bundle, references
    from todm.asr.decode.latency import Clock
    from todm.device.bundle import forms_here, open_bundle
    from todm.device.profiler import machine
    from todm.device.timing import Runtime, megabytes, time_bundle

    bundle = open_bundle(found.path)
    utterances = references(found, corpus, request.split, request.limit)
    timed = [u.samples() for u in utterances[:20]]
    engines = corpus.info.get("unseen") if request.split == "test" else None
    heard = {
        engine: references(found, corpus, f"unseen_{engine}", request.limit)
        for engine in engines or ()
    }
    results = {}
    for precision in forms_here(bundle):
        what = f"{found.path.name} {precision}"
        decode = functools.partial(
            decode_bundle,
            bundle,
            precision=precision,
            beam=_BEAM if request.search == "beam" else 1,
            progress=lambda done, total, what=what: progress(what, done, total),
        )
        decoded = decode(utterances)
        timing = time_bundle(bundle, timed, precision=precision)
        cost = Runtime(timing=timing, megabytes=megabytes(bundle, precision), machine=machine())
        name = "compressed" if bundle.info.get("compressed") else precision.removesuffix(".rr")
        clock = Clock(
            chunk=round(timing.chunk_seconds * 25),
            endpoint_seconds=bundle.pause_seconds,
            tail_seconds=bundle.tail_seconds,
        )
        by_engine = {engine: decode(part) for engine, part in heard.items()}
        results[name] = _Result(
            utterances=decoded,
            clock=clock,
            cost=dataclasses.asdict(cost),
            unseen=None if engines is None else by_engine,
        )
    return results


def _known_ends(bundle: "Artifact", corpus: "Artifact", split: Split) -> "dict[str, Timed]":
    """Where the words of the split end, by the corpus."""
    from todm.asr.decode.evaluate import known_ends

    ends = known_ends(bundle, corpus, split)
    if not ends:
        raise ConfigError(
            f"{corpus.path} does not say where words end, as --latency needs it: name a supernet or subnet "
            "to align with by --aligner"
        )
    return ends


def _word_ends(
    aligner: "Artifact", corpus: "Artifact", split: Split, limit: int, progress: Progress
) -> "dict[str, Timed]":
    """Where the words of the split end."""
    from todm.asr.loading import backend_of, load_model

    backend = backend_of(aligner, corpus=corpus.path, report=progress)
    return backend.word_ends(
        load_model(aligner, backend),
        split=split,
        limit=limit,
        progress=lambda done, total: progress("word ends", done, total),
    )


def _row(name: str, results: dict[str, _Result], ends: "dict[str, Timed] | None") -> dict[str, Any]:
    """The figures of a result, compared with the first."""
    from todm.asr.decode.utterances import figures_of, paired
    from todm.asr.decode.wer import compare as compare_errors

    result, first = results[name], next(iter(results))
    row = {**figures_of(result.utterances), **result.cost, "chunk": result.clock.chunk}
    if result.unseen is not None:
        row["unseen"] = {e: figures_of(part) for e, part in result.unseen.items()}
    if name != first:
        pair = paired(result.utterances, results[first].utterances)
        row["against_first"] = dataclasses.asdict(compare_errors(*pair))
    if ends is not None:
        from todm.asr.decode.latency import measure

        delays = measure(result.utterances, ends, clock=result.clock)
        row["latency"] = delays and dataclasses.asdict(delays)
    return row


def _write(out: Path, results: dict[str, _Result], figures: dict[str, Any]) -> None:
    """What was recognised, and last the figures, which say that all is there."""
    from todm.asr.decode.utterances import write_utterances
    from todm.asr.decode.wer import write_alignments

    for name, result in results.items():
        rows = ((u.id, u.reference, u.hypothesis) for u in result.utterances)
        columns = (list(column) for column in zip(*rows, strict=True))
        write_alignments(out / f"alignments-{name}.txt", *columns)
        write_utterances(out / _UTTERANCES.format(name), result.utterances)
    write_text(out / _FIGURES, json.dumps(figures, indent=1) + "\n")


def _pairs(ours: Path, theirs: Path) -> list[tuple[str, Path, Path]]:
    """The files that two evaluations have in common, or the only file of each."""
    for path in (ours, theirs):
        if not path.exists():
            raise ConfigError(f"{path} is not there: run  todm evaluate ... --out {path}  first")
    first, second = _files(ours), _files(theirs)
    if len(first) == len(second) == 1:
        (a,), (b,) = first.values(), second.values()
        return [(f"{ours} against {theirs}", a, b)]
    common = [name for name in first if name in second]
    if not common:
        raise ConfigError(
            f"{ours} has {', '.join(first) or 'no utterances'} and {theirs} has "
            f"{', '.join(second) or 'no utterances'}: name two files utterances-*.jsonl"
        )
    return [(name, first[name], second[name]) for name in common]


def _files(path: Path) -> dict[str, Path]:
    """The utterances of an evaluation by the name of the result."""
    if not path.is_dir():
        return {path.stem: path}
    before, after = _UTTERANCES.split("{}")
    found = sorted(path.glob(_UTTERANCES.format("*")))
    return {f.name.removeprefix(before).removesuffix(after): f for f in found}
