import math

import pytest

from todm.errors import ConfigError
from todm.train.schedule import ScheduleConfig, UpdateStats, lr_factor

KINDS = ["eden", "eden2", "cosine", "linear"]


def _by_audio(kind, batch, epoch=0, warmup_start=0.5):
    """The factor after so many reference batches and epochs."""
    config = ScheduleConfig(kind=kind, reference_seconds=1.0, warmup_start=warmup_start)
    stats = UpdateStats(seconds=1.0, updates=batch / epoch if epoch else math.inf)
    return lr_factor(batch, 10**6, config=config, stats=stats)


@pytest.mark.parametrize(
    ("batch", "epoch", "rate"),
    [
        (0, 0, 0.0045),
        (500, 0, 0.045),
        (7500, 1, 0.0371),
        (100_000, 10, 0.0071),
        (300_000, 30, 0.0024),
    ],
)
def test_eden_has_the_published_values(batch, epoch, rate):
    assert 0.045 * _by_audio("eden", batch, epoch, 0.1) == pytest.approx(rate, abs=6e-5)


def test_eden2_is_the_square_of_the_batch_factor_of_eden():
    assert _by_audio("eden2", 20000) == pytest.approx(_by_audio("eden", 20000) ** 2)
    assert _by_audio("eden2", 0, warmup_start=0.5) == 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [40, 3000])
def test_warms_up_to_one_and_falls_to_the_final_factor(kind, total):
    config = ScheduleConfig(kind=kind, warmup=0.05, warmup_start=0.1, final=0.02)
    curve = [lr_factor(step, total, config=config) for step in range(total + 5)]
    top = int(0.05 * total)
    assert curve[0] == pytest.approx(0.1)
    assert curve[top] == pytest.approx(1.0) == max(curve)
    assert curve[:top] == sorted(curve[:top])
    assert curve[top:] == sorted(curve[top:], reverse=True)
    assert curve[total - 1] == pytest.approx(0.02) == pytest.approx(curve[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_run_is_a_scaled_long_one(kind):
    config = ScheduleConfig(kind=kind)
    near = [lr_factor(step, 1000, config=config) for step in range(0, 1000, 100)]
    far = [lr_factor(10 * step, 10000, config=config) for step in range(0, 1000, 100)]
    assert near == pytest.approx(far, abs=5e-3)


AUDIO = ScheduleConfig(kind="eden", reference_seconds=2000.0, warmup_start=0.5)


@pytest.mark.parametrize("update", [0, 100, 500, 7500, 40_000])
def test_with_the_reference_batch_eden_is_the_published_one(update):
    stats = UpdateStats(seconds=2000.0, updates=5184)  # 960 h at three speeds
    epoch = update / 5184
    decay = ((update**2 + 7500**2) / 7500**2) ** -0.25 * ((epoch**2 + 3.5**2) / 3.5**2) ** -0.25
    warm = 1.0 if update >= 500 else 0.5 + 0.5 * update / 500
    got = lr_factor(update, 10**6, config=AUDIO, stats=stats)
    assert got == pytest.approx(decay * warm)


@pytest.mark.parametrize("kind", ["eden", "eden2"])
def test_the_rate_falls_with_the_audio_not_the_batch(kind):
    """Eight processes see as much in an eighth of the updates."""
    config = AUDIO.replace(kind=kind)
    one, eight = (
        UpdateStats(seconds=1000.0, updates=10_400),
        UpdateStats(seconds=8000.0, updates=1300),
    )
    for update in (10, 1000, 20_000):
        near = lr_factor(update, 10**6, config=config, stats=eight)
        assert near == pytest.approx(lr_factor(8 * update, 10**6, config=config, stats=one))


def test_audio_is_for_eden_only():
    with pytest.raises(ConfigError, match="reference_seconds is for eden and eden2, not cosine"):
        ScheduleConfig(kind="cosine", reference_seconds=2000.0)


def test_runs_of_one_update_have_a_rate():
    assert lr_factor(0, 1, config=ScheduleConfig(warmup=0.0)) == 1.0


@pytest.mark.parametrize(
    "setting",
    [
        {"final": 0.2},
        {"warmup": 1.0},
        {"warmup_start": 0.0},
        {"knee_updates": 0.0},
        {"eden_epochs": 0.0},
        {"reference_seconds": -1.0},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        ScheduleConfig(**setting)
