import numpy as np
import pytest

from rayhook.inference.training.calibrate import (
    fit_platt,
    out_of_distribution_threshold,
    threshold_at_sensitivity,
)


def test_platt_scaling_is_found_again():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, 20000)
    labels = (random.random(20000) < 1 / (1 + np.exp(-(0.7 * logits - 1.2)))).astype(np.int64)
    calibration = fit_platt(logits, labels)
    assert calibration.a == pytest.approx(0.7, abs=0.05)
    assert calibration.b == pytest.approx(-1.2, abs=0.1)


@pytest.mark.parametrize("stretch", [0.01, 1.0, 100.0])
def test_platt_scaling_undoes_any_stretch_of_the_logits(stretch):
    random = np.random.default_rng(1)
    logits = random.normal(-2, 4, 500)
    labels = (random.random(500) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    plain, stretched = fit_platt(logits, labels), fit_platt(stretch * logits, labels)
    assert stretched.a * stretch == pytest.approx(plain.a, rel=1e-4)
    assert stretched.b == pytest.approx(plain.b, rel=1e-4)
    assert plain.a == pytest.approx(1.0, abs=0.2)


def test_platt_scaling_of_nearly_separable_logits_is_not_a_step():
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1], [300, 140])
    logits = random.normal(np.where(labels == 1, 8.0, -9.0), 5.0)
    calibration = fit_platt(logits, labels)
    assert 0.2 < calibration.a < 2.0


def test_platt_scaling_of_separable_logits_stays_finite():
    calibration = fit_platt(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([calibration.a, calibration.b]).all()


def test_platt_scaling_needs_both_classes():
    with pytest.raises(ValueError, match="with and without"):
        fit_platt(np.array([1.0, 2.0]), np.array([1, 1]))


def test_threshold_is_the_highest_that_reaches_the_sensitivity():
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.95])
    labels = np.array([1, 1, 1, 1, 1, 0])
    threshold = threshold_at_sensitivity(probabilities, labels, sensitivity=0.8)
    assert threshold == 0.6
    assert np.mean(probabilities[labels == 1] >= threshold) >= 0.8


def test_out_of_distribution_threshold_holds_the_share():
    distances = np.random.default_rng(0).random(1000)
    assert np.mean(distances <= out_of_distribution_threshold(distances, share=0.99)) == pytest.approx(0.99)
