import numpy as np
import pytest

from rayhook.inference.film import Film
from rayhook.inference.preprocess import to_plane

RECIPE = Film(input_size=64)


def _film(rows: int = 200, columns: int = 160) -> np.ndarray:
    return np.random.default_rng(0).uniform(100, 4000, (rows, columns)).astype(np.float32)


def test_a_film_becomes_a_square_plane_of_0_to_1():
    plane, _ = to_plane(_film(), pixel_spacing_mm=None, recipe=RECIPE)
    assert (plane.shape, plane.min() >= 0, plane.max() <= 1) == ((64, 64), True, True)


def test_any_affine_scale_of_the_values_gives_the_same_plane():
    first, _ = to_plane(_film(), pixel_spacing_mm=None, recipe=RECIPE)
    second, _ = to_plane(_film() * 3 - 50, pixel_spacing_mm=None, recipe=RECIPE)
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize(("shape", "placed"), [((200, 100), (0, 64, 16, 48)), ((100, 200), (16, 48, 0, 64))])
def test_the_shorter_side_is_padded_on_both_ends(shape, placed):
    _, geometry = to_plane(_film(*shape), pixel_spacing_mm=None, recipe=RECIPE)
    assert geometry.placed == placed


def test_pixels_that_are_not_square_keep_the_film_s_shape():
    _, geometry = to_plane(_film(100, 200), pixel_spacing_mm=(0.4, 0.2), recipe=RECIPE)
    assert geometry.placed == (0, 64, 0, 64)


def test_a_constant_film_is_dark():
    plane, _ = to_plane(np.full((50, 50), 7.0, np.float32), pixel_spacing_mm=None, recipe=RECIPE)
    assert not plane.any()
