"""Figures of a binary classifier, in numpy, with confidence intervals that respect patients.

A figure is computed for many resamples at once: weights (rounds, rows) say how often each row stands in
each resample, and a row of ones is the sample itself. Where a figure is undefined it is NaN.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Estimate

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
Weights = NDArray[np.float64]
Flags = NDArray[np.bool_]
Metrics = dict[str, float]

_WILSON_Z = 1.959963984540054
_ROUNDING = 1e-9


def auc(labels: Labels, scores: Scores) -> float:
    """Return the area under the ROC curve, ties counted half; NaN with one class only."""
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = midranks(scores)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def midranks(values: Scores) -> Scores:
    """Return the ranks from 1, ties sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Scores = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def brier(labels: Labels, probabilities: Scores) -> float:
    """Return the mean squared error of the probabilities."""
    return float(np.mean((probabilities - labels) ** 2))


def calibration_error(labels: Labels, probabilities: Scores, *, bins: int = 10) -> float:
    """Return the expected calibration error over bins of equal count; see weighted_calibration_error."""
    return float(weighted_calibration_error(labels, probabilities, ones(labels.size), bins=bins)[0])


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

    For figures of any kind; weighted_bootstrap draws the same resamples and is much faster.
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
    return {name: estimate(value, np.array([d[name] for d in draws])) for name, value in whole.items()}


def estimate(value: float, draws: Scores) -> Estimate:
    """Return the figure with the 2.5th and 97.5th percentile of its finite resampled values."""
    finite = draws[np.isfinite(draws)]
    if finite.size == 0:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(finite, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def ones(rows: int) -> Weights:
    """Return the weights (1, rows) of the sample itself."""
    return np.ones((1, rows))


def _rate(hit: Flags, among: Flags) -> float:
    return float(weighted_rate(hit, among, ones(hit.size))[0])


def weighted_rate(hit: Flags, among: Flags, weights: Weights) -> Scores:
    """Return for each round the share of hits among the rows chosen."""
    return ratio(weights @ (hit & among).astype(np.float64), weights @ among.astype(np.float64))


def weighted_mean(values: Scores, weights: Weights) -> Scores:
    """Return for each round the mean of the values that are not NaN."""
    known = np.isfinite(values)
    return ratio(weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64))


def ratio(part: Scores, whole: Scores) -> Scores:
    """Return part / whole, NaN where whole is 0."""
    quotient: Scores = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)
    return quotient


@dataclass(frozen=True, slots=True)
class Ties:
    """Rows in rising order of a score, and where each distinct score begins among them."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    values: Scores

    def pool(self, weights: Weights) -> Weights:
        """Return the weight (rounds, distinct scores) that stands at each distinct score."""
        return np.add.reduceat(weights[:, self.order], self.starts, axis=1)


def ties_of(scores: Scores) -> Ties:
    """Return the rows grouped by score."""
    values, starts = np.unique(np.sort(scores, kind="stable"), return_index=True)
    return Ties(order=np.argsort(scores, kind="stable"), starts=starts, values=values)


@dataclass(frozen=True, slots=True)
class OperatingPoints:
    """The ROC curve: what is counted at or above each distinct score, from none to all rows.

    thresholds: (k + 1,), falling, infinity first.  true, false: positives and negatives that reach
    them, (rounds, k + 1).
    """

    thresholds: Scores
    true: Weights
    false: Weights

    @property
    def sensitivity(self) -> Weights:
        """Return the true positive rate (rounds, k + 1)."""
        return ratio(self.true, np.broadcast_to(self.true[:, -1:], self.true.shape))

    @property
    def false_positive_rate(self) -> Weights:
        """Return 1 - specificity (rounds, k + 1)."""
        return ratio(self.false, np.broadcast_to(self.false[:, -1:], self.false.shape))


def operating_points(labels: Labels, scores: Scores, weights: Weights | None = None) -> OperatingPoints:
    """Return the ROC curve of every round; positive is score >= threshold."""
    ties = ties_of(scores)
    drawn = ones(labels.size) if weights is None else weights
    everyone, positive = ties.pool(drawn), ties.pool(drawn * labels)
    none = np.zeros((len(drawn), 1))
    true, both = (
        np.concatenate([none, np.cumsum(at[:, ::-1], axis=1)], axis=1) for at in (positive, everyone)
    )
    return OperatingPoints(np.concatenate([[np.inf], ties.values[::-1]]), true, both - true)


def area(points: OperatingPoints) -> Scores:
    """Return for each round the area under the ROC curve, ties counted half."""
    steps = np.diff(points.false, axis=1)
    heights = points.true[:, 1:] + points.true[:, :-1]
    return ratio((steps * heights).sum(axis=1) / 2, points.true[:, -1] * points.false[:, -1])


def average_precision(points: OperatingPoints) -> Scores:
    """Return for each round the precision summed over the steps of recall, not interpolated."""
    called = points.true + points.false
    precision = np.nan_to_num(ratio(points.true, called))
    gained = np.diff(points.true, axis=1)
    return ratio((gained * precision[:, 1:]).sum(axis=1), points.true[:, -1])


def youden(points: OperatingPoints) -> Scores:
    """Return for each round the largest sensitivity + specificity - 1."""
    best: Scores = (points.sensitivity - points.false_positive_rate).max(axis=1)
    return best


def sensitivity_at_specificity(points: OperatingPoints, specificity: float) -> Scores:
    """Return for each round the sensitivity of the last threshold that keeps that specificity.

    The threshold is chosen anew in each round, on the same rows: an optimistic figure of the ranking,
    not of a threshold fixed beforehand.
    """
    return _reached(points.sensitivity, points.false_positive_rate, 1 - specificity)


def specificity_at_sensitivity(points: OperatingPoints, sensitivity: float) -> Scores:
    """Return for each round the specificity of the first threshold that reaches that sensitivity."""
    missed, kept = 1 - points.sensitivity[:, ::-1], 1 - points.false_positive_rate[:, ::-1]
    return _reached(kept, missed, 1 - sensitivity)


def _reached(gain: Weights, cost: Weights, limit: float) -> Scores:
    """Return the gain at the last place of each row where the rising cost is within the limit."""
    last = (cost <= limit + _ROUNDING).sum(axis=1) - 1
    found = gain[np.arange(len(gain)), last]
    return np.where(np.isfinite(cost[:, -1]), found, np.nan)


def weighted_calibration_error(
    labels: Labels, probabilities: Scores, weights: Weights, *, bins: int = 10
) -> Scores:
    """Return for each round the expected calibration error over bins of equal count.

    Rows of the same probability share their labels evenly, so the rows' order does not matter. The
    figure is biased upwards where a bin holds few rows, and more so in a resample than in the sample.
    weights: whole numbers.
    """
    ties = ties_of(probabilities)
    pooled = ties.pool(weights)
    none = np.zeros((len(weights), 1))
    rows = np.concatenate([none, np.cumsum(pooled, axis=1)], axis=1)
    excess = np.concatenate(
        [none, np.cumsum(pooled * ties.values - ties.pool(weights * labels), axis=1)], axis=1
    )
    gaps = [
        np.abs(np.diff(np.interp(_bounds(int(r[-1]), bins), r, e))).sum()
        for r, e in zip(rows, excess, strict=True)
    ]
    return ratio(np.array(gaps), rows[:, -1])


def _bounds(rows: int, bins: int) -> Scores:
    """Return where bins of equal count begin and end, as numpy.array_split does."""
    each, over = divmod(rows, bins)
    step = np.arange(bins + 1)
    return (step * each + np.minimum(step, over)).astype(np.float64)


def predictive_values(
    sensitivity: Scores, specificity: Scores, *, prevalence: float
) -> tuple[Scores, Scores]:
    """Return PPV and NPV at a prevalence; on resampled rates they carry the interval through.

    Source: Bayes' theorem; Altman and Bland 1994, doi:10.1136/bmj.309.6947.102
    """
    found, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
    cleared, alarmed = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    return ratio(found, found + alarmed), ratio(cleared, cleared + missed)


def wilson(hits: int, count: int) -> Estimate:
    """Return a share with its 95 % score interval, for independent rows.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953
    """
    if count == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    share, z2 = hits / count, _WILSON_Z**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = _WILSON_Z / (1 + z2) * float(np.sqrt(share * (1 - share) / count + z2 / count / 4))
    return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0))


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Rows of about one probability: low to high, its mean, and the share of positives among them."""

    low: float
    high: float
    count: int
    predicted: float
    observed: Estimate


def reliability_bins(labels: Labels, probabilities: Scores, *, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Return bins of equal count, equal probabilities kept together, with Wilson intervals.

    The intervals count rows as independent: too narrow where a patient has several.
    """
    first = _bounds(labels.size, bins)[:-1].astype(int)
    edges = np.unique(np.sort(probabilities)[first[first < labels.size]])
    place = np.searchsorted(edges, probabilities, side="right") - 1
    return tuple(_bin(labels[place == k], probabilities[place == k]) for k in range(edges.size))


def _bin(labels: Labels, probabilities: Scores) -> ReliabilityBin:
    return ReliabilityBin(
        low=float(probabilities.min()),
        high=float(probabilities.max()),
        count=labels.size,
        predicted=float(probabilities.mean()),
        observed=wilson(int(labels.sum()), labels.size),
    )


def risk_coverage(correct: Flags, confidence: Scores) -> tuple[Scores, Scores]:
    """Return coverage and error rate as rows are answered from the most confident on, ties together.

    Source: El-Yaniv and Wiener 2010, JMLR 11:1605
    """
    points = operating_points((~correct).astype(np.int64), confidence)
    answered = (points.true + points.false)[0, 1:]
    return answered / correct.size, points.true[0, 1:] / answered
