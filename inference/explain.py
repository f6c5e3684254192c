"""The class activation map over the image: where the evidence lies, never a segmentation."""

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float, Geometry

Pixels = NDArray[np.uint8]

_OPACITY = 0.55


def heatmap(cam: Float, geometry: Geometry, *, scale: float) -> Float:
    """Return the map (h, w) on the original grid (rows, columns), 0..1, where scale is full heat.

    Negative evidence is 0. The scale is the model's, not the image's, so an image without a finding
    stays cold.
    Source: Selvaraju et al. 2017, arXiv:1610.02391, equation 2 (rectified sum)
    """
    heat = np.clip(np.asarray(cam, np.float32) / np.float32(scale), 0.0, 1.0)
    return np.clip(geometry.to_original(heat), 0.0, 1.0)


def render_png(pixels: Pixels) -> bytes:
    """Return an image (rows, columns), already windowed to 8 bits, as a grey PNG."""
    return _encode(pixels)


def render_overlay_png(pixels: Pixels, heat: Float) -> bytes:
    """Return the image with the heat (rows, columns, 0..1) laid over it, opacity following the heat."""
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    alpha = (_OPACITY * np.sqrt(heat))[..., np.newaxis]
    return _encode(np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8))


def _encode(image: Pixels) -> bytes:
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError("image cannot be written as PNG")
    return bytes(data)
