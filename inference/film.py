"""A radiograph as a whole: scaled by its own grey levels, padded to a square."""

import msgspec
import numpy as np

from rayhook.inference.geometry import Float, Geometry

_STATISTICS_SIDE = 512
_FLAT = 1e-6


class Film(msgspec.Struct, frozen=True, tag_field="kind", tag="film"):
    """What turns a radiograph into the input of a network; part of the model's manifest.

    low_percentile, high_percentile: of all pixels, become 0 and 1.
    mean, std: of the three input channels, in units of the scaled 0..1 plane.
    """

    input_size: int
    low_percentile: float = 1.0
    high_percentile: float = 99.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def to_film_plane(
    pixels: Float, *, pixel_spacing_mm: tuple[float, float] | None, recipe: Film
) -> tuple[Float, Geometry]:
    """Return the scaled plane (size, size) in 0..1, the film centred and padded with 0, and its geometry.

    pixel_spacing_mm: None means square pixels.
    """
    step = max(1, -(-max(pixels.shape) // _STATISTICS_SIDE))
    sample = pixels[::step, ::step]
    low, high = (float(p) for p in np.percentile(sample, (recipe.low_percentile, recipe.high_percentile)))
    scale = 1.0 / (high - low) if high - low > _FLAT else 0.0
    scaled = np.clip((pixels - np.float32(low)) * np.float32(scale), 0.0, 1.0)
    geometry = _whole(pixels.shape, pixel_spacing_mm or (1.0, 1.0), recipe.input_size)
    return geometry.to_input(scaled.astype(np.float32, copy=False)), geometry


def _whole(shape: tuple[int, ...], spacing_mm: tuple[float, float], input_size: int) -> Geometry:
    """Return the geometry of the whole film, its longer side filling the input."""
    rows, columns = shape
    height_mm, width_mm = rows * spacing_mm[0], columns * spacing_mm[1]
    scale = input_size / max(height_mm, width_mm)
    height, width = (min(input_size, max(1, round(mm * scale))) for mm in (height_mm, width_mm))
    top, left = (input_size - height) // 2, (input_size - width) // 2
    return Geometry(
        rows=rows,
        columns=columns,
        input_size=input_size,
        crop=(0, rows, 0, columns),
        placed=(top, top + height, left, left + width),
    )
