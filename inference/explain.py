"""The class activation map over the image: where the evidence lies, never a segmentation."""

import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float, Geometry
from rayhook.inference.study import HeatMap

Pixels = NDArray[np.uint8]

_OPACITY = 0.55
_KEPT_SIDE = 512
_RING_MM = 36.0
_RING_BGR = (80, 220, 255)


def heatmap(cam: Float, geometry: Geometry, *, scale: float) -> Float:
    """Return the map (h, w) on the original grid (rows, columns), 0..1, where scale is full heat.

    Negative evidence is 0. The scale is the model's, not the image's, so an image without a finding
    stays cold.
    Source: Selvaraju et al. 2017, arXiv:1610.02391, equation 2 (rectified sum)
    """
    heat = np.clip(np.asarray(cam, np.float32) / np.float32(scale), 0.0, 1.0)
    return np.clip(geometry.to_original(heat), 0.0, 1.0)


def pack_heat(heat: Float) -> HeatMap:
    """Return the map for keeping, coarser where the image is large: its detail is the network's, not the image's."""
    step = max(1, -(-max(heat.shape) // _KEPT_SIDE))
    rows, columns = (-(-side // step) for side in heat.shape)
    padding = ((0, rows * step - heat.shape[0]), (0, columns * step - heat.shape[1]))
    cells = np.pad(heat, padding, mode="edge").reshape(rows, step, columns, step).mean(axis=(1, 3))
    return HeatMap(rows, columns, step, zlib.compress(cells.astype("<f2").tobytes(), 6))


def unpack_heat(heat: HeatMap) -> Float:
    """Return the kept map as (rows, columns), 0..1."""
    values = np.frombuffer(zlib.decompress(heat.values), "<f2").reshape(heat.rows, heat.columns)
    return np.asarray(values, np.float32)


def render_png(pixels: Pixels) -> bytes:
    """Return an image (rows, columns), already windowed to 8 bits, as a grey PNG."""
    return _encode(pixels)


def render_overlay_png(pixels: Pixels, heat: Float) -> bytes:
    """Return the image with the heat (rows, columns, 0..1) laid over it, opacity following the heat."""
    return _encode(_overlay(pixels, heat))


def render_heat_png(heat: Float) -> bytes:
    """Return the heat alone (rows, columns, 0..1), as a PNG whose transparency follows the heat."""
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = np.rint(255 * np.sqrt(heat)).astype(np.uint8)
    return _encode(np.dstack((colours, alpha)))


def render_marked_png(
    pixels: Pixels, heat: Float, point: tuple[int, int], *, pixel_spacing_mm: tuple[float, float]
) -> bytes:
    """Return the overlay with a ring of _RING_MM around a point (row, column)."""
    image = _overlay(pixels, heat)
    axes = (round(_RING_MM / 2 / pixel_spacing_mm[1]), round(_RING_MM / 2 / pixel_spacing_mm[0]))
    cv2.ellipse(image, (point[1], point[0]), axes, 0, 0, 360, _RING_BGR, 1, cv2.LINE_AA)
    return _encode(image)


def _overlay(pixels: Pixels, heat: Float) -> Pixels:
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    alpha = (_OPACITY * np.sqrt(heat))[..., np.newaxis]
    return np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8)


def _encode(image: Pixels) -> bytes:
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError("image cannot be written as PNG")
    return bytes(data)
