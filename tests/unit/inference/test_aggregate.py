import random
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.inference.aggregate import max_of_median3, slice_order, too_few_usable
from tests.unit.inference.samples import attributes

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("probabilities", "expected", "index"),
    [
        ([0.7], 0.7, 0),
        ([0.2, 0.6], 0.4, 1),
        ([0.1, 0.9, 0.2], 0.2, 1),
        ([0.1, 0.8, 0.9, 0.7, 0.1], 0.8, 2),
        ([0.9, 0.0, 0.0, 0.3, 0.4, 0.5], 0.4, 5),
        ([0.5, 0.5, 0.5, 0.5], 0.5, 0),
    ],
)
def test_the_largest_median_of_three_neighbours(probabilities, expected, index):
    peak = max_of_median3(probabilities)
    assert (peak.probability, peak.index) == (pytest.approx(expected), index)


def test_a_series_without_probabilities_has_no_peak():
    with pytest.raises(ValueError, match="at least one"):
        max_of_median3([])


@given(PROBABILITIES)
def test_the_peak_is_never_above_the_largest_slice(probabilities):
    assert max_of_median3(probabilities).probability <= max(probabilities)


@given(PROBABILITIES)
def test_the_slice_shown_is_at_least_as_probable_as_the_series(probabilities):
    peak = max_of_median3(probabilities)
    assert probabilities[peak.index] >= peak.probability


@given(st.lists(st.floats(0, 1), min_size=3, max_size=40))
def test_the_peak_is_a_median_of_three_neighbours(probabilities):
    windows = [probabilities[i : i + 3] for i in range(len(probabilities) - 2)]
    assert max_of_median3(probabilities).probability == max(map(median, windows))


@given(st.lists(st.floats(0, 0.1), min_size=3, max_size=40), st.integers(0, 39))
def test_one_odd_slice_does_not_raise_the_series(probabilities, position):
    odd = [*probabilities]
    odd[position % len(odd)] = 1.0
    assert max_of_median3(odd).probability <= 0.1


def numbered(count):
    return [
        replace(attributes(n), slice_location_mm=5.0 * n, instance_number=count - n) for n in range(count)
    ]


@given(st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_of_arrival(order: random.Random):
    slices = numbered(8)
    shuffled = order.sample(slices, len(slices))
    assert [shuffled[i] for i in slice_order(shuffled)] == slices


def test_without_positions_the_instance_number_orders():
    slices = [replace(one, slice_location_mm=None) for one in numbered(4)]
    assert slice_order(slices) == [3, 2, 1, 0]


def test_one_slice_without_a_position_makes_all_go_by_instance_number():
    slices = numbered(4)
    slices[2] = replace(slices[2], slice_location_mm=None)
    assert slice_order(slices) == [3, 2, 1, 0]


def test_without_either_the_uid_orders():
    slices = [replace(one, slice_location_mm=None, instance_number=None) for one in numbered(3)]
    assert slice_order(slices[::-1]) == [2, 1, 0]


@pytest.mark.parametrize(
    ("usable", "unusable", "expected"),
    [(10, 0, False), (8, 2, False), (7, 2, True), (0, 0, True), (0, 1, True), (1, 1, True)],
)
def test_more_than_a_fifth_unusable_is_too_many(usable, unusable, expected):
    assert too_few_usable(usable=usable, unusable=unusable) is expected
