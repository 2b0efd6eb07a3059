"""Where the words of an utterance end: by the corpus, else by forced alignment.

A manifest may have word alignments (lhotse's `alignment["word"]`); speech from espeak-ng has them. If
not, the end is the frame of the word's last label on the best path through the RNN-T lattice of an
offline model. Such a model puts labels where it likes within or after a word, so these ends have an
error of their own (on synthesised commands they lie 0.08 s before the synthesiser's word ends,
docs/results.md): compare recognisers by the ends of one aligner, never by figures from different ones.

Letters: B utterances, T frames after subsampling (40 ms), U labels, V vocabulary, D and J widths.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from todm.asr.data.audio import cut_text
from todm.asr.data.batch import Batch
from todm.asr.data.features import FRAME_SHIFT
from todm.asr.decode.utterances import emissions
from todm.asr.model.transducer import Rnnt
from todm.asr.tokens import BLANK_ID, Tokenizer
from todm.device.decode import FRAME_SECONDS

_FRAMES = 64

WordEnds = list[tuple[str, float]]
"""Words of an utterance and the second at which each ends."""


class Timed(NamedTuple):
    """The words of a reference, the second at which each ends, and the utterance's length."""

    words: tuple[str, ...]
    ends: tuple[float, ...]
    seconds: float


@torch.no_grad()
def reference_ends(
    model: Rnnt,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    known: Mapping[str, WordEnds],
    tail_seconds: float,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Timed]:
    """Where the words of batches end: by their manifest, else by forced alignment with a model.

    Args:
        model: the aligner, in evaluation mode; of a supernet the largest subnet is used.
        batches: utterances for whole-utterance decoding.
        tokenizer: the aligner's.
        known: from `manifest_ends`, by utterance id.
        tail_seconds: silence behind every utterance of `batches`.
        progress: called with the number of utterances done.

    Returns:
        By utterance id; utterances whose words cannot be aligned are missing.
    """
    ends, done = dict[str, Timed](), 0
    for batch in batches:
        aligned = _aligned(model, batch, tokenizer, known)
        for name, text, length, words in zip(
            batch.ids, batch.texts, batch.feature_lens_B.tolist(), aligned, strict=True
        ):
            wanted = tuple(tokenizer.normalise(text).split())
            if wanted and tuple(word for word, _ in words) == wanted:
                seconds = length * FRAME_SHIFT - tail_seconds
                ends[name] = Timed(wanted, tuple(end for _, end in words), seconds)
        done += len(batch.ids)
        if progress:
            progress(done)
    return ends


def known_ends(cuts: Iterable[Any], spell: Callable[[str], str]) -> dict[str, Timed]:
    """Where the words of lhotse cuts end, as far as their manifests say it of the whole transcript.

    Args:
        cuts: with their transcripts.
        spell: a transcript in the alphabet of the tokens; raises ValueError if it cannot be written.

    Returns:
        By id.
    """
    ends = dict[str, Timed]()
    for cut in cuts:
        words = _normal(spell, manifest_ends(cut))
        timed = Timed(tuple(w for w, _ in words), tuple(end for _, end in words), cut.duration)
        if words and " ".join(timed.words) == spell(cut_text(cut)[0]):
            ends[cut.id] = timed
    return ends


def manifest_ends(cut: Any) -> WordEnds:  # noqa: ANN401 - a lhotse Cut
    """Words and their ends by a cut's manifest; empty where it has no word alignment."""
    items = [i for s in cut.supervisions for i in (s.alignment or {}).get("word", ())]
    return [(i.symbol, i.start + i.duration) for i in items if i.symbol.strip()]


@torch.no_grad()
def force_align(model: Rnnt, enc_TD: Tensor, targets: Sequence[int]) -> list[int] | None:
    """The frame of each label on the best path of a model; None if there are too few frames.

    Args:
        model: a transducer in evaluation mode.
        enc_TD: its encoder's outputs for one utterance.
        targets: U labels.
    """
    if len(enc_TD) < len(targets):
        return None
    labels_U = torch.tensor(targets, dtype=torch.int64, device=enc_TD.device)
    enc_TJ = model.project_encoder(enc_TD)
    pred_UJ = model.predict_sequence(labels_U[None])[0]
    label, blank = [], []
    for part_TJ in enc_TJ.split(_FRAMES):  # the whole lattice at once would be T x U x V numbers
        logits_TUV = model.joint(part_TJ[:, None], pred_UJ[None])
        log_probs_TUV = logits_TUV.float().log_softmax(-1)
        blank.append(log_probs_TUV[..., BLANK_ID])
        index_TU1 = labels_U[None, :, None].expand(len(part_TJ), -1, 1)
        label.append(log_probs_TUV[:, :-1].gather(2, index_TU1).squeeze(2))
    return viterbi(torch.cat(label), torch.cat(blank))


def viterbi(label_TU: Tensor, blank_TU: Tensor) -> list[int]:
    """The frames of the labels on the best path, one symbol a frame.

    best[t + 1, u] = max(best[t, u] + blank[t, u], best[t, u - 1] + label[t, u - 1])

    Args:
        label_TU: [T, U], log-probability of label u after u labels.
        blank_TU: [T, U + 1], log-probability of blank after u labels.

    Returns:
        U frames, ascending. Of equal paths the one that emits later.

    Raises:
        ValueError: fewer frames than labels.
    """
    label, blank = label_TU.double().cpu().numpy(), blank_TU.double().cpu().numpy()
    num_frames, num_labels = label.shape
    if num_frames < num_labels:
        raise ValueError(f"{num_labels} labels do not fit into {num_frames} frames")
    best = np.full(num_labels + 1, -np.inf)
    best[0] = 0.0
    emitted = np.zeros((num_frames, num_labels + 1), bool)
    for t in range(num_frames):
        stay = best + blank[t]
        emit = np.concatenate([[-np.inf], best[:-1] + label[t]])
        emitted[t] = emit >= stay
        best = np.maximum(stay, emit)
    frames, u = [], num_labels
    for t in range(num_frames - 1, -1, -1):
        if u and emitted[t, u]:
            frames.append(t)
            u -= 1
    return frames[::-1]


def word_ends(symbols: Sequence[str], frames: Sequence[int]) -> WordEnds:
    """Every word that aligned labels spell, with the second at which its last frame ends."""
    return [(e.text, (e.frame + 1) * FRAME_SECONDS) for e in emissions(symbols, frames)]


def _aligned(
    model: Rnnt, batch: Batch, tokenizer: Tokenizer, known: Mapping[str, WordEnds]
) -> Iterator[WordEnds]:
    """Words and their ends of each utterance of a batch."""
    rows = [_normal(tokenizer.normalise, known.get(name, [])) for name in batch.ids]
    if all(rows):
        yield from rows
        return
    on_device = batch.to(next(model.parameters()).device)
    enc, lens = model.encode(on_device.features_BTF, on_device.feature_lens_B, chunk=0)
    for row, text, enc_TD, length in zip(rows, batch.texts, enc, lens.tolist(), strict=True):
        targets = tokenizer.encode(tokenizer.normalise(text))
        frames = None if row else force_align(model, enc_TD[:length], targets)
        yield row or (word_ends([tokenizer.symbols[i] for i in targets], frames) if frames else [])


def _normal(spell: Callable[[str], str], words: WordEnds) -> WordEnds:
    """Aligned words in the alphabet of the tokens; empty if one cannot be written, such as `<unk>`."""
    try:
        return [(spell(word), end) for word, end in words]
    except ValueError:
        return []
