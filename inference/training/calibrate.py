"""From development logits to probabilities and a threshold."""

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Calibration

Values = NDArray[np.float64]
Labels = NDArray[np.int64]

_ROUNDS = 100
_CONVERGED = 1e-10


def fit_platt(logits: Values, labels: Labels) -> Calibration:
    """Return the scaling of least cross-entropy, by Newton's method on Platt's smoothed targets.

    Raises ValueError if there is only one class.
    Source: Platt 1999; Lin, Lin and Weng 2007, doi:10.1007/s10994-007-5018-6
    """
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError("calibration needs images with and without the finding")
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(_ROUNDS):
        probability = 1 / (1 + np.exp(-design @ weights))
        curvature = design.T @ (design * (probability * (1 - probability))[:, np.newaxis])
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), design.T @ (probability - target))
        weights = weights - step
        if np.abs(step).max() < _CONVERGED:
            break
    return Calibration(a=float(weights[0]), b=float(weights[1]))


def threshold_at_sensitivity(probabilities: Values, labels: Labels, *, sensitivity: float) -> float:
    """Return the highest threshold at which at least that share of the positives is found."""
    positives = np.sort(probabilities[labels == 1])[::-1]
    return float(positives[int(np.ceil(sensitivity * positives.size)) - 1])


def out_of_distribution_threshold(distances: Values, *, share: float) -> float:
    """Return the distance within which that share of the images lies."""
    return float(np.quantile(distances, share))
