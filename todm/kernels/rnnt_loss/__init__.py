"""RNN-T loss over the whole lattice, with distillation node by node.

    loss = -log sum over alignments of prod exp(score)
    score = log_softmax(W tanh(enc + pred) + b)

Graves 2012 (arXiv 1211.3711); the maths, the letters and the figures are in README.md.
"""

from torch import Tensor

from todm.errors import ConfigError
from todm.kernels._dispatch import load_impl
from todm.kernels.rnnt_loss.problem import Divergence, Problem, RnntLoss, Teacher, Topology

__all__ = ["IMPLS", "Divergence", "RnntLoss", "Teacher", "Topology", "rnnt_loss"]

IMPLS = ("torch", "triton", "reference", "torchaudio", "k2")


def rnnt_loss(  # noqa: PLR0913 - the joiner's four tensors, the batch's three, and the options
    enc_BTJ: Tensor,
    pred_BUJ: Tensor,
    weight_VJ: Tensor,
    bias_V: Tensor,
    targets_BU: Tensor,
    enc_lens_B: Tensor,
    target_lens_B: Tensor,
    *,
    topology: Topology = "standard",
    teacher: Teacher | None = None,
    divergence: Divergence | None = None,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    impl: str | None = None,
) -> RnntLoss:
    """Transducer loss of each utterance, and its divergence from a teacher.

    Args:
        enc_BTJ: Projected encoder output. Frames beyond an utterance's length are never read.
        pred_BUJ: Projected predictor output, U + 1 positions: before the first label to after
            the last.
        weight_VJ: Joiner's output layer; blank is row 0.
        bias_V: Its bias.
        targets_BU: Labels 1..V-1, padded with anything.
        enc_lens_B: Frames of each utterance, 1..T.
        target_lens_B: Labels of each utterance, 0..U; in `one_symbol` at most its frames.
        topology: `standard`, where a label keeps the frame, or `one_symbol`, where each frame
            emits the blank or one label.
        teacher: The network to stay close to; None gives a divergence of zero.
        divergence: The distance to it; its defaults where None.
        fastemit: Label gradients are multiplied by 1 + fastemit.
        delay_penalty: Times ((T - 1)/2 - t), added to label scores of frame t (as k2 does).
        impl: One of `IMPLS`; see `todm.kernels._dispatch`.

    Raises:
        ConfigError: shapes, lengths or labels that do not fit, named with their utterance.
    """
    if divergence is not None and teacher is None:
        raise ConfigError("rnnt_loss: a divergence without a teacher: give both or neither")
    problem = Problem(
        enc_BTJ=enc_BTJ,
        pred_BUJ=pred_BUJ,
        weight_VJ=weight_VJ,
        bias_V=bias_V,
        targets_BU=targets_BU,
        enc_lens=enc_lens_B.tolist(),
        target_lens=target_lens_B.tolist(),
        topology=topology,
        teacher=None if teacher is None else Teacher(*(x.detach() for x in teacher)),
        divergence=divergence or Divergence(),
        fastemit=fastemit,
        delay_penalty=delay_penalty,
    )
    problem.check()
    device = enc_BTJ.device.type
    return load_impl("rnnt_loss", IMPLS, impl, device=device).rnnt_loss(problem)
