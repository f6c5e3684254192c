import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayhook.inference.registry import Calibration
from rayhook.inference.training.calibrate import fit_platt
from rayhook.inference.training.calibration_fit import (
    IsotonicCalibration,
    calibrated,
    choose_calibration,
    fit_isotonic,
    fit_temperature,
    log_loss,
    patient_folds,
)


def _drawn(
    rows: int, *, scale: float = 1.0, shift: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, rows)
    truth = 1 / (1 + np.exp(-(scale * logits + shift)))
    return logits, (random.random(rows) < truth).astype(np.int64)


def _patients(rows: int, each: int = 1) -> np.ndarray:
    return (np.arange(rows) // each).astype(np.str_)


def test_temperature_is_found_again():
    logits, labels = _drawn(20000, scale=0.4)
    assert fit_temperature(logits, labels).a == pytest.approx(0.4, abs=0.02)


def test_temperature_leaves_even_odds_even():
    assert calibrated(np.zeros(1), fit_temperature(*_drawn(200))) == pytest.approx([0.5])


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_no_other_temperature_fits_better(factor):
    logits, labels = _drawn(500, scale=0.7)
    found = fit_temperature(logits, labels)
    other = Calibration(a=found.a * factor, b=0.0)
    assert log_loss(labels, calibrated(logits, found)) < log_loss(labels, calibrated(logits, other))


def test_separable_logits_do_not_become_certain():
    found = fit_temperature(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert calibrated(np.array([2.0]), found)[0] < 0.9


@pytest.mark.parametrize("fit", [fit_temperature, fit_isotonic])
def test_one_class_cannot_be_calibrated(fit):
    with pytest.raises(ValueError, match="with and without"):
        fit(np.arange(3.0), np.ones(3, np.int64))


def test_violators_are_pooled_by_hand():
    # targets are 1/4 for the two negatives, 3/4 for the two positives; the middle pair is out of order.
    found = fit_isotonic(np.array([0.0, 1.0, 3.0, 4.0]), np.array([0, 1, 0, 1]))
    assert found.logits == pytest.approx((0.0, 2.0, 4.0))
    assert found.probabilities == pytest.approx((0.25, 0.5, 0.75))


def test_equal_logits_are_one_place():
    found = fit_isotonic(np.array([1.0, 1.0, 2.0]), np.array([0, 1, 1]))
    assert found.logits == (1.0, 2.0)


def test_isotonic_is_level_beyond_its_knots():
    found = IsotonicCalibration((0.0, 1.0), (0.2, 0.6))
    assert calibrated(np.array([-9.0, 0.5, 9.0]), found) == pytest.approx([0.2, 0.4, 0.6])


@given(
    logits=arrays(np.float64, st.integers(4, 40), elements=st.floats(-50, 50)),
    seed=st.integers(0, 2**16),
)
def test_isotonic_never_falls_and_is_never_certain(logits, seed):
    labels = np.random.default_rng(seed).integers(0, 2, logits.size)
    labels[:2] = (0, 1)
    probabilities = calibrated(np.sort(logits), fit_isotonic(logits, labels))
    assert (np.diff(probabilities) >= -1e-12).all()
    assert 0 < probabilities.min() <= probabilities.max() < 1


def test_isotonic_keeps_the_share_of_positives():
    logits, labels = _drawn(4000, scale=0.5, shift=-1)
    assert calibrated(logits, fit_isotonic(logits, labels)).mean() == pytest.approx(labels.mean(), abs=0.01)


def test_an_offset_is_left_to_platt():
    logits, labels = _drawn(3000, shift=-2.0)
    chosen = choose_calibration(logits, labels, _patients(3000, 10))
    assert chosen.log_loss["platt"] < chosen.log_loss["temperature"]
    assert chosen.method != "temperature"


def test_a_curve_that_is_no_sigmoid_is_left_to_isotonic():
    random = np.random.default_rng(0)
    logits = random.uniform(-3, 3, 6000)
    labels = (random.random(6000) < np.where(logits > 0, 0.7, 0.3)).astype(np.int64)
    assert choose_calibration(logits, labels, _patients(6000, 10)).method == "isotonic"


@pytest.mark.parametrize(("rows", "each"), [(900, 1), (1200, 30)])
def test_isotonic_is_no_candidate_with_few_rows_or_patients(rows, each):
    logits, labels = _drawn(rows)
    assert "isotonic" not in choose_calibration(logits, labels, _patients(rows, each)).log_loss


def test_the_choice_is_fitted_on_all_rows():
    logits, labels = _drawn(600, shift=-2.0)
    assert choose_calibration(logits, labels, _patients(600)).calibration == fit_platt(logits, labels)


def test_rows_of_a_patient_stay_in_one_fold():
    _, labels = _drawn(300)
    place = patient_folds(labels, _patients(300, 5), folds=4, seed=0).reshape(-1, 5)
    assert (place == place[:, :1]).all()


def test_patients_with_the_finding_are_spread_evenly():
    labels = (np.arange(100) < 20).astype(np.int64)
    place = patient_folds(labels, _patients(100), folds=5, seed=0)
    assert np.bincount(place[labels == 1]).tolist() == [4] * 5


def test_log_loss_by_hand():
    assert log_loss(np.array([1, 0]), np.array([0.5, 0.75])) == pytest.approx((np.log(2) + np.log(4)) / 2)
