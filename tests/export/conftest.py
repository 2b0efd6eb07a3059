"""A random transducer of the exported interface, small enough to export within a second or two.

Letters: B streams, C encoder frames of a chunk, F bins, J joiner width, K context, P channels.
"""

import pytest
import torch
from torch import nn

from todm.backend import Graph, Port
from todm.device.bundle import overflows

VOCAB_SIZE = 24
JOINER_DIM = 16
CONTEXT_SIZE = 2
CHUNK = 8


class LeakyEncoder(nn.Module):
    """Four frames to one, a leaky sum of all the past by matmul, and a frame of history."""

    within: torch.Tensor
    carry: torch.Tensor

    def __init__(self, chunk=CHUNK, channels=12, joiner_dim=JOINER_DIM):
        super().__init__()
        self.chunk, self.channels = chunk, channels
        self.stem = nn.Linear(5 * 80, channels)
        self.out = nn.Linear(channels, joiner_dim)
        decay = torch.linspace(0.3, 0.95, channels)
        ticks = torch.arange(chunk)
        gaps = (ticks[:, None] - ticks[None, :]).clamp(min=0)
        mask = (ticks[:, None] >= ticks[None, :]).float()
        self.register_buffer("within", (decay[:, None, None] ** gaps) * mask)
        self.register_buffer("carry", decay[:, None] ** (ticks + 1))

    def forward(self, x_BTF, state0, state1):
        x = (x_BTF + 8) / 6
        stretched = torch.cat([state1[0].unsqueeze(1), x], 1)
        blocks = torch.cat([stretched[:, 1:].reshape(-1, self.chunk, 320), stretched[:, :-4:4]], 2)
        h = torch.tanh(self.stem(blocks)).transpose(1, 2).unsqueeze(-1)
        y = (self.within @ h).squeeze(-1) + self.carry * state0[0].unsqueeze(-1)
        return self.out(y.transpose(1, 2)), y[..., -1].unsqueeze(0), x[:, -1].unsqueeze(0)


class Decoder(nn.Module):
    def __init__(self, vocab_size=VOCAB_SIZE, joiner_dim=JOINER_DIM):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, joiner_dim)
        self.project = nn.Linear(CONTEXT_SIZE * joiner_dim, joiner_dim)

    def forward(self, y_BK):
        known = (y_BK >= 0).unsqueeze(-1).float()
        return self.project((self.embedding(y_BK.clamp(min=0)) * known).flatten(1))


class Joiner(nn.Module):
    def __init__(self, vocab_size=VOCAB_SIZE, joiner_dim=JOINER_DIM):
        super().__init__()
        self.output = nn.Linear(joiner_dim, vocab_size)
        with torch.no_grad():
            self.output.weight.mul_(8)
            self.output.bias[0] += 2

    def forward(self, enc_BJ, dec_BJ):
        return self.output(torch.tanh(enc_BJ + dec_BJ))


def graphs_of(encoder, decoder, joiner, *, state_sizes, vocab_size, joiner_dim):
    """The graphs as the speech backend states them."""
    batch, inner = {0: "N"}, {1: "N"}
    frames = 4 * encoder.chunk
    states = [torch.zeros(1, 2, size) for size in state_sizes]
    out = torch.zeros(2, encoder.chunk, joiner_dim)
    wide = torch.randn(2, joiner_dim)
    return [
        Graph(
            name="encoder",
            module=encoder,
            inputs=(
                Port(name="x", example=torch.randn(2, frames, 80), dynamic=batch),
                Port(name="state0", example=states[0], dynamic=inner),
                Port(name="state1", example=states[1], dynamic=inner),
            ),
            outputs=(
                Port(name="encoder_out", example=out, dynamic=batch),
                Port(name="new_state0", example=states[0], dynamic=inner),
                Port(name="new_state1", example=states[1], dynamic=inner),
            ),
            metadata={"comment": "random weights"},
        ),
        Graph(
            name="decoder",
            module=decoder,
            inputs=(
                Port(
                    name="y", example=torch.zeros(2, CONTEXT_SIZE, dtype=torch.int64), dynamic=batch
                ),
            ),
            outputs=(Port(name="decoder_out", example=wide, dynamic=batch),),
            metadata={},
        ),
        Graph(
            name="joiner",
            module=joiner,
            inputs=(
                Port(name="encoder_out", example=wide, dynamic=batch),
                Port(name="decoder_out", example=wide, dynamic=batch),
            ),
            outputs=(Port(name="logit", example=torch.zeros(2, vocab_size), dynamic=batch),),
            metadata={},
        ),
    ]


@pytest.fixture(scope="session")
def toy_graphs():
    """Encoder, decoder and joiner with random weights that emit often."""
    torch.manual_seed(3)
    modules = (LeakyEncoder().eval(), Decoder().eval(), Joiner().eval())
    return graphs_of(*modules, state_sizes=(12, 80), vocab_size=VOCAB_SIZE, joiner_dim=JOINER_DIM)


@pytest.fixture(scope="session")
def write_assets():
    """Puts a tokenizer's files into a directory."""

    def write(directory):
        symbols = ["<blk>", "<sos/eos>", "<unk>"]
        symbols += [("▁" if i % 3 else "") + f"{chr(97 + i)}" for i in range(VOCAB_SIZE - 3)]
        lines = [f"{symbol} {i}\n" for i, symbol in enumerate(symbols)]
        (directory / "tokens.txt").write_text("".join(lines), encoding="utf-8")
        (directory / "bpe.model").write_bytes(b"not read here")
        (directory / "bpe.vocab").write_text("".join(f"{s}\t{-i}\n" for i, s in enumerate(symbols)))

    return write


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory, toy_graphs, write_assets):
    """A whole bundle for sherpa-onnx, made once; tests copy it before they spoil it."""
    from todm.export.bundle import ExportConfig, write_bundle
    from todm.export.sample import Sample, sample_signal

    path = tmp_path_factory.mktemp("bundle") / "toy"
    sample = Sample(samples_S=sample_signal(3.0), reference="NOTHING WAS SAID")
    write_bundle(path, toy_graphs, write_assets=write_assets, config=ExportConfig(), sample=sample)
    return path


@pytest.fixture(scope="session")
def skip_elsewhere():
    """Skips a comparison with sherpa-onnx in an int8 form whose sums overflow on this processor."""

    def skip(precision):
        if overflows(precision):
            pytest.skip(f"{precision} is the form for other processors")

    return skip


@pytest.fixture(scope="session")
def build_graphs():
    """States encoder, decoder and joiner as graphs."""
    return graphs_of
