"""Emission latency: how long after the end of a word a streaming recogniser has it out.

A label of frame t is out when the last frame of its chunk has come in: the delay of the chunk is
counted, the time of computing is not (`todm.device.timing` measures it), nor the 17.5 ms that the
features' window and the runtime's one frame of look-ahead add everywhere.

Where a word ends is said by the corpus, if its manifest has word alignments (lhotse's
`alignment["word"]`): speech made by espeak-ng has them. Else it is the frame of the word's last label
on the best path through the RNN-T lattice of an offline model, the forced alignment of a transducer.
Such a model puts labels where it likes within or after a word, so these ends have an error of their
own (on synthesised commands they lie 0.08 s before the synthesiser's word ends, docs/results.md):
compare recognisers by the ends of one and the same aligner, not by figures from different ones.

Letters: B utterances, T frames after subsampling (40 ms), U labels, V vocabulary, D and J widths.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from todm.asr.decode.wer import align
from todm.device.decode import FRAME_SECONDS
from todm.device.segments import word_spans

if TYPE_CHECKING:
    from todm.asr.model.transducer import Rnnt

BLANK = 0
_FRAMES = 64


class Emission(NamedTuple):
    """A recognised word and the frame of its last label."""

    text: str
    frame: int


class Timed(NamedTuple):
    """The words of a reference, the second at which each ends, and the utterance's length."""

    words: tuple[str, ...]
    ends: tuple[float, ...]
    seconds: float


class Recognised(Protocol):
    """An utterance as a recogniser gave it."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def words(self) -> tuple[Emission, ...]:
        """What was recognised, and when."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delay:
    """Delays in seconds: how many were measured, of how many, their mean, median and 90th percentile."""

    num: int
    of: int
    mean: float
    p50: float
    p90: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Delay of every word recognised correctly, and of each utterance's last word where it was."""

    words: Delay
    last: Delay | None


def emissions(tokens: Sequence[str], frames: Sequence[int]) -> tuple[Emission, ...]:
    """The words that tokens spell, each with the frame of its last token."""
    return tuple(Emission(text, frames[end - 1]) for text, _, end in word_spans(tokens))


def available(frame: int, chunk: int, seconds: float) -> float:
    """The second at which a label of a frame is out.

    Args:
        frame: after subsampling.
        chunk: C, the frames of a chunk; 0 is the whole utterance.
        seconds: length of the utterance.
    """
    return (frame // chunk + 1) * chunk * FRAME_SECONDS if chunk else seconds


def measure(
    found: Iterable[Recognised], reference: Mapping[str, Timed], *, chunk: int
) -> Latency | None:
    """The delays of a recogniser.

    Words are matched to the reference by the alignment that counts errors; only those recognised
    correctly have a delay. A negative one means that the word was out before it ended.

    Args:
        found: utterances; those without a reference are left out.
        reference: word ends by utterance.
        chunk: C of the recogniser, 0 for the whole utterance.

    Returns:
        The delays, or None if no word could be measured.
    """
    delays: list[float] = []
    last: list[float] = []
    total = utterances = 0
    for utterance in found:
        timed = reference.get(utterance.id)
        if timed is None or not timed.words:
            continue
        total, utterances = total + len(timed.words), utterances + 1
        own = _delays(utterance.words, timed, chunk)
        delays += own.values()
        last += [own[len(timed.words) - 1]] if len(timed.words) - 1 in own else []
    if not delays:
        return None
    return Latency(words=_summary(delays, total), last=_summary(last, utterances) if last else None)


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
        come = np.concatenate([[-np.inf], best[:-1] + label[t]])
        emitted[t] = come >= stay
        best = np.maximum(stay, come)
    frames, u = [], num_labels
    for t in range(num_frames - 1, -1, -1):
        if u and emitted[t, u]:
            frames.append(t)
            u -= 1
    return frames[::-1]


@torch.no_grad()
def force_align(model: "Rnnt", enc_TD: Tensor, targets: Sequence[int]) -> list[int] | None:
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
        blank.append(log_probs_TUV[..., BLANK])
        index_TU1 = labels_U[None, :, None].expand(len(part_TJ), -1, 1)
        label.append(log_probs_TUV[:, :-1].gather(2, index_TU1).squeeze(2))
    return viterbi(torch.cat(label), torch.cat(blank))


def word_ends(symbols: Sequence[str], frames: Sequence[int]) -> list[tuple[str, float]]:
    """Every word that aligned labels spell, with the second at which its last frame ends."""
    return [(e.text, (e.frame + 1) * FRAME_SECONDS) for e in emissions(symbols, frames)]


def manifest_ends(cut: Any) -> list[tuple[str, float]]:  # noqa: ANN401 - a lhotse Cut
    """Words and their ends by a cut's manifest; empty where it has no word alignment."""
    items = [i for s in cut.supervisions for i in (s.alignment or {}).get("word", ())]
    return [(i.symbol, i.start + i.duration) for i in items if i.symbol.strip()]


def _delays(found: Sequence[Emission], timed: Timed, chunk: int) -> dict[int, float]:
    """The delay of every reference word that was recognised, by its place."""
    delays, i, j = dict[int, float](), 0, 0
    for ref, hyp in align(timed.words, [e.text for e in found]):
        if ref and ref == hyp:
            delays[i] = available(found[j].frame, chunk, timed.seconds) - timed.ends[i]
        i, j = i + bool(ref), j + bool(hyp)
    return delays


def _summary(delays: Sequence[float], of: int) -> Delay:
    p50, p90 = np.quantile(delays, [0.5, 0.9])
    return Delay(
        num=len(delays), of=of, mean=float(np.mean(delays)), p50=float(p50), p90=float(p90)
    )
