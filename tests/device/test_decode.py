"""Endpoints: where the predictor's context starts again, against the rule written out plainly.

Letters: T frames, J joiner width, K context, V vocabulary.
"""

import functools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from todm.device.bundle import Networks
from todm.device.decode import BeamDecoder, GreedyDecoder, endpoint_frames, log_softmax

V, J, K, T = 6, 7, 2, 160
START = (-1, 0)
TOKENS = ("<blk>", "a", "<unk>", "b", "c", "d")
RNG = np.random.default_rng(5)
EMBEDDING_KVJ = RNG.normal(size=(K, V, J)).astype(np.float32)
OUTPUT_JV = (3 * RNG.normal(size=(J, V))).astype(np.float32)


class Session:
    """A graph of one output that computes a function."""

    def __init__(self, *names, function):
        self._names, self._function = names, function

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self._names]

    def run(self, outputs, feed):
        return [self._function(*(feed[name] for name in self._names))]


def predict(context_NK):
    known = (context_NK >= 0)[..., None]
    rows = [EMBEDDING_KVJ[k][np.maximum(context_NK[:, k], 0)] * known[:, k] for k in range(K)]
    return sum(rows)


def join(enc_NJ, pred_NJ):
    """The first channel is silence: it says blank, whatever the predictor says."""
    logits = np.tanh(enc_NJ + pred_NJ) @ OUTPUT_JV
    logits[:, 0] += enc_NJ[:, 0]
    return logits


NETWORKS = Networks(
    encoder=None,
    decoder=Session("y", function=predict),
    joiner=Session("encoder_out", "decoder_out", function=join),
    tokens=TOKENS,
)


@functools.cache
def sound(seed):
    """Encoder output [T, J] with pauses of 1 to 12 frames."""
    rng = np.random.default_rng(seed)
    enc = rng.normal(size=(T, J)).astype(np.float32)
    at = 0
    while at < T:
        at += int(rng.integers(1, 8))
        pause = int(rng.integers(1, 13))
        enc[at : at + pause, 0] = 30
        at += pause
    return enc


def context(symbols, frame, endpoint):
    """The rule, from the symbols and frames of the whole stream."""
    found, last = START, math.inf
    for token, at in [*symbols, (None, frame)]:
        if at - last > endpoint:
            found = START
        if token is not None:
            found, last = (*found[1:], token), at
    return found


def scores(enc_J, symbols, frame, endpoint):
    predicted = predict(np.array([context(symbols, frame, endpoint)]))
    return log_softmax(join(enc_J[None], predicted))[0]


@functools.cache
def plain_greedy(seed, endpoint):
    symbols = []
    for frame, enc_J in enumerate(sound(seed)):
        best = int(scores(enc_J, symbols, frame, endpoint).argmax())
        symbols += [] if best in (0, 2) else [(best, frame)]
    return symbols


def winner(paths, forgotten):
    return max(paths, key=lambda path: path[1] / (K + len(path[0]) - forgotten))


def plain_beam(enc, endpoint, *, active, commits):
    """The symbols of the best path; `commits` is frame -> how many symbols are settled before it."""
    paths, forgotten = [([], np.float32(0))], 0
    for frame, enc_J in enumerate(enc):
        if frame in commits:
            symbols, _ = winner(paths, forgotten)
            forgotten += min(commits[frame], len(symbols) - forgotten)
            paths = [(symbols, np.float32(0))]
        moves = []
        for symbols, score in paths:
            for token, own in enumerate(scores(enc_J, symbols, frame, endpoint)):
                longer = symbols if token in (0, 2) else [*symbols, (token, frame)]
                moves.append((longer, np.float32(own + score)))
        merged = {}
        for symbols, score in sorted(moves, key=lambda move: -move[1])[:active]:
            key = tuple(token for token, _ in symbols)
            first, sum_so_far = merged.get(key, (symbols, -math.inf))
            merged[key] = (first, np.float32(np.logaddexp(sum_so_far, score)))
        paths = list(merged.values())
    return winner(paths, forgotten)[0]


def decode(decoder, enc, sizes, commits):
    """Symbols and frames of a stream decoded in chunks, with commits before some frames."""
    state, found, at = decoder.start(), [], 0
    while at < len(enc):
        if at in commits:
            best = decoder.best(state)
            num = commits[at]
            found += list(zip(best.ids, best.frames, strict=True))[:num]
            state.hypotheses = [best.forget(num)]
        ends = [at + next(sizes), *(c for c in commits if c > at)]
        end = min(*ends, len(enc))
        decoder.advance(enc[None, at:end], [state])
        at = end
    best = decoder.best(state)
    return found + list(zip(best.ids, best.frames, strict=True))


def chunkings():
    rng = np.random.default_rng(1)
    return {
        "1": iter(lambda: 1, 0),
        "8": iter(lambda: 8, 0),
        "odd": iter(lambda: int(rng.integers(1, 30)), 0),
        "whole": iter(lambda: T, 0),
    }


COMMITS = {20: 1, 37: 100, 41: 0, 90: 2, 131: 100}
ENDPOINTS = [0, 1, 3, 5, 11, None]


@pytest.mark.parametrize("chunks", chunkings())
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_greedy_search_follows_the_rule(endpoint, chunks):
    differ = 0
    for seed in range(3):
        decoder = GreedyDecoder(NETWORKS, K, Path("x"), endpoint=endpoint)
        wanted = plain_greedy(seed, math.inf if endpoint is None else endpoint)
        for commits in ({}, COMMITS):
            assert decode(decoder, sound(seed), chunkings()[chunks], commits) == wanted
        differ += wanted != plain_greedy(seed, math.inf)
    assert differ == (0 if endpoint is None else 3)


@pytest.mark.parametrize("commits", [{}, COMMITS], ids=["no-commit", "commits"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_beam_search_follows_the_rule(endpoint, commits):
    for seed in range(2):
        enc = sound(seed)
        decoder = BeamDecoder(NETWORKS, K, Path("x"), endpoint=endpoint, max_active=3)
        rule = math.inf if endpoint is None else endpoint
        wanted = plain_beam(enc, rule, active=3, commits=commits)
        for sizes in chunkings().values():
            assert decode(decoder, enc, sizes, commits) == wanted
        never = plain_beam(enc, math.inf, active=3, commits=commits)
        assert (wanted == never) == (endpoint is None)


def test_streams_of_a_batch_have_their_own_endpoints():
    decoder = GreedyDecoder(NETWORKS, K, Path("x"), endpoint=4)
    sounds, states = [sound(seed) for seed in range(4)], [decoder.start() for _ in range(4)]
    states[2].num_frames = 1000  # this one came earlier
    for at in range(0, T, 16):
        decoder.advance(np.stack([enc[at : at + 16] for enc in sounds]), states)
    for seed, state in enumerate(states):
        (best,) = state.hypotheses
        later = state.num_frames - T
        found = [(token, frame - later) for token, frame in zip(best.ids, best.frames, strict=True)]
        assert found == plain_greedy(seed, 4)


def test_before_the_first_symbol_there_is_nothing_to_reset():
    enc = np.full((30, J), 30, np.float32)
    decoder = GreedyDecoder(NETWORKS, K, Path("x"), endpoint=2)
    state = decoder.start()
    decoder.advance(enc[None], [state])
    (best,) = state.hypotheses
    assert (best.context, best.last, best.ids) == (START, None, ())


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.6, 15), (0.5, 13), (0.8, 20), (0.2, 5), (0.61, 15), (0.62, 16)]
)
def test_half_a_frame_is_a_frame(seconds, frames):
    assert endpoint_frames(seconds) == frames
