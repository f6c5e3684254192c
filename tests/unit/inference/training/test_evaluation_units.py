from dataclasses import replace

import numpy as np
import pytest

from rayhook.inference.film import Film
from rayhook.inference.patch import Patch
from rayhook.inference.registry import Calibration
from rayhook.inference.training.dataset import Cohort, Sample
from rayhook.inference.training.evaluation_units import Scores, count

SAMPLES = tuple(
    Sample(f"{p}{i}.png", None, int(i >= 2), p, site, i, "val", group=p + "ab"[i > 1])
    for p, site in (("p1", "A"), ("p2", "A"), ("p3", "B"))
    for i in range(5)
)
FLAIR = [0.1, 0.2, 0.9, 0.9, 0.9]


def _cohort(samples=SAMPLES):
    planes = np.zeros((len(samples), 16, 16), np.float32)
    return Cohort(samples, planes, planes)


def _scores(probabilities, declined=()):
    values = np.array(probabilities)
    return Scores(
        probabilities=values,
        logits=np.log(values / (1 - values)),
        abstained=np.isin(np.arange(values.size), declined),
        cams=np.zeros((values.size, 4, 4), np.float32),
    )


@pytest.fixture
def manifest(flair):
    label = replace(flair.manifest.labels[0], threshold=0.5, calibration=Calibration(1.0, 0.0))
    return replace(flair.manifest, labels=(label,))


def _unsure(manifest, low, high):
    return replace(manifest, labels=(replace(manifest.labels[0], unsure=(low, high)),))


def test_slices_come_before_series(manifest):
    assert [u.unit for u in count(manifest, _cohort(), _scores(FLAIR * 3))] == ["slice", "series"]


def test_nodules_come_before_crops(manifest):
    ct = replace(manifest, preprocessing=Patch(32, 1.0))
    assert [u.unit for u in count(ct, _cohort(), _scores(FLAIR * 3))] == ["nodule", "crop"]


def test_films_are_joined_where_patients_have_several(manifest):
    film = replace(manifest, preprocessing=Film(16))
    assert [u.unit for u in count(film, _cohort(), _scores(FLAIR * 3))] == ["film", "patient"]


def test_one_film_a_patient_is_counted_once(manifest):
    film = replace(manifest, preprocessing=Film(16))
    assert [u.unit for u in count(film, _cohort(SAMPLES[::5]), _scores(FLAIR[:3]))] == ["film"]


def test_one_odd_slice_does_not_make_a_series_positive(manifest):
    _, series = count(manifest, _cohort(), _scores([0.1, 0.1, 0.1, 0.9, 0.1, *[0.9] * 10]))
    assert series.answers.positive.tolist() == [False, True, True]


def test_slices_are_joined_in_their_order_in_the_series(manifest):
    shuffled = tuple(replace(s, slice=(4, 0, 2, 1, 3)[s.slice]) for s in SAMPLES)
    _, series = count(manifest, _cohort(shuffled), _scores([0.1, 0.9, 0.1, 0.9, 0.1, *[0.9] * 10]))
    assert series.answers.probabilities[0] == pytest.approx(0.9)


def test_declined_slices_do_not_count_for_their_series(manifest):
    _, series = count(manifest, _cohort(), _scores([0.1, 0.1, *[0.9] * 13], declined=(2, 3, 4)))
    assert series.answers.positive.tolist() == [False, True, True]


def test_a_nodule_is_of_the_mean_logit_of_its_crops(manifest):
    ct = replace(manifest, preprocessing=Patch(32, 1.0))
    nodules, _ = count(ct, _cohort(), _scores([0.2, 0.8, 0.9, 0.9, 0.9, *[0.5] * 10]))
    assert nodules.answers.probabilities[:2] == pytest.approx([0.5, 0.9])


def test_a_patient_is_of_the_highest_film(manifest):
    film = replace(manifest, preprocessing=Film(16))
    _, patients = count(film, _cohort(), _scores(FLAIR * 3))
    assert patients.answers.probabilities == pytest.approx([0.9] * 3)


def test_a_probability_near_the_threshold_is_no_answer(manifest):
    slices, _ = count(_unsure(manifest, 0.15, 0.6), _cohort(), _scores(FLAIR * 3))
    assert slices.unsure.tolist() == [False, True, False, False, False] * 3


def test_what_is_declined_is_not_unsure_as_well(manifest):
    slices, _ = count(_unsure(manifest, 0.15, 0.6), _cohort(), _scores(FLAIR * 3, declined=(1,)))
    assert (slices.declined[1], slices.unsure[1], slices.answers.answered[1]) == (True, False, False)


def test_unsure_slices_count_for_their_series(manifest):
    _, series = count(_unsure(manifest, 0.85, 0.95), _cohort(), _scores(FLAIR * 3))
    assert series.answers.probabilities == pytest.approx([0.9] * 3)


def test_a_unit_is_shown_by_its_largest_lesion(manifest):
    cohort = _cohort()
    cohort.masks[3] = 1.0
    _, series = count(manifest, cohort, _scores(FLAIR * 3))
    assert series.shown[0] == 3


def test_means_over_a_units_rows_leave_out_what_is_unknown(manifest):
    _, series = count(manifest, _cohort(), _scores(FLAIR * 3))
    values = np.full(15, np.nan)
    values[:2] = 1.0, 0.0
    np.testing.assert_array_equal(series.row_means(values), [0.5, np.nan, np.nan])
