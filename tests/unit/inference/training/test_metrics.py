import math
from itertools import pairwise

import numpy as np
import pytest

from rayhook.inference.training.metrics import (
    area,
    auc,
    average_precision,
    binary_metrics,
    brier,
    calibration_error,
    cluster_bootstrap,
    midranks,
    ones,
    operating_points,
    predictive_values,
    reliability_bins,
    risk_coverage,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    weighted_calibration_error,
    weighted_mean,
    weighted_rate,
    wilson,
    youden,
)

LABELS = np.array([0, 0, 1, 1, 0, 1])
SCORES = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.4])


def _sample(rows: int, *, ties: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.random(rows)
    labels = (random.random(rows) < scores).astype(np.int64)
    return labels, np.round(scores, 1) if ties else scores


def _repeated(weights: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(weights.size), weights.astype(int))


def test_auc_is_the_share_of_pairs_in_order_with_ties_half():
    pairs = [(p > n) + 0.5 * (p == n) for p in SCORES[LABELS == 1] for n in SCORES[LABELS == 0]]
    assert auc(LABELS, SCORES) == pytest.approx(np.mean(pairs))


def test_auc_of_one_class_is_unknown():
    assert np.isnan(auc(np.ones(3, int), SCORES[:3]))


def test_tied_ranks_are_shared():
    np.testing.assert_array_equal(midranks(np.array([5.0, 1.0, 5.0, 0.0, 5.0])), [4, 2, 4, 1, 4])


def test_rates_at_a_threshold():
    figures = binary_metrics(LABELS, SCORES, threshold=0.4)
    rates = [figures[name] for name in ("sensitivity", "specificity", "ppv", "npv")]
    assert rates == pytest.approx([2 / 3, 1 / 3, 1 / 2, 1 / 2])


def test_brier_score():
    assert brier(LABELS, SCORES) == pytest.approx(np.mean((SCORES - LABELS) ** 2))


def test_calibrated_probabilities_have_a_small_calibration_error():
    labels, probabilities = _sample(20000)
    assert calibration_error(labels, probabilities) < 0.02
    assert calibration_error(labels, probabilities**3) > 0.1


@pytest.mark.parametrize("rows", [7, 20, 103])
def test_calibration_error_is_over_bins_of_equal_count(rows):
    labels, probabilities = _sample(rows)
    bins = [b for b in np.array_split(np.argsort(probabilities), 10) if b.size]
    gaps = [abs(probabilities[b].mean() - labels[b].mean()) * b.size for b in bins]
    assert calibration_error(labels, probabilities) == pytest.approx(sum(gaps) / rows)


def test_calibration_error_does_not_depend_on_the_order_of_tied_rows():
    labels = np.repeat([1, 0], 50)
    assert calibration_error(labels, np.full(100, 0.5)) == pytest.approx(0.0, abs=1e-12)


def test_interval_over_clusters_is_wider_than_over_images():
    random = np.random.default_rng(0)
    effect = np.repeat(random.normal(size=20), 30)
    values = effect + 0.1 * random.normal(size=600)
    patients = np.repeat(np.arange(20), 30).astype(str)
    images = np.arange(600).astype(str)
    wide, narrow = (
        cluster_bootstrap(clusters, lambda index: {"mean": float(values[index].mean())}, rounds=300)["mean"]
        for clusters in (patients, images)
    )
    assert wide.value == narrow.value
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@pytest.mark.parametrize("ties", [False, True])
def test_a_weighted_area_is_that_of_repeated_rows(ties):
    labels, scores = _sample(60, ties=ties)
    weights = np.random.default_rng(1).integers(0, 4, (5, 60)).astype(float)
    expected = [auc(labels[i], scores[i]) for i in map(_repeated, weights)]
    assert area(operating_points(labels, scores, weights)) == pytest.approx(expected)


def test_a_weighted_calibration_error_is_that_of_repeated_rows():
    labels, scores = _sample(60)
    weights = np.random.default_rng(1).integers(0, 4, (5, 60)).astype(float)
    expected = [calibration_error(labels[i], scores[i]) for i in map(_repeated, weights)]
    assert weighted_calibration_error(labels, scores, weights) == pytest.approx(expected)


def test_a_round_without_positives_has_no_area():
    weights = np.stack([np.ones(6), 1.0 - LABELS])
    assert np.isnan(area(operating_points(LABELS, SCORES, weights))).tolist() == [False, True]


def test_operating_points_count_what_reaches_each_threshold():
    points = operating_points(LABELS, SCORES)
    assert points.thresholds.tolist() == [math.inf, 0.8, 0.4, 0.35, 0.1]
    assert points.true.tolist() == [[0, 1, 2, 3, 3]]
    assert points.false.tolist() == [[0, 0, 2, 2, 3]]


def test_average_precision_sums_precision_over_the_steps_of_recall():
    expected = (1 / 3) * 1 + (1 / 3) * (2 / 4) + (1 / 3) * (3 / 5)
    assert average_precision(operating_points(LABELS, SCORES))[0] == pytest.approx(expected)


def test_youden_is_the_best_sum_of_both_rates():
    assert youden(operating_points(LABELS, SCORES))[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("specificity", "sensitivity"), [(1.0, 1 / 3), (0.5, 1 / 3), (1 / 3, 1.0), (0.0, 1.0)]
)
def test_sensitivity_at_a_specificity_is_of_a_threshold_that_keeps_it(specificity, sensitivity):
    found = sensitivity_at_specificity(operating_points(LABELS, SCORES), specificity)
    assert found == pytest.approx([sensitivity])


@pytest.mark.parametrize(
    ("sensitivity", "specificity"), [(0.3, 1.0), (1 / 3, 1.0), (0.5, 1 / 3), (1.0, 1 / 3)]
)
def test_specificity_at_a_sensitivity_is_of_a_threshold_that_reaches_it(sensitivity, specificity):
    found = specificity_at_sensitivity(operating_points(LABELS, SCORES), sensitivity)
    assert found == pytest.approx([specificity])


def test_sensitivity_at_a_specificity_is_unknown_without_negatives():
    points = operating_points(LABELS, SCORES, LABELS[np.newaxis].astype(float))
    assert np.isnan(sensitivity_at_specificity(points, 0.9))


def test_a_rate_without_rows_is_unknown():
    assert np.isnan(weighted_rate(LABELS == 1, LABELS == 2, ones(6)))


def test_a_mean_leaves_out_what_does_not_apply():
    assert weighted_mean(np.array([1.0, np.nan, 4.0]), np.array([[1.0, 5.0, 2.0]])) == pytest.approx([3.0])


def test_predictive_values_follow_bayes():
    ppv, npv = predictive_values(np.array([0.9]), np.array([0.8]), prevalence=0.1)
    assert ppv == pytest.approx([0.09 / (0.09 + 0.18)])
    assert npv == pytest.approx([0.72 / (0.72 + 0.01)])


def test_predictive_values_at_the_sample_prevalence_are_those_of_the_sample():
    figures = binary_metrics(LABELS, SCORES, threshold=0.35)
    rates = (np.array([figures[name]]) for name in ("sensitivity", "specificity"))
    ppv, npv = predictive_values(*rates, prevalence=0.5)
    assert [ppv[0], npv[0]] == pytest.approx([figures["ppv"], figures["npv"]])


def test_a_positive_predictive_value_of_no_positive_call_is_unknown():
    assert np.isnan(predictive_values(np.array([0.0]), np.array([1.0]), prevalence=0.1)[0])


def test_wilson_interval_solves_the_score_equation():
    found = wilson(8, 10)
    for share in (found.low, found.high):
        assert abs(0.8 - share) / math.sqrt(share * (1 - share) / 10) == pytest.approx(1.959964, abs=1e-6)


def test_wilson_interval_of_none_found_is_not_empty():
    found = wilson(0, 20)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1.959964**2 / (20 + 1.959964**2))


def test_reliability_bins_hold_all_rows_once_in_rising_order():
    labels, probabilities = _sample(105)
    bins = reliability_bins(labels, probabilities)
    assert [b.count for b in bins] == [11] * 5 + [10] * 5
    assert all(a.high < b.low for a, b in pairwise(bins))


def test_reliability_bins_do_not_part_equal_probabilities():
    bins = reliability_bins(np.repeat([1, 0], 50), np.full(100, 0.5))
    assert [(b.count, b.predicted, b.observed.value) for b in bins] == [(100, 0.5, 0.5)]


def test_reliability_gaps_add_up_to_the_calibration_error():
    labels, probabilities = _sample(103)
    bins = reliability_bins(labels, probabilities)
    gap = sum(b.count * abs(b.predicted - b.observed.value) for b in bins) / 103
    assert gap == pytest.approx(calibration_error(labels, probabilities))


def test_risk_falls_as_the_unsure_are_left_out():
    correct = np.array([True, False, True, False])
    coverage, risk = risk_coverage(correct, np.array([0.9, 0.6, 0.9, 0.3]))
    assert coverage.tolist() == [0.5, 0.75, 1.0]
    assert risk == pytest.approx([0.0, 1 / 3, 0.5])
