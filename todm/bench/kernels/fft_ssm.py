"""The peer of mh_ssm: the convolution by FFT of S4D (arXiv 2206.11893, section 3.3)."""

import torch
from torch import Tensor

from todm.kernels.mh_ssm import Ssm


def fft_convolution(u_HTBP: Tensor, ssm: Ssm) -> Tensor:
    """The recurrence from a zero state, as one causal convolution of all T frames.

    The kernel of a head is a product with a Vandermonde matrix. The FFT of 2 T points runs along time,
    which becomes the innermost axis first, for cuFFT and MKL. Autograd gives the gradients.

    Args:
        u_HTBP: input, float32 or float64 (there is no FFT in bfloat16).
        ssm: discrete parameters, one set per head; with P = 1 and a head for every channel it is S4D.

    Returns:
        y_HTBP.
    """
    num_frames = u_HTBP.shape[1]
    steps = torch.arange(num_frames, device=u_HTBP.device, dtype=ssm.skip_H.dtype)
    size = (ssm.log_decay_HN[..., None] * steps).exp()
    powers = torch.polar(size, ssm.angle_HN[..., None] * steps)
    gain = torch.complex(ssm.gain_re_HN, ssm.gain_im_HN)
    kernel_HT = torch.einsum("hn,hnt->ht", gain, powers).real
    points = 2 * num_frames
    u = u_HTBP.permute(0, 2, 3, 1)
    spectrum = torch.fft.rfft(kernel_HT, n=points)[:, None, None] * torch.fft.rfft(u, n=points)
    y = torch.fft.irfft(spectrum, n=points)[..., :num_frames].permute(0, 3, 1, 2)
    return y + ssm.skip_H[:, None, None, None] * u_HTBP
