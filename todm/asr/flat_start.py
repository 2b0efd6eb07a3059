"""Labels laid evenly over the speech, for a net that has no alignment yet.

Letters: B batch, T frames, U labels, V vocabulary.
"""

import torch
from torch import Tensor

from todm.asr.data.batch import Batch
from todm.asr.model.encoder_config import SUBSAMPLING
from todm.asr.tokens import BLANK_ID


@torch.no_grad()
def flat_alignment(batch: Batch, sizes_V: Tensor, num_frames: int) -> Tensor:
    """Labels laid over the loud part of each utterance in proportion to their letters.

    The loud part is between the first and the last frame whose mean log energy is above the middle
    between the utterance's quiet and loud frames (10th and 90th percentile).

    Args:
        batch: features (before subsampling) and labels.
        sizes_V: letters of every label.
        num_frames: frames after subsampling.

    Returns:
        Labels, int64 [B, num_frames]: blank in the quiet parts, -1 beyond the end.
    """
    energy_BT = batch.features_BTF.mean(-1)
    steps = torch.arange(energy_BT.shape[1], device=energy_BT.device)
    inside_BT = steps < batch.feature_lens_B[:, None]
    masked = energy_BT.masked_fill(~inside_BT, float("nan"))
    low, high = (torch.nanquantile(masked, q, 1) for q in (0.1, 0.9))
    loud_BT = inside_BT & (energy_BT > ((low + high) / 2)[:, None])
    first_B = torch.where(loud_BT, steps, steps[-1]).amin(1) / SUBSAMPLING
    last_B = torch.where(loud_BT, steps + 1, 0).amax(1) / SUBSAMPLING
    frames = torch.arange(num_frames, device=energy_BT.device) + 0.5
    share_BT = (frames - first_B[:, None]) / (last_B - first_B).clamp(min=1)[:, None]
    used_BU = (
        torch.arange(batch.targets_BU.shape[1], device=frames.device) < batch.target_lens_B[:, None]
    )
    ends_BU = (sizes_V[batch.targets_BU] * used_BU).cumsum(1)
    at_BT = share_BT * ends_BU[:, -1:]
    index_BT = torch.searchsorted(ends_BU.to(at_BT.dtype), at_BT, right=True)
    labels_BT = batch.targets_BU.gather(1, index_BT.clamp(max=batch.targets_BU.shape[1] - 1))
    labels_BT = labels_BT.masked_fill((share_BT < 0) | (share_BT >= 1), BLANK_ID)
    return labels_BT.masked_fill(frames * SUBSAMPLING >= batch.feature_lens_B[:, None], -1)
