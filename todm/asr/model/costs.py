"""What a speech subnet costs beside its weights: work per second of audio, and the state of a stream."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from todm.asr.model.encoder_config import NUM_BINS
from todm.asr.model.streaming import StreamingEncoder
from todm.asr.model.transducer import Rnnt, RnntConfig
from todm.device.decode import FRAME_SECONDS

_FLOAT = 4


def work_and_state(config: RnntConfig, chunk: int) -> dict[str, float]:
    """`macs` and `state` of a plain model, counted on its streaming form without allocating it.

    Args:
        config: of the plain model.
        chunk: C that it runs at.

    Returns:
        Multiply-accumulates of all matrix products per second of audio, joiner and predictor at
        every frame (the predictor runs at most that often), and bytes that a stream keeps between
        chunks.
    """
    with torch.device("meta"), torch.no_grad():
        encoder = StreamingEncoder(Rnnt(config), chunk).eval()
        size0, size1 = encoder.state_sizes
        features = torch.zeros(1, encoder.num_frames, NUM_BINS)
        states = torch.zeros(1, 1, size0), torch.zeros(1, 1, size1)
        with FlopCounterMode(display=False) as counter:
            encoder(features, *states)
    macs_of_frame = config.joiner_dim * (config.vocab_size + config.joiner_dim)
    macs = counter.get_total_flops() / 2 + chunk * macs_of_frame
    return {"macs": macs / (chunk * FRAME_SECONDS), "state": float(_FLOAT * (size0 + size1))}
