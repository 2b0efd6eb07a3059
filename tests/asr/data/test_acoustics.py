import itertools

import numpy as np
import pytest
import soundfile
import torch

from todm.asr.data.acoustics import AS_IT_IS, Acoustics, AcousticsConfig, draw_rendering
from todm.asr.data.audio import cut_waves
from todm.asr.data.batch import LoaderConfig
from todm.asr.data.features import fbank
from todm.asr.data.loader import Loader, open_source
from todm.asr.data.statistics import sample_statistics
from todm.asr.data.store import FeatureStore
from todm.errors import ConfigError, CorpusError

TWO = AcousticsConfig(renderings=2, codec=0.5)


@pytest.fixture
def speech():
    return (0.2 * np.random.default_rng(0).standard_normal(8001)).astype(np.float32)


@pytest.fixture
def rirs(tmp_path):
    """A folder with a room of one echo, 50 ms after the direct sound and as loud."""
    wave = np.zeros(1600, np.float32)
    wave[[0, 800]] = 0.5
    (tmp_path / "rirs").mkdir()
    soundfile.write(tmp_path / "rirs" / "canyon.wav", wave, 16000)
    return tmp_path / "rirs"


@pytest.fixture(scope="module")
def rendered(tiny_cuts, tmp_path_factory):
    """A store of 40 utterances with two renderings."""
    place = tmp_path_factory.mktemp("rendered") / "store"
    given = {"speeds": (1.0,), "acoustics": Acoustics(TWO), "num_jobs": 1}
    return FeatureStore.build(tiny_cuts, place, **given)


def test_a_rendering_is_a_function_of_name_and_number(speech):
    acoustics = Acoustics(TWO)
    first, again = (acoustics.render(speech, "a", 1) for _ in range(2))
    assert first.shape == speech.shape
    assert np.array_equal(first, again)
    for name, number in (("a", 2), ("b", 1)):
        assert not np.array_equal(first, acoustics.render(speech, name, number))
    assert acoustics.render(speech, "a", 0) is speech
    assert not acoustics.render(np.zeros(500, np.float32), "a", 1).any()


def test_levels_cover_the_range(speech):
    config = AcousticsConfig(renderings=200, room=0, clip=0, codec=0)
    peaks = [np.abs(Acoustics(config).render(speech, "a", n)).max() for n in range(1, 201)]
    levels = 20 * np.log10(peaks)
    assert levels.min() == pytest.approx(-55, abs=2)
    assert levels.max() == pytest.approx(-3, abs=2)


def test_rooms_are_recorded_or_simulated(speech, rirs):
    plain = {"renderings": 60, "room": 1.0, "clip": 0, "codec": 0, "level_db": (-10, -10)}
    config = AcousticsConfig(rirs=str(rirs), simulated=0.5, **plain)
    want = speech.copy()
    want[800:] += speech[:-800]
    fits = [np.corrcoef(Acoustics(config).render(speech, "a", n), want)[0, 1] for n in range(1, 61)]
    assert 15 < sum(fit > 0.999 for fit in fits) < 45
    recorded = Acoustics(config.replace(simulated=0.0)).render(speech, "a", 1)
    assert np.corrcoef(recorded, want)[0, 1] > 0.999


def test_the_mark_follows_what_is_heard(rirs):
    config = TWO.replace(rirs=str(rirs))
    mark = Acoustics(config).mark
    assert Acoustics(config.replace(rendered=0.1, rendered_from=0.5)).mark == mark
    assert Acoustics(config.replace(room=0.1)).mark != mark
    moved = rirs.rename(rirs.with_name("moved"))
    assert Acoustics(config.replace(rirs=str(moved))).mark == mark


def test_epochs_take_all_renderings_in_turn():
    config = TWO.replace(renderings=3, rendered=1.0)
    taken = [draw_rendering(config, "a", seed=0, epoch=e, progress=1.0) for e in range(6)]
    assert taken[:3] == taken[3:]
    assert sorted(taken[:3]) == [1, 2, 3]


def test_a_share_is_as_it_is_and_everything_is_at_first():
    config = TWO.replace(rendered=0.7, rendered_from=0.5)
    draw = [draw_rendering(config, f"{i}", seed=0, epoch=0, progress=0.5) for i in range(1000)]
    assert sum(number > 0 for number in draw) == pytest.approx(700, abs=50)
    assert draw != [
        draw_rendering(config, f"{i}", seed=1, epoch=0, progress=0.5) for i in range(1000)
    ]
    assert not any(draw_rendering(config, f"{i}", seed=0, epoch=0, progress=0.4) for i in range(99))


def test_a_store_holds_the_renderings(rendered, tiny_cuts):
    from lhotse import CutSet

    assert rendered.num_renderings == 2
    cut = list(CutSet.from_file(tiny_cuts))[5]
    (wave,) = cut_waves(cut, (1.0,))
    index = next(i for i, u in enumerate(rendered.utterances) if u.id == cut.id)
    for number in range(3):
        want = fbank(torch.from_numpy(Acoustics(TWO).render(wave, cut.id, number)))
        assert rendered.features(index, number).allclose(want, atol=3e-4)
    everything = torch.cat([rendered.features(i, n) for i in range(40) for n in range(3)])
    assert rendered.mean_F.allclose(everything.mean(0), atol=1e-3)


def test_a_store_without_renderings_is_as_before(tiny_cuts, tmp_path):
    place = tmp_path / "store"
    plain = FeatureStore.build(tiny_cuts, place, speeds=(1.0,), num_jobs=1)
    before = (place / "features.i16").stat().st_mtime_ns
    FeatureStore.build(tiny_cuts, place, speeds=(1.0,), acoustics=AS_IT_IS, num_jobs=1)
    assert (place / "features.i16").stat().st_mtime_ns == before
    assert plain.num_renderings == 0


def test_an_interrupted_store_is_resumed_the_same(make_corpus, tmp_path):
    cuts = make_corpus(tmp_path, num=70)
    given = {"speeds": (1.0,), "acoustics": Acoustics(TWO), "num_jobs": 1}
    whole = FeatureStore.build(cuts, tmp_path / "whole", **given)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(cuts, tmp_path / "halves", progress=stop, **given)
    halves = FeatureStore.build(cuts, tmp_path / "halves", **given)
    assert halves.utterances == whole.utterances
    assert all(halves.features(i, 2).equal(whole.features(i, 2)) for i in range(70))


def batches(cuts, store, encode, mode, num):
    config = LoaderConfig(feature_mode=mode, speeds=(1.0,), batch_size=8, num_workers=0)
    source = open_source(cuts, store.path, config, Acoustics(TWO))
    loader = Loader(source, encode, config=config, acoustics=TWO)
    return loader, list(itertools.islice(loader, num))


def test_mapped_and_computed_batches_are_alike(tiny_cuts, rendered, encode):
    _, mapped = batches(tiny_cuts, rendered, encode, "map", 8)
    _, computed = batches(tiny_cuts, rendered, encode, "on_the_fly", 8)
    for a, b in zip(mapped, computed, strict=True):
        assert a.ids == b.ids
        assert a.features_BTF.allclose(b.features_BTF, atol=3e-4)


def test_a_resumed_loader_takes_the_same_renderings(tiny_cuts, rendered, encode):
    _, whole = batches(tiny_cuts, rendered, encode, "map", 12)
    loader, _ = batches(tiny_cuts, rendered, encode, "map", 7)
    resumed = Loader(
        open_source(tiny_cuts, rendered.path, LoaderConfig()),
        encode,
        config=LoaderConfig(speeds=(1.0,), batch_size=8),
        acoustics=TWO,
    )
    resumed.load_state_dict(loader.state_dict())
    rest = list(itertools.islice(resumed, 5))
    assert all(a.features_BTF.equal(b.features_BTF) for a, b in zip(rest, whole[7:], strict=True))


def test_statistics_are_those_of_all_renderings(tiny_cuts, rendered):
    sampled = sample_statistics(tiny_cuts, num_cuts=40, acoustics=Acoustics(TWO))
    dry = sample_statistics(tiny_cuts, num_cuts=40)
    near = (sampled.mean_F - rendered.mean_F).abs().mean()
    assert near < 0.5 * (dry.mean_F - rendered.mean_F).abs().mean()


def test_a_folder_that_cannot_be_used_leaves_nothing(tiny_cuts, tmp_path):
    (tmp_path / "empty").mkdir()
    acoustics = Acoustics(TWO.replace(rirs=str(tmp_path / "empty")))
    with pytest.raises(CorpusError, match="holds no readable impulse response"):
        FeatureStore.build(tiny_cuts, tmp_path / "store", acoustics=acoustics, num_jobs=1)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"renderings": -1}, "acoustics.renderings is -1: it must not be negative"),
        ({"room": 1.5}, "acoustics.room is 1.5: a share from 0 to 1"),
        ({"level_db": (0.0, -9.0)}, "the lower value comes first"),
        ({"level_db": (-9.0, 3.0)}, "0 dB is full scale"),
        ({"rt60": (0.0, 1.0)}, "from 0.05 to 5 s"),
        ({"codecs": ("mp3",)}, "acoustics.codecs: mp3; choose from narrow, mu-law"),
        ({"codecs": ()}, "acoustics.codecs: empty; choose from"),
        ({"rirs": "rooms"}, "acoustics.rirs is set and acoustics.renderings is 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigError, match=words):
        AcousticsConfig(**settings)
