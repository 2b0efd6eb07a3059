"""k2's fast beam search on a graph that can favour some phrases. One symbol per frame, as elsewhere.

The graph is the automaton of Aho and Corasick over the phrases' labels, with an arc for every label
from every state, since k2 has no failure arcs. Every label of a phrase earns a bonus, which is taken
back where the phrase breaks off. Fast beam search: icefall's `fast_beam_search_one_best`.

k2 makes the arcs of an utterance's last frame its final ones, without label and score. So two frames
are added: one that allows only the label V, the end, and one that allows only k2's final arc.

Label contexts never start again after a pause, as they do in `greedy_search` and `beam_search` and on a
device: k2 keeps a context by its labels alone, and merges paths that reach it at different frames.

Letters: B utterances, T frames after subsampling, K label context, V vocabulary, C contexts alive.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from todm.asr.decode.search import Hypothesis, Search, Transducer
from todm.asr.tokens import BLANK_ID, UNK_ID, Tokenizer
from todm.errors import ConfigError
from todm.kernels.k2_package import load_k2

# Log-probability of what is impossible; minus infinity would become NaN in k2's pruning.
_NEVER = -1e6


class Arc(NamedTuple):
    """A step of the graph; its score is added to the label's log-probability."""

    source: int
    target: int
    label: int
    score: float


def biasing_arcs(
    phrases: Sequence[Sequence[int]], vocab_size: int, *, bonus: float = 1.0
) -> list[Arc]:
    """The graph's arcs, sorted by state; the label V leads to the end, -1 from there to the last state.

    Args:
        phrases: label ids of each phrase to favour; none gives the graph that allows everything.
        vocab_size: V. Blank and <unk> have no arcs: k2 adds the blank by itself.
        bonus: what a label of a phrase earns, in nats.

    Raises:
        ConfigError: an empty phrase, or one with an id that is not a label.
    """
    labels = [v for v in range(vocab_size) if v not in (BLANK_ID, UNK_ID)]
    for phrase in phrases:
        if not phrase or not set(phrase) <= set(labels):
            raise ConfigError(
                f"the phrase {list(phrase)} cannot be favoured: it needs labels between 1 and "
                f"{vocab_size - 1} other than {UNK_ID} (<unk>); see in tokens.txt how its words are spelled"
            )
    # A state is a prefix of a phrase: how much of which phrase was just spoken.
    prefixes: set[tuple[int, ...]] = {()}
    prefixes |= {tuple(phrase[:i]) for phrase in phrases for i in range(1, len(phrase) + 1)}
    states = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
    number = {state: i for i, state in enumerate(states)}
    steps: dict[tuple[int, ...], dict[int, tuple[int, ...]]] = {state: {} for state in states}
    for state in states[1:]:
        steps[state[:-1]][state[-1]] = state
    whole, end = set(map(tuple, phrases)), len(states)
    arcs: list[Arc] = []
    for state in states:
        following: dict[int, tuple[int, ...]] = {}
        for start in range(len(state), -1, -1):  # the longest suffix that starts a phrase decides
            following |= steps.get(state[start:], {})
        kept = max((i for i in range(len(state) + 1) if state[:i] in whole), default=0)
        unpaid = bonus * (len(state) - kept)  # taken back if the phrase breaks off here
        for label in labels:
            target = following.get(label, ())
            goes_on = len(target) > len(state)
            score = bonus if goes_on else bonus * len(target) - unpaid
            arcs.append(Arc(number[state], number[target], label, score))
        arcs.append(Arc(number[state], end, vocab_size, -unpaid))
    return [*arcs, Arc(end, end + 1, -1, 0.0)]


def favour(path: Path | None, tokenizer: Tokenizer) -> Search:
    """Fast beam search that favours the phrases of a text file, one a line; None favours nothing.

    Raises:
        MissingK2: k2 is not installed.
        ConfigError: the file is not text, or holds what the tokenizer cannot write.
    """
    phrases = [] if path is None else list(_phrases(path, tokenizer))
    graph = biasing_graph(phrases, tokenizer.vocab_size)
    return functools.partial(fast_beam_search, graph=graph)


def biasing_graph(
    phrases: Sequence[Sequence[int]], vocab_size: int, *, bonus: float = 1.0, device: str = "cpu"
) -> Any:  # noqa: ANN401 - a k2.Fsa
    """The graph of `biasing_arcs` as k2 takes it. Arguments and errors as there.

    Raises:
        MissingK2: k2 is not installed.
    """
    k2: Any = load_k2("fast beam search")
    arcs = biasing_arcs(phrases, vocab_size, bonus=bonus)
    places = torch.tensor([arc[:3] for arc in arcs], dtype=torch.int32)
    scores = torch.tensor([arc.score for arc in arcs])
    graph = k2.Fsa(torch.cat([places, scores.view(torch.int32)[:, None]], 1)).to(device)
    graph.bonus = graph.scores.clone()  # travels along, to tell it from the net's own scores
    return graph


@torch.no_grad()
def fast_beam_search(
    model: Transducer,
    enc_BTD: Tensor,
    lens_B: Tensor,
    graph: Any,  # noqa: ANN401 - a k2.Fsa
    *,
    beam: float = 20.0,
    max_states: int = 64,
    max_contexts: int = 8,
) -> list[Hypothesis]:
    """The best path through `graph`; the scores of hypotheses include what it adds.

    Label contexts never start again after a pause; see the head of this file.

    Args:
        model: a transducer in evaluation mode.
        enc_BTD: encoder outputs.
        lens_B: valid frames of each utterance.
        graph: from `biasing_graph`, on the device of the encoder outputs.
        beam: nats below the best at which a state is dropped.
        max_states: states kept per utterance after each frame.
        max_contexts: label contexts kept per utterance after each frame.

    Raises:
        MissingK2: k2 is not installed.
    """
    k2: Any = load_k2("fast beam search")
    enc_BTJ = model.project_encoder(enc_BTD)
    end = int(graph.labels.max())
    config = k2.RnntDecodingConfig(
        vocab_size=end + 1,
        decoder_history_len=model.context_size,
        beam=beam,
        max_states=max_states,
        max_contexts=max_contexts,
    )
    one_each = [k2.RnntDecodingStream(graph) for _ in range(len(enc_BTJ))]
    streams = k2.RnntDecodingStreams(one_each, config)
    for t in range(int(lens_B.max()) + 2):
        shape, contexts_CK = streams.get_contexts()
        stream_C = shape.row_ids(1).long()
        left_C = lens_B.to(stream_C.device)[stream_C] - t
        log_probs_CV = enc_BTJ.new_full((len(stream_C), end + 1), _NEVER, dtype=torch.float32)
        log_probs_CV[left_C == 0, end] = 0.0
        log_probs_CV[left_C < 0, BLANK_ID] = 0.0
        on_C = left_C > 0
        if bool(on_C.any()):
            pred_CJ = model.predict(_as_device(contexts_CK[on_C].long()))
            log_probs_CV[on_C, :end] = _log_probs(model, enc_BTJ[stream_C[on_C], t], pred_CJ)
        streams.advance(log_probs_CV)
    streams.terminate_and_flush_to_streams()
    lattice = streams.format_output((lens_B + 2).tolist())
    best = k2.shortest_path(lattice, use_double_scores=True)
    return [_hypothesis(best[b], end) for b in range(len(enc_BTJ))]


def _phrases(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The labels of every line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error}): save the phrases as UTF-8"
        ) from None
    for number, line in enumerate(lines, 1):
        try:
            labels = tokenizer.encode(tokenizer.normalise(line))
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {line!r} has {error}: spell it in words") from None
        if UNK_ID in labels:
            raise ConfigError(
                f"{path}:{number}: {line!r} has letters that are in no training transcript: leave it out"
            )
        if labels:
            yield labels


def _log_probs(model: Transducer, enc_CJ: Tensor, pred_CJ: Tensor) -> Tensor:
    """Of all labels, <unk> added to blank."""
    log_probs_CV = model.joint(enc_CJ, pred_CJ).float().log_softmax(-1)
    log_probs_CV[:, BLANK_ID] = log_probs_CV[:, BLANK_ID].logaddexp(log_probs_CV[:, UNK_ID])
    return log_probs_CV


def _as_device(contexts_CK: Tensor) -> Tensor:
    """A context as a device starts it, -1 before a single blank; k2 starts with blanks only."""
    unset = (contexts_CK[:, :-1] == BLANK_ID) & (contexts_CK[:, 1:] == BLANK_ID)
    contexts_CK[:, :-1] = contexts_CK[:, :-1].masked_fill(unset, -1)
    return contexts_CK


def _hypothesis(path: Any, end: int) -> Hypothesis:  # noqa: ANN401 - a linear k2.Fsa, an arc a frame
    labels, scores, bonus = path.labels.tolist(), path.scores.tolist(), path.bonus.tolist()
    frames = [t for t, label in enumerate(labels) if 0 < label < end]
    return Hypothesis(
        tokens=tuple(labels[t] for t in frames),
        frames=tuple(frames),
        log_probs=tuple(scores[t] - bonus[t] for t in frames),
        score=sum(scores),
    )
