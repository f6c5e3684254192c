"""What the images of a study come to, for a model that rates points."""

from dataclasses import replace

import numpy as np
import pytest

from rayhook.inference.aggregate import MEAN_OF_CENTRAL
from rayhook.inference.candidates import Candidate
from rayhook.inference.predict import AbstainReason, Prediction, calibrate
from rayhook.inference.preprocess import prepare
from rayhook.inference.reading import Reading
from rayhook.inference.registry import Calibration
from rayhook.inference.series import Slice
from rayhook.inference.study import AnalysisStatus
from rayhook.inference.verdict import conclude
from tests.unit.inference.samples import MODEL, STUDY_UID, attributes, instance, manifest

PIXELS = np.tile(np.linspace(0, 255, 64, dtype=np.float32), (64, 1))
RATER = replace(manifest(), finder="finder")
IDENTITY = replace(MODEL, finder=replace(MODEL, id="finder"))
GEOMETRY = prepare(PIXELS, pixel_spacing_mm=(1.0, 1.0), recipe=RATER.preprocessing).geometry


def point(logit, *, score=0.9, row=30, answered=True):
    prediction = Prediction(
        label="tumour",
        logit=logit,
        probability=calibrate(logit, Calibration(1.0, 0.0)),
        threshold=0.4,
        positive=answered and logit > 0,
        abstained=not answered,
        reason=None if answered else AbstainReason.OUT_OF_DISTRIBUTION,
        distance=0.0,
        cam=np.full((4, 4), logit, np.float32),
    )
    return Reading(GEOMETRY, (prediction,), Candidate(row, 30, score))


def verdict(*points_by_slice):
    """The study of slices with these points, as the analysis hands them over in reverse order."""
    slices = [
        Slice(attributes(n), PIXELS.astype(np.uint8), RATER, tuple(points))
        for n, points in enumerate(points_by_slice, start=1)
    ][::-1]
    results = [
        instance(
            int(one.attributes.sop_instance_uid.rsplit(".", 1)[1]),
            AnalysisStatus.ANALYSED if one.is_answered else AnalysisStatus.ABSTAINED,
            findings=one.findings,
            marks=one.marks,
            model=IDENTITY,
            reason=None if one.is_answered else "the model gave no answer: out_of_distribution",
        )
        for one in slices
    ]
    return conclude(results, slices, study_instance_uid=STUDY_UID, elapsed_ms=1.0)


def test_a_nodule_is_rated_by_the_mean_of_its_slices():
    result = verdict([point(1.0)], [point(3.0)])
    assert result.findings[0].probability == pytest.approx(calibrate(2.0, Calibration(1.0, 0.0)))


def test_the_aggregation_of_points_is_named():
    assert verdict([point(1.0)]).aggregation == MEAN_OF_CENTRAL


def test_the_result_names_the_model_with_its_finder():
    assert verdict([point(1.0)]).model == IDENTITY


def test_the_slices_are_told_in_anatomical_order():
    result = verdict([], [point(1.0)], [])
    assert result.slice_uids == tuple(attributes(n).sop_instance_uid for n in (1, 2, 3))


def test_each_slice_has_its_probability():
    result = verdict([], [point(0.0)], [])
    assert result.slice_probabilities == (0.0, 0.5, 0.0)


def test_the_image_shown_is_where_the_finder_is_surest():
    result = verdict([point(1.0, score=0.5)], [point(1.0, score=0.9)])
    assert result.key_image.sop_instance_uid == attributes(2).sop_instance_uid


def test_no_point_in_any_slice_is_nothing_to_rate():
    assert verdict([], [], []).found_nothing_to_rate


def test_a_study_with_nothing_to_rate_says_why():
    assert verdict([], []).reason == "no point of these images was like what the model rates"


def test_points_that_could_not_be_rated_are_not_nothing_to_rate():
    result = verdict([], [point(1.0, answered=False)], *[[]] * 20)
    assert (result.status, result.reason) == (
        AnalysisStatus.ABSTAINED,
        "the model gave no answer: out_of_distribution (1 of 22 images)",
    )


def test_a_point_that_was_rated_answers_beside_one_that_was_not():
    result = verdict([point(1.0), point(1.0, row=5, answered=False)])
    assert (result.status, len(result.findings)) == (AnalysisStatus.ANALYSED, 1)
