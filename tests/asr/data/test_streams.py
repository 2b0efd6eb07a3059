import pytest

from todm.asr.data.augment import AugmentConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.data.map_batches import MapBatches
from todm.asr.data.on_the_fly import OnTheFlyBatches
from todm.asr.data.streams import make_augmenter, open_stream, prepare_features
from todm.errors import ArtifactError


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
