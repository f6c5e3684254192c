"""Where the network's square input lies on the original pixel grid."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A box of the original grid and the box of the input grid that it fills.

    crop: (top, bottom, left, right) on the original grid; placed: the same box on the input grid.
    """

    rows: int
    columns: int
    input_size: int
    crop: tuple[int, int, int, int]
    placed: tuple[int, int, int, int]

    def to_input(self, grid: Float) -> Float:
        """Return a (rows, columns) grid cut, resized and padded with its low value 0 to the input."""
        top, bottom, left, right = self.crop
        inner_top, inner_bottom, inner_left, inner_right = self.placed
        canvas = np.zeros((self.input_size, self.input_size), np.float32)
        canvas[inner_top:inner_bottom, inner_left:inner_right] = resize(
            grid[top:bottom, left:right], inner_bottom - inner_top, inner_right - inner_left
        )
        return canvas

    def to_original(self, grid: Float) -> Float:
        """Return a square grid over the input (any side) on the original grid, 0 outside the crop."""
        top, bottom, left, right = self.crop
        side = (self.input_size, self.input_size)
        full = cv2.resize(np.asarray(grid, np.float32), side, interpolation=cv2.INTER_LINEAR)
        inner_top, inner_bottom, inner_left, inner_right = self.placed
        inner = np.ascontiguousarray(full[inner_top:inner_bottom, inner_left:inner_right])
        original = np.zeros((self.rows, self.columns), np.float32)
        original[top:bottom, left:right] = cv2.resize(
            inner, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR
        )
        return original


def resize(grid: Float, rows: int, columns: int) -> Float:
    """Return a grid at another size: averages where it shrinks, bilinear where it grows."""
    cut = np.ascontiguousarray(grid, np.float32)
    shrinks = rows <= cut.shape[0] and columns <= cut.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, (columns, rows), interpolation=way), np.float32)
