"""What a device heard before the first frame of a sequence, without computing it again and again.

Letters: B batch, T frames, F bins.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_LOOP = 8


def loop_frames(chunk: int) -> int:
    """Subsampled frames that stand for a wait: whole chunks, enough to tell the sound; 0 without chunks."""
    return -(-_LEAST_LOOP // chunk) * chunk if chunk else 0


class Wait(NamedTuple):
    """The sequence's own beginning, heard again and again before it.

    Every loop gives a recurrence the same input, so that the state after any number of them has a
    closed form (`todm.kernels.mh_ssm.Loop`). At every depth that is exact for no loop, and for a wait of
    many times `memory_seconds`: each recurrence settles after the one before it. In between it is exact
    for a net's first recurrence alone: the input of the others still changed from loop to loop, and they
    are given the state after loops of the input that they have now.

    Attributes:
        frames: subsampled frames of the loop, whole chunks; no sequence is shorter.
        times_B: how often each sequence heard it before; 0 for a new stream.
    """

    frames: int
    times_B: Tensor

    def history(self, normal_BTF: Tensor, start_BTF: Tensor, subsampling: int) -> Tensor:
        """Normalised features before the first frame: the end of the loop, or `start_BTF` of a new stream."""
        end = self.frames * subsampling
        waited_B11 = (self.times_B > 0).view(-1, 1, 1)
        return torch.where(waited_B11, normal_BTF[:, end - start_BTF.shape[1] : end], start_BTF)
