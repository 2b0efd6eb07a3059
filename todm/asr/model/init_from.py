"""Training that starts from an earlier supernet or subnet, perhaps with another vocabulary or space.

Blocks are cut by prefix as in extraction. Of layers with a row for each piece of the vocabulary
(embedding, joiner output, CTC head), rows of pieces that both vocabularies have are taken; the others
stay as a new model has them. Features are normalised as in the earlier training, so that the encoder
starts as the same function.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from todm.artifact import Artifact
from todm.asr import tokens
from todm.asr.config import AsrConfig, config_of
from todm.asr.model.encoder import Block
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.mixer import Mixer
from todm.asr.model.transducer import Rnnt
from todm.errors import ArtifactError, ConfigError
from todm.supernet.elastic import extract_blocks
from todm.supernet.space import SearchSpace, Subnet

_BY_PIECE = (
    "predictor.embedding.weight",
    "output.weight",
    "output.bias",
    "ctc.weight",
    "ctc.bias",
)
# What cannot be cut: settings of the recipe that decide the size of a tensor, or what it means.
_FIXED_ENCODER = ("d_model", "head_channels", "state", "context", "lookahead")
_FIXED_MODEL = ("joiner_dim", "context_size")
_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True)
class _Source:
    """An earlier model: the sizes of its blocks, and what they were made with; `blocks` of a subnet."""

    path: Path
    config: AsrConfig
    encoder: EncoderConfig
    symbols: list[str]
    blocks: Subnet | None

    def kept(self, depth: int) -> tuple[int, ...]:
        """Its blocks that a stack of `depth` starts with."""
        if self.blocks is None and depth <= len(self.encoder.ffn):
            return SearchSpace(self.config.space).kept_blocks(depth)
        return tuple(range(len(self.encoder.ffn)))


def init_from(model: Rnnt, earlier: Artifact, symbols: list[str]) -> list[str]:
    """Put the weights of a supernet or subnet into a new supernet, in place.

    Args:
        model: the new supernet, on the CPU.
        earlier: the earlier artifact; its weights are averaged ones already.
        symbols: the new vocabulary, a piece for each id.

    Returns:
        What was taken and what is fresh, a line each.

    Raises:
        ConfigError: a size that cannot be cut is another, or the new model is larger.
        ArtifactError: the artifact's weights are not those of its configuration.
    """
    source = _read(earlier)
    _check_fixed(source, model)
    subnet = _prefix(source, model)
    axes = Block.axes(source.encoder)
    state = extract_blocks(earlier.tensors(), "encoder.blocks.", axes, subnet)
    rows = {piece: i for i, piece in enumerate(source.symbols)}
    shared = [(i, rows[piece]) for i, piece in enumerate(symbols) if piece in rows]
    own, fresh_ctc = model.state_dict(), False
    for name, value in own.items():
        if name not in state:
            if not name.startswith("ctc."):  # a subnet has no CTC head; anything else is missing
                raise ArtifactError(
                    f"{earlier.path} has no {name}: its weights are not those of its configuration"
                )
            fresh_ctc = True
            continue
        taken = _by_piece(value, state[name], shared) if name in _BY_PIECE else state[name]
        if taken.shape != value.shape:
            raise ArtifactError(
                f"{earlier.path}: {name} is {list(taken.shape)}, and {list(value.shape)} is needed: its "
                "weights are not those of its configuration"
            )
        own[name] = taken
    model.load_state_dict(own)
    new = [piece for piece in symbols if piece not in rows]
    named = " ".join(new[:_MOST_NAMED]) + (" ..." if len(new) > _MOST_NAMED else "")
    return [
        f"taken from {source.path}: encoder ({subnet} of its {len(source.encoder.ffn)} blocks), "
        "feature normalisation, predictor, joiner",
        f"vocabulary: {len(shared)} of {len(symbols)} pieces taken, "
        + (f"{len(new)} fresh: {named}" if new else "none fresh"),
        *(["fresh: CTC head (the artifact has none)"] if fresh_ctc else []),
        *_shortened(source.encoder, model),
    ]


def _read(earlier: Artifact) -> _Source:
    config = config_of(earlier)
    symbols = tokens.load(earlier.path, rule=config.data.tokens.normalise).symbols
    encoder = config.supernet(len(symbols)).encoder
    blocks = None
    if earlier.kind == "subnet":
        blocks = Subnet.from_json(earlier.info["subnet"])
        encoder = encoder.narrow(blocks)
    return _Source(earlier.path, config, encoder, symbols, blocks)


def _check_fixed(source: _Source, model: Rnnt) -> None:
    theirs, ours = source.config.model, model.config
    sizes = [(f"model.{n}", getattr(theirs, n), getattr(ours, n)) for n in _FIXED_MODEL]
    sizes += [
        (f"model.encoder.{n}", getattr(theirs.encoder, n), getattr(ours.encoder, n))
        for n in _FIXED_ENCODER
    ]
    for name, there, here in sizes:
        if there != here:
            raise ConfigError(
                f"{source.path} has asr.{name}={there} and this config {here}: to start from it use "
                f"--set asr.{name}={there}, or leave --init out"
            )


def _prefix(source: _Source, model: Rnnt) -> Subnet:
    """The part of the earlier encoder that the new one starts with."""
    ours, theirs = model.config.encoder, source.encoder
    kept = source.kept(len(ours.ffn))
    if len(kept) != len(ours.ffn):
        raise ConfigError(
            f"{source.path} has {len(theirs.ffn)} blocks and this config {len(ours.ffn)}: "
            + (
                "a subnet's blocks are all needed; set asr.space.depths to end there"
                if source.blocks
                else "only fewer can be taken from it; lower asr.space.depths"
            )
        )
    for name in ("ffn", "pairs"):
        have = [getattr(theirs, name)[block] for block in kept]
        short = [n for n, need in zip(have, getattr(ours, name), strict=True) if n < need]
        if short:
            raise ConfigError(
                f"{source.path} has {name} {short[0]} and this config {max(getattr(ours, name))}: only "
                f"a prefix can be taken from it; set asr.space.widths.{name} to end at {min(have)}"
            )
    return Subnet(blocks=kept, widths=(("ffn", ours.ffn), ("pairs", ours.pairs)))


def _shortened(theirs: EncoderConfig, model: Rnnt) -> list[str]:
    """A line about modes that remembered for longer than the new model allows."""
    longest = model.config.encoder.memory_seconds
    if longest is None or (theirs.memory_seconds is not None and theirs.memory_seconds <= longest):
        return []
    mixers = [m for m in model.modules() if isinstance(m, Mixer)]
    slow = torch.cat(
        [(m.log_neg_re + m.log_dt.unsqueeze(-1) < m.least_decay).flatten() for m in mixers]
    )
    return [
        f"memory: {int(slow.sum())} of {len(slow)} modes remembered for more than {longest:g} s and are "
        "cut to it (asr.model.encoder.memory_seconds, null for no limit)"
    ]


def _by_piece(fresh: Tensor, earlier: Tensor, shared: list[tuple[int, int]]) -> Tensor:
    """Rows of `earlier` in the places of the same pieces, the others of `fresh`."""
    taken = fresh.clone()
    here, there = torch.tensor(shared).T
    taken[here] = earlier[there].to(fresh.dtype)
    return taken
