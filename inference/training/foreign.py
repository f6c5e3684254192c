"""Images that a model is not meant for: to teach its input check, and to measure how often it declines."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float, Patch, Preprocessing, to_plane
from rayhook.inference.training.dataset import read_grey

COUNT = 100

_SIDE = 256
_SPACING_MM = 0.7
_IMAGES = frozenset((".jpg", ".png"))


def synthetic_planes(preprocessing: Preprocessing, planes: Float, *, seed: int = 0) -> dict[str, Float]:
    """Return noise, constants and ramps, and the given planes (n, size, size) spoiled, by what they are.

    Points of a slice have no upright, so turned ones are none of these.
    """
    random = np.random.default_rng(seed)
    some = planes[:: max(1, len(planes) // COUNT)][:COUNT]
    raw = _made_up(random) | _spoiled(some, random)
    if not isinstance(preprocessing, Patch):
        raw |= _turned(some)
    return {name: _prepared(images, preprocessing) for name, images in raw.items()}


def foreign_planes(folder: Path, preprocessing: Preprocessing, *, part: int, parts: int = 2) -> Float:
    """Return about COUNT images of a folder and its subfolders as planes (n, size, size).

    part: of so many disjoint runs of the sorted files, so that what is learnt from is not measured on.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _IMAGES and "mask" not in str(path))
    own = [path for index, path in enumerate(paths) if index * parts // len(paths) == part]
    return _prepared([read_grey(path) for path in own[:: max(1, len(own) // COUNT)][:COUNT]], preprocessing)


def _made_up(random: np.random.Generator) -> dict[str, Sequence[NDArray[Any]]]:
    shape = (COUNT, _SIDE, _SIDE)
    axis = np.arange(_SIDE)
    widths = random.uniform(2, 20, COUNT)
    return {
        "constant": list(np.broadcast_to(random.uniform(-1000, 1000, (COUNT, 1, 1)), shape)),
        "uniform noise": list(random.uniform(0, 1000, shape)),
        "Gaussian noise": list(random.normal(0, 100, shape)),
        "Rician noise": list(np.hypot(random.normal(0, 100, shape), random.normal(0, 100, shape))),
        "smooth noise": [cv2.GaussianBlur(random.normal(0, 1, shape[1:]), (0, 0), w) for w in widths],
        "linear ramps": [np.add.outer(a * axis, b * axis) for a, b in random.uniform(0.1, 1, (COUNT, 2))],
    }


def _spoiled(planes: Float, random: np.random.Generator) -> dict[str, Sequence[NDArray[Any]]]:
    side = planes.shape[1]
    return {
        "grey levels inverted": list(1.0 - planes),
        "each column shuffled": list(random.permuted(planes, axis=1)),
        "columns in another order": [plane[:, random.permutation(side)] for plane in planes],
        "two grey levels": [(plane > np.median(plane)).astype(np.float32) for plane in planes],
        "blurred": [cv2.GaussianBlur(plane, (0, 0), side / 32) for plane in planes],
        "buried in noise": [plane + random.normal(0, 0.25, plane.shape) for plane in planes],
    }


def _turned(planes: Float) -> dict[str, Sequence[NDArray[Any]]]:
    half = planes.shape[1] // 2
    return {
        "upside down": list(planes[:, ::-1]),
        "turned by 90 degrees": list(np.rot90(planes, axes=(1, 2))),
        "turned by 270 degrees": list(np.rot90(planes, 3, axes=(1, 2))),
        "one quarter of it": list(planes[:, :half, :half]),
    }


def _prepared(images: Iterable[NDArray[Any]], preprocessing: Preprocessing) -> Float:
    spacing = (_SPACING_MM, _SPACING_MM) if isinstance(preprocessing, Patch) else None
    planes = [
        to_plane(np.asarray(image, np.float32), pixel_spacing_mm=spacing, recipe=preprocessing)[0]
        for image in images
    ]
    return np.stack(planes)
