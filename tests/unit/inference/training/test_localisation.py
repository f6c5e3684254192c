import numpy as np
import pytest

from rayhook.inference.training.localisation import centre_hits, chance_hits, heatmap_iou, pointing_game


def _grid(*rows: list[float]) -> np.ndarray:
    return np.array([rows], np.float32)


MASK = _grid([1, 1, 0], [1, 0, 0], [0, 0, 0])


def test_the_maximum_in_the_mask_is_a_hit():
    assert pointing_game(_grid([0.1, 0.9, 0], [0, 0, 0], [0, 0, 0]), MASK) == [1.0]


def test_the_maximum_outside_the_mask_is_a_miss():
    assert pointing_game(_grid([0.8, 0, 0], [0, 0, 0], [0, 0, 0.9]), MASK) == [0.0]


def test_a_constant_map_scores_as_chance_does():
    assert pointing_game(np.ones((1, 3, 3), np.float32), MASK) == pytest.approx(chance_hits(MASK))


@pytest.mark.parametrize("figure", [pointing_game, heatmap_iou])
def test_without_a_mask_nothing_is_scored(figure):
    assert np.isnan(figure(np.ones((1, 3, 3), np.float32), np.zeros((1, 3, 3), np.float32)))


def test_overlap_is_of_what_reaches_half_the_maximum():
    heat = _grid([1.0, 0.5, 0.6], [0.49, 0, 0], [0, 0, 0])
    assert heatmap_iou(heat, MASK) == pytest.approx([2 / 4])


def test_overlap_does_not_depend_on_the_scale_of_the_map():
    heat = _grid([1.0, 0.5, 0.6], [0.49, 0, 0], [0, 0, 0])
    assert heatmap_iou(heat * np.float32(0.01), MASK) == heatmap_iou(heat, MASK)


def test_a_cold_map_has_no_overlap():
    assert heatmap_iou(np.zeros((1, 3, 3), np.float32), MASK) == [0.0]


def test_centre_of_the_image():
    assert centre_hits(np.concatenate([MASK, MASK * 0 + 1, MASK * 0])) == pytest.approx(
        [0, 1, np.nan], nan_ok=True
    )


def test_maps_and_masks_of_different_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        heatmap_iou(np.zeros((1, 4, 4), np.float32), MASK)
