"""The transducer: encoder, stateless predictor, joiner. The supernet and every plain subnet are this class.

Letters: B batch, T frames, U labels, K context of the predictor, D encoder width, J joiner width,
V vocabulary. In a context, -1 stands for no label.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.asr.model.encoder import Block, Encoder, EncoderCommon
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.wait import Wait
from todm.asr.tokens import BLANK_ID
from todm.config import Config
from todm.errors import ConfigError
from todm.supernet.elastic import extract_blocks
from todm.supernet.space import Subnet

JoinerInputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Projected encoder outputs [B, T, J], predictor outputs [B, U + 1, J], output weight [V, J] and bias [V]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RnntConfig(Config):
    """Sizes of the transducer.

    Attributes:
        vocab_size: V, read back from the tokenizer.
        encoder: the encoder; plain models list their own blocks.
        joiner_dim: J, also the predictor's width.
        context_size: K, labels the predictor sees.
        ctc: whether there is a CTC head (training only; an extracted model has none).
    """

    vocab_size: int = 128
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    joiner_dim: int = 128
    context_size: int = 2
    ctc: bool = True

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 4), ("joiner_dim", 1), ("context_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: at least {least}")

    def narrow(self, subnet: Subnet) -> "RnntConfig":
        """The plain model of a subnet, without CTC head."""
        return self.replace(encoder=self.encoder.narrow(subnet), ctc=False)


class Predictor(nn.Module):
    """Embedding of the last K labels, mixed per channel and projected; no recurrent state.

    Stateless predictor: Ghodsi et al. 2020.
    """

    def __init__(self, config: RnntConfig) -> None:
        super().__init__()
        self.context_size = config.context_size
        self.embedding = nn.Embedding(config.vocab_size, config.joiner_dim)
        self.taps = nn.Parameter(
            torch.randn(config.context_size, config.joiner_dim) / config.context_size**0.5
        )
        self.project = nn.Linear(config.joiner_dim, config.joiner_dim)

    def forward(self, labels_BUK: Tensor) -> Tensor:
        """Contexts of K labels, oldest first -> [B, U, J]. Works for any leading axes."""
        known = (labels_BUK >= 0).unsqueeze(-1).to(self.taps.dtype)
        embedded = self.embedding(labels_BUK.clamp(min=0)) * known
        return self.project(F.relu((embedded * self.taps).sum(-2)))

    def sequence(self, targets_BU: Tensor, reset_BU: Tensor | None = None) -> Tensor:
        """Outputs before each of the labels and after the last: [B, U + 1, J].

        The context starts as the device's does: -1 ... -1, then blank.

        Args:
            targets_BU: labels.
            reset_BU: [B, U + 1], true where the context starts again, as after a pause.
        """
        start = targets_BU.new_full((targets_BU.shape[0], self.context_size), -1)
        start[:, -1] = BLANK_ID
        labels = torch.cat([start, targets_BU], 1)
        contexts_BUK = labels.unfold(1, self.context_size, 1)
        if reset_BU is not None:
            contexts_BUK = _restart(contexts_BUK, reset_BU)
        return self(contexts_BUK)


def _restart(contexts_BUK: Tensor, reset_BU: Tensor) -> Tensor:
    """Contexts in which what lies before the last reset is the start of a stream."""
    nodes_U = torch.arange(contexts_BUK.shape[1], device=contexts_BUK.device)
    since_BU = nodes_U - torch.where(reset_BU, nodes_U, 0).cummax(1).values
    # The label k places from the end of a node's context was emitted k + 1 nodes before.
    back_K = torch.arange(contexts_BUK.shape[2], 0, -1, device=contexts_BUK.device)
    before_BUK = back_K - since_BU.unsqueeze(-1)
    contexts_BUK = contexts_BUK.masked_fill(before_BUK == 1, BLANK_ID)
    return contexts_BUK.masked_fill(before_BUK > 1, -1)


class Rnnt(nn.Module):
    """The model; a subnet is an argument of `encode`, never a state."""

    def __init__(self, config: RnntConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.predictor = Predictor(config)
        self.project = nn.Linear(config.encoder.d_model, config.joiner_dim)
        self.output = nn.Linear(config.joiner_dim, config.vocab_size)
        self.ctc = nn.Linear(config.encoder.d_model, config.vocab_size) if config.ctc else None

    @property
    def context_size(self) -> int:
        """K, labels the predictor sees."""
        return self.config.context_size

    def encode(
        self,
        features_BTF: Tensor,
        lens_B: Tensor,
        *,
        subnet: Subnet | None = None,
        chunk: int = 16,
        wait: Wait | None = None,
        common: EncoderCommon | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encoder outputs [B, T', D] and their lengths; see `Encoder.forward`."""
        options = {"subnet": subnet, "chunk": chunk, "wait": wait, "common": common}
        return self.encoder(features_BTF, lens_B, **options)

    def project_encoder(self, enc_BTD: Tensor) -> Tensor:
        """Encoder outputs in the joiner's space, [B, T, J]."""
        return self.project(enc_BTD)

    def predict(self, context_BK: Tensor) -> Tensor:
        """Predictor output for contexts of K labels, [B, J]."""
        return self.predictor(context_BK)

    def predict_sequence(self, targets_BU: Tensor, reset_BU: Tensor | None = None) -> Tensor:
        """Predictor outputs along a label sequence, [B, U + 1, J]; see `Predictor.sequence`."""
        return self.predictor.sequence(targets_BU, reset_BU)

    def joiner_inputs(self, enc_BTD: Tensor, pred_BUJ: Tensor) -> JoinerInputs:
        """What the RNN-T loss takes of the model, from encoder outputs and `predict_sequence`."""
        return (
            self.project_encoder(enc_BTD),
            pred_BUJ,
            self.output.weight,
            self.output.bias,
        )

    def joint(self, enc_J: Tensor, pred_J: Tensor) -> Tensor:
        """Logits over the vocabulary for matching leading axes."""
        return self.output(torch.tanh(enc_J + pred_J))


def extract(model: Rnnt, subnet: Subnet) -> Rnnt:
    """A plain dense model whose outputs equal the supernet's with this subnet; the CTC head stays behind."""
    plain = Rnnt(model.config.narrow(subnet))
    state = extract_blocks(
        model.state_dict(), "encoder.blocks.", Block.axes(model.config.encoder), subnet
    )
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("ctc.")})
    return plain.to(next(model.parameters()).device).train(model.training)
