"""Images that a model is not meant for, to measure how often it declines to answer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float, Preprocessing, to_plane
from rayhook.inference.training.dataset import read_grey

_COUNT = 100
_SIDE = 256


def synthetic_planes(preprocessing: Preprocessing, planes: Float) -> dict[str, Float]:
    """Return noise, constants, ramps, and the given planes (n, size, size) spoiled, by what they are."""
    random = np.random.default_rng(0)
    shape = (_COUNT, _SIDE, _SIDE)
    axis = np.arange(_SIDE)
    some = planes[:: max(1, len(planes) // _COUNT)]
    raw = {
        "constant": np.broadcast_to(random.uniform(-1000, 1000, (_COUNT, 1, 1)), shape),
        "uniform noise": random.uniform(0, 1000, shape),
        "Gaussian noise": random.normal(0, 100, shape),
        "Rician noise": np.hypot(random.normal(0, 100, shape), random.normal(0, 100, shape)),
        "linear ramps": np.stack(
            [np.add.outer(a * axis, b * axis) for a, b in random.uniform(0.1, 1, (_COUNT, 2))]
        ),
        "held-out slices, grey levels inverted": 1.0 - some,
        "held-out slices, each column shuffled": random.permuted(some, axis=1),
        "held-out slices, upside down": some[:, ::-1],
        "held-out slices, turned by 90 degrees": np.rot90(some, axes=(1, 2)),
    }
    return {name: _prepared(images, preprocessing) for name, images in raw.items()}


def foreign_planes(folder: Path, preprocessing: Preprocessing) -> Float:
    """Return about _COUNT images of a folder and its subfolders as planes (n, size, size)."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in {".jpg", ".png"})
    return _prepared([read_grey(path) for path in paths[:: max(1, len(paths) // _COUNT)]], preprocessing)


def _prepared(images: Iterable[NDArray[Any]], preprocessing: Preprocessing) -> Float:
    planes = [
        to_plane(np.asarray(image, np.float32), pixel_spacing_mm=None, recipe=preprocessing)[0]
        for image in images
    ]
    return np.stack(planes)
