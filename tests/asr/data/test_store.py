import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from lhotse import CutSet

from todm.asr.data import store as store_module
from todm.asr.data.audio import cut_features
from todm.asr.data.features import fbank
from todm.asr.data.store import FeatureStore
from todm.errors import ArtifactError, CorpusError


def test_it_holds_every_utterance_at_every_speed(tiny_store):
    assert len(tiny_store) == 120
    assert [u.id for u in tiny_store.utterances[:3]] == [
        "utt-000_sp0.9",
        "utt-000",
        "utt-000_sp1.1",
    ]
    slow, plain, fast = (u.num_frames for u in tiny_store.utterances[:3])
    assert slow == pytest.approx(plain / 0.9, abs=1)
    assert fast == pytest.approx(plain / 1.1, abs=1)
    assert not tiny_store.rejected


def test_features_are_kept_to_a_quarter_of_a_thousandth(tiny_cuts, tiny_store):
    for i, cut in enumerate(CutSet.from_file(tiny_cuts).subset(first=5)):
        want = fbank(torch.from_numpy(cut.load_audio()[0]))
        assert (tiny_store.features(3 * i + 1) - want).abs().max() <= 2.5e-4


def test_speeds_are_lhotses(tiny_cuts):
    cut = CutSet.from_file(tiny_cuts)[0]
    for speed, got in zip((0.9, 1.1), cut_features(cut, (0.9, 1.1)), strict=True):
        want = fbank(torch.from_numpy(cut.perturb_speed(speed).load_audio()[0]))
        # lhotse may round to one sample more or less at the end, which the last frames mirror.
        assert abs(len(got) - len(want)) <= 1
        assert got[: len(want) - 3].allclose(want[: len(got) - 3][: len(want) - 3], atol=1e-4)


def test_statistics_are_those_of_all_frames(tiny_store):
    frames = torch.cat([tiny_store.features(i) for i in range(len(tiny_store))])
    assert tiny_store.mean_F.allclose(frames.mean(0), atol=1e-3)
    assert tiny_store.std_F.allclose(frames.std(0), atol=1e-3)


def test_a_finished_store_is_only_opened(tiny_cuts, tiny_store, monkeypatch):
    monkeypatch.setattr(store_module, "_fill", lambda *_: pytest.fail("built again"))
    assert len(FeatureStore.build(tiny_cuts, tiny_store.path)) == 120


@pytest.mark.parametrize("change", ["speeds", "manifest", "audio"])
def test_a_stale_store_is_made_again(make_corpus, tmp_path, change):
    cuts, speeds = make_corpus(tmp_path, num=4), (1.0,)
    FeatureStore.build(cuts, tmp_path / "store", speeds=speeds, num_jobs=1)
    if change == "speeds":
        speeds = (1.0, 1.1)
    elif change == "manifest":
        make_corpus(tmp_path, num=5)
    else:
        os.utime(tmp_path / "utt-000.flac", (1, 1))
    calls = []
    store = FeatureStore.build(
        cuts, tmp_path / "store", speeds=speeds, num_jobs=1, progress=lambda *a: calls.append(a)
    )
    assert calls[-1] == ("features", *(len(store) // len(speeds),) * 2)


def test_an_interrupted_build_goes_on(make_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_CUTS_PER_PART", 2)
    cuts, out = make_corpus(tmp_path, num=8), tmp_path / "store"
    whole = FeatureStore.build(cuts, tmp_path / "whole", num_jobs=1)

    def stop(_what, done, _total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(cuts, out, num_jobs=1, progress=stop)
    with pytest.raises(ArtifactError, match="not a finished"):
        FeatureStore.open(out)
    with (out / "journal.jsonl").open("a") as journal:
        journal.write('{"part": 2, "ro')  # what a kill in mid-write leaves
    calls = []
    store = FeatureStore.build(cuts, out, num_jobs=1, progress=lambda *a: calls.append(a))
    assert calls == [("features", 6, 8), ("features", 8, 8)]
    assert store.utterances == whole.utterances
    assert all(store.features(i).equal(whole.features(i)) for i in range(len(store)))
    assert store.mean_F.allclose(whole.mean_F)


@pytest.mark.slow
def test_processes_make_the_same_store(tiny_cuts, tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_CUTS_PER_PART", 10)
    store = FeatureStore.build(tiny_cuts, tmp_path / "store", num_jobs=2)
    assert store.utterances == tiny_store.utterances
    assert store.features(77).equal(tiny_store.features(77))


def test_damaged_audio_is_listed_and_left_out(make_corpus, tmp_path):
    cuts = make_corpus(tmp_path, num=6)
    good = (tmp_path / "utt-001.flac").read_bytes()
    (tmp_path / "utt-001.flac").write_bytes(good[: len(good) // 3])
    (tmp_path / "utt-002.flac").write_bytes(b"this is no audio")
    (tmp_path / "utt-003.flac").unlink()
    (tmp_path / "utt-004.flac").write_bytes(b"")
    store = FeatureStore.build(cuts, tmp_path / "store", speeds=(1.0,), num_jobs=1)
    assert {u.id for u in store.utterances} == {"utt-000", "utt-005"}
    assert [r["id"] for r in store.rejected] == [f"utt-00{i}" for i in (1, 2, 3, 4)]
    assert all("\n" not in r["reason"] and r["reason"] for r in store.rejected)
    lines = (store.path / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == store.rejected


def test_a_corpus_with_no_usable_audio_is_an_error(make_corpus, tmp_path):
    cuts = make_corpus(tmp_path, num=1)
    (tmp_path / "utt-000.flac").write_bytes(b"")
    with pytest.raises(CorpusError, match="no audio could be used"):
        FeatureStore.build(cuts, tmp_path / "store", num_jobs=1)


def test_a_full_disk_is_a_clear_error(make_corpus, tmp_path, monkeypatch):
    cuts = make_corpus(tmp_path, num=2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(CorpusError, match="no room"):
            FeatureStore.build(cuts, tmp_path / "store", num_jobs=1)
    assert len(FeatureStore.build(cuts, tmp_path / "store", num_jobs=1)) == 6


def test_a_truncated_store_is_refused(make_corpus, tmp_path):
    store = FeatureStore.build(make_corpus(tmp_path, num=2), tmp_path / "store", num_jobs=1)
    os.truncate(store.path / "features.i16", 1000)
    with pytest.raises(ArtifactError, match="incomplete"):
        FeatureStore.open(store.path)


def test_a_foreign_directory_is_left_alone(make_corpus, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("mine")
    with pytest.raises(CorpusError, match="not a feature store"):
        FeatureStore.build(make_corpus(tmp_path, num=1), tmp_path / "store", num_jobs=1)
    assert (tmp_path / "store" / "thesis.tex").read_text() == "mine"


BUILD = """
import sys
from todm.asr.data import store
store._CUTS_PER_PART = 1
if sys.argv[3] == "slow":
    compute = store._compute
    def slowly(*a):
        print("computing", flush=True)
        import time; time.sleep(0.2)
        return compute(*a)
    store._compute = slowly
print(len(store.FeatureStore.build(sys.argv[1], sys.argv[2], speeds=(1.0,), num_jobs=1)))
"""


def start(cuts, out, repo, how="slow"):
    command = [sys.executable, "-c", BUILD, str(cuts), str(out), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repo)


@pytest.mark.slow
def test_builds_at_the_same_time_do_not_meet(make_corpus, tmp_path, repo):
    """One of two is killed at work, the second takes over, and a third finds it done or waits."""
    cuts, out = make_corpus(tmp_path, num=6), tmp_path / "features" / "store"
    with start(cuts, out, repo) as first:
        assert first.stdout.readline() == "computing\n"
        with start(cuts, out, repo, "fast") as second, start(cuts, out, repo, "fast") as third:
            first.send_signal(signal.SIGKILL)
            assert [p.communicate()[0].strip() for p in (second, third)] == ["6", "6"]
            assert (second.returncode, third.returncode) == (0, 0)
    assert len(FeatureStore.open(out)) == 6
