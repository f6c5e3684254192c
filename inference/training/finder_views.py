"""Crops as a finder would meet them: cut at edges that do not tell where the nodule is, and what it finds there.

Every labelled crop has its nodule in the middle, 64 pixels from each edge, and a network can learn and
use that. A view moves the edges in at random, up to the nodule.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.candidates import Candidate, pick, score_map
from rayhook.inference.engine import InferenceEngine
from rayhook.inference.lungs import Mask
from rayhook.inference.patch import tissue_levels
from rayhook.inference.preprocess import Float
from rayhook.inference.registry import ModelPackage

_MOVED = 0.7
_MIRRORED = 0.6
_CLEAR_PX = 3
_PADDING_PX = 60
_NO_LESION_PX = 4
_CLOSE_MM = 12.0
_NEAR_MM = 4.0
_LEVELS = 255
_ANY_SCORE = 1e-6


@dataclass(frozen=True, slots=True)
class View:
    """A crop with edges moved in. pixels, lungs, lesion: (rows, columns), one grid.

    lungs: where candidates are looked for: what is lung-like and no fill.
    """

    pixels: Float
    lungs: Mask
    lesion: Mask
    spacing_mm: float

    @property
    def area_mm2(self) -> float:
        """Return the area in which candidates are looked for."""
        return float(self.lungs.sum()) * self.spacing_mm**2

    @property
    def middle(self) -> tuple[float, float]:
        """Return the lesion's middle, the view's own without one."""
        rows, columns = np.nonzero(self.lesion)
        if rows.size == 0:
            return (self.pixels.shape[0] - 1) / 2, (self.pixels.shape[1] - 1) / 2
        return float(rows.mean()), float(columns.mean())

    @property
    def is_reached(self) -> bool:
        """Return whether candidates are looked for in any part of the lesion."""
        return bool((self.lungs & self.lesion).any())


@dataclass(frozen=True, slots=True)
class Found:
    """The candidates of a view, strongest first: those on the lesion, and those that are not."""

    hits: tuple[float, ...]
    false: tuple[float, ...]

    @property
    def best(self) -> float:
        """Return the score of the best hit, 0 without one."""
        return max(self.hits, default=0.0)


def view(pixels: NDArray[np.uint8], lesion: Mask, spacing_mm: float, *, name: str) -> View:
    """Return the view of a crop (rows, columns); of one name it is always the same.

    Each edge is moved in with probability _MOVED; beyond the edges the view is mirrored, or it ends.
    """
    random = np.random.default_rng([7, zlib.crc32(name.encode())])
    top, bottom, left, right = _edges(lesion, random)
    kept = slice(top, pixels.shape[0] - bottom), slice(left, pixels.shape[1] - right)
    cut, drawn, lungs = np.ascontiguousarray(pixels[kept]), lesion[kept], lung_like(pixels, spacing_mm)[kept]
    if random.random() < _MIRRORED:
        sides = (_PADDING_PX,) * 4
        cut = np.asarray(cv2.copyMakeBorder(cut, *sides, cv2.BORDER_REFLECT_101), np.uint8)
        lungs, drawn = np.pad(lungs, _PADDING_PX), np.pad(drawn, _PADDING_PX)
    return View(cut.astype(np.float32), lungs, drawn, spacing_mm)


def _edges(lesion: Mask, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return by how much the upper, lower, left and right edge move in, short of the lesion."""
    rows, columns = lesion.shape
    ys, xs = np.nonzero(lesion)
    if ys.size == 0:
        ys = np.array([rows // 2 - _NO_LESION_PX, rows // 2 + _NO_LESION_PX])
        xs = np.array([columns // 2 - _NO_LESION_PX, columns // 2 + _NO_LESION_PX])
    rooms = (ys.min(), rows - 1 - ys.max(), xs.min(), columns - 1 - xs.max())
    moved = [
        int(random.uniform(0, max(1, int(room) - _CLEAR_PX))) if random.random() < _MOVED else 0
        for room in rooms
    ]
    return moved[0], moved[1], moved[2], moved[3]


def lung_like(pixels: NDArray[np.uint8], spacing_mm: float) -> Mask:
    """Return what of a whole crop (side, side) is as dark as lung, closed and filled as in inference.lungs."""
    lung, tissue = tissue_levels(pixels.astype(np.float32) / np.float32(_LEVELS))
    dark = (pixels < (lung + tissue) / 2 * _LEVELS).astype(np.uint8)
    side = max(3, round(_CLOSE_MM / spacing_mm) | 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    padded = cv2.copyMakeBorder(dark, side, side, side, side, cv2.BORDER_REPLICATE)
    closed = np.ascontiguousarray(cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc)[side:-side, side:-side])
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(closed, outlines, -1, 1, cv2.FILLED), np.bool_)


def look(one: View, radius_mm: float, *, finder: ModelPackage, engine: InferenceEngine) -> Found:
    """Return what the finder makes of a view, whatever the threshold, as the service picks candidates."""
    spacing = (one.spacing_mm, one.spacing_mm)
    scores = score_map(one.pixels, one.lungs, pixel_spacing_mm=spacing, finder=finder, engine=engine)
    return judge(one, pick(scores, spacing, threshold=_ANY_SCORE), radius_mm)


def judge(one: View, candidates: Sequence[Candidate], radius_mm: float) -> Found:
    """Return the candidates as hits, in the lesion or within max(4 mm, its radius) of its middle, or false."""
    row, column = one.middle
    reach = max(_NEAR_MM, radius_mm) / one.spacing_mm
    hits: list[float] = []
    false: list[float] = []
    for found in candidates:
        near = np.hypot(found.row - row, found.column - column) <= reach
        (hits if near or one.lesion[found.row, found.column] else false).append(found.score)
    return Found(tuple(hits), tuple(false))
