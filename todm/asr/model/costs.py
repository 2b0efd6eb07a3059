"""What a speech subnet costs beside its weights: work per second of audio, and the state of a stream."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from todm.asr.backend import AsrBackend
from todm.asr.model.encoder import NUM_BINS
from todm.device.decode import FRAME_SECONDS
from todm.supernet.space import Subnet

_FLOAT = 4


def work_and_state(backend: AsrBackend, subnet: Subnet) -> dict[str, float]:
    """`macs` and `state` of a subnet, counted on its streaming form without memory.

    Args:
        backend: of the supernet.
        subnet: which.

    Returns:
        Multiply-accumulates of all matrix products per second of audio, joiner and predictor at
        every frame (the predictor at most so often), and bytes that a stream keeps between chunks.
    """
    with torch.device("meta"), torch.no_grad():
        encoder = backend.deployed(subnet).eval()
        size0, size1 = encoder.state_sizes
        features = torch.zeros(1, encoder.num_frames, NUM_BINS)
        states = torch.zeros(1, 1, size0), torch.zeros(1, 1, size1)
        with FlopCounterMode(display=False) as counter:
            encoder(features, *states)
    config = encoder.model.config
    macs_of_frame = config.joiner_dim * (config.vocab_size + config.joiner_dim)
    macs = counter.get_total_flops() / 2 + encoder.chunk * macs_of_frame
    seconds = encoder.chunk * FRAME_SECONDS
    return {"macs": macs / seconds, "state": float(_FLOAT * (size0 + size1))}
