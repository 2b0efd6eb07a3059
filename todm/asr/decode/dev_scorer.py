"""How well a subnet recognises the dev split inside the supernet, in figures that a search can climb.

The word error rate is what counts, and it is coarse: of 300 utterances a good net gets 15 words wrong,
and two nets of equal worth differ by four. The transducer loss on the same utterances has no such
steps, and ranks subnets as well. One pass of the encoder gives both.
"""

import math
from typing import Any

import torch

from todm.asr.backend import AsrBackend
from todm.asr.data.batch import eval_batches
from todm.asr.decode.evaluate import tail_seconds
from todm.asr.decode.search import greedy_search
from todm.asr.decode.wer import figures, score
from todm.asr.model.transducer import Rnnt
from todm.kernels.rnnt_loss import rnnt_loss
from todm.supernet.space import Subnet

_HALF = 0.5  # an error less than one, so that a net without errors can still be improved on


class DevScorer:
    """Scores subnets on the dev split, whose features are kept."""

    def __init__(self, backend: AsrBackend, supernet: Rnnt, *, limit: int = 0) -> None:
        """Open the dev split; features are computed if they are not there.

        Args:
            backend: with a corpus.
            supernet: trained, in evaluation mode.
            limit: at most this many utterances; 0 for all.
        """
        self._backend, self._supernet = backend, supernet
        self.chunk = backend.config.eval_chunk
        tokenizer = backend.tokenizer
        batches = eval_batches(
            backend.store("dev"),
            lambda text: tokenizer.encode(tokenizer.normalise(text)),
            tail_seconds=tail_seconds(backend, self.chunk),
            limit=limit or None,
        )
        self._batches = list(batches)

    @torch.no_grad()
    def __call__(self, subnet: Subnet | None) -> dict[str, Any]:
        """Figures of a subnet (None: of all that the model has), the less the better.

        Returns:
            `score`, the geometric mean of the error rate and the loss; `loss` in nats per label;
            `error` with its bootstrap interval and counts, as `todm evaluate` has them.
        """
        refs, hyps, nats, labels = list[str](), list[str](), 0.0, 0
        for batch in self._batches:
            model, tokenizer = self._supernet, self._backend.tokenizer
            enc, lens = model.encode(
                batch.features_BTF, batch.feature_lens_B, subnet=subnet, chunk=self.chunk
            )
            found = rnnt_loss(
                model.project_encoder(enc),
                model.predict_sequence(batch.targets_BU),
                model.output.weight,
                model.output.bias,
                batch.targets_BU,
                lens,
                batch.target_lens_B,
                topology=self._backend.config.objective.topology,
            )
            nats += float(found.loss_B.sum())
            labels += int(batch.target_lens_B.sum())
            refs += [tokenizer.normalise(text) for text in batch.texts]
            hyps += [tokenizer.decode(h.tokens) for h in greedy_search(model, enc, lens)]
        wer = score(refs, hyps)
        loss = nats / max(1, labels)
        rate = (wer.errors + _HALF) / max(1, wer.words)
        return {"score": math.sqrt(rate * loss), "loss": loss, **figures(wer)}
