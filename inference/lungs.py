"""The lungs in an axial CT slice, told from the air around the body by classical means."""

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.geometry import Float

Mask = NDArray[np.bool_]

_AIR_HU = -400.0
_MIN_BODY_SHARE = 0.05
_MIN_LUNG_MM2 = 300.0
_OPEN_MM = 3.0
_CLOSE_MM = 12.0


def segment_lungs(hu: Float, pixel_spacing_mm: tuple[float, float]) -> Mask:
    """Return where the lungs are, vessels and what touches their wall within _CLOSE_MM included.

    hu: (rows, columns), Hounsfield units.  The result is empty where the slice shows no lung.
    Air inside the body's outline that is large enough is lung; the bowel below it and the trachea
    count as lung as well, which costs candidates and never hides one.
    """
    body = _body(hu, pixel_spacing_mm)
    if body is None:
        return np.zeros(hu.shape, np.bool_)
    inside = (hu < _AIR_HU) & body
    area_mm2 = pixel_spacing_mm[0] * pixel_spacing_mm[1]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    large = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] * area_mm2 >= _MIN_LUNG_MM2]
    lungs = np.isin(labels, large).astype(np.uint8)
    if not large:
        return lungs.astype(np.bool_)
    closed = np.asarray(
        cv2.morphologyEx(lungs, cv2.MORPH_CLOSE, _disc(_CLOSE_MM, pixel_spacing_mm)), np.uint8
    )
    return np.asarray(_filled(closed) & body, np.bool_)


def _body(hu: Float, pixel_spacing_mm: tuple[float, float]) -> Mask | None:
    """Return the filled outline of the largest solid thing, None if it is too small to be a body."""
    solid = (hu >= _AIR_HU).astype(np.uint8)
    opened = cv2.morphologyEx(solid, cv2.MORPH_OPEN, _disc(_OPEN_MM, pixel_spacing_mm))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:  # noqa: PLR2004 - the background is one
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if stats[largest, cv2.CC_STAT_AREA] < _MIN_BODY_SHARE * hu.size:
        return None
    return _filled((labels == largest).astype(np.uint8)).astype(np.bool_)


def _filled(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mask with its holes filled."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED), np.uint8)


def _disc(diameter_mm: float, pixel_spacing_mm: tuple[float, float]) -> NDArray[np.uint8]:
    rows, columns = (max(3, round(diameter_mm / mm) | 1) for mm in pixel_spacing_mm)
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (columns, rows)), np.uint8)
