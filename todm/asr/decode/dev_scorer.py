"""How well a subnet recognises the dev split inside the supernet, in a figure that a search can climb.

The word error rate is what counts, and it is coarse: of 300 utterances a good net gets 15 words wrong,
and two nets of equal worth differ by four. The transducer loss has no such steps. It is taken at three
speeds: the same words of the same voices, lower and slower or higher and faster, are nearly new speakers.
Both together rank subnets of one size much better than the error rate does (docs/results.md, "Search").
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from todm.asr.data.batch import Batch
from todm.asr.decode.search import greedy_search
from todm.asr.decode.utterances import Decoded, figures_of
from todm.asr.model.transducer import Rnnt
from todm.asr.tokens import Tokenizer
from todm.kernels.rnnt_loss import Topology, rnnt_loss
from todm.supernet.space import Subnet

ALTERED_SPEEDS = (0.9, 1.1)
"""Factors of tempo and pitch at which the loss is taken besides the normal speed."""
NUM_PARTS = 10
"""Parts of the utterances; how their scores differ tells how much of a score is luck."""
_SPEED = re.compile(r"_sp[\d.]+$")  # of an utterance's id, see `todm.asr.data.audio.speed_id`


@torch.no_grad()
def dev_score(
    model: Rnnt,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    altered: Iterable[Batch],
    subnet: Subnet | None,
    chunk: int,
    topology: Topology,
    endpoint: int,
) -> dict[str, Any]:
    """Figures of a subnet (None: of all that the model has); less is better.

    Args:
        model: a supernet or a plain model, in evaluation mode, on the batches' device.
        batches: of the dev split.
        tokenizer: of the model.
        altered: the same utterances at other speeds, which are not decoded.
        subnet: active subnet.
        chunk: C in frames of 40 ms; 0 for whole utterances.
        topology: of the lattice.
        endpoint: frames without a label after which the predictor's context starts again.

    Returns:
        `score`, the loss at all speeds in nats per label, and `parts`, the same on every tenth
        utterance; `error` at the normal speed with its bootstrap interval and counts, as
        `todm evaluate` has them.
    """
    losses, decoded = _Losses(), list[Decoded]()

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        enc, lens = model.encode(
            batch.features_BTF, batch.feature_lens_B, subnet=subnet, chunk=chunk
        )
        joiner = model.joiner_inputs(enc, model.predict_sequence(batch.targets_BU))
        result = rnnt_loss(*joiner, batch.targets_BU, lens, batch.target_lens_B, topology=topology)
        losses.add(batch.ids, result.loss_B, batch.target_lens_B)
        return enc, lens

    for batch in batches:
        found = greedy_search(model, *encode(batch), endpoint=endpoint)
        decoded += [
            Decoded(
                id=name, reference=tokenizer.normalise(text), hypothesis=tokenizer.decode(h.tokens)
            )
            for name, text, h in zip(batch.ids, batch.texts, found, strict=True)
        ]
    for batch in altered:
        encode(batch)
    return {"score": losses.mean(), "parts": losses.parts(), **figures_of(decoded)}


class _Losses:
    """Nats and labels of every utterance, all speeds together."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, ids: Iterable[str], nats_B: Tensor, labels_B: Tensor) -> None:
        for name, nats, labels in zip(ids, nats_B.tolist(), labels_B.tolist(), strict=True):
            base = _SPEED.sub("", name)
            before = self._sums.get(base, (0.0, 0))
            self._sums[base] = before[0] + nats, before[1] + labels

    def mean(self, first: int = 0, step: int = 1) -> float:
        """Nats per label of every so many-th utterance."""
        chosen = list(self._sums.values())[first::step]
        return sum(nats for nats, _ in chosen) / max(1, sum(labels for _, labels in chosen))

    def parts(self) -> list[float]:
        """The mean on every part; fewer parts of fewer utterances."""
        num = min(NUM_PARTS, len(self._sums))
        return [self.mean(part, num) for part in range(num)]
