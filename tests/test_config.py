"""Configurations: strict about keys, types and values, and the same after a trip through JSON."""

import dataclasses
import json
from typing import Literal

import pytest

from todm.config import Config
from todm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(Config):
    """Part of a configuration."""

    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Config):
    """A configuration with every kind of field."""

    num_updates: int = 10
    name: str | None = None
    form: Literal["standard", "one_symbol"] = "standard"
    fast: bool = False
    table: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    inner: Inner = dataclasses.field(default_factory=Inner)

    def __post_init__(self):
        if self.num_updates < 1:
            raise ConfigError(f"num_updates is {self.num_updates}: at least 1 is needed")


def test_json_round_trip():
    config = Outer(name="x", table={"ffn": (64, 128)}, inner=Inner(sizes=(3,), rate=1.0))
    assert Outer.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_missing_keys_take_their_default():
    assert Outer.from_json({"fast": True}) == Outer(fast=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"num_update": 5}, "unknown setting 'num_update': did you mean 'num_updates'"),
        ({"inner": {"rat": 1.0}}, "unknown setting 'inner.rat': did you mean 'rate'"),
        ({"zzz": 1}, "known: num_updates, name"),
        ({"num_updates": "many"}, "num_updates is 'many': a value of type int"),
        ({"num_updates": True}, "num_updates is True: a value of type int"),
        ({"num_updates": 1.5}, "type int"),
        ({"fast": 1}, "type bool"),
        ({"form": "other"}, "form is 'other': allowed are 'standard', 'one_symbol'"),
        ({"inner": {"sizes": 3}}, "inner.sizes is 3: a list is needed"),
        ({"inner": {"pair": [1]}}, "inner.pair has 1 values: 2 are needed"),
        ({"table": [1]}, "table is"),
        ({"inner": 7}, "must be a table of settings"),
        ({"num_updates": 0}, "at least 1 is needed"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(data, message):
    with pytest.raises(ConfigError) as raised:
        Outer.from_json(data)
    assert message in str(raised.value)


def test_a_whole_number_is_a_float_too():
    assert Outer.from_json({"inner": {"rate": 2}}).inner.rate == 2.0


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("num_updates=500", lambda c: c.num_updates == 500),
        ("inner.rate=1e-3", lambda c: c.inner.rate == 1e-3),
        ("inner.sizes=[4, 5]", lambda c: c.inner.sizes == (4, 5)),
        ("name=plain words", lambda c: c.name == "plain words"),
        ("name=null", lambda c: c.name is None),
        ("fast=true", lambda c: c.fast is True),
        ("form=one_symbol", lambda c: c.form == "one_symbol"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_override(assignment, read):
    assert read(Outer().override([assignment]))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("num_updates", "has no '='"),
        ("num_update=5", "did you mean 'num_updates'"),
        ("inner.rates=5", "did you mean 'rate'"),
        ("iner.rate=5", "did you mean 'inner'"),
        ("inner.rate=fast", "type float"),
        ("num_updates.x=1", "unknown setting"),
    ],
)
def test_an_override_that_cannot_be_used_is_named(assignment, message):
    with pytest.raises(ConfigError) as raised:
        Outer().override([assignment])
    assert message in str(raised.value)


def test_the_last_override_wins_and_the_original_stays():
    config = Outer()
    assert config.override(["num_updates=2", "num_updates=3"]).num_updates == 3
    assert config.num_updates == 10


def test_a_copy_is_checked_as_if_built_anew():
    with pytest.raises(ConfigError):
        Outer().replace(num_updates=-1)
