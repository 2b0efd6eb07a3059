import pytest

from todm.errors import ConfigError
from todm.search.choice import Choice, compressions_of


def test_a_choice_survives_json(space):
    choice = Choice(space.subnet(2, {"ffn": (16, 64), "pairs": (3, 1)}), "int8")
    assert Choice.from_json(choice.to_json()) == choice
    assert str(choice) == "blocks 2, ffn 16/64, pairs 3/1, int8"
    assert choice.key != Choice(choice.subnet).key


def test_an_unknown_compression_is_no_choice(space):
    with pytest.raises(ValueError, match="fp8"):
        Choice.from_json({"subnet": space.smallest.to_json(), "compression": "fp8"})


@pytest.mark.parametrize(
    ("text", "found"), [("none", ("none",)), ("int8, none", ("none", "int8")), ("int8", ("int8",))]
)
def test_compressions_are_read(text, found):
    assert compressions_of(text) == found


def test_an_unknown_compression_is_named():
    with pytest.raises(ConfigError, match="'fp8' is not one of none, int8, int4"):
        compressions_of("none,fp8")


def test_a_compression_whose_errors_cannot_be_foretold_is_refused():
    with pytest.raises(ConfigError, match="errors in int4 are not known before"):
        compressions_of("none,int4")
