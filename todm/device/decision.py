"""How sure a recogniser is that a segment was said to it, and from where on that is enough.

The confidence is that of a whole segment, 0 to 1: the logistic function of the mean log-odds of its symbols,
each at the frame that emitted it, in competition with all other symbols. No symbol counts for more than
`CERTAIN`, and one of even odds is added: few symbols prove little. Other runtimes compute the same
(export/onnx/segments.h, todm/export/page/recognizer.js, export/sherpa_onnx/run.py);
tests/device/confidences.json holds them to it.
"""

import math
from collections.abc import Sequence

CERTAIN = 8.0
"""The greatest log-odds that a symbol counts for: a probability of 0.99966."""
_LOG_CERTAIN = -math.log1p(math.exp(-CERTAIN))


def confidence(log_probs: Sequence[float]) -> float:
    """The confidence of a segment, from the log-probability of each of its symbols.

        >>> confidence([math.log(0.5)] * 3)
        0.5

    Args:
        log_probs: none of them above 0; may be empty.
    """
    odds = math.fsum(_log_odds(value) for value in log_probs) / (len(log_probs) + 1)
    return (1 + math.tanh(odds / 2)) / 2  # the logistic function, which cannot overflow


def _log_odds(log_prob: float) -> float:
    capped = min(log_prob, _LOG_CERTAIN)
    return capped - math.log1p(-math.exp(capped))
