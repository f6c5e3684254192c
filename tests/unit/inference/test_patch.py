import csv

import cv2
import numpy as np
import pytest

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.patch import Patch, cut
from rayhook.inference.preprocess import normalise, prepare, to_plane

RECIPE = Patch(input_size=96, spacing_mm=0.5)
SPACING = (0.7, 0.7)


def _slice(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-700, 200, (300, 320)).astype(np.float32)


def test_the_darkest_value_of_a_crop_is_0_and_the_brightest_1():
    crop = cut(_slice(), (150, 150), side=128)
    assert (crop.min(), crop.max()) == (0.0, 1.0)


def test_what_lies_outside_the_slice_is_dark():
    crop = cut(_slice(), (0, 160), side=128)
    assert not crop[:64].any()


def test_any_affine_scale_of_the_values_gives_the_same_plane():
    pixels = _slice()
    first, _ = to_plane(pixels, pixel_spacing_mm=SPACING, recipe=RECIPE)
    second, _ = to_plane(pixels * 2 + 1024, pixel_spacing_mm=SPACING, recipe=RECIPE)
    np.testing.assert_allclose(first, second, atol=1 / 255)


def test_a_finer_spacing_shows_the_same_thing_at_the_same_size():
    """A disc of 20 mm is as many input pixels wide whatever the slice's spacing, within one of its pixels."""
    widths = []
    for spacing in (0.5, 0.9):
        y, x = np.mgrid[0:400, 0:400]
        disc = ((y - 200) ** 2 + (x - 200) ** 2) * spacing**2 < 10**2
        plane, _ = to_plane(disc.astype(np.float32), pixel_spacing_mm=(spacing, spacing), recipe=RECIPE)
        widths.append(np.count_nonzero(plane[48] > 0.5))
    assert widths == [pytest.approx(40, abs=2)] * 2


def test_the_geometry_leads_a_point_of_the_input_back_to_the_slice():
    pixels = np.full((512, 512), -1000, np.float32)
    pixels[200:204, 310:314] = 0
    prepared = prepare(pixels, pixel_spacing_mm=SPACING, recipe=RECIPE, centre=(190, 300))
    back = prepared.geometry.to_original(prepared.image[..., 0] - prepared.image[..., 0].min())
    row, column = np.unravel_index(back.argmax(), back.shape)
    assert (abs(row - 201.5) <= 2, abs(column - 311.5) <= 2) == (True, True)


@pytest.mark.parametrize("centre", [(0, 0), (511, 511), (5, 300)])
def test_a_point_at_the_edge_has_a_geometry_inside_the_slice(centre):
    geometry = prepare(
        np.zeros((512, 512), np.float32), pixel_spacing_mm=SPACING, recipe=RECIPE, centre=centre
    ).geometry
    top, bottom, left, right = geometry.crop
    assert (0 <= top < bottom <= 512, 0 <= left < right <= 512) == (True, True)


def test_without_a_physical_scale_it_is_refused():
    with pytest.raises(ImageRefused) as caught:
        prepare(_slice(), pixel_spacing_mm=None, recipe=RECIPE)
    assert caught.value.code == "no_pixel_spacing"


def test_a_crop_of_the_original_slice_is_the_labelled_crop(lidc_dicom, ct_lidc, decoder):
    """The proof that serving cuts what training saw: the data set's own crop, found in its own DICOM slice."""
    with (ct_lidc / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["patient_id"] == "LIDC-IDRI-0001"]
    labelled = cv2.imread(str(ct_lidc / rows[0]["path"]), cv2.IMREAD_GRAYSCALE)
    data = next(lidc_dicom.rglob("slice_0089.dcm")).read_bytes()
    pixels = decoder.decode(data).pixels[0]
    crop = cut(pixels, (302 + 64, 252 + 64), side=128)
    np.testing.assert_array_equal(np.rint(crop * 255).astype(np.uint8), labelled)


@pytest.mark.parametrize("brightest", [300, 3000])
def test_bone_or_metal_does_not_change_what_lung_and_tissue_look_like(brightest):
    """Two crops alike but for a bright spot at the edge: the same nodule has the same grey level in both."""
    pixels = np.full((400, 400), -850, np.float32)
    pixels[190:210, 190:210] = 40
    pixels[140:150, 140:150] = brightest
    plane, _ = to_plane(pixels, pixel_spacing_mm=(0.6, 0.6), recipe=RECIPE)
    assert plane[48, 48] == pytest.approx(1.25 / 1.75, abs=0.03)


def test_the_channels_show_all_then_lung_then_what_is_denser():
    plane = np.array([[[0.0, 0.286, 1.0]]], np.float32)
    image = normalise(plane, recipe=Patch(input_size=1, spacing_mm=1.0, mean=(0, 0, 0), std=(1, 1, 1)))
    np.testing.assert_allclose(image[0, 0], [[0, 0, 0], [0.286, 0.5, 0], [1, 1, 1]], atol=1e-3)
