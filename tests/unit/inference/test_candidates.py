from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayhook.inference.candidates import MAX_CANDIDATES, field_centres, find_candidates, pick
from rayhook.inference.engine import EngineOutput
from rayhook.inference.lungs import segment_lungs
from rayhook.inference.patch import Patch
from rayhook.inference.registry import ModelPackage, Role
from tests.unit.inference.samples import manifest
from tests.unit.inference.test_lungs import SPACING, chest

RECIPE = Patch(input_size=96, spacing_mm=0.7)


class BrightEngine:
    """Scores each cell by how much of it is denser than soft tissue, as chalk is."""

    ready = True

    def run(self, batch: np.ndarray, timeout_s: float) -> EngineOutput:
        dense = batch[..., 2] * 0.225 + 0.406
        cells = dense.reshape(len(batch), 12, 8, 12, 8).mean(axis=(2, 4))
        cam = (20 * cells - 10.5)[..., np.newaxis].astype(np.float32)
        zeros = np.zeros((len(batch), 1), np.float32)
        return EngineOutput(logits=zeros, features=zeros, early=zeros, cam=cam)

    def close(self) -> None:
        """Nothing is held."""


def finder() -> ModelPackage:
    made = replace(manifest(), role=Role.FINDER, preprocessing=RECIPE, output_stride=8, stages=2)
    return ModelPackage(Path(), made)


def find(hu: np.ndarray) -> tuple:
    return find_candidates(hu, pixel_spacing_mm=SPACING, finder=finder(), engine=BrightEngine())


def test_a_nodule_in_the_lung_is_a_candidate():
    found = find(chest(nodule=(128, 80), hu_of_nodule=600))
    assert min(np.hypot(one.row - 128, one.column - 80) * SPACING[0] for one in found) < 6


def test_a_slice_without_lung_has_no_candidate():
    assert find(chest(lungs=False)) == ()


def test_candidates_lie_inside_the_lungs():
    hu = chest(nodule=(128, 80), hu_of_nodule=600)
    lungs = segment_lungs(hu, SPACING)
    assert all(lungs[one.row, one.column] for one in find(hu))


def test_every_point_of_the_lungs_is_well_inside_a_field():
    """The outermost cells of a field see what surrounds it and are not used."""
    lungs = segment_lungs(chest(), SPACING)
    reach = (RECIPE.input_size / 2 - 8) * RECIPE.spacing_mm / SPACING[0]
    shown = np.zeros_like(lungs)
    for row, column in field_centres(lungs, SPACING, RECIPE):
        box = (
            slice(max(0, int(row - reach)), int(row + reach)),
            slice(max(0, int(column - reach)), int(column + reach)),
        )
        shown[box] = True
    assert shown[lungs].mean() > 0.999


def test_no_more_candidates_than_the_most():
    heat = np.zeros((200, 200), np.float32)
    heat[10::40, 10::40] = 0.9
    assert len(pick(heat, (1.0, 1.0), threshold=0.5)) == MAX_CANDIDATES


def test_the_strongest_comes_first():
    heat = np.zeros((100, 100), np.float32)
    heat[20, 20], heat[70, 70] = 0.6, 0.8
    assert [one.row for one in pick(heat, (1.0, 1.0), threshold=0.5)] == [70, 20]


def test_a_second_peak_close_by_is_the_same_candidate():
    heat = np.zeros((100, 100), np.float32)
    heat[50, 50], heat[50, 56] = 0.8, 0.7
    assert len(pick(heat, (1.0, 1.0), threshold=0.5)) == 1


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 1), (0.9, 0)])
def test_only_what_reaches_the_threshold_is_a_candidate(threshold, count):
    heat = np.zeros((50, 50), np.float32)
    heat[25, 25] = 0.7
    assert len(pick(heat, (1.0, 1.0), threshold=threshold)) == count


def test_a_large_nodule_is_one_candidate():
    heat = np.zeros((100, 100), np.float32)
    heat[40:60, 30:60] = 0.8
    heat[50, 50] = 0.9
    assert len(pick(heat, (1.0, 1.0), threshold=0.5)) == 1


def test_a_weak_bridge_does_not_join_two():
    heat = np.zeros((100, 100), np.float32)
    heat[50, 30:71] = 0.3
    heat[50, 30], heat[50, 50] = 0.9, 0.8
    assert len(pick(heat, (1.0, 1.0), threshold=0.5)) == 2
