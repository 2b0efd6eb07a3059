"""How well a subnet recognises the dev split inside the supernet, in figures that a search can climb.

The word error rate is what counts, and it is coarse: of 300 utterances a good net gets 15 words wrong,
and two nets of equal worth differ by four. The transducer loss on the same utterances has no such
steps, and ranks subnets as well. One pass of the encoder gives both.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from todm.asr.data.batch import Batch
from todm.asr.decode.search import greedy_search
from todm.asr.decode.wer import figures, score
from todm.asr.model.transducer import Rnnt
from todm.asr.tokens import Tokenizer
from todm.kernels.rnnt_loss import Topology, rnnt_loss
from todm.supernet.space import Subnet

_HALF = 0.5  # an error less than one, so that a net without errors can still be improved on


@torch.no_grad()
def dev_score(
    model: Rnnt,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
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
        subnet: active subnet.
        chunk: C in frames of 40 ms; 0 for whole utterances.
        topology: of the lattice.
        endpoint: frames without a label after which the predictor's context starts again.

    Returns:
        `score`, the geometric mean of the error rate and the loss; `loss` in nats per label;
        `error` with its bootstrap interval and counts, as `todm evaluate` has them.
    """
    refs, hyps, nats, labels = list[str](), list[str](), 0.0, 0
    for batch in batches:
        enc, lens = model.encode(
            batch.features_BTF, batch.feature_lens_B, subnet=subnet, chunk=chunk
        )
        joiner = model.joiner_inputs(enc, model.predict_sequence(batch.targets_BU))
        result = rnnt_loss(*joiner, batch.targets_BU, lens, batch.target_lens_B, topology=topology)
        nats += float(result.loss_B.sum())
        labels += int(batch.target_lens_B.sum())
        refs += [tokenizer.normalise(text) for text in batch.texts]
        found = greedy_search(model, enc, lens, endpoint=endpoint)
        hyps += [tokenizer.decode(h.tokens) for h in found]
    wer, loss = score(refs, hyps), nats / max(1, labels)
    rate = (wer.errors + _HALF) / max(1, wer.words)
    return {"score": math.sqrt(rate * loss), "loss": loss, **figures(wer)}
