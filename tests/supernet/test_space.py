import itertools
import json
import random

import pytest

from todm.errors import ConfigError
from todm.supernet.space import SearchSpace, SpaceConfig, Subnet


def _space(depths=(2, 3, 5), **more):
    widths = more.pop("widths", {"ffn": (16, 32, 64), "pairs": (1, 2)})
    return SearchSpace(SpaceConfig(depths=depths, widths=widths, **more))


@pytest.mark.parametrize("num_blocks", [2, 3, 4, 6, 7, 12, 16])
def test_kept_blocks_are_nested_and_hold_both_ends(num_blocks):
    space = _space(tuple(range(2, num_blocks + 1)))
    kept = [set(space.kept_blocks(depth)) for depth in range(2, num_blocks + 1)]
    assert kept[-1] == set(range(num_blocks))
    for depth, (small, large) in enumerate(itertools.pairwise(kept), 2):
        assert len(small) == depth
        assert small < large
    assert all({0, num_blocks - 1} <= blocks for blocks in kept)


@pytest.mark.parametrize(
    ("num_blocks", "depth", "gap"), [(6, 3, 3), (6, 4, 2), (12, 6, 3), (16, 8, 3)]
)
def test_kept_blocks_are_spread_evenly(num_blocks, depth, gap):
    blocks = _space((2, num_blocks)).kept_blocks(depth)
    assert max(b - a for a, b in itertools.pairwise(blocks)) <= gap


def test_kept_blocks_can_be_the_first_ones():
    space = _space((1, 2, 5), drop_order="first")
    assert [space.kept_blocks(d) for d in (1, 2, 5)] == [(0,), (0, 1), (0, 1, 2, 3, 4)]


def test_blocks_are_in_ascending_order():
    space = _space(tuple(range(2, 10)))
    assert all(list(b) == sorted(b) for b in map(space.kept_blocks, range(2, 10)))


def test_a_single_block_can_be_a_supernet():
    space = _space((1,))
    assert space.largest.blocks == (0,)


def test_largest_and_smallest():
    space = _space()
    assert space.largest.blocks == (0, 1, 2, 3, 4)
    assert space.largest.width("ffn", 4) == 64
    assert space.smallest.blocks == (0, 4)
    assert [space.smallest.width(n, 1) for n in ("ffn", "pairs")] == [16, 1]


@pytest.mark.parametrize("which", ["largest", "smallest", "sample"])
def test_json_and_back(which):
    space = _space()
    subnet = space.sample(random.Random(3)) if which == "sample" else getattr(space, which)
    assert Subnet.from_json(json.loads(json.dumps(subnet.to_json()))) == subnet


def test_a_subnet_is_a_key():
    space = _space()
    again = Subnet.from_json(space.largest.to_json())
    assert {space.largest: 1}[again] == 1
    assert len({space.largest, again, space.smallest}) == 2


def test_a_subnet_in_words():
    space = _space()
    assert str(space.smallest) == "blocks 2, ffn 16, pairs 1"
    mixed = space.subnet(2, {"ffn": (16, 64), "pairs": (2, 2)})
    assert str(mixed) == "blocks 2, ffn 16/64, pairs 2"


def test_samples_depend_on_the_generator_alone():
    space = _space()
    draw = lambda seed: [space.sample(rng) for rng in [random.Random(seed)] for _ in range(30)]  # noqa: E731
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_samples_lie_in_the_space_and_reach_its_ends():
    space, rng = _space(), random.Random(0)
    draws = [space.sample(rng) for _ in range(600)]
    for subnet in draws:
        assert subnet == space.subnet(subnet.depth, dict(subnet.widths))
    assert {d.depth for d in draws} == {2, 3, 5}
    widths = {w for d in draws for _, values in d.widths for w in values}
    assert widths == {16, 32, 64, 1, 2}
    # Half the draws share one ratio: without them the ends would be drawn once in 6^5.
    same = [d for d in draws if d.depth == 5 and len(set(dict(d.widths)["ffn"])) == 1]
    assert len(same) > 0.3 * sum(d.depth == 5 for d in draws)
    assert space.largest in draws
    assert space.smallest in draws


@pytest.mark.parametrize("shared_ratio", [0.0, 0.25, 1.0])
def test_as_many_draws_share_one_ratio_as_the_space_says(shared_ratio):
    """Five blocks of six widths are equal by chance once in 1,296 draws."""
    widths = {"ffn": (16, 32, 48, 64, 80, 96), "pairs": (1, 2, 3, 4, 5, 6)}
    space, rng, num = _space((5,), widths=widths, shared_ratio=shared_ratio), random.Random(0), 400
    draws = [dict(space.sample(rng).widths) for _ in range(num)]
    equal = [d for d in draws if len(set(d["ffn"])) == 1]
    deviation = (num * shared_ratio * (1 - shared_ratio)) ** 0.5
    assert abs(len(equal) - num * shared_ratio) <= 4 * deviation + 2
    shared = [d for d in equal if len(set(d["pairs"])) == 1]
    assert all(16 * d["pairs"][0] == d["ffn"][0] for d in shared)
    assert len(shared) == len(equal)


def test_every_depth_is_equally_likely():
    space, rng = _space(), random.Random(1)
    counts = [sum(space.sample(rng).depth == d for _ in range(900)) for d in (2, 3, 5)]
    assert all(abs(count - 300) < 5 * (900 * 2 / 9) ** 0.5 for count in counts)


def test_uniform_subnets_are_all_of_them_once():
    found = list(_space().uniforms())
    assert len(set(found)) == len(found) == 3 * 3 * 2


def test_size_counts_every_subnet():
    space = _space((2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)})
    every = set()
    for depth in (2, 3):
        for ffn in itertools.product((16, 32), repeat=depth):
            for pairs in itertools.product((1, 2), repeat=depth):
                every.add(space.subnet(depth, {"ffn": ffn, "pairs": pairs}))
    assert len(every) == 16 + 64


@pytest.mark.parametrize(
    ("depth", "widths", "words"),
    [
        (4, {"ffn": (16,) * 4, "pairs": (1,) * 4}, r"depth 4 is not in the space: \(2, 3, 5\)"),
        (2, {"ffn": (16, 48), "pairs": (1, 1)}, r"widths ffn=\(16, 48\) are not in the space"),
        (2, {"ffn": (16, 16), "pairs": (1,)}, r"widths pairs=\(1,\) are not in the space"),
    ],
    ids=["depth", "width", "number of widths"],
)
def test_a_subnet_outside_the_space_is_refused(depth, widths, words):
    with pytest.raises(ConfigError, match=words):
        _space().subnet(depth, widths)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"depths": ()}, "space.depths is"),
        ({"depths": (3, 2)}, "ascending positive numbers"),
        ({"depths": (2, 2)}, "ascending positive numbers"),
        ({"depths": (1, 4)}, "the first and last block are always kept"),
        ({"depths": (2,), "widths": {"ffn": (0, 16)}}, "space.ffn is"),
        ({"depths": (2,), "widths": {"ffn": ()}}, "space.ffn is"),
        ({"depths": (2,), "shared_ratio": 1.5}, "space.shared_ratio is 1.5: a share from 0 to 1"),
    ],
    ids=["no depth", "descending", "twice", "below two", "zero", "no width", "share"],
)
def test_a_space_that_makes_no_sense_is_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        SpaceConfig(**{"widths": {"ffn": (16,)}, **config})
