from dataclasses import dataclass, replace

import numpy as np
import pytest

from rayhook.inference.candidates import Candidate
from rayhook.inference.geometry import Geometry
from rayhook.inference.nodule import SLICES_RATED, chains, rate
from rayhook.inference.predict import AbstainReason, Prediction, calibrate
from rayhook.inference.reading import Reading
from rayhook.inference.study import InstanceAttributes
from tests.unit.inference.samples import attributes, manifest

LABELS = manifest().labels


@dataclass(frozen=True)
class Read:
    attributes: InstanceAttributes
    readings: tuple[Reading, ...]


def point(
    row: int, column: int, *, logit: float = 0.0, score: float = 0.5, abstained: bool = False
) -> Reading:
    geometry = Geometry(rows=100, columns=100, input_size=8, crop=(0, 8, 0, 8), placed=(0, 8, 0, 8))
    probability = calibrate(logit, LABELS[0].calibration)
    prediction = Prediction(
        label="tumour",
        logit=logit,
        probability=probability,
        threshold=0.4,
        positive=probability >= 0.4,
        abstained=abstained,
        reason=AbstainReason.OUT_OF_DISTRIBUTION if abstained else None,
        distance=0.0,
        cam=np.zeros((1, 1), np.float32),
    )
    return Reading(geometry, (prediction,), Candidate(row, column, score))


def series(*slices: tuple[Reading, ...], apart_mm: float = 5.0) -> list[Read]:
    own = replace(attributes(), pixel_spacing_mm=(1.0, 1.0))
    return [
        Read(replace(own, slice_location_mm=index * apart_mm), readings)
        for index, readings in enumerate(slices)
    ]


def test_points_that_follow_each_other_are_one_nodule():
    assert len(chains(series((point(50, 50),), (point(52, 51),), (point(53, 50),)))) == 1


def test_points_far_apart_are_two_nodules():
    assert len(chains(series((point(50, 50), point(20, 80)), (point(51, 50),)))) == 2


def test_one_slice_without_the_point_does_not_break_a_nodule():
    assert len(chains(series((point(50, 50),), (), (point(50, 50),)))) == 1


def test_two_slices_without_it_do():
    assert len(chains(series((point(50, 50),), (), (), (point(50, 50),)))) == 2


def test_a_point_joins_the_nearest_nodule():
    joined = chains(series((point(50, 50), point(50, 62)), (point(50, 57),)))
    assert [len(one.links) for one in joined] == [1, 2]


def test_points_without_an_answer_belong_to_no_nodule():
    assert chains(series((point(50, 50, abstained=True),))) == ()


def test_a_nodule_is_rated_by_its_mean_logit():
    (chain,) = chains(series((point(50, 50, logit=1.0),), (point(50, 50, logit=3.0),)))
    assert rate(chain, LABELS).probabilities[0] == pytest.approx(calibrate(2.0, LABELS[0].calibration))


def test_only_the_slices_that_show_it_best_are_rated():
    weak = [(point(50, 50, logit=-5.0, score=0.1),)] * 3
    strong = [(point(50, 50, logit=2.0, score=0.9),)] * SLICES_RATED
    (chain,) = chains(series(*weak, *strong))
    assert rate(chain, LABELS).probabilities[0] == pytest.approx(calibrate(2.0, LABELS[0].calibration))


def test_the_slice_with_the_highest_score_is_shown():
    (chain,) = chains(series((point(50, 50, score=0.3),), (point(50, 50, score=0.8),)))
    assert rate(chain, LABELS).shown[0] == 1


def test_in_thin_slices_a_point_on_one_of_them_is_no_nodule():
    assert chains(series((), (point(50, 50),), (), apart_mm=1.0)) == ()


def test_in_thin_slices_points_on_two_are_one():
    assert len(chains(series((point(50, 50),), (point(50, 50),), (), apart_mm=1.0))) == 1


def test_a_single_slice_says_of_its_points_what_it_can():
    assert len(chains(series((point(50, 50),), apart_mm=1.0))) == 1
