"""How far a student's encoder is from its teacher's.

Letters: B batch, T frames after subsampling, J joiner width, N frames of the batch without padding.
"""

import torch
from torch import Tensor


def encoder_distance(student_BTJ: Tensor, teacher_BTJ: Tensor, lens_B: Tensor) -> Tensor:
    """Squared distance of two projected encoder outputs, in units of the teacher's mean square.

    CoDERT (arXiv 2106.07734) distils the encoder's part of the joint, which says more than the joint's
    posterior; here that is the projected output. A frame that has nothing in common with the teacher's
    counts about 2, as a node of the lattice does at worst, so that lambda means the same for all kinds
    of distillation.

    Args:
        student_BTJ: projected encoder output.
        teacher_BTJ: that of the teacher, detached.
        lens_B: frames of each utterance; those beyond never count.

    Returns:
        The sum over all frames of the batch, a scalar.
    """
    steps = torch.arange(student_BTJ.shape[1], device=lens_B.device)
    inside_BT = steps < lens_B[:, None]
    # Selected, not multiplied by zero: beyond an end there may be NaN.
    student_NJ, teacher_NJ = student_BTJ[inside_BT].float(), teacher_BTJ[inside_BT].float()
    power = teacher_NJ.square().sum(1).mean()
    return (student_NJ - teacher_NJ).square().sum() / power.clamp(min=1e-20)
