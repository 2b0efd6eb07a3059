import itertools

import numpy as np
import pytest

from todm.asr.data.augment import AugmentConfig, Augmenter
from todm.asr.data.batch import Batch, LoaderConfig
from todm.asr.data.features import FRAME_SHIFT
from todm.asr.data.loader import Loader, open_source
from todm.asr.data.order import Schedule
from todm.asr.data.sources import Listed
from todm.asr.data.statistics import compute_features
from todm.errors import ArtifactError, CorpusError


def stream(
    store,
    encode,
    *,
    augmented=False,
    join_prob=0.5,
    wait_prob=0.7,
    device_from=0.0,
    chunks=(0, 7, 8),
    num_updates=None,
    rank=0,
    world_size=1,
    **settings,
):
    settings = {"batch_size": 8, "num_buckets": 5} | settings
    waits = {"wait_prob": wait_prob, "context_reset": 0.2, "device_from": device_from}
    config = AugmentConfig(join_prob=join_prob, **waits)
    augment = Augmenter(config, mean_F=store.mean_F, chunks=chunks) if augmented else None
    return Loader(
        Listed.of_store(store),
        encode,
        config=LoaderConfig(**settings),
        augment=augment,
        chunks=chunks,
        schedule=Schedule(num_updates, rank, world_size),
    )


def take(batches, num):
    return list(itertools.islice(batches, num))


def drawn(batch: Batch):
    """What a batch got beside its features."""
    wait = batch.wait and (batch.wait.frames, batch.wait.times_B.tolist())
    reset = None if batch.reset_BU is None else batch.reset_BU.tolist()
    return batch.chunk, wait, reset


def same(a: Batch, b: Batch):
    features = a.features_BTF.equal(b.features_BTF)
    return a.ids == b.ids and features and a.targets == b.targets and drawn(a) == drawn(b)


def test_an_epoch_holds_every_utterance_once(tiny_store, encode):
    batches = stream(tiny_store, encode)
    epoch = take(batches, batches.num_batches(0))
    assert sorted(i for b in epoch for i in b.ids) == sorted(u.id for u in tiny_store.utterances)
    batch = epoch[0]
    index = next(i for i, u in enumerate(tiny_store.utterances) if u.id == batch.ids[0])
    assert batch.features_BTF[0, : batch.feature_lens_B[0]].equal(tiny_store.features(index))
    assert batch.targets[0] == encode(batch.texts[0])


def test_epochs_differ_and_seeds_differ(tiny_store, encode):
    first, second = (stream(tiny_store, encode) for _ in range(2))
    assert all(same(a, b) for a, b in zip(take(first, 20), take(second, 20), strict=True))
    n = first.num_batches(0)
    epochs = take(stream(tiny_store, encode), 2 * n)
    assert [b.ids for b in epochs[:n]] != [b.ids for b in epochs[n:]]
    other = take(stream(tiny_store, encode, seed=1), n)
    assert [b.ids for b in epochs[:n]] != [b.ids for b in other]


@pytest.mark.parametrize("stop", [0, 1, 15, 22])
def test_resumed_streams_go_on_exactly(tiny_store, encode, stop):
    """15 batches make an epoch, so 15 stops between two of them."""
    whole = take(stream(tiny_store, encode, augmented=True), stop + 5)
    interrupted = stream(tiny_store, encode, augmented=True)
    take(interrupted, stop)
    state = dict(interrupted.state_dict())
    resumed = stream(tiny_store, encode, augmented=True)
    resumed.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(whole[stop:], take(resumed, 5), strict=True))


def test_processes_get_different_batches_and_equally_many(tiny_store, encode):
    ranks = [stream(tiny_store, encode, rank=r, world_size=4) for r in range(4)]
    counts = {r.num_batches(0) for r in ranks}
    assert counts == {3}
    ids = [i for r in ranks for b in take(r, 3) for i in b.ids]
    assert len(ids) == len(set(ids)) == 96


def test_processes_step_through_like_lengths(tiny_store, encode):
    ranks = [take(stream(tiny_store, encode, rank=r, world_size=2), 7) for r in range(2)]
    longest = np.array([[int(b.feature_lens_B.max()) for b in rank] for rank in ranks])
    assert np.abs(longest[0] - longest[1]).mean() < 0.5 * longest.std()


def test_buckets_keep_padding_small(tiny_store, encode):
    def padding(num_buckets):
        epoch = take(stream(tiny_store, encode, num_buckets=num_buckets), 15)
        room = sum(b.features_BTF.shape[0] * b.features_BTF.shape[1] for b in epoch)
        return 1 - sum(int(b.feature_lens_B.sum()) for b in epoch) / room

    assert padding(15) < 0.08 < padding(1)


def test_batches_keep_within_max_frames(tiny_store, encode):
    batches = stream(tiny_store, encode, batch_size=None, max_frames=900)
    epoch = take(batches, batches.num_batches(0))
    assert all(b.features_BTF.shape[0] * b.features_BTF.shape[1] <= 900 for b in epoch)
    assert sum(len(b) for b in epoch) == 120


def test_short_utterances_come_first(tiny_store, encode):
    batches = stream(tiny_store, encode, short_first=0.5, num_updates=30)
    sizes = [batches.num_batches(e) for e in range(4)]
    assert sizes == [5, 10, 15, 15]
    first = take(batches, 5)
    median = tiny_store.lens_N.float().median()
    assert max(int(b.feature_lens_B.max()) for b in first) < median


def test_what_cannot_be_trained_on_is_counted(tiny_store):
    def encode(text):
        return {"OFF OFF": [5, 2], "UP UP": [3] * 1000}.get(text, [3, 4])

    batches = stream(tiny_store, encode)
    texts = [u.text for u in tiny_store.utterances]
    assert batches.dropped == {
        reason: texts.count(text)
        for reason, text in {
            "characters that the tokenizer cannot spell": "OFF OFF",
            "fewer frames than labels": "UP UP",
        }.items()
        if text in texts
    }
    assert batches.dropped.total() == 120 - batches.num_utterances > 0


def test_speech_without_labels_counts_in_the_unit_of_the_loss(tiny_store):
    def encode(text):
        return [3, 4] if text.startswith("ON") else []

    batches = take(stream(tiny_store, encode, batch_size=4), 20)
    for batch in batches:
        empty_B = batch.target_lens_B == 0
        seconds = float(batch.feature_lens_B[empty_B].sum()) * FRAME_SHIFT
        assert batch.num_labels == pytest.approx(int(batch.target_lens_B.sum()) + 2 * seconds)
    assert any(0 < int((b.target_lens_B == 0).sum()) < 4 for b in batches)


def test_a_batch_of_other_speech_alone_has_a_place_for_a_label(tiny_store):
    batch = next(iter(stream(tiny_store, lambda _: [])))
    assert batch.targets_BU.shape == (len(batch), 1)
    assert batch.num_labels > 1


def test_too_few_utterances_are_an_error(tiny_store, encode):
    with pytest.raises(CorpusError, match="too few"):
        stream(tiny_store, encode, world_size=100)


def test_an_epoch_is_known_beforehand(tiny_store, encode):
    batches = stream(tiny_store, encode, short_first=0.5, num_updates=30)
    assert batches.batches_per_epoch == 15
    assert batches.hours * 3600 == pytest.approx(tiny_store.lens_N.sum().item() / 100)
    epoch = take(stream(tiny_store, encode), 15)
    assert sum(b.seconds for b in epoch) == pytest.approx(batches.hours * 3600)


def test_augmentation_leaves_the_seconds_alone(tiny_store, encode):
    plain, augmented = (take(stream(tiny_store, encode, augmented=a), 8) for a in (False, True))
    assert [b.seconds for b in plain] == pytest.approx([b.seconds for b in augmented])
    assert any(len(a) < len(b) for a, b in zip(augmented, plain, strict=True))  # joined


def test_chunks_do_not_depend_on_augmentation_and_whole_utterances_do_not_wait(tiny_store, encode):
    plain, augmented = (take(stream(tiny_store, encode, augmented=a), 60) for a in (False, True))
    assert [b.chunk for b in plain] == [b.chunk for b in augmented]
    assert all(b.wait is None and b.reset_BU is None for b in plain)
    waits = {chunk: [b.wait for b in augmented if b.chunk == chunk] for chunk in (0, 7, 8)}
    assert set(waits[0]) == {None}
    for chunk, frames in ((7, 14), (8, 8)):
        assert 0.4 < sum(w is not None for w in waits[chunk]) / len(waits[chunk]) < 1
        assert {w.frames for w in waits[chunk] if w} == {frames}
    for b in augmented:
        assert b.reset_BU.shape == (len(b), b.targets_BU.shape[1] + 1)
        assert b.wait is None or len(b.wait.times_B) == len(b)


def test_waits_begin_at_their_share_of_the_updates(tiny_store, encode):
    """Over epochs of unlike size, and as exactly after an interruption."""
    options = {"augmented": True, "chunks": (8,), "wait_prob": 1.0, "device_from": 0.6}
    options |= {"short_first": 0.5, "num_updates": 40}
    whole = take(stream(tiny_store, encode, **options), 40)
    assert [b.wait is not None for b in whole] == [False] * 24 + [True] * 16
    resumed = stream(tiny_store, encode, **options)
    interrupted = stream(tiny_store, encode, **options)
    take(interrupted, 20)
    resumed.load_state_dict(interrupted.state_dict())
    assert all(same(a, b) for a, b in zip(take(resumed, 20), whole[20:], strict=True))


def test_processes_draw_one_chunk_and_waits_of_their_own(tiny_store, encode):
    options = {"augmented": True, "world_size": 2, "chunks": (7, 8), "wait_prob": 1.0}
    ranks = [take(stream(tiny_store, encode, rank=r, **options), 12) for r in range(2)]
    assert [b.chunk for b in ranks[0]] == [b.chunk for b in ranks[1]]
    assert {b.chunk for b in ranks[0]} == {7, 8}
    waits = [[b.wait.times_B.tolist() for b in rank] for rank in ranks]
    assert all(a != b for a, b in zip(*waits, strict=True))


@pytest.mark.parametrize("limits", [{}, {"batch_size": None, "max_frames": 1200}])
@pytest.mark.parametrize("chunks", [(0, 8), (7, 8)], ids=str)
def test_no_batch_is_larger_than_the_worst(tiny_store, encode, limits, chunks):
    """A loop of chunks of 7 frames is longer than one of 8."""
    batches = stream(tiny_store, encode, augmented=True, chunks=chunks, **limits)
    worst = batches.worst_batch()
    assert worst.chunk == (0 if 0 in chunks else 8)
    assert (worst.wait is None) == (worst.chunk == 0)
    for batch in take(batches, 2 * batches.num_batches(0)):
        assert batch.features_BTF.shape[:2].numel() <= worst.features_BTF.shape[:2].numel()
        assert batch.targets_BU.numel() <= worst.targets_BU.numel()
    assert worst.features_BTF.isfinite().all()
    assert worst.feature_lens_B.max() == worst.features_BTF.shape[1]


def test_silence_is_within_max_frames(tiny_store, encode):
    limits = {"batch_size": None, "max_frames": 1200, "augmented": True, "join_prob": 0.0}
    batches = stream(tiny_store, encode, **limits)
    for batch in take(batches, batches.num_batches(0)):
        assert batch.features_BTF.shape[:2].numel() <= 1200
    with pytest.raises(CorpusError, match="longer than max_frames"):
        stream(tiny_store, encode, **(limits | {"max_frames": 200}))


def test_another_number_of_processes_goes_on_at_the_same_share(tiny_store, encode):
    four = stream(tiny_store, encode, rank=1, world_size=4)
    take(four, 2)
    two = stream(tiny_store, encode, rank=1, world_size=2)
    two.load_state_dict(four.state_dict())
    assert two.state_dict() == {"epoch": 0, "index": 4, "world_size": 2}


@pytest.mark.parametrize("mode", ["map", "on_the_fly"])
def test_the_config_chooses_the_way(make_corpus, tmp_path, encode, mode):
    cuts, out = make_corpus(tmp_path, num=8), tmp_path / "store"
    config = LoaderConfig(feature_mode=mode, batch_size=4, num_buckets=2, num_workers=0)
    statistics = compute_features(cuts, out, config=config)
    augment = Augmenter(AugmentConfig(), mean_F=statistics.mean_F)
    batches = Loader(open_source(cuts, out, config), encode, config=config, augment=augment)
    (items,) = itertools.islice(batches._source.read(batches._order, 0, 0), 1)
    assert (items[0].load.func.__name__ == "features") == (mode == "map")
    assert next(iter(batches)).features_BTF.shape[2] == 80


def test_features_must_be_computed_before(tiny_cuts, tmp_path, encode):
    with pytest.raises(ArtifactError, match="not a finished feature store"):
        open_source(tiny_cuts, tmp_path, LoaderConfig())
