import numpy as np
import pytest

from rayhook.inference.candidates import Candidate
from rayhook.inference.training.finder_views import View, judge, lung_like, view

Y, X = np.mgrid[:128, :128]
LESION = (Y - 64) ** 2 + (X - 64) ** 2 < 100
PIXELS = (40 + 120 * LESION + 140 * (Y > 110)).astype(np.uint8)
VIEWS = [view(PIXELS, LESION, 0.7, name=str(k)) for k in range(40)]


def _distance_to_edge(one):
    rows, _ = np.nonzero(one.lesion)
    inside, _ = np.nonzero(one.lungs)
    return rows.mean() - inside.min()


def test_the_edge_does_not_tell_where_the_lesion_is():
    assert np.std([_distance_to_edge(one) for one in VIEWS]) > 8


def test_a_view_holds_the_whole_lesion():
    assert {int(one.lesion.sum()) for one in VIEWS} == {int(LESION.sum())}


def test_a_view_is_the_same_each_time():
    np.testing.assert_array_equal(view(PIXELS, LESION, 0.7, name="3").pixels, VIEWS[3].pixels)


def test_candidates_are_looked_for_at_the_lesion():
    assert all(one.is_reached for one in VIEWS)


def test_candidates_are_not_looked_for_in_mirrored_parts():
    mirrored = [one for one in VIEWS if max(one.pixels.shape) > 128]
    assert mirrored
    assert not any(one.lungs[:60].any() or one.lungs[:, :60].any() for one in mirrored)


def test_solid_tissue_is_no_lung():
    assert not lung_like(PIXELS, 0.7)[-2:].any()


def _judged(*places, radius_mm=2.0):
    mask = np.zeros((64, 64), np.bool_)
    mask[30:33, 30:33] = True
    one = View(np.zeros((64, 64), np.float32), ~mask, mask, spacing_mm=1.0)
    return judge(one, [Candidate(row, column, 0.5) for row, column in places], radius_mm)


@pytest.mark.parametrize(("place", "hits"), [((31, 31), 1), ((31, 35), 1), ((31, 36), 0)])
def test_a_candidate_within_4_mm_of_the_middle_is_a_hit(place, hits):
    assert len(_judged(place).hits) == hits


def test_a_candidate_within_the_radius_is_a_hit():
    assert len(_judged((31, 40), radius_mm=10.0).hits) == 1


def test_other_candidates_are_false():
    assert _judged((5, 5), (31, 31)).false == (0.5,)


def test_without_a_hit_the_best_is_0():
    assert _judged((5, 5)).best == 0.0
