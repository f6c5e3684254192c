"""An axial slice of the head: cropped to what is brighter than air, scaled by its own grey levels."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.geometry import Float, Geometry

_STATISTICS_SIDE = 256
_LINE_SHARE = 0.02
_FLAT = 1e-6
_HIGH_PERCENTILE = 99.5


class BrainSlice(msgspec.Struct, frozen=True, tag_field="kind", tag="brain_slice"):
    """What turns an MR slice into the input of a network; part of the model's manifest.

    low_percentile: of all pixels, becomes 0.  reference_percentile: of the foreground, becomes
    reference_level.  foreground_fraction: of the way from the low to the 99.5th percentile, where the
    foreground begins.  margin, min_side: of the cropped side and of the field of view.
    mean, std: of the three input channels, in units of the scaled 0..1 plane.
    """

    input_size: int
    low_percentile: float = 1.0
    reference_percentile: float = 50.0
    reference_level: float = 0.35
    foreground_fraction: float = 0.15
    margin: float = 0.04
    min_side: float = 0.5
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def to_brain_plane(
    pixels: Float, *, pixel_spacing_mm: tuple[float, float] | None, recipe: BrainSlice
) -> tuple[Float, Geometry]:
    """Return the scaled plane (size, size) in 0..1 and its geometry.

    pixel_spacing_mm: None means square pixels.
    """
    low, level, reference = _intensities(pixels, recipe)
    geometry = _locate(pixels > level, pixel_spacing_mm or (1.0, 1.0), recipe)
    scale = recipe.reference_level / (reference - low) if reference - low > _FLAT else 0.0
    shifted = np.subtract(pixels, low, dtype=np.float32)
    plane = np.clip(geometry.to_input(shifted) * np.float32(scale), 0.0, 1.0)
    return plane.astype(np.float32, copy=False), geometry


def _intensities(pixels: Float, recipe: BrainSlice) -> tuple[float, float, float]:
    """Return the values of the low percentile, of the foreground's edge and of the reference."""
    step = max(1, -(-max(pixels.shape) // _STATISTICS_SIDE))
    values = np.sort(pixels[::step, ::step], axis=None)  # vectorised: faster than np.percentile's partition
    low, high = _percentile(values, recipe.low_percentile), _percentile(values, _HIGH_PERCENTILE)
    level = low + recipe.foreground_fraction * (high - low)
    foreground = values[np.searchsorted(values, level, side="right") :]
    if foreground.size == 0:
        return low, level, low
    return low, level, _percentile(foreground, recipe.reference_percentile)


def _percentile(ascending: Float, percentile: float) -> float:
    """Return the linearly interpolated percentile of sorted values."""
    position = percentile / 100 * (ascending.size - 1)
    below = int(position)
    first, second = float(ascending[below]), float(ascending[min(below + 1, ascending.size - 1)])
    return first + (position - below) * (second - first)


def _locate(foreground: NDArray[np.bool_], spacing_mm: tuple[float, float], recipe: BrainSlice) -> Geometry:
    """Return the crop around the foreground and its place, centred, in the square input."""
    rows, columns = foreground.shape
    shortest_mm = recipe.min_side * max(rows * spacing_mm[0], columns * spacing_mm[1])
    top, bottom = _extent(
        np.count_nonzero(foreground, axis=1) / columns, shortest_mm / spacing_mm[0], recipe.margin
    )
    left, right = _extent(
        np.count_nonzero(foreground, axis=0) / rows, shortest_mm / spacing_mm[1], recipe.margin
    )
    height_mm, width_mm = (bottom - top) * spacing_mm[0], (right - left) * spacing_mm[1]
    scale = recipe.input_size / max(height_mm, width_mm)
    height, width = (min(recipe.input_size, max(1, round(mm * scale))) for mm in (height_mm, width_mm))
    inner_top, inner_left = (recipe.input_size - height) // 2, (recipe.input_size - width) // 2
    return Geometry(
        rows=rows,
        columns=columns,
        input_size=recipe.input_size,
        crop=(top, bottom, left, right),
        placed=(inner_top, inner_top + height, inner_left, inner_left + width),
    )


def _extent(share: NDArray[np.float64], shortest: float, margin: float) -> tuple[int, int]:
    """Return the half-open range of lines with foreground, widened by the margin to at least shortest."""
    lines = np.flatnonzero(share > _LINE_SHARE)
    if lines.size == 0:
        return 0, share.size
    first, last = int(lines[0]), int(lines[-1]) + 1
    length = max((last - first) * (1 + 2 * margin), shortest)
    middle = (first + last) / 2
    return max(0, int(np.floor(middle - length / 2))), min(share.size, int(np.ceil(middle + length / 2)))
