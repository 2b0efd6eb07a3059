from todm.asr.data.batch import LoaderConfig
from todm.asr.data.statistics import compute_features


def test_both_ways_agree_on_the_statistics(make_corpus, tmp_path):
    cuts, speeds = make_corpus(tmp_path, num=8), (1.0,)
    one, two = (
        compute_features(
            cuts, tmp_path / "store", config=LoaderConfig(feature_mode=mode, speeds=speeds)
        )
        for mode in ("map", "on_the_fly")
    )
    assert one.mean_F.allclose(two.mean_F, atol=1e-3)
    assert one.std_F.allclose(two.std_F, atol=1e-3)
