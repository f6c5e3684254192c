import numpy as np
import pytest

from rayhook.inference.training.metrics import (
    auc,
    binary_metrics,
    brier,
    calibration_error,
    cluster_bootstrap,
)

LABELS = np.array([0, 0, 1, 1, 0, 1])
SCORES = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.4])


def test_auc_is_the_share_of_pairs_in_order_with_ties_half():
    pairs = [(p > n) + 0.5 * (p == n) for p in SCORES[LABELS == 1] for n in SCORES[LABELS == 0]]
    assert auc(LABELS, SCORES) == pytest.approx(np.mean(pairs))


def test_auc_of_one_class_is_unknown():
    assert np.isnan(auc(np.ones(3, int), SCORES[:3]))


def test_rates_at_a_threshold():
    figures = binary_metrics(LABELS, SCORES, threshold=0.4)
    rates = [figures[name] for name in ("sensitivity", "specificity", "ppv", "npv")]
    assert rates == pytest.approx([2 / 3, 1 / 3, 1 / 2, 1 / 2])


def test_brier_score():
    assert brier(LABELS, SCORES) == pytest.approx(np.mean((SCORES - LABELS) ** 2))


def test_calibrated_probabilities_have_a_small_calibration_error():
    random = np.random.default_rng(0)
    probabilities = random.random(20000)
    labels = (random.random(20000) < probabilities).astype(np.int64)
    assert calibration_error(labels, probabilities) < 0.02
    assert calibration_error(labels, probabilities**3) > 0.1


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
