"""The graphs of a model: whole, and in parts that compose to the graph of any subnet without an export.

An export of a whole encoder takes ten seconds, and a profile measures dozens of subnets. Each of a block's
two sublayers depends on one width, so one graph per sublayer and width is enough.

Letters: B batch, T frames of a chunk after subsampling, D width of the model, S numbers of a state,
R numbers of the feature history, J joiner width.
"""

import dataclasses

import torch
from torch import Tensor, nn

from todm.asr.model.encoder import Block
from todm.asr.model.encoder_config import NUM_BINS
from todm.asr.model.mixer import Mixer
from todm.asr.model.streaming import Decoder, Joiner, StreamingEncoder, StreamingMixer
from todm.asr.model.transducer import Rnnt, RnntConfig
from todm.backend import Graph, GraphParts, Port
from todm.supernet.space import SearchSpace


class Stem(nn.Module):
    """Features to the first block: [B, 4T, 80] and the history -> [B, T, D] and the new history."""

    def __init__(self, encoder: StreamingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BTF: Tensor, state1: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.encoder.stem(x_BTF, state1)


class MixerSublayer(nn.Module):
    """x + Mixer(LN(x)) of one chunk, with its two states flat, [B, S] each."""

    def __init__(self, block: Block, mixer: StreamingMixer) -> None:
        super().__init__()
        self.norm, self.mixer = block.mixer_norm, mixer

    def forward(self, x_BTD: Tensor, first_BS: Tensor, second_BS: Tensor) -> tuple[Tensor, ...]:
        """The output, and both states after the chunk."""
        shape = self.mixer.state_shape
        states = [state.reshape(-1, *shape) for state in (first_BS, second_BS)]
        mixed, after = self.mixer(self.norm(x_BTD), states)
        return (x_BTD + mixed, *(state.flatten(1) for state in after))


class FfnSublayer(nn.Module):
    """x + FFN(LN(x))."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_BTD: Tensor) -> Tensor:
        """See the class."""
        return self.block.feed_forward(x_BTD, self.block.ffn)


class Head(nn.Module):
    """The final norm and the projection into the joiner's space: [B, T, D] -> [B, T, J]."""

    def __init__(self, encoder: StreamingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BTD: Tensor) -> Tensor:
        """See the class."""
        return self.encoder.head(x_BTD)


def graphs(model: Rnnt, chunk: int) -> list[Graph]:
    """Streaming encoder, decoder and joiner of a plain model, as sherpa-onnx's `lstm` host takes them."""
    config, encoder = model.config, StreamingEncoder(model, chunk).eval()
    features = _port("x", encoder.num_frames, NUM_BINS)
    states = [
        Port(name=f"state{i}", example=torch.zeros(1, 2, size), dynamic={1: "N"})
        for i, size in enumerate(encoder.state_sizes)
    ]
    after = [dataclasses.replace(state, name=f"new_{state.name}") for state in states]
    enc = _port("encoder_out", chunk, config.joiner_dim)
    row, dec = (_port(name, config.joiner_dim) for name in ("encoder_out", "decoder_out"))
    labels = Port(
        name="y",
        example=torch.zeros(2, config.context_size, dtype=torch.int64),
        dynamic={0: "N"},
    )
    logit = _port("logit", config.vocab_size)
    return [
        Graph(name="encoder", module=encoder, inputs=(features, *states), outputs=(enc, *after)),
        Graph(name="decoder", module=Decoder(model), inputs=(labels,), outputs=(dec,)),
        Graph(name="joiner", module=Joiner(model), inputs=(row, dec), outputs=(logit,)),
    ]


def graph_parts(config: RnntConfig, space: SearchSpace, chunk: int) -> GraphParts:
    """Graphs of all parts with random weights: what a chunk costs does not depend on their values.

    Args:
        config: of the supernet.
        space: its subnets.
        chunk: C of the graphs.
    """
    narrowest = {name: widths[0] for name, widths in space.config.widths.items()}

    def plain(**widths: int) -> Rnnt:
        """Of the smallest depth: only its first block is used."""
        subnet = space.uniform(space.config.depths[0], {**narrowest, **widths})
        return Rnnt(config.narrow(subnet))

    sublayers = {
        name: {
            width: _sublayer(StreamingEncoder(plain(**{name: width}), chunk).eval(), name, width)
            for width in space.config.widths[name]
        }
        for name in ("pairs", "ffn")
    }
    whole, decoder, joiner = graphs(plain(), chunk)
    encoder, (features, _, history) = whole.module, whole.inputs
    assert isinstance(encoder, StreamingEncoder)
    x, out = (_port(name, chunk, config.encoder.d_model) for name in ("x", "out"))
    return GraphParts(
        whole=whole,
        stem=Graph(
            name="stem",
            module=Stem(encoder),
            inputs=(features, history),
            outputs=(out, whole.outputs[2]),
        ),
        sublayers=sublayers,
        head=Graph(name="head", module=Head(encoder), inputs=(x,), outputs=(whole.outputs[0],)),
        others=(decoder, joiner),
    )


def _sublayer(encoder: StreamingEncoder, name: str, width: int) -> Graph:
    block, mixer = encoder.model.encoder.blocks[0], encoder.mixers[0]
    assert isinstance(block, Block)
    assert isinstance(mixer, StreamingMixer)
    d_model = encoder.model.config.encoder.d_model
    x, out = (_port(port, encoder.chunk, d_model) for port in ("x", "out"))
    if name == "ffn":
        return Graph(name=f"ffn-{width}", module=FfnSublayer(block), inputs=(x,), outputs=(out,))
    sizes = encoder.sizes[: Mixer.STAGES]
    return Graph(
        name=f"pairs-{width}",
        module=MixerSublayer(block, mixer),
        inputs=(x, *(_port(f"state{i}", size) for i, size in enumerate(sizes))),
        outputs=(out, *(_port(f"new_state{i}", size) for i, size in enumerate(sizes))),
    )


def _port(name: str, *shape: int) -> Port:
    """A float port with a batch of any size as its first axis."""
    return Port(name=name, example=torch.randn(2, *shape), dynamic={0: "N"})
