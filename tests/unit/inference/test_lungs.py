import numpy as np
import pytest

from rayhook.inference.lungs import segment_lungs

SPACING = (0.8, 0.8)


def chest(
    *, lungs: bool = True, nodule: tuple[int, int] | None = None, hu_of_nodule: float = 30
) -> np.ndarray:
    """Return a made-up slice in Hounsfield units: air, a body, two lungs, a table below it."""
    y, x = np.mgrid[0:256, 0:256]
    hu = np.full((256, 256), -1000, np.float32)
    hu[((y - 128) / 80) ** 2 + ((x - 128) / 110) ** 2 < 1] = 40
    if lungs:
        for middle in (80, 176):
            hu[((y - 128) / 55) ** 2 + ((x - middle) / 35) ** 2 < 1] = -850
    if nodule is not None:
        hu[(y - nodule[0]) ** 2 + (x - nodule[1]) ** 2 < 5**2] = hu_of_nodule
    hu[240:244] = -200
    return hu


def test_both_lungs_are_found():
    mask = segment_lungs(chest(), SPACING)
    assert (mask[128, 80], mask[128, 176]) == (True, True)


@pytest.mark.parametrize("point", [(5, 5), (128, 128), (242, 128)], ids=["air", "mediastinum", "table"])
def test_nothing_else_is_lung(point):
    assert not segment_lungs(chest(), SPACING)[point]


def test_a_nodule_inside_the_lung_belongs_to_it():
    assert segment_lungs(chest(nodule=(128, 80)), SPACING)[128, 80]


def test_a_nodule_on_the_wall_belongs_to_the_lung():
    """It is part of the soft tissue around: closing by 12 mm takes it in."""
    assert segment_lungs(chest(nodule=(128, 48)), SPACING)[128, 50]


@pytest.mark.parametrize(
    "hu",
    [np.full((128, 128), -1000, np.float32), np.full((128, 128), 40, np.float32), chest(lungs=False)],
    ids=["air", "tissue", "abdomen"],
)
def test_a_slice_without_lung_has_none(hu):
    assert not segment_lungs(hu, SPACING).any()


def test_small_pockets_of_air_are_no_lung():
    hu = chest(lungs=False)
    hu[120:130, 120:130] = -900
    assert not segment_lungs(hu, SPACING).any()


def test_the_real_chest_has_lungs_on_every_slice(lidc_dicom, decoder):
    paths = sorted(lidc_dicom.rglob("*.dcm"))[::8]
    decoded = [decoder.decode(path.read_bytes()) for path in paths]
    areas = [
        segment_lungs(one.pixels[0], one.attributes.pixel_spacing_mm).sum() * 0.703125**2 / 100
        for one in decoded
    ]
    assert (min(areas) > 50, max(areas) < 500) == (True, True)
