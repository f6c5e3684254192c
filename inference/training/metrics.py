"""Figures of a binary classifier, in numpy, with confidence intervals that respect patients."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Estimate

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
Metrics = dict[str, float]


def auc(labels: Labels, scores: Scores) -> float:
    """Return the area under the ROC curve, ties counted half; NaN with one class only."""
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def brier(labels: Labels, probabilities: Scores) -> float:
    """Return the mean squared error of the probabilities."""
    return float(np.mean((probabilities - labels) ** 2))


def calibration_error(labels: Labels, probabilities: Scores, *, bins: int = 10) -> float:
    """Return the expected calibration error over bins of equal count."""
    groups = np.array_split(np.argsort(probabilities, kind="stable"), bins)
    gaps = [len(g) * abs(float(probabilities[g].mean()) - float(labels[g].mean())) for g in groups if len(g)]
    return float(sum(gaps) / labels.size)


def binary_metrics(labels: Labels, probabilities: Scores, *, threshold: float) -> Metrics:
    """Return AUC, Brier score, calibration error and the four rates at a threshold (NaN where empty)."""
    positive = probabilities >= threshold
    truth = labels == 1
    return {
        "auc": auc(labels, probabilities),
        "sensitivity": _rate(positive, truth),
        "specificity": _rate(~positive, ~truth),
        "ppv": _rate(truth, positive),
        "npv": _rate(~truth, ~positive),
        "brier": brier(labels, probabilities),
        "ece": calibration_error(labels, probabilities),
    }


def cluster_bootstrap(
    clusters: NDArray[np.str_],
    figures: Callable[[NDArray[np.int64]], Mapping[str, float]],
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return each figure with the 2.5th and 97.5th percentile over resamples of whole clusters.

    figures: from the indices of a resample to named figures; a NaN in a round is left out.
    Source: Efron and Tibshirani 1993, chapter 13, with patients as the sampling unit.
    """
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    random = np.random.default_rng(seed)
    draws = [
        figures(np.concatenate([members[i] for i in random.integers(0, len(members), len(members))]))
        for _ in range(rounds)
    ]
    whole = figures(np.arange(clusters.size))
    return {name: _estimate(value, [draw[name] for draw in draws]) for name, value in whole.items()}


def _estimate(value: float, draws: list[float]) -> Estimate:
    finite = np.array([draw for draw in draws if np.isfinite(draw)])
    if finite.size == 0:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(finite, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def _rate(hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    total = int(among.sum())
    return float((hit & among).sum() / total) if total else float("nan")
