"""What a device runs: the encoder chunk by chunk with all state packed into two tensors, and the rest.

The packing is the one that sherpa-onnx's `lstm` host carries (export/sherpa_onnx/README.md):
state0 [1, B, S] holds the forward SSM states, state1 [1, B, R] the feature history. Zeros start a
stream. Operators of a chunk are computed once, in float64, and become constants of the graph.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from todm.asr.model.encoder import Block
from todm.asr.model.encoder_config import NUM_BINS, SUBSAMPLING
from todm.asr.model.mixer import Mixer
from todm.asr.model.transducer import Rnnt
from todm.kernels.mh_ssm import Ssm
from todm.kernels.mh_ssm.torch_impl import Operators, inner, operators


class StreamingMixer(nn.Module):
    """A mixer for chunks of a fixed number of frames.

    A stage computes everything of a chunk from its input and the state before it in one product per head:

        [y ahead; state after; y back] = [inner write back; read carry 0] [h; state]

    One large product is twice as fast as its parts in onnxruntime (docs/log.md). The matrix is stored in
    parts all the same, since half of it is zeros; runtimes join them once, on loading.
    """

    def __init__(self, mixer: Mixer, chunk: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.back = mixer.directions == 2
        heads = 2 * mixer.pairs
        self.state_shape = (heads, 2 * mixer.log_neg_re.shape[-1], mixer.channels)
        for stage, ssms in enumerate(mixer.ssms()):
            wide = [Ssm(*(p.detach().double() for p in ssm)) for ssm in ssms]
            for name, value in operators(wide[0], chunk)._asdict().items():
                self.register_buffer(f"{name}{stage}", value.float())
            if self.back:
                self.register_buffer(f"back{stage}", inner(wide[1], chunk).transpose(1, 2).float())

    def operators(self, stage: int) -> Operators:
        """The constants of a stage."""
        return Operators(*(getattr(self, f"{name}{stage}") for name in Operators._fields))

    def joined(self, stage: int) -> Tensor:
        """The constants of a stage as one matrix per head, [H, C + 2N (+ C), C + 2N]."""
        ops = self.operators(stage)
        eye = torch.eye(ops.carry_re_HN.shape[1])
        re, im = (eye * part.unsqueeze(-1) for part in (ops.carry_re_HN, ops.carry_im_HN))
        carry = torch.cat([torch.cat([re, -im], 2), torch.cat([im, re], 2)], 1)
        left, right = [ops.inner_HLL, ops.write_H2NL], torch.cat([ops.read_HL2N, carry], 1)
        if self.back:
            back = getattr(self, f"back{stage}")
            left.append(back)
            right = F.pad(right, (0, 0, 0, back.shape[1]))
        return torch.cat([torch.cat(left, 1), right], 2)

    def forward(self, x_BTD: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One chunk. States are [B, H, 2N, P], one per stage."""
        batch, chunk, _ = x_BTD.shape
        mixer, after = self.mixer, []
        sizes = [chunk, self.state_shape[1], chunk][: 3 if self.back else 2]
        h = mixer.w_in(x_BTD).reshape(batch, chunk, -1, mixer.channels).transpose(1, 2)
        for stage, state in enumerate(states):
            y, left, *back = (self.joined(stage) @ torch.cat([h, state], 2)).split(sizes, 2)
            after.append(left)
            mix = torch.cat(list(mixer.mix[stage]), 1)
            h = F.silu(torch.cat([y, *back], 3)) @ mix + mixer.mix_bias[stage].unsqueeze(1)
        gated = h[:, 0::2] * F.silu(h[:, 1::2])
        return mixer.w_out(gated.transpose(1, 2).flatten(2)), after


class StreamingEncoder(nn.Module):
    """The encoder and its projection into the joiner's space, one chunk a call."""

    def __init__(self, model: Rnnt, chunk: int) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError("a streaming encoder needs a chunk of at least one frame")
        self.chunk, self.model = chunk, model
        mixers = [StreamingMixer(b.mixer, chunk) for b in self._blocks()]
        self.mixers = nn.ModuleList(mixers)
        self.shapes = [m.state_shape for m in mixers for _ in range(Mixer.STAGES)]
        self.sizes: list[int] = [h * n * p for h, n, p in self.shapes]
        self.history = model.encoder.subsampling.history

    def _blocks(self) -> list[Block]:
        return list(self.model.encoder.blocks)  # pyright: ignore[reportReturnType]

    @property
    def state_sizes(self) -> tuple[int, int]:
        """S and R: numbers of one stream in state0 and state1. R is at least 1 (a host needs it)."""
        return sum(self.sizes), max(1, self.history * NUM_BINS)

    @property
    def num_frames(self) -> int:
        """Feature frames of a chunk."""
        return SUBSAMPLING * self.chunk

    def forward(
        self, x_BTF: Tensor, state0: Tensor, state1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One chunk of features.

        Args:
            x_BTF: [B, 4C, 80].
            state0: [1, B, S].
            state1: [1, B, R].

        Returns:
            encoder_out [B, C, J] and both states after the chunk.
        """
        x, history = self.stem(x_BTF, state1)
        parts = torch.split(state0[0], self.sizes, 1)
        states = [p.reshape(-1, *shape) for p, shape in zip(parts, self.shapes, strict=True)]
        after: list[Tensor] = []
        for i, (block, mixer) in enumerate(zip(self._blocks(), self.mixers, strict=True)):
            own = states[i * Mixer.STAGES : (i + 1) * Mixer.STAGES]
            mixed, left = mixer(block.mixer_norm(x), own)
            x = block.feed_forward(x + mixed, block.ffn)
            after += left
        return self.head(x), torch.cat([a.flatten(1) for a in after], 1).unsqueeze(0), history

    def stem(self, x_BTF: Tensor, state1: Tensor) -> tuple[Tensor, Tensor]:
        """Features to the first block: [B, C, D], and the feature history after the chunk."""
        subsampling = self.model.encoder.subsampling
        normal = subsampling.normalise(x_BTF)
        if not self.history:
            return subsampling(normal, normal[:, :0]), state1 + 0
        x = subsampling(normal, state1[0].reshape(-1, self.history, NUM_BINS))
        return x, normal[:, -self.history :].flatten(1).unsqueeze(0)

    def head(self, x_BTD: Tensor) -> Tensor:
        """The final norm and the projection into the joiner's space: [B, C, J]."""
        return self.model.project(self.model.encoder.norm(x_BTD))


class Decoder(nn.Module):
    """The predictor for one context: y [B, K] int64 -> [B, J]."""

    def __init__(self, model: Rnnt) -> None:
        super().__init__()
        self.predictor = model.predictor

    def forward(self, y_BK: Tensor) -> Tensor:
        """See the class."""
        return self.predictor(y_BK)


class Joiner(nn.Module):
    """Projected encoder and predictor outputs -> logits [B, V]."""

    def __init__(self, model: Rnnt) -> None:
        super().__init__()
        self.output = model.output

    def forward(self, enc_BJ: Tensor, dec_BJ: Tensor) -> Tensor:
        """See the class."""
        return self.output(torch.tanh(enc_BJ + dec_BJ))
