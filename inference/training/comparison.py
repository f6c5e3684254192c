"""Whether one score orders the same rows better than another: tests and intervals of the difference in AUC."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Estimate
from rayhook.inference.training.bootstrap import ROUNDS, weighted_bootstrap
from rayhook.inference.training.metrics import (
    Flags,
    Labels,
    Scores,
    Weights,
    area,
    midranks,
    operating_points,
)

_ROUNDING = 1e-14
_FEWEST = 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """The two areas, their difference (first - second) with its variance, z and two-sided p.

    p is NaN if the difference has no variance although there is one, or a class is too small.
    """

    first: float
    second: float
    difference: float
    variance: float
    z: float
    p: float


def delong_test(labels: Labels, first: Scores, second: Scores) -> Comparison:
    """Return the comparison of two correlated areas on independent rows.

    Source: DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595; by mid-ranks, Sun and Xu 2014,
    doi:10.1109/LSP.2014.2337313
    """
    return obuchowski_test(labels, first, second, np.arange(labels.size).astype(np.str_))


def obuchowski_test(labels: Labels, first: Scores, second: Scores, clusters: NDArray[np.str_]) -> Comparison:
    """Return the comparison of two correlated areas on rows that come in clusters.

    With one row a cluster it is DeLong's test. The normal distribution of z needs many clusters: below
    about 40, prefer the interval of auc_difference.
    Source: Obuchowski 1997, doi:10.2307/2533958, Biometrics 53:567
    """
    positives = int(labels.sum())
    negatives = labels.size - positives
    if min(positives, negatives) < _FEWEST:
        nan = float("nan")
        return Comparison(nan, nan, nan, nan, nan, nan)
    components = np.stack([_components(labels, scores) for scores in (first, second)])
    areas = components[:, labels == 1].mean(axis=1)
    covariance = _covariance(labels, components - areas[:, np.newaxis], clusters)
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return _tested(float(areas[0]), float(areas[1]), variance)


def _components(labels: Labels, scores: Scores) -> Scores:
    """Return for a positive the share of negatives below it, for a negative that of positives above it."""
    positive = labels == 1
    ranks, within = midranks(scores), np.empty(labels.size)
    for group in (positive, ~positive):
        within[group] = midranks(scores[group])
    below = ranks - within
    count = positive.sum()
    shares: Scores = np.where(positive, below / (labels.size - count), 1 - below / count)
    return shares


def _covariance(labels: Labels, centred: Scores, clusters: NDArray[np.str_]) -> Scores:
    """Return the covariance (2, 2) of the areas from the components about their mean (2, rows)."""
    names, member = np.unique(clusters, return_inverse=True)
    by_class = []
    for value in (1, 0):
        chosen = labels == value
        sums = np.stack([np.bincount(member[chosen], row[chosen], names.size) for row in centred])
        by_class.append((sums / chosen.sum(), np.unique(member[chosen]).size))
    (up, with_positives), (down, with_negatives) = by_class
    cross = _unbiased(names.size) * up @ down.T
    total: Scores = (
        _unbiased(with_positives) * up @ up.T + _unbiased(with_negatives) * down @ down.T + cross + cross.T
    )
    return total


def _unbiased(clusters: int) -> float:
    return clusters / (clusters - 1) if clusters > 1 else float("nan")


def _tested(first: float, second: float, variance: float) -> Comparison:
    difference = first - second
    if abs(variance) < _ROUNDING:
        z = 0.0 if abs(difference) < _ROUNDING else float("nan")
        return Comparison(first, second, difference, 0.0, z, math.erfc(abs(z)))
    z = difference / math.sqrt(variance)
    return Comparison(first, second, difference, variance, z, math.erfc(abs(z) / math.sqrt(2)))


def auc_estimate(
    labels: Labels, scores: Scores, clusters: NDArray[np.str_], *, rounds: int = ROUNDS, seed: int = 0
) -> Estimate:
    """Return the area of any score with its interval over clusters."""

    def figures(weights: Weights) -> Mapping[str, Scores]:
        return {"auc": area(operating_points(labels, scores, weights))}

    return weighted_bootstrap(clusters, figures, rounds=rounds, seed=seed)["auc"]


def auc_difference(
    labels: Labels,
    first: Scores,
    second: Scores,
    clusters: NDArray[np.str_],
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Estimate:
    """Return the area of first minus that of second on the same rows, with its interval over clusters."""

    def figures(weights: Weights) -> Mapping[str, Scores]:
        one, other = (area(operating_points(labels, scores, weights)) for scores in (first, second))
        return {"difference": one - other}

    return weighted_bootstrap(clusters, figures, rounds=rounds, seed=seed)["difference"]


def subset_difference(
    labels: Labels,
    scores: Scores,
    clusters: NDArray[np.str_],
    *,
    subset: Flags,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Estimate:
    """Return the area on a subset (say, unseen sites) minus that on the other rows, with its interval."""

    def figures(weights: Weights) -> Mapping[str, Scores]:
        inside, outside = (
            area(operating_points(labels, scores, weights * rows)) for rows in (subset, ~subset)
        )
        return {"difference": inside - outside}

    return weighted_bootstrap(clusters, figures, rounds=rounds, seed=seed)["difference"]
