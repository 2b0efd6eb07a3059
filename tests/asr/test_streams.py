import logging

import numpy as np
import pytest
import soundfile

from todm.asr.augment import AugmentConfig
from todm.asr.data import LoaderConfig, MapBatches
from todm.asr.on_the_fly import OnTheFlyBatches
from todm.asr.streams import make_augmenter, noise_store, open_stream, prepare_features
from todm.errors import ArtifactError, CorpusError


@pytest.mark.parametrize(("mode", "kind"), [("map", MapBatches), ("on_the_fly", OnTheFlyBatches)])
def test_the_config_chooses_the_way(make_corpus, tmp_path, encode, mode, kind):
    cuts, out = make_corpus(tmp_path, num=8), tmp_path / "store"
    config = LoaderConfig(feature_mode=mode, batch_size=4, num_buckets=2, num_workers=0)
    statistics = prepare_features(cuts, out, config=config)
    augment = make_augmenter(
        AugmentConfig(), statistics, noise_dir=None, cache_dir=tmp_path / "noise"
    )
    batches = open_stream(cuts, out, encode=encode, config=config, augment=augment)
    assert isinstance(batches, kind)
    assert next(iter(batches)).features_BTF.shape[2] == 80


def test_both_ways_agree_on_the_statistics(make_corpus, tmp_path):
    cuts, speeds = make_corpus(tmp_path, num=8), (1.0,)
    one, two = (
        prepare_features(
            cuts, tmp_path / "store", config=LoaderConfig(feature_mode=mode, speeds=speeds)
        )
        for mode in ("map", "on_the_fly")
    )
    assert one.mean_F.allclose(two.mean_F, atol=1e-3)
    assert one.std_F.allclose(two.std_F, atol=1e-3)


def test_features_must_be_prepared(tiny_cuts, tmp_path, encode):
    with pytest.raises(ArtifactError, match="not a finished feature store"):
        open_stream(tiny_cuts, tmp_path, encode=encode, config=LoaderConfig(), augment=None)


def test_noise_of_any_format_is_used(tmp_path, caplog):
    folder = tmp_path / "noise"
    (folder / "kitchen").mkdir(parents=True)
    rng = np.random.default_rng(0)
    soundfile.write(folder / "fan.wav", rng.standard_normal((44100, 2)) * 0.1, 44100)
    soundfile.write(folder / "kitchen" / "tap.flac", rng.standard_normal(16000) * 0.1, 16000)
    (folder / "broken.wav").write_bytes(b"no audio")
    with caplog.at_level(logging.WARNING):
        store = noise_store(folder, tmp_path / "features")
    assert [u.num_frames for u in store.utterances] == [100, 100]
    assert "broken.wav" in caplog.text


def test_a_folder_without_noise_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="no readable audio"):
        noise_store(tmp_path, tmp_path / "features")
