"""From stored intensities to the network's input: one code path for training and for serving."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.brain_slice import BrainSlice, to_brain_plane
from rayhook.inference.film import Film, to_film_plane
from rayhook.inference.geometry import Float, Geometry
from rayhook.inference.patch import Patch, to_patch_plane

__all__ = ["BrainSlice", "Film", "Float", "Geometry", "Patch", "Prepared", "Preprocessing"]

Preprocessing = BrainSlice | Film | Patch


@dataclass(frozen=True, slots=True)
class Prepared:
    """The network's input (size, size, 3) and where it came from."""

    image: Float
    geometry: Geometry


def prepare(
    pixels: Float,
    *,
    pixel_spacing_mm: tuple[float, float] | None,
    recipe: Preprocessing,
    centre: tuple[int, int] | None = None,
) -> Prepared:
    """Return the network's input together with the geometry that maps a heatmap back.

    pixels: (rows, columns), modality-LUT output, larger is brighter; any affine scale of the values
    gives the same result.  pixel_spacing_mm: between rows, between columns.
    centre: (row, column) of the point that a Patch is cut around, by default the middle.
    Raises ImageRefused (non_finite_pixels, not_a_plane, no_pixel_spacing).
    Spec: DICOM PS3.3 10.7.1.1 (pixel spacing), C.7.6.3.1.2 (MONOCHROME2)
    """
    plane, geometry = to_plane(pixels, pixel_spacing_mm=pixel_spacing_mm, recipe=recipe, centre=centre)
    return Prepared(normalise(plane, recipe=recipe), geometry)


def to_plane(
    pixels: Float,
    *,
    pixel_spacing_mm: tuple[float, float] | None,
    recipe: Preprocessing,
    centre: tuple[int, int] | None = None,
) -> tuple[Float, Geometry]:
    """Return the scaled plane (size, size) in 0..1 and its geometry; see prepare for the arguments."""
    if pixels.ndim != 2 or min(pixels.shape) < 1:  # noqa: PLR2004
        raise ImageRefused("pixels must be one plane of rows and columns", code="not_a_plane")
    if not np.isfinite(pixels).all():
        raise ImageRefused("pixel values must be finite numbers", code="non_finite_pixels")
    match recipe:
        case BrainSlice():
            return to_brain_plane(pixels, pixel_spacing_mm=pixel_spacing_mm, recipe=recipe)
        case Film():
            return to_film_plane(pixels, pixel_spacing_mm=pixel_spacing_mm, recipe=recipe)
        case Patch():
            return to_patch_plane(pixels, pixel_spacing_mm=pixel_spacing_mm, recipe=recipe, centre=centre)


def normalise(plane: Float, *, recipe: Preprocessing) -> Float:
    """Return a 0..1 plane (..., size, size) as the three standardised channels (..., size, size, 3)."""
    image: Float = to_channels(plane[..., np.newaxis], recipe=recipe).astype(np.float32, copy=False)
    return image


def to_channels(plane: Any, *, recipe: Preprocessing) -> Any:
    """Return a plane (..., size, size, 1), an array or a tensor, as standardised channels (..., size, size, 3)."""
    mean, std = np.asarray(recipe.mean, np.float32), np.asarray(recipe.std, np.float32)
    if isinstance(recipe, Patch):
        low, high = np.asarray(recipe.windows, np.float32).T
        shown = (plane - low) / (high - low)
        plane = (abs(shown) - abs(shown - 1) + 1) / 2  # clipped to 0..1, in operators tensors have as well
    return (plane - mean) / std
