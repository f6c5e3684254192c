import cv2
import numpy as np
import pytest

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.preprocess import BrainSlice, normalise, prepare, to_plane

RECIPE = BrainSlice(input_size=64)


def _head(rows: int = 200, columns: int = 200, *, height: float = 0.35, width: float = 0.25) -> np.ndarray:
    y, x = np.mgrid[0:rows, 0:columns]
    inside = ((y - rows / 2) / (height * rows)) ** 2 + ((x - columns / 2) / (width * columns)) ** 2 < 1
    texture = 60 + 20 * np.sin(y / 9) * np.cos(x / 7)
    return np.where(inside, texture, 2.0).astype(np.float32)


@pytest.mark.parametrize(("slope", "intercept"), [(16.0, 0.0), (257.0, -1024.0), (1 / 255, 0.0)])
def test_linear_scale_of_stored_values_does_not_matter(slope, intercept):
    pixels = _head()
    expected = prepare(pixels, pixel_spacing_mm=None, recipe=RECIPE).image
    scaled = (pixels * slope + intercept).astype(np.float32)
    np.testing.assert_allclose(
        prepare(scaled, pixel_spacing_mm=None, recipe=RECIPE).image, expected, atol=1e-3
    )


def test_input_has_the_recipes_size_and_three_equal_grey_channels():
    image = prepare(_head(), pixel_spacing_mm=(0.9, 0.9), recipe=RECIPE).image
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.float32
    grey = image * RECIPE.std + RECIPE.mean
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-5)


def test_reference_percentile_becomes_reference_level():
    plane, _ = to_plane(_head(), pixel_spacing_mm=None, recipe=RECIPE)
    inside = plane[plane > 0.1]
    assert np.median(inside) == pytest.approx(RECIPE.reference_level, abs=0.03)


def test_anisotropic_spacing_keeps_the_shape_in_millimetres():
    square = _head(200, 200, height=0.3, width=0.3)
    squeezed = cv2.resize(square, (200, 100), interpolation=cv2.INTER_AREA)
    expected, _ = to_plane(square, pixel_spacing_mm=(1.0, 1.0), recipe=RECIPE)
    plane, _ = to_plane(squeezed, pixel_spacing_mm=(2.0, 1.0), recipe=RECIPE)
    assert np.abs(plane - expected).mean() < 0.02


def test_small_head_is_not_blown_up_beyond_the_smallest_side():
    _, geometry = to_plane(_head(height=0.1, width=0.1), pixel_spacing_mm=None, recipe=RECIPE)
    top, bottom, left, right = geometry.crop
    assert bottom - top == right - left
    assert 100 <= bottom - top <= 101


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_are_refused(value):
    pixels = _head()
    pixels[3, 4] = value
    with pytest.raises(ImageRefused) as caught:
        prepare(pixels, pixel_spacing_mm=None, recipe=RECIPE)
    assert caught.value.code == "non_finite_pixels"


@pytest.mark.parametrize("shape", [(4,), (2, 8, 8), (0, 8)])
def test_anything_but_one_plane_is_refused(shape):
    with pytest.raises(ImageRefused):
        prepare(np.zeros(shape, np.float32), pixel_spacing_mm=None, recipe=RECIPE)


@pytest.mark.parametrize("value", [0.0, -1000.0, 4095.0])
def test_constant_image_gives_an_empty_plane(value):
    plane, _ = to_plane(np.full((40, 50), value, np.float32), pixel_spacing_mm=None, recipe=RECIPE)
    assert not plane.any()


def test_one_pixel_is_an_image():
    assert prepare(np.ones((1, 1), np.float32), pixel_spacing_mm=None, recipe=RECIPE).image.shape == (
        64,
        64,
        3,
    )


def test_geometry_takes_a_point_to_the_input_and_back():
    pixels = _head(300, 180)
    prepared = prepare(pixels, pixel_spacing_mm=(0.5, 0.8), recipe=RECIPE)
    spot = np.zeros_like(pixels)
    spot[148:156, 88:94] = 1.0
    back = prepared.geometry.to_original(prepared.geometry.to_input(spot))
    assert back.shape == pixels.shape
    row, column = np.unravel_index(back.argmax(), back.shape)
    assert abs(row - 152) <= 4
    assert abs(column - 91) <= 4


def test_training_normalisation_is_the_serving_one():
    plane, _ = to_plane(_head(), pixel_spacing_mm=None, recipe=RECIPE)
    batch = normalise(np.stack([plane, plane]), recipe=RECIPE)
    np.testing.assert_array_equal(batch[1], prepare(_head(), pixel_spacing_mm=None, recipe=RECIPE).image)
