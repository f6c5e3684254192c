"""A square of a CT slice around one point, at a fixed physical scale and on a scale of tissue.

The labelled crops that the models learnt from keep no Hounsfield units: the lowest value of each crop
became 0, the highest 255, so that bone, metal or the fill outside the field of view decide what lung
looks like. A crop of a slice is made the same way, and then the levels of lung and of soft tissue are
read off it again and set to fixed values.
"""

import cv2
import msgspec
import numpy as np

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.geometry import Float, Geometry, resize

_LEVELS = 255
_DISC_SHARE = 56 / 128
_FILL_SHARE = (0.02, 0.6)
_MIN_VALUES = 50
_MIN_RANGE = 3
_MIN_CONTRAST = 0.1
_BELOW_LUNG = 0.25
_RANGE = 1.75


class Patch(msgspec.Struct, frozen=True, tag_field="kind", tag="patch"):
    """What turns a point of a CT slice into the input of a network; part of the model's manifest.

    crop_px: side of the crop, in pixels of the slice, whose values are scaled.
    spacing_mm: of the input's pixels; the input shows input_size * spacing_mm around the point.
    windows: the range of the 0..1 plane that each input channel shows: all of it, the lung's, and from
    soft tissue to chalk and bone.  mean, std: of the channels, in units of their own 0..1.
    """

    input_size: int
    spacing_mm: float
    crop_px: int = 128
    windows: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.086, 0.486), (0.486, 1.0))
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def cut(pixels: Float, centre: tuple[int, int], *, side: int) -> Float:
    """Return the crop (side, side) around a point of a slice, its values scaled to 0..1 in 256 levels.

    centre: (row, column), the first pixel of the crop's lower right quarter.  What lies outside the
    slice is as dark as the darkest pixel inside.
    """
    top, left = centre[0] - side // 2, centre[1] - side // 2
    box = (max(0, top), min(pixels.shape[0], top + side), max(0, left), min(pixels.shape[1], left + side))
    inside = pixels[box[0] : box[1], box[2] : box[3]]
    low, high = float(inside.min()), float(inside.max())
    scale = _LEVELS / (high - low) if high > low else 0.0
    crop = np.zeros((side, side), np.float32)
    levels = np.rint((inside - np.float32(low)) * np.float32(scale))
    crop[box[0] - top : box[1] - top, box[2] - left : box[3] - left] = levels / np.float32(_LEVELS)
    return crop


def tissue_levels(crop: Float) -> tuple[float, float]:
    """Return the grey levels of lung and of soft tissue in a crop of 0..1 in 256 levels.

    The medians on both sides of Otsu's threshold, within a disc around the middle; the darkest value is
    left out where it is the fill outside the field of view.
    Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076
    """
    height, width = crop.shape
    rows, columns = np.ogrid[:height, :width]
    disc = (rows - height // 2) ** 2 + (columns - width // 2) ** 2 < (_DISC_SHARE * min(height, width)) ** 2
    values = np.rint(crop[disc] * _LEVELS).astype(np.uint8)
    fill = values <= int(values.min()) + 1
    if _FILL_SHARE[0] < fill.mean() < _FILL_SHARE[1]:
        values = values[~fill]
    if values.size < _MIN_VALUES or int(values.max()) - int(values.min()) < _MIN_RANGE:
        return 0.0, 1.0
    threshold, _ = cv2.threshold(values.reshape(-1, 1), 0, _LEVELS, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    above = values[values > threshold]
    lung = float(np.median(values[values <= threshold])) / _LEVELS
    tissue = float(np.median(above)) / _LEVELS if above.size else 1.0
    return lung, max(tissue, lung + _MIN_CONTRAST)


def _on_tissue_scale(crop: Float) -> Float:
    """Return the crop with lung at _BELOW_LUNG / _RANGE and soft tissue 1 / _RANGE above it."""
    lung, tissue = tissue_levels(crop)
    scaled = (crop - np.float32(lung)) / np.float32(tissue - lung)
    plane = np.clip((scaled + np.float32(_BELOW_LUNG)) / np.float32(_RANGE), 0.0, 1.0)
    return np.asarray(plane, np.float32)


def to_patch_plane(
    pixels: Float,
    *,
    pixel_spacing_mm: tuple[float, float] | None,
    recipe: Patch,
    centre: tuple[int, int] | None = None,
) -> tuple[Float, Geometry]:
    """Return the plane (size, size) in 0..1 around a point, by default the slice's middle, and its geometry.

    Raises ImageRefused (no_pixel_spacing): without a scale the size of what is seen is unknown.
    """
    if pixel_spacing_mm is None:
        raise ImageRefused(
            "PixelSpacing is missing, and the model needs the physical scale", code="no_pixel_spacing"
        )
    row, column = centre or (pixels.shape[0] // 2, pixels.shape[1] // 2)
    crop = _on_tissue_scale(cut(pixels, (row, column), side=recipe.crop_px))
    plane, placed = _at_scale(crop, pixel_spacing_mm, recipe)
    return plane, _geometry(pixels.shape, (row, column), placed, recipe)


def _at_scale(crop: Float, spacing_mm: tuple[float, float], recipe: Patch) -> tuple[Float, tuple[int, int]]:
    """Return the crop resampled and cut or padded to the input, and its (rows, columns) before that."""
    rows, columns = (max(1, round(recipe.crop_px * mm / recipe.spacing_mm)) for mm in spacing_mm)
    scaled = resize(crop, rows, columns)
    plane = np.zeros((recipe.input_size, recipe.input_size), np.float32)
    to, source = zip(*(_overlap(length, recipe.input_size) for length in (rows, columns)), strict=True)
    plane[to[0], to[1]] = scaled[source[0], source[1]]
    return plane, (rows, columns)


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """Return where a centred line of `length` lies in one of `size`, and which part of it that is."""
    shift = (size - length) // 2
    start, stop = max(0, shift), min(size, shift + length)
    return slice(start, stop), slice(start - shift, stop - shift)


def _geometry(
    shape: tuple[int, ...],
    centre: tuple[int, int],
    scaled: tuple[int, int],
    recipe: Patch,
) -> Geometry:
    """Return where the input lies on the slice: the part of its field that is inside both."""
    boxes = [
        _line(size, middle, length, recipe)
        for size, middle, length in zip(shape, centre, scaled, strict=True)
    ]
    (crop_rows, placed_rows), (crop_columns, placed_columns) = boxes
    return Geometry(
        rows=shape[0],
        columns=shape[1],
        input_size=recipe.input_size,
        crop=(*crop_rows, *crop_columns),
        placed=(*placed_rows, *placed_columns),
    )


def _line(size: int, centre: int, scaled: int, recipe: Patch) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return, along one axis, the range on the slice and the range of the input that shows it."""
    step = recipe.crop_px / scaled
    origin = centre - recipe.crop_px // 2 - (recipe.input_size - scaled) // 2 * step
    first = max(0, centre - recipe.crop_px // 2, int(np.ceil(origin)))
    last = min(size, centre + recipe.crop_px // 2, int(np.floor(origin + recipe.input_size * step)))
    start, stop = round((first - origin) / step), round((last - origin) / step)
    start = min(max(0, start), recipe.input_size - 1)
    return (first, last), (start, min(recipe.input_size, max(start + 1, stop)))
