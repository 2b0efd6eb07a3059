import pytest

from todm.asr.corpora.config import DataConfig, SpeechConfig
from todm.asr.data.rooms import RoomConfig
from todm.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(source="sentences"), "source 'sentences' needs 'text'"),
        (lambda: DataConfig(source="librispeech"), "source 'librispeech' needs 'data'"),
        (lambda: DataConfig(text="x"), "'text' is not used by source 'commands'"),
        (lambda: DataConfig(hours=1.0), "'hours' is not used"),
        (lambda: DataConfig(num_dev=0), "num_dev is 0: at least 1"),
        (lambda: DataConfig(min_seconds=3.0, max_seconds=2.0), "must be below max_seconds"),
        (lambda: DataConfig(splits={"a": "valid"}), "splits.a is 'valid'"),
        (lambda: SpeechConfig(rate=(200, 100)), "the lower value comes first"),
        (lambda: RoomConfig(clean=1.5), "a share from 0 to 1"),
    ],
)
def test_a_bad_value_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_json_round_trip():
    config = DataConfig(source="librispeech", data="/d", splits={"a": "train"}, seed=3)
    assert DataConfig.from_json(config.to_json()) == config
