"""What counts as accepted, and the intervals of shares."""

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.studies.orders.recordings import Recording
from benchmarks.studies.orders.scoring import judge, mean_share, order_parser, wilson

LABELS = {
    "right": ("i want a small latte", {"size": "small", "coffeeDrink": "latte"}),
    "other drink": ("i want a small mocha", {"size": "small", "coffeeDrink": "latte"}),
    "missing": ("i want a latte", {"size": "small", "coffeeDrink": "latte"}),
    "spurious": ("i want a small latte", {"coffeeDrink": "latte"}),
    "near": ("i want a small lattes", {"size": "small", "coffeeDrink": "latte"}),
    "silent": ("", {"coffeeDrink": "latte"}),
}


@pytest.fixture
def judged():
    recordings = [
        Recording(name=n, samples_S=np.zeros(1, np.float32), intent="orderDrink", slots=slots)
        for n, (_, slots) in LABELS.items()
    ]
    return judge(recordings, {n: text for n, (text, _) in LABELS.items()}, order_parser())


def test_a_command_is_accepted_if_all_slots_are_right_and_none_is_missing_or_made_up(judged):
    assert judged["num"] == 6
    assert judged["parsed"] == 4
    assert judged["exact"]["wrong"] == ["other drink", "missing", "spurious", "near", "silent"]
    assert judged["nearest"]["wrong"] == ["other drink", "missing", "spurious", "silent"]
    assert judged["exact"]["spurious"] == judged["nearest"]["spurious"] == 1
    assert set(judged["texts"]) == set(judged["exact"]["wrong"])


def test_slots_are_counted_one_by_one(judged):
    assert judged["exact"]["slots"] == 10
    assert judged["exact"]["slots_right"] == 2 + 1 + 1 + 1
    assert judged["nearest"]["slots_right"] == 2 + 1 + 1 + 1 + 2
    assert sorted(judged["exact"]["confusions"]) == [
        ("coffeeDrink", "latte", "mocha", 1),
        ("size", "", "small", 1),
        ("size", "small", "", 1),
    ]


@pytest.mark.parametrize(("right", "num"), [(0, 20), (199, 299), (299, 299)])
def test_the_interval_of_a_share_is_wilsons(right, num):
    found, want = wilson(right, num), binomtest(right, num).proportion_ci(method="wilson")
    assert found.value == right / num
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-6)


def test_a_mean_redraws_recordings_and_not_conditions():
    """Conditions that are all alike add nothing to what one of them tells."""
    right_N = np.repeat([1.0, 0.0], [80, 20])
    one, many = mean_share(right_N[None]), mean_share(np.tile(right_N, (10, 1)))
    assert many.value == one.value == 0.8
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert one.high - one.low == pytest.approx(2 * 1.96 * 0.04, rel=0.15)


def test_a_paired_difference_without_any_is_zero():
    right = np.ones((3, 10))
    found = mean_share(right - right)
    assert (found.value, found.low, found.high) == (0, 0, 0)
