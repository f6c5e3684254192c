"""Scores that need no model: what a ranking has to beat before it can be said to see anything."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.training.dataset import Sample, read_grey

_LOW_PERCENTILE, _HIGH_PERCENTILE = 1.0, 99.5
_FOREGROUND = 0.15

Grey = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Trivial:
    """A score of a row of a folder: higher where training patients have the finding, NaN if unknown."""

    name: str
    score: Callable[[Sample, Path], float]


def by_column(name: str, column: str) -> Trivial:
    """Return the score that a column of labels.csv gives."""

    def value(sample: Sample, _folder: Path) -> float:
        return number(sample.attributes.get(column))

    return Trivial(name, value)


def by_image(name: str, measure: Callable[[Grey], Any]) -> Trivial:
    """Return the score that the grey levels of the image file give."""

    def value(sample: Sample, folder: Path) -> float:
        return float(measure(read_grey(folder / sample.path)))

    return Trivial(name, value)


def foreground_mean(image: Grey) -> float:
    """Return the mean of what is brighter than air, found as the preprocessing of the head finds it."""
    low, high = np.percentile(image, (_LOW_PERCENTILE, _HIGH_PERCENTILE))
    foreground = image[image > low + _FOREGROUND * (high - low)]
    return float(foreground.mean()) if foreground.size else 0.0


def black_share(image: Grey) -> float:
    """Return the share of pixels of grey level 0."""
    return float((image == 0).mean())


def number(text: str | None) -> float:
    """Return a column's number, NaN where there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
