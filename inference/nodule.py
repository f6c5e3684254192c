"""From points on slices to nodules: which points are of one thing, and how that thing is rated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rayhook.inference.predict import calibrate
from rayhook.inference.reading import Reading
from rayhook.inference.registry import Label
from rayhook.inference.study import InstanceAttributes

SLICES_RATED = 4

_APART_MM = 8.0
_GAP_SLICES = 1
_THIN_MM = 3.0


class ReadSlice(Protocol):
    """A slice and what was read in it."""

    @property
    def attributes(self) -> InstanceAttributes: ...

    @property
    def readings(self) -> tuple[Reading, ...]: ...


@dataclass(frozen=True, slots=True)
class Chain:
    """Readings of what is one thing: (index of the slice, reading), in slice order."""

    links: tuple[tuple[int, Reading], ...]


@dataclass(frozen=True, slots=True)
class RatedNodule:
    """probabilities: one a label.  shown: index of the slice, and the reading, with the highest score."""

    probabilities: tuple[float, ...]
    shown: tuple[int, Reading]


def chains(ordered: Sequence[ReadSlice]) -> tuple[Chain, ...]:
    """Return the answered points of slices in anatomical order, joined where they follow each other.

    A point joins the nearest thing whose last point is within _APART_MM in the plane, at most
    _GAP_SLICES slices without a point between them. Where slices are no more than _THIN_MM apart, what
    shows on one alone is left out: a nodule of the size that matters shows on more.
    """
    open_: list[list[tuple[int, Reading]]] = []
    for index, one in enumerate(ordered):
        spacing = one.attributes.pixel_spacing_mm or (1.0, 1.0)
        for reading in one.readings:
            if not reading.is_answered:
                continue
            near = [c for c in open_ if 0 < index - c[-1][0] <= 1 + _GAP_SLICES]
            near = [c for c in near if _apart_mm(c[-1][1], reading, spacing) <= _APART_MM]
            if near:
                min(near, key=lambda c: _apart_mm(c[-1][1], reading, spacing)).append((index, reading))
            else:
                open_.append([(index, reading)])
    least = 2 if _slices_apart_mm(ordered) <= _THIN_MM else 1
    return tuple(Chain(tuple(links)) for links in open_ if len(links) >= least)


def rate(chain: Chain, labels: Sequence[Label]) -> RatedNodule:
    """Return a thing's probabilities: of the mean logit over the slices that show it best.

    The SLICES_RATED with the highest finder's scores: as many as the labelled nodules have crops.
    """
    best = sorted(chain.links, key=_score, reverse=True)[:SLICES_RATED]
    probabilities = tuple(
        calibrate(mean_logit([reading.predictions[k].logit for _, reading in best]), label.calibration)
        for k, label in enumerate(labels)
    )
    return RatedNodule(probabilities, best[0])


def mean_logit(logits: Sequence[float]) -> float:
    """Return the logit of a thing from those of its slices."""
    return float(np.mean(logits))


def _slices_apart_mm(ordered: Sequence[ReadSlice]) -> float:
    """Return the median distance of neighbouring slices, infinity where it is not told."""
    places = [one.attributes.slice_location_mm for one in ordered]
    told = [place for place in places if place is not None]
    if len(told) < max(2, len(places)):
        return float("inf")
    return float(np.median(np.abs(np.diff(told))))


def _score(link: tuple[int, Reading]) -> float:
    candidate = link[1].candidate
    return 0.0 if candidate is None else candidate.score


def _apart_mm(first: Reading, second: Reading, spacing_mm: tuple[float, float]) -> float:
    one, other = first.candidate, second.candidate
    assert one is not None
    assert other is not None
    return float(np.hypot((one.row - other.row) * spacing_mm[0], (one.column - other.column) * spacing_mm[1]))
