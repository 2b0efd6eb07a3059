"""torchaudio's loss, for comparison: whole logits in memory, float32, standard lattice only."""

import torch
import torchaudio.functional

from todm.errors import ConfigError
from todm.kernels.rnnt_loss.problem import Problem, RnntLoss


def rnnt_loss(problem: Problem) -> RnntLoss:
    """The op, see `todm.kernels.rnnt_loss.rnnt_loss`. The occupancy is empty: none is exposed.

    Raises:
        ConfigError: a topology, teacher, penalty or dtype that it does not support.
    """
    p = problem
    unsupported = {
        "topology='one_symbol'": p.topology != "standard",
        "a teacher": p.teacher is not None,
        "fastemit": p.fastemit != 0,
        "delay_penalty": p.delay_penalty != 0,
        f"dtype {p.enc_BTJ.dtype}": p.enc_BTJ.dtype != torch.float32,
    }
    for what, given in unsupported.items():
        if given:
            raise ConfigError(
                f"rnnt_loss: impl 'torchaudio' does not support {what}: use impl='torch'"
            )
    T, U = max(p.enc_lens), max(p.target_lens)
    hidden_BTUJ = torch.tanh(p.enc_BTJ[:, :T, None] + p.pred_BUJ[:, None, : U + 1])
    logits_BTUV = torch.nn.functional.linear(hidden_BTUJ, p.weight_VJ, p.bias_V)
    enc_lens_B, target_lens_B = p.lens()
    inside = torch.arange(U, device=target_lens_B.device) < target_lens_B[:, None]
    loss_B = torchaudio.functional.rnnt_loss(
        logits_BTUV.float(),
        p.targets_BU[:, :U].masked_fill(~inside, 1).int().contiguous(),
        enc_lens_B.int(),
        target_lens_B.int(),
        blank=0,
        reduction="none",
    )
    return RnntLoss(loss_B, torch.zeros_like(loss_B), p.enc_BTJ.new_empty(0))
