"""Recognising a corpus: with torch at any chunk size, or with the runtime of a device."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from todm.artifact import Artifact
from todm.asr.data.audio import cut_samples, cut_text
from todm.asr.data.batch import Batch
from todm.asr.decode import word_ends
from todm.asr.decode.search import Search
from todm.asr.decode.utterances import Decoded
from todm.asr.decode.word_ends import Timed
from todm.asr.model.transducer import Rnnt
from todm.asr.tokens import UNK_ID, Tokenizer, normalise
from todm.device.bundle import Bundle, Precision
from todm.device.decode import FRAME_SECONDS
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import final_text
from todm.errors import CorpusError
from todm.supernet.space import Subnet

_BATCH = 8


@torch.no_grad()
def decode_model(
    model: Rnnt,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    chunk: int,
    subnet: Subnet | None,
    search: Search,
) -> list[Decoded]:
    """Recognise batches with torch.

    Args:
        model: a supernet or a plain model, in evaluation mode.
        batches: with silence of at least a chunk behind every utterance.
        tokenizer: of the model.
        chunk: C in frames of 40 ms; 0 for whole utterances.
        subnet: active subnet; None uses everything.
        search: from encoder outputs to labels.
    """
    symbols, done = tokenizer.symbols, list[Decoded]()
    device = next(model.parameters()).device
    for batch in batches:
        on_device = batch.to(device)
        enc, lens = model.encode(
            on_device.features_BTF, on_device.feature_lens_B, subnet=subnet, chunk=chunk
        )
        for name, text, hypothesis in zip(
            batch.ids, batch.texts, search(model, enc, lens), strict=True
        ):
            spelled = [i for i, token in enumerate(hypothesis.tokens) if token > UNK_ID]
            done.append(
                Decoded(
                    id=name,
                    reference=tokenizer.normalise(text),
                    hypothesis=tokenizer.decode(hypothesis.tokens),
                    symbols=tuple(symbols[hypothesis.tokens[i]] for i in spelled),
                    frames=tuple(hypothesis.frames[i] for i in spelled),
                )
            )
    return done


@dataclasses.dataclass(frozen=True)
class Reference:
    """An utterance: id, normalised transcript, and its lhotse cut."""

    id: str
    text: str
    cut: Any

    def samples(self) -> np.ndarray:
        """Its audio, without the rest of the recording: float32 [S] at 16 kHz.

        Raises:
            CorpusError: the audio cannot be read.
        """
        return cut_samples(self.cut)


def references(bundle: Artifact, corpus: Artifact, split: str, limit: int = 0) -> list[Reference]:
    """The utterances of a split.

    Args:
        bundle: its configuration says how transcripts are normalised.
        corpus: where the utterances are.
        split: train, dev or test.
        limit: only the first so many; 0 for all.

    Raises:
        CorpusError: the corpus has no utterances of that split.
    """
    spell = _spelling(bundle)
    utterances = [Reference(cut.id, spell(cut_text(cut)[0]), cut) for cut in _cuts(corpus, split)]
    if not utterances:
        raise CorpusError(f"{corpus.path} has no {split} utterances")
    return utterances[:limit] if limit else utterances


def known_ends(bundle: Artifact, corpus: Artifact, split: str) -> dict[str, Timed]:
    """Where the words of a split end as far as the corpus says; see `todm.asr.decode.word_ends`."""
    return word_ends.known_ends(_cuts(corpus, split), _spelling(bundle))


def _cuts(corpus: Artifact, split: str) -> Iterable[Any]:
    from lhotse import CutSet

    return CutSet.from_file(corpus.file(f"cuts_{split}.jsonl.gz"))


def _spelling(bundle: Artifact) -> Callable[[str], str]:
    """The transcripts as a bundle's configuration has them."""
    rule = bundle.config["model"]["asr"]["data"]["tokens"]["normalise"]
    return functools.partial(normalise, rule=rule)


def decode_bundle(
    bundle: Bundle,
    utterances: Sequence[Reference],
    *,
    precision: Precision,
    beam: int = 1,
    progress: Callable[[int, int], None] | None = None,
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
        transcripts = recognizer.transcribe_batch([u.samples() for u in group])
        done += [
            Decoded(
                id=u.id,
                reference=u.text,
                hypothesis=t.text.strip(),
                final=final_text(recognizer, t) if recognizer.threshold else None,
                symbols=tuple(t.tokens),
                frames=tuple(round(s / FRAME_SECONDS) for s in t.timestamps),
            )
            for u, t in zip(group, transcripts, strict=True)
        ]
        if progress:
            progress(len(done), len(utterances))
    return done
