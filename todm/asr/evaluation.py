"""Word error rate of a bundle, by the runtime that a device has, on a corpus's own audio."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from todm.artifact import Artifact
from todm.asr.cuts import cut_text
from todm.asr.tokens import normalise
from todm.device.audio import read_audio
from todm.device.bundle import Bundle, Precision
from todm.device.recognizer import StreamingRecognizer
from todm.errors import CorpusError

_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Reference:
    """An utterance: id, audio file, normalised transcript."""

    id: str
    audio: Path
    text: str


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
    from lhotse import CutSet

    rule = found.config["model"]["asr"]["data"]["tokens"]["normalise"]
    utterances = [
        Reference(cut.id, Path(cut.recording.sources[0].source), normalise(cut_text(cut)[0], rule))
        for cut in CutSet.from_file(corpus.file(f"cuts_{split}.jsonl.gz"))
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
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[str, str, str]]:
    """Transcribe utterances chunk by chunk: (id, reference, hypothesis) of each.

    One stream at a time where activations are quantised, as on a device: their scale is shared by
    a batch, so that a loud neighbour would change a transcript.
    """
    recognizer = StreamingRecognizer(bundle, precision=precision, beam=beam)
    rows: list[tuple[str, str, str]] = []
    size = _BATCH if precision == "fp32" else 1
    for start in range(0, len(utterances), size):
        group = utterances[start : start + size]
        found = recognizer.transcribe_batch([read_audio(u.audio) for u in group])
        rows += [(u.id, u.text, t.text.strip()) for u, t in zip(group, found, strict=True)]
        if progress:
            progress(len(rows), len(utterances))
    return rows
