import time

import numpy as np
import pytest

from rayhook.inference.training.bootstrap import (
    Answers,
    Questions,
    by_unit,
    estimates,
    resample,
    roc_band,
    weighted_bootstrap,
)
from rayhook.inference.training.metrics import auc, binary_metrics, brier, cluster_bootstrap

FIGURES = ("auc", "sensitivity", "specificity", "ppv", "npv", "brier", "ece")


def _answers(rows: int, patients: int, *, seed: int = 0) -> Answers:
    random = np.random.default_rng(seed)
    probabilities = random.random(rows)
    return Answers(
        labels=(random.random(rows) < probabilities).astype(np.int64),
        probabilities=probabilities,
        patients=random.integers(0, patients, rows).astype(np.str_),
        answered=np.abs(probabilities - 0.5) > 0.1,
        threshold=0.5,
    )


@pytest.fixture(scope="module")
def answers():
    return _answers(150, 20)


@pytest.fixture(scope="module")
def found(answers):
    return estimates(answers, Questions(prevalences=(0.1,), specificities=(0.9,)), rounds=200)


@pytest.mark.parametrize("name", FIGURES)
def test_intervals_are_those_of_resampling_rows_one_round_at_a_time(answers, found, name):
    slow = cluster_bootstrap(
        answers.patients,
        lambda i: binary_metrics(answers.labels[i], answers.probabilities[i], threshold=0.5),
        rounds=200,
    )[name]
    fast = found[name]
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_rounds_do_not_depend_on_how_they_are_chunked(answers):
    values = answers.probabilities
    long, short = (
        resample(answers.patients, lambda w: {"sum": w @ values}, rounds=rounds)["sum"]
        for rounds in (230, 130)
    )
    assert long[:130] == pytest.approx(short)


def test_whole_patients_are_drawn():
    patients = np.array(["a", "b", "a", "c"])
    weights = resample(patients, lambda w: {"weights": w}, rounds=50)["weights"]
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    assert set((weights[:, 0] + weights[:, 1] + weights[:, 3]).tolist()) == {3.0}


def test_a_round_in_which_a_figure_is_undefined_is_left_out():
    labels, scores = np.array([0, 1]), np.array([0.2, 0.7])
    found = estimates(Answers(labels, scores, np.array(["a", "b"]), np.ones(2, np.bool_), 0.5), rounds=50)
    assert (found["auc"].low, found["auc"].high) == (1.0, 1.0)


def test_predictive_values_carry_the_interval_of_both_rates(found):
    sensitivity, specificity = found["sensitivity"].value, found["specificity"].value
    ppv = found["ppv_at_prevalence_0.1"]
    assert ppv.value == pytest.approx(0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity)))
    assert ppv.low < ppv.value < ppv.high


def test_accuracy_of_the_answered_leaves_out_the_declined(answers, found):
    right = (answers.probabilities >= 0.5) == (answers.labels == 1)
    assert found["accuracy_answered"].value == pytest.approx(right[answers.answered].mean())


def test_abstention_is_the_share_declined(answers, found):
    assert found["abstention"].value == pytest.approx(1 - answers.answered.mean())


def test_further_values_are_averaged_where_they_apply(answers):
    hits = np.where(answers.labels == 1, 0.25, np.nan)
    assert estimates(answers, more={"pointing": hits}, rounds=20)["pointing"].value == pytest.approx(0.25)


def test_answers_of_some_rows(answers):
    part = answers.chosen(answers.labels == 1)
    assert part.labels.all()
    assert part.threshold == answers.threshold


def test_interval_of_a_mean_matches_its_standard_error():
    values = np.random.default_rng(3).normal(size=400)
    found = weighted_bootstrap(
        np.arange(400).astype(str), lambda w: {"mean": w @ values / w.sum(axis=1)}, rounds=2000
    )["mean"]
    error = values.std() / np.sqrt(400)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.06)


def test_two_thousand_rounds_of_three_thousand_rows_take_seconds():
    answers = _answers(3000, 600)
    begun = time.process_time()
    estimates(answers, rounds=2000)
    assert time.process_time() - begun < 15


def test_roc_band_holds_the_curve(answers):
    band = roc_band(answers.labels, answers.probabilities, answers.patients, rounds=200)
    middle = np.trapezoid((band.low + band.high) / 2, band.false_positive_rate)
    assert middle == pytest.approx(auc(answers.labels, answers.probabilities), abs=0.03)


def test_roc_band_of_one_class_is_unknown():
    band = roc_band(np.ones(3, np.int64), np.arange(3.0), np.array(["a", "b", "c"]), rounds=10)
    assert np.isnan(band.low).all()


def test_brier_is_the_sample_figure(answers, found):
    assert found["brier"].value == pytest.approx(brier(answers.labels, answers.probabilities))


def _of_units(answered: list[bool]) -> Answers:
    rows = Answers(
        labels=np.array([0, 1, 0, 0]),
        probabilities=np.array([0.2, 0.6, 0.4, 0.1]),
        patients=np.array(["p", "p", "q", "q"]),
        answered=np.array(answered),
        threshold=0.5,
    )
    return by_unit(rows, np.array(["n1", "n1", "n2", "n2"]), lambda values: float(values.mean()))


def test_unit_is_the_aggregate_of_its_rows():
    found = _of_units([True] * 4)
    assert found.probabilities == pytest.approx([0.4, 0.25])
    assert found.labels.tolist() == [1, 0]
    assert found.patients.tolist() == ["p", "q"]


def test_declined_rows_do_not_count_for_their_unit():
    assert _of_units([True, False, True, True]).probabilities == pytest.approx([0.2, 0.25])


def test_unit_without_answered_rows_is_not_answered():
    assert _of_units([False, False, True, True]).answered.tolist() == [False, True]
