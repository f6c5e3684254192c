"""From development logits to probabilities and a threshold."""

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Calibration

Values = NDArray[np.float64]
Labels = NDArray[np.int64]

_ROUNDS = 100
_HALVINGS = 30
_CONVERGED = 1e-8
_RIDGE = 1e-9


def fit_platt(logits: Values, labels: Labels) -> Calibration:
    """Return the scaling of least cross-entropy on Platt's smoothed targets, by Newton with step halving.

    Raises ValueError if there is only one class.
    Source: Platt 1999; Lin, Lin and Weng 2007, doi:10.1007/s10994-007-5018-6
    """
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError("calibration needs images with and without the finding")
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    scale = float(np.abs(logits).max()) or 1.0
    design = np.stack([logits / scale, np.ones_like(logits)], axis=1)
    weights = np.zeros(2)
    for _ in range(_ROUNDS):
        probability = _sigmoid(design @ weights)
        slope = design.T @ (probability - target)
        if np.abs(slope).max() < _CONVERGED:
            break
        curvature = design.T @ (design * (probability * (1 - probability))[:, np.newaxis])
        step: Values = np.linalg.solve(curvature + _RIDGE * np.eye(2), slope).astype(np.float64)
        weights = _descend(weights, step, design, target)
    return Calibration(a=float(weights[0] / scale), b=float(weights[1]))


def _descend(weights: Values, step: Values, design: Values, target: Values) -> Values:
    """Return the weights after the largest halving of the step that lowers the cross-entropy."""
    before = _cross_entropy(design @ weights, target)
    for halving in range(_HALVINGS):
        after: Values = weights - step / 2**halving
        if _cross_entropy(design @ after, target) < before:
            return after
    return weights


def _cross_entropy(logits: Values, target: Values) -> float:
    return float(np.sum(np.logaddexp(0.0, logits) - target * logits))


def _sigmoid(logits: Values) -> Values:
    probability: Values = 0.5 * (1 + np.tanh(logits / 2))
    return probability


def threshold_at_sensitivity(probabilities: Values, labels: Labels, *, sensitivity: float) -> float:
    """Return the highest threshold at which at least that share of the positives is found."""
    positives = np.sort(probabilities[labels == 1])[::-1]
    return float(positives[int(np.ceil(sensitivity * positives.size)) - 1])


def out_of_distribution_threshold(distances: Values, *, share: float) -> float:
    """Return the distance within which that share of the images lies."""
    return float(np.quantile(distances, share))
