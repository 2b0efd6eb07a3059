"""The state after an input was heard again and again, in closed form.

Letters: H heads, L frames of the loop, B sequences, P channels per head, N complex modes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from todm.kernels.mh_ssm.problem import Ssm
from todm.kernels.mh_ssm.torch_impl import powers


class Loop(NamedTuple):
    """From the frames of a loop to the state after hearing it n times, per head.

    One pass of L frames leads from zero to W; n passes lead to (1 + a^L + ... + a^(L (n - 1))) W, which
    is (1 - a^(L n)) / (1 - a^L) W. So hours of a looped sound cost no more than its loop.

    Attributes:
        write_H2NL: from the frames to W.
        re_HNB: real part of the factor of W, by sequence.
        im_HNB: its imaginary part.
    """

    write_H2NL: Tensor
    re_HNB: Tensor
    im_HNB: Tensor

    @classmethod
    def of(cls, ssm: Ssm, frames: int, times_B: Tensor) -> "Loop":
        """The loop of a recurrence whose decays are all below 1.

        Args:
            ssm: discrete parameters.
            frames: L.
            times_B: n for each sequence; 0 gives the zero state.
        """
        with torch.autocast(times_B.device.type, enabled=False):
            steps = torch.arange(frames - 1, -1, -1, device=times_B.device, dtype=ssm.skip_H.dtype)
            return cls(torch.cat(powers(ssm, steps), 1), *_factor(ssm, frames, times_B))

    def state(self, u_HLBP: Tensor) -> Tensor:
        """The state after the loop was heard, [H, 2N, B, P]."""
        with torch.autocast(u_HLBP.device.type, enabled=False):
            once = self.write_H2NL @ u_HLBP.flatten(2).to(self.write_H2NL.dtype)
            return self.repeated(once.unflatten(2, u_HLBP.shape[2:]))

    def repeated(self, once_H2NBP: Tensor) -> Tensor:
        """The state after n passes from that after one."""
        re, im = self.re_HNB.unsqueeze(-1), self.im_HNB.unsqueeze(-1)
        once_re, once_im = once_H2NBP.chunk(2, 1)
        return torch.cat([re * once_re - im * once_im, re * once_im + im * once_re], 1)


def _factor(ssm: Ssm, frames: int, times_B: Tensor) -> tuple[Tensor, Tensor]:
    log_decay, angle = (p.unsqueeze(-1) for p in (ssm.log_decay_HN, ssm.angle_HN))
    lengths = frames * torch.stack([times_B, torch.ones_like(times_B)]).to(log_decay.dtype)
    # Past e^-40 nothing is left, and the angle of so many frames would be noise.
    lengths = lengths[:, None, None].minimum(-40 / log_decay.detach())
    # Both rows of 1 - a^L without cancellation, as in `discretise`: a slow mode loses little in a loop.
    log_size, angle = log_decay * lengths, angle * lengths
    lost_re = 2 * (angle / 2).sin().square() - log_size.expm1() * angle.cos()
    (many_re, once_re), (many_im, once_im) = lost_re, -log_size.exp() * angle.sin()
    scale = (once_re.square() + once_im.square()).reciprocal()
    re = (many_re * once_re + many_im * once_im) * scale
    return re, (many_im * once_re - many_re * once_im) * scale
