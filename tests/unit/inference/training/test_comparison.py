import math

import numpy as np
import pytest

from rayhook.inference.training.comparison import (
    auc_difference,
    delong_test,
    obuchowski_test,
    subset_difference,
)
from rayhook.inference.training.metrics import auc


def _sample(rows: int = 80, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    signal = labels + random.normal(size=rows)
    return labels, np.round(signal, 1), np.round(signal + random.normal(size=rows), 1)


def _by_pairs(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the variance of the difference by DeLong's definition, pair by pair."""
    parts = []
    for scores in (first, second):
        up, down = scores[labels == 1], scores[labels == 0]
        wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
        parts.append((wins.mean(axis=1), wins.mean(axis=0)))
    s10, s01 = (np.cov(np.stack([parts[0][k], parts[1][k]])) for k in (0, 1))
    covariance = s10 / (labels == 1).sum() + s01 / (labels == 0).sum()
    return float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def test_delong_variance_is_that_of_all_pairs():
    labels, first, second = _sample()
    assert delong_test(labels, first, second).variance == pytest.approx(_by_pairs(labels, first, second))


def test_delong_by_hand():
    # positives 3, 1 against negatives 2, 0: 1 of 1 and half above; second orders all pairs rightly.
    found = delong_test(
        np.array([1, 1, 0, 0]), np.array([3.0, 1.0, 2.0, 0.0]), np.array([3.0, 2.0, 1.0, 0.0])
    )
    # V10 = (1, 1/2), V01 = (1/2, 1): variances 1/8 each, over 2 rows each.
    assert found.variance == pytest.approx(1 / 8 / 2 + 1 / 8 / 2)
    assert found.z == pytest.approx(-0.25 / math.sqrt(1 / 8))


def test_two_sided_p_is_of_the_normal_distribution():
    found = delong_test(*_sample())
    assert found.p == pytest.approx(2 * (1 - 0.5 * (1 + math.erf(abs(found.z) / math.sqrt(2)))))


def test_areas_are_those_of_the_scores():
    labels, first, second = _sample()
    found = delong_test(labels, first, second)
    assert (found.first, found.second) == pytest.approx((auc(labels, first), auc(labels, second)))


def test_equal_scores_do_not_differ():
    labels, first, _ = _sample()
    assert (delong_test(labels, first, first).z, delong_test(labels, first, first).p) == (0.0, 1.0)


def test_one_positive_cannot_be_tested():
    assert math.isnan(delong_test(np.array([1, 0, 0]), np.arange(3.0), np.arange(3.0)).p)


def test_positives_of_one_patient_cannot_be_tested():
    labels, first, second = _sample(6, seed=1)
    clusters = np.where(labels == 1, "a", np.arange(6).astype(str))
    assert math.isnan(obuchowski_test(labels, first, second, clusters).p)


def test_repeated_rows_of_a_patient_add_no_certainty():
    labels, first, second = _sample()
    once = delong_test(labels, first, second)
    patients = np.repeat(np.arange(80), 5).astype(str)
    often = obuchowski_test(*(np.repeat(rows, 5) for rows in (labels, first, second)), patients)
    assert often.variance == pytest.approx(once.variance)


def test_clustered_variance_by_definition():
    labels, first, second = _sample()
    patients = np.random.default_rng(2).integers(0, 25, 80)
    shares = []
    for scores in (first, second):
        up, down = scores[labels == 1], scores[labels == 0]
        wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
        shares.append((wins.mean(axis=1) - wins.mean(), wins.mean(axis=0) - wins.mean()))
    x = np.array([[v[0][patients[labels == 1] == k].sum() for k in range(25)] for v in shares])
    y = np.array([[v[1][patients[labels == 0] == k].sum() for k in range(25)] for v in shares])
    m, n = (labels == 1).sum(), (labels == 0).sum()
    i10, i01 = len(set(patients[labels == 1])), len(set(patients[labels == 0]))
    s10, s01 = i10 / ((i10 - 1) * m) * x @ x.T, i01 / ((i01 - 1) * n) * y @ y.T
    s11 = 25 / 24 * x @ y.T
    covariance = s10 / m + s01 / n + (s11 + s11.T) / (m * n)
    expected = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = obuchowski_test(labels, first, second, patients.astype(str))
    assert found.variance == pytest.approx(expected)


def test_bootstrap_of_the_difference_agrees_with_delong():
    labels, first, second = _sample(400, seed=3)
    exact = delong_test(labels, first, second)
    found = auc_difference(labels, first, second, np.arange(400).astype(str))
    assert found.value == pytest.approx(exact.difference)
    assert (found.high - found.low) / (2 * 1.96 * math.sqrt(exact.variance)) == pytest.approx(1, abs=0.08)


def test_level_of_the_test_holds_without_a_difference():
    random = np.random.default_rng(5)
    rejected = 0
    for _ in range(400):
        labels = np.repeat([0, 1], 40)
        first, second = (labels + random.normal(size=80) for _ in range(2))
        rejected += delong_test(labels, first, second).p < 0.05
    assert 0.02 < rejected / 400 < 0.09


def test_difference_between_a_subset_and_the_rest():
    labels, first, _ = _sample()
    subset = np.arange(80) < 30
    found = subset_difference(labels, first, np.arange(80).astype(str), subset=subset, rounds=100)
    assert found.value == pytest.approx(auc(labels[:30], first[:30]) - auc(labels[30:], first[30:]))
