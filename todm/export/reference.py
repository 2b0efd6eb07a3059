"""A transducer decoded with its torch modules: the reference for every exported form.

Letters: T feature frames of a chunk; C encoder frames of a chunk; F bins; J joiner width.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from todm.backend import Graph
from todm.device.contract import start_context
from todm.device.decode import FRAME_SECONDS, endpoint_frames, log_softmax, silent_ids
from todm.device.features import Frames
from todm.device.recognizer import Transcript, detokenize

Call = Callable[..., tuple[Tensor, ...]]
"""A graph, in torch or in a runtime: tensors in the order of its inputs to the tensors of its outputs."""


def in_torch(graph: Graph) -> Call:
    """The module of a graph."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            outputs = graph.module(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return call


def split(frames_TF: Frames, size: int, shift: int) -> list[Tensor]:
    """The chunks that are decoded, each [1, T, F]: as on a device, one frame more must have come in."""
    starts = range(0, len(frames_TF) - size, shift)
    return [torch.from_numpy(frames_TF[None, i : i + size].copy()) for i in starts]


def encode(encoder: Call, chunks: Sequence[Tensor], states: Sequence[Tensor]) -> list[Tensor]:
    """Encoder output of every chunk, each [C, J], with states carried from chunk to chunk."""
    outs = []
    for chunk in chunks:
        out, *states = encoder(chunk, *states)
        outs.append(out[0])
    return outs


def greedy(
    decoder: Call,
    joiner: Call,
    encoded: Tensor,
    tokens: tuple[str, ...],
    context_size: int,
    *,
    endpoint_seconds: float | None,
) -> Transcript:
    """Decode encoder output [frames, J] with at most one symbol a frame: see `todm.device.decode`."""
    silent = silent_ids(tokens)
    endpoint = math.inf if endpoint_seconds is None else endpoint_frames(endpoint_seconds)
    start = [int(i) for i in start_context(context_size)]
    context, ids, frames, log_probs = start, [], [], []
    (predicted,) = decoder(torch.tensor([context]))
    for number, frame in enumerate(encoded):
        if frames and context != start and number - frames[-1] > endpoint:
            context = start
            (predicted,) = decoder(torch.tensor([context]))
        (logits,) = joiner(frame[None], predicted)
        scores = log_softmax(logits.numpy())[0]
        best = int(scores.argmax())
        if best not in silent:
            ids.append(best)
            frames.append(number)
            log_probs.append(float(scores[best]))
            context = [*context[1:], best]
            (predicted,) = decoder(torch.tensor([context]))
    return Transcript(
        text=detokenize([tokens[i] for i in ids]),
        ids=tuple(ids),
        tokens=tuple(tokens[i] for i in ids),
        timestamps=tuple(round(FRAME_SECONDS * number, 2) for number in frames),
        log_probs=tuple(log_probs),
    )


def decibels(exact: Tensor, rounded: Tensor) -> float:
    """The signal-to-noise ratio of rounded values."""
    noise = float((rounded - exact).square().sum())
    return float(10 * np.log10(float(exact.square().sum()) / max(noise, 1e-12)))
