import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.inference.training.conformal import SelectiveRule, fit_rule

probability = st.floats(0, 1, width=32)
samples = st.lists(st.tuples(probability, st.integers(0, 1)), min_size=2, max_size=40)
grouped = st.lists(st.lists(probability, min_size=1, max_size=5), min_size=2, max_size=20)
level = st.sampled_from([0.05, 0.1, 0.25, 0.5])


def _wrong(rule: SelectiveRule, probabilities: np.ndarray, label: int) -> np.ndarray:
    return probabilities < rule.low if label else probabilities >= rule.high


def test_the_sets_by_hand():
    # 9 of each class, alpha 0.2: positives from the 2nd smallest on, negatives up to the 2nd largest.
    probabilities = np.concatenate([np.arange(1, 10) / 20, np.arange(6, 15) / 20])
    rule = fit_rule(probabilities, np.repeat([0, 1], 9), alpha_positive=0.2, alpha_negative=0.2)
    assert rule.low == pytest.approx(7 / 20)
    assert rule.high == np.nextafter(8 / 20, 1)


def test_an_empty_set_is_not_sure():
    probabilities = np.concatenate([np.full(50, 0.1), np.full(50, 0.9)])
    rule = fit_rule(probabilities, np.repeat([0, 1], 50))
    assert rule.unsure(np.array([0.1, 0.5, 0.9])).tolist() == [False, True, False]


@pytest.mark.parametrize("label", [0, 1])
@given(values=st.lists(probability, min_size=2, max_size=40), alpha=level)
def test_left_out_rows_are_answered_wrongly_no_more_than_stated(label, values, alpha):
    """Of exchangeable rows each is as likely the new one, so the share over all of them is the probability."""
    rows = np.array(values)
    wrong = []
    for i in range(rows.size):
        rule = fit_rule(
            np.delete(rows, i), np.full(rows.size - 1, label), alpha_positive=alpha, alpha_negative=alpha
        )
        wrong.append(_wrong(rule, rows[i : i + 1], label)[0])
    assert np.mean(wrong) <= alpha + 1e-9


@pytest.mark.parametrize("label", [0, 1])
@given(patients=grouped, alpha=level)
def test_rows_of_a_left_out_patient_are_answered_wrongly_no_more_than_stated(label, patients, alpha):
    names = np.repeat(np.arange(len(patients)), [len(rows) for rows in patients]).astype(str)
    rows = np.concatenate([np.array(p) for p in patients])
    shares = []
    for name in np.unique(names):
        kept = names != name
        rule = fit_rule(
            rows[kept],
            np.full(kept.sum(), label),
            names[kept],
            alpha_positive=alpha,
            alpha_negative=alpha,
        )
        shares.append(_wrong(rule, rows[~kept], label).mean())
    assert np.mean(shares) <= alpha + 1e-9


@given(rows=samples, alpha=level)
def test_answers_follow_the_prediction_set(rows, alpha):
    probabilities, labels = np.array([p for p, _ in rows]), np.array([y for _, y in rows])
    rule = fit_rule(probabilities, labels, alpha_positive=alpha, alpha_negative=alpha)
    fits = []
    for label in (0, 1):
        own = np.sort((1 - 2 * label) * probabilities[labels == label])
        place = int(np.ceil((own.size + 1) * (1 - alpha) - 1e-9)) - 1
        limit = own[place] if place < own.size else np.inf
        fits.append((1 - 2 * label) * probabilities <= limit)
    np.testing.assert_array_equal(rule.unsure(probabilities), fits[0] == fits[1])


def test_coverage_on_fresh_patients_of_exchangeable_data():
    random = np.random.default_rng(0)

    def drawn(patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        names = np.repeat(np.arange(patients), 10)
        labels = random.integers(0, 2, names.size)
        logits = 2 * labels - 1 + np.repeat(random.normal(size=patients), 10) + random.normal(size=names.size)
        return 1 / (1 + np.exp(-logits)), labels, names.astype(str)

    errors = []
    for _ in range(60):
        rule = fit_rule(*drawn(40), alpha_positive=0.1, alpha_negative=0.1)
        probabilities, labels, _ = drawn(200)
        errors.append([_wrong(rule, probabilities[labels == y], y).mean() for y in (0, 1)])
    assert (np.mean(errors, axis=0) < 0.1).all()
    assert (np.mean(errors, axis=0) > 0.05).all()


def test_with_too_few_patients_nothing_is_answered():
    rule = fit_rule(np.array([0.1, 0.9]), np.array([0, 1]))
    assert rule.unsure(np.array([0.0, 0.5, 1.0])).all()


def test_a_threshold_outside_is_taken_in():
    rule = SelectiveRule(0.3, 0.6, 0.05, 0.05)
    assert (rule.around(0.2).low, rule.around(0.7).high, rule.around(0.5)) == (0.2, 0.7, rule)
