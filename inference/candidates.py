"""Points of a CT slice that may be a nodule: a small network looked at field by field, inside the lungs."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.engine import InferenceEngine
from rayhook.inference.geometry import Float, Geometry
from rayhook.inference.lungs import Mask, segment_lungs
from rayhook.inference.patch import Patch
from rayhook.inference.predict import calibrate
from rayhook.inference.preprocess import Prepared, prepare
from rayhook.inference.registry import Label, ModelPackage

MAX_CANDIDATES = 4

_APART_MM = 10.0
_REACH_MM = 25.0
_OVERLAP = 0.25
_EDGE_CELLS = 1
_SECONDS_PER_FIELD = 5.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point of a slice, on its pixel grid, with the finder's calibrated score."""

    row: int
    column: int
    score: float


def find_candidates(
    hu: Float, *, pixel_spacing_mm: tuple[float, float], finder: ModelPackage, engine: InferenceEngine
) -> tuple[Candidate, ...]:
    """Return the strongest points at or above the finder's threshold, the strongest first.

    hu: (rows, columns), Hounsfield units.  At most MAX_CANDIDATES, at least _APART_MM from each other.
    Raises EngineUnavailable if the engine does not answer in time, ModelIntegrityError if it is not
    what the manifest pins.
    """
    scores = score_map(
        hu,
        segment_lungs(hu, pixel_spacing_mm),
        pixel_spacing_mm=pixel_spacing_mm,
        finder=finder,
        engine=engine,
    )
    return pick(scores, pixel_spacing_mm, threshold=finder.manifest.labels[0].threshold)


def score_map(
    pixels: Float,
    region: Mask,
    *,
    pixel_spacing_mm: tuple[float, float],
    finder: ModelPackage,
    engine: InferenceEngine,
) -> Float:
    """Return the finder's calibrated score of each pixel of a region, 0 outside it; see find_candidates."""
    fields = [
        prepare(
            pixels, pixel_spacing_mm=pixel_spacing_mm, recipe=finder.manifest.preprocessing, centre=centre
        )
        for centre in field_centres(region, pixel_spacing_mm, finder.manifest.preprocessing)
    ]
    if not fields:
        return np.zeros(region.shape, np.float32)
    output = engine.run(np.stack([field.image for field in fields]), _SECONDS_PER_FIELD * (len(fields) + 2))
    return _heat(fields, output.cam[..., 0], region, finder.manifest.labels[0])


def field_centres(
    lungs: Mask, pixel_spacing_mm: tuple[float, float], recipe: object
) -> list[tuple[int, int]]:
    """Return the centres of overlapping fields that together show every point of the lungs."""
    if not isinstance(recipe, Patch) or not lungs.any():
        return []
    field_mm = min(recipe.input_size * recipe.spacing_mm, recipe.crop_px * min(pixel_spacing_mm))
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    halves = [field_mm / mm / 2 for mm in pixel_spacing_mm]
    grid = [
        (row, column)
        for row in _steps(int(rows[0]), int(rows[-1]), halves[0])
        for column in _steps(int(columns[0]), int(columns[-1]), halves[1])
    ]
    return [centre for centre in grid if _shows(lungs, centre, halves)]


def pick(heat: Float, pixel_spacing_mm: tuple[float, float], *, threshold: float) -> tuple[Candidate, ...]:
    """Return the peaks of a map of scores (rows, columns), 0 where nothing was looked at.

    What hangs together around a peak, at half its score or more and within _REACH_MM, is one thing.
    """
    left = heat.copy()
    rows, columns = np.ogrid[: heat.shape[0], : heat.shape[1]]
    found: list[Candidate] = []
    while len(found) < MAX_CANDIDATES:
        row, column = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
        score = float(left[row, column])
        if score < threshold or score <= 0:
            break
        found.append(Candidate(row, column, score))
        apart = ((rows - row) * pixel_spacing_mm[0]) ** 2 + ((columns - column) * pixel_spacing_mm[1]) ** 2
        _, parts = cv2.connectedComponents((left >= score / 2).astype(np.uint8))
        left[(apart < _APART_MM**2) | ((parts == parts[row, column]) & (apart < _REACH_MM**2))] = 0.0
    return tuple(found)


def _steps(first: int, last: int, half: float) -> Iterator[int]:
    """Yield centres whose fields, each 2 * half long, cover first..last and overlap by _OVERLAP."""
    reach = max(0.0, (last - first) / 2 - half * (1 - _OVERLAP))
    count = 1 + int(np.ceil(2 * reach / (2 * half * (1 - _OVERLAP))))
    middle = (first + last) / 2
    yield from (round(float(at)) for at in np.linspace(middle - reach, middle + reach, max(1, count)))


def _shows(lungs: Mask, centre: tuple[int, int], halves: list[float]) -> bool:
    boxes = (slice(max(0, int(c - h)), int(c + h) + 1) for c, h in zip(centre, halves, strict=True))
    return bool(lungs[tuple(boxes)].any())


def _heat(fields: list[Prepared], maps: Float, lungs: Mask, label: Label) -> Float:
    """Return, for each pixel of the lungs, the highest score of the fields that show it."""
    heat = np.zeros(lungs.shape, np.float32)
    scores = np.array([calibrate(float(logit), label.calibration) for logit in maps.ravel()], np.float32)
    for field, scored in zip(fields, scores.reshape(maps.shape), strict=True):
        box = _box(field.geometry)
        heat[box] = np.maximum(heat[box], field.geometry.to_original(_without_edge(scored))[box])
    heat[~lungs] = 0.0
    return heat


def _without_edge(scored: Float) -> NDArray[np.float32]:
    """Return the map with its outermost cells, which see the padding, at 0: another field shows them."""
    inner = np.zeros_like(scored)
    core = slice(_EDGE_CELLS, -_EDGE_CELLS)
    inner[core, core] = scored[core, core]
    return inner


def _box(geometry: Geometry) -> tuple[slice, slice]:
    top, bottom, left, right = geometry.crop
    return slice(top, bottom), slice(left, right)
