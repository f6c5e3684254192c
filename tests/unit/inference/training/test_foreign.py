import cv2
import numpy as np
import pytest

from rayhook.inference.preprocess import BrainSlice, Film, Patch
from rayhook.inference.training.foreign import COUNT, foreign_planes, synthetic_planes

KINDS = [BrainSlice(input_size=32), Film(input_size=32), Patch(input_size=32, spacing_mm=0.7)]


@pytest.fixture(scope="module")
def planes():
    return np.random.default_rng(0).random((5, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("preprocessing", KINDS, ids=lambda kind: type(kind).__name__)
def test_they_go_through_the_model_s_own_preprocessing(preprocessing, planes):
    for made in synthetic_planes(preprocessing, planes).values():
        assert (made.shape[1:], made.dtype) == ((32, 32), np.float32)


def test_turned_images_are_foreign_to_a_model_of_whole_images(planes):
    assert "upside down" in synthetic_planes(KINDS[0], planes)


def test_turned_points_are_not_foreign(planes):
    assert "upside down" not in synthetic_planes(KINDS[2], planes)


def test_upside_down_is(planes):
    made = synthetic_planes(Film(input_size=32, low_percentile=0, high_percentile=100), planes)["upside down"]
    stretched = (planes[0] - planes[0].min()) / np.ptp(planes[0])
    np.testing.assert_allclose(made[0], stretched[::-1], atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images of one grey level each, 0 to 9 in the order of their names, and masks of none of them."""
    path = tmp_path_factory.mktemp("other")
    (path / "masks").mkdir()
    for number in range(10):
        image = np.full((40, 40), number * 20, np.uint8)
        image[:20] = 255
        cv2.imwrite(str(path / f"{number}.png"), image)
        cv2.imwrite(str(path / "masks" / f"{number}.png"), image)
    return path


def test_each_part_of_a_folder_has_its_own_images(folder):
    parts = [foreign_planes(folder, Film(input_size=16), part=part) for part in (0, 1)]
    assert [len(part) for part in parts] == [5, 5]


def test_no_more_than_a_count(tmp_path):
    for number in range(2 * COUNT + 30):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), np.full((8, 8), number % 256, np.uint8))
    assert len(foreign_planes(tmp_path, Film(input_size=8), part=0, parts=1)) == COUNT
