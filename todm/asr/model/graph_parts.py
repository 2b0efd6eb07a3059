"""The streaming encoder in pieces: of these, the graph of any subnet is put together without an export.

An export of a whole encoder takes ten seconds, and a profile measures dozens of subnets. A block's two
halves depend on one width each, so a graph for every width of each half is enough.

Letters: B batch, T frames of a chunk after subsampling, D width of the model, S numbers of a state,
R numbers of the feature history, J joiner width.
"""

import torch
from torch import Tensor, nn

from todm.asr.backend import AsrBackend
from todm.asr.model.encoder import Block, Mixer
from todm.asr.model.streaming import StreamingEncoder, StreamingMixer
from todm.asr.model.transducer import Rnnt
from todm.backend import Graph, GraphParts, Port

_NAMES = ("pairs", "ffn")


class Front(nn.Module):
    """Features to the first block: [B, 4T, 80] and the history -> [B, T, D] and the new history."""

    def __init__(self, encoder: StreamingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BTF: Tensor, state1: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        streaming, subsampling = self.encoder, self.encoder.model.encoder.subsampling
        normal = subsampling.normalise(x_BTF)
        return subsampling(normal, streaming._history(normal, state1)), streaming._remember(
            normal, state1
        )


class MixerHalf(nn.Module):
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


class FfnHalf(nn.Module):
    """x + FFN(LN(x))."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_BTD: Tensor) -> Tensor:
        """See the class."""
        return self.block.feed_forward(x_BTD, self.block.ffn)


class Back(nn.Module):
    """The final norm and the projection into the joiner's space: [B, T, D] -> [B, T, J]."""

    def __init__(self, encoder: StreamingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BTD: Tensor) -> Tensor:
        """See the class."""
        model = self.encoder.model
        return model.project(model.encoder.norm(x_BTD))


def graph_parts(backend: AsrBackend) -> GraphParts:
    """Graphs of all pieces with random weights: what a chunk costs does not depend on their values."""
    space = backend.space
    halves: dict[str, dict[int, Graph]] = {name: {} for name in _NAMES}
    for name in _NAMES:
        for width in space.config.widths[name]:
            model = _plain(backend, {**_widths(backend), name: width})
            encoder = StreamingEncoder(model, backend.config.chunk).eval()
            halves[name][width] = _half(encoder, name, width)
    model = _plain(backend, _widths(backend))
    graphs = {graph.name: graph for graph in backend.graphs(model)}
    encoder = graphs["encoder"]
    assert isinstance(encoder.module, StreamingEncoder)
    return GraphParts(
        whole=encoder,
        front=_front(encoder),
        halves=halves,
        back=_back(encoder),
        others=(graphs["decoder"], graphs["joiner"]),
    )


def _widths(backend: AsrBackend) -> dict[str, int]:
    return {name: values[0] for name, values in backend.space.config.widths.items()}


def _plain(backend: AsrBackend, widths: dict[str, int]) -> Rnnt:
    """A plain model of the smallest depth, for its first block."""
    return backend.build(backend.space.uniform(backend.space.config.depths[0], widths))


def _half(encoder: StreamingEncoder, name: str, width: int) -> Graph:
    block, mixer = encoder.model.encoder.blocks[0], encoder.mixers[0]
    assert isinstance(block, Block)
    assert isinstance(mixer, StreamingMixer)
    x = _port("x", encoder.chunk, encoder.model.config.encoder.d_model)
    out = _port("out", encoder.chunk, encoder.model.config.encoder.d_model)
    if name == "ffn":
        return Graph(name=f"ffn-{width}", module=FfnHalf(block), inputs=(x,), outputs=(out,))
    sizes = encoder.sizes[: Mixer.STAGES]
    return Graph(
        name=f"pairs-{width}",
        module=MixerHalf(block, mixer),
        inputs=(x, *(_port(f"state{i}", size) for i, size in enumerate(sizes))),
        outputs=(out, *(_port(f"new_state{i}", size) for i, size in enumerate(sizes))),
    )


def _front(whole: Graph) -> Graph:
    encoder, (features, _, history) = whole.module, whole.inputs
    assert isinstance(encoder, StreamingEncoder)
    out = _port("out", encoder.chunk, encoder.model.config.encoder.d_model)
    return Graph(
        name="front",
        module=Front(encoder),
        inputs=(features, history),
        outputs=(out, whole.outputs[2]),
    )


def _back(whole: Graph) -> Graph:
    encoder = whole.module
    assert isinstance(encoder, StreamingEncoder)
    x = _port("x", encoder.chunk, encoder.model.config.encoder.d_model)
    return Graph(name="back", module=Back(encoder), inputs=(x,), outputs=(whole.outputs[0],))


def _port(name: str, *shape: int) -> Port:
    return Port(name=name, example=torch.randn(2, *shape), dynamic={0: "N"})
