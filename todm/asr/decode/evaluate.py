"""Recognised corpora: by torch at any chunk size, by the runtime that a device has, and on disk.

On disk an utterance is a line of JSON (id, reference, hypothesis, errors, words), so that any two
evaluations of the same utterances can be compared.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from todm.artifact import Artifact
from todm.asr.data.audio import cut_samples, cut_text
from todm.asr.data.batch import Batch, eval_batches
from todm.asr.data.features import FRAME_SHIFT
from todm.asr.decode.latency import (
    Emission,
    Timed,
    emissions,
    force_align,
    manifest_ends,
    word_ends,
)
from todm.asr.decode.search import Search, greedy_search
from todm.asr.decode.wer import Wer, score
from todm.asr.tokens import UNK_ID, Tokenizer, normalise
from todm.device.bundle import Bundle, Precision
from todm.device.decode import FRAME_SECONDS
from todm.device.recognizer import StreamingRecognizer
from todm.errors import ConfigError, CorpusError
from todm.files import write_text

if TYPE_CHECKING:
    from todm.asr.backend import AsrBackend
    from todm.asr.model.transducer import Rnnt
    from todm.supernet.space import Subnet

_BATCH = 8
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Reference:
    """An utterance: id, normalised transcript, and the lhotse cut that it is."""

    id: str
    text: str
    cut: Any

    def samples(self) -> np.ndarray:
        """Its audio and no more of the recording it lies in: float32 [S] at 16 kHz.

        Raises:
            CorpusError: the audio cannot be read.
        """
        return cut_samples(self.cut)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """An utterance as it was recognised: `words` says when each word came out."""

    id: str
    reference: str
    hypothesis: str
    words: tuple[Emission, ...] = ()


def references(found: Artifact, corpus: Artifact, split: str, limit: int = 0) -> list[Reference]:
    """The utterances of a split.

    Args:
        found: the bundle; it knows how transcripts are normalised.
        corpus: where the utterances are.
        split: train, dev or test.
        limit: only the first so many; 0 for all.

    Raises:
        CorpusError: the corpus has no utterances of that split.
    """
    rule = found.config["model"]["asr"]["data"]["tokens"]["normalise"]
    utterances = [
        Reference(cut.id, normalise(cut_text(cut)[0], rule), cut) for cut in _cuts(corpus, split)
    ]
    if not utterances:
        raise CorpusError(f"{corpus.path} has no {split} utterances")
    return utterances[:limit] if limit else utterances


def decode_bundle(
    bundle: Bundle,
    utterances: Sequence[Reference],
    *,
    precision: Precision,
    beam: int = 1,
    progress: Progress | None = None,
) -> list[Decoded]:
    """Transcribe utterances chunk by chunk.

    One stream at a time where activations are quantised, as on a device: their scale is shared by
    a batch, so that a loud neighbour would change a transcript.
    """
    recognizer = StreamingRecognizer(bundle, precision=precision, beam=beam)
    done: list[Decoded] = []
    size = _BATCH if precision == "fp32" else 1
    for start in range(0, len(utterances), size):
        group = utterances[start : start + size]
        found = recognizer.transcribe_batch([u.samples() for u in group])
        for u, t in zip(group, found, strict=True):
            frames = [round(s / FRAME_SECONDS) for s in t.timestamps]
            words = emissions(t.tokens, frames)
            done.append(Decoded(id=u.id, reference=u.text, hypothesis=t.text.strip(), words=words))
        if progress:
            progress(len(done), len(utterances))
    return done


@torch.no_grad()
def decode_model(
    backend: "AsrBackend",
    model: "Rnnt",
    *,
    chunk: int,
    split: str,
    subnet: "Subnet | None" = None,
    limit: int = 0,
    search: Search = greedy_search,
) -> list[Decoded]:
    """Recognise a split with torch.

    Args:
        backend: with a corpus.
        model: a supernet or a plain model, in evaluation mode.
        chunk: C in frames of 40 ms; 0 for whole utterances.
        split: train, dev or test.
        subnet: active subnet; None uses everything.
        limit: at most this many utterances, evenly spread over the lengths; 0 for all.
        search: from encoder outputs to labels.
    """
    tokenizer, done = backend.tokenizer, list[Decoded]()
    symbols = tokenizer.symbols
    for batch in _batches(backend, split, limit, chunk):
        on_device = batch.to(next(model.parameters()).device)
        enc, lens = model.encode(
            on_device.features_BTF, on_device.feature_lens_B, subnet=subnet, chunk=chunk
        )
        found = search(model, enc, lens)
        for name, text, hypothesis in zip(batch.ids, batch.texts, found, strict=True):
            pairs = zip(hypothesis.tokens, hypothesis.frames, strict=True)
            spoken = [(symbols[i], frame) for i, frame in pairs if i > UNK_ID]
            done.append(
                Decoded(
                    id=name,
                    reference=tokenizer.normalise(text),
                    hypothesis=tokenizer.decode(hypothesis.tokens),
                    words=emissions([s for s, _ in spoken], [frame for _, frame in spoken]),
                )
            )
    return done


@torch.no_grad()
def reference_ends(
    backend: "AsrBackend",
    model: "Rnnt",
    corpus: Artifact,
    *,
    split: str,
    limit: int = 0,
    progress: Progress | None = None,
) -> dict[str, Timed]:
    """Where the words of a split end: by its manifest, else by forced alignment with an offline model.

    Args:
        backend: the aligner's, with the corpus.
        model: the aligner, in evaluation mode; of a supernet the largest subnet is used.
        corpus: the same corpus.
        split: train, dev or test.
        limit: as in `decode_model`.
        progress: called with utterances done and their number.

    Returns:
        By utterance id; utterances whose words cannot be aligned are missing.
    """
    known = {cut.id: manifest_ends(cut) for cut in _cuts(corpus, split)}
    found, done = dict[str, Timed](), 0
    for batch in _batches(backend, split, limit, 0):
        aligned = _aligned(backend, model, batch, known)
        tail = tail_seconds(backend, 0)
        for name, text, length, words in zip(
            batch.ids, batch.texts, batch.feature_lens_B.tolist(), aligned, strict=True
        ):
            wanted = tuple(backend.tokenizer.normalise(text).split())
            if wanted and tuple(word for word, _ in words) == wanted:
                seconds = length * FRAME_SHIFT - tail
                found[name] = Timed(wanted, tuple(end for _, end in words), seconds)
        done += len(batch.ids)
        if progress:
            progress(done, min(limit or len(known), len(known)))
    return found


def _aligned(
    backend: "AsrBackend",
    model: "Rnnt",
    batch: Batch,
    known: dict[str, list[tuple[str, float]]],
) -> Iterator[list[tuple[str, float]]]:
    """Words and their ends of each utterance of a batch."""
    tokenizer, symbols = backend.tokenizer, backend.tokenizer.symbols
    rows = [_normal(tokenizer, known.get(name, [])) for name in batch.ids]
    if all(rows):
        yield from rows
        return
    on_device = batch.to(next(model.parameters()).device)
    enc, lens = model.encode(on_device.features_BTF, on_device.feature_lens_B, chunk=0)
    for row, text, enc_TD, length in zip(rows, batch.texts, enc, lens.tolist(), strict=True):
        targets = tokenizer.encode(tokenizer.normalise(text))
        frames = None if row else force_align(model, enc_TD[:length], targets)
        yield row or (word_ends([symbols[i] for i in targets], frames) if frames else [])


def _normal(tokenizer: Tokenizer, words: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Aligned words in the tokenizer's alphabet; none if one of them is not, such as `<unk>`."""
    try:
        return [(tokenizer.normalise(word), end) for word, end in words]
    except ValueError:
        return []


def score_all(found: Sequence[Decoded]) -> Wer:
    """Errors of recognised utterances."""
    return score([u.reference for u in found], [u.hypothesis for u in found])


def write_utterances(path: Path, found: Sequence[Decoded]) -> None:
    """Every utterance as a line of JSON: id, reference, hypothesis, errors, words."""
    counts = score_all(found).utterances
    lines = [
        json.dumps(
            {
                "id": u.id,
                "reference": u.reference,
                "hypothesis": u.hypothesis,
                "errors": errors,
                "words": words,
            },
            ensure_ascii=False,
        )
        for u, (errors, words) in zip(found, counts, strict=True)
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_utterances(path: Path) -> list[Decoded]:
    """What `write_utterances` wrote.

    Raises:
        ConfigError: no such file, or not one of these.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            Decoded(id=row["id"], reference=row["reference"], hypothesis=row["hypothesis"])
            for row in rows
        ]
    except OSError:
        raise ConfigError(f"{path} is not there: run  todm evaluate ... --out DIR  first") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} does not hold utterances that todm evaluate wrote") from None


def paired(ours: Sequence[Decoded], theirs: Sequence[Decoded]) -> tuple[Wer, Wer]:
    """Errors of two evaluations, utterance by utterance in one order.

    Raises:
        ConfigError: they are not of the same utterances.
    """
    sides = [{u.id: u for u in side} for side in (ours, theirs)]
    alone = len(sides[0].keys() ^ sides[1].keys())
    other = sum(sides[0][n].reference != sides[1][n].reference for n in sides[0].keys() & sides[1])
    if alone or other:
        raise ConfigError(
            f"the two evaluations are not of the same utterances: {alone} are in one of them only, and "
            f"{other} have different references; evaluate both on one corpus, split and limit"
        )
    order = sorted(sides[0])
    first, second = (score_all([side[name] for name in order]) for side in sides)
    return first, second


def _cuts(corpus: Artifact, split: str) -> Iterator[Any]:
    from lhotse import CutSet

    return iter(CutSet.from_file(corpus.file(f"cuts_{split}.jsonl.gz")))


def _batches(backend: "AsrBackend", split: str, limit: int, chunk: int) -> Iterator[Batch]:
    tokenizer = backend.tokenizer
    return eval_batches(
        backend.store(split),
        lambda text: tokenizer.encode(tokenizer.normalise(text)),
        tail_seconds=tail_seconds(backend, chunk),
        limit=limit or None,
    )


def tail_seconds(backend: "AsrBackend", chunk: int) -> float:
    """Silence after every utterance: at least a chunk, as a device needs it."""
    return max(backend.config.loader.tail_seconds, (chunk + 1) * FRAME_SECONDS)
