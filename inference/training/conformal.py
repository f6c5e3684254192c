"""When a model says "not sure": a split-conformal rule with a stated error for each class."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.training.metrics import Flags, Labels, Scores

RULE = (
    "Not sure where the class-conditional conformal prediction set holds both classes or none: a "
    "share of at most alpha_positive of the images with the finding is answered negative, and of at most "
    "alpha_negative of those without it positive, for patients exchangeable with those of development."
)

_ROUNDING = 1e-12
_ABOVE_ONE = float(np.nextafter(1.0, 2.0))


@dataclass(frozen=True, slots=True)
class SelectiveRule:
    """Negative below low, positive from high on, not sure between: low <= probability < high."""

    low: float
    high: float
    alpha_positive: float
    alpha_negative: float
    rule: str = RULE

    def unsure(self, probabilities: Scores) -> Flags:
        """Return which probabilities are not answered."""
        return (probabilities >= self.low) & (probabilities < self.high)

    def around(self, threshold: float) -> "SelectiveRule":
        """Return the rule widened to hold a threshold, so that both never disagree; the errors only fall."""
        return replace(self, low=min(self.low, threshold), high=max(self.high, threshold))


def fit_rule(
    probabilities: Scores,
    labels: Labels,
    patients: NDArray[np.str_] | None = None,
    *,
    alpha_positive: float = 0.05,
    alpha_negative: float = 0.05,
) -> SelectiveRule:
    """Return the rule from development rows that the model was not fitted on.

    Class y is in an image's set if the image fits y at least as well as a share alpha of the rows of
    that class. Guarantee, over the draw of development and new patients: P(y not in the set | label y)
    <= alpha of y, hence no more are answered wrongly. It is about a row of a new patient, if patients are
    exchangeable and patients are given; without patients, if rows are. It holds for each class, not for
    each subgroup, and says nothing of the error among the answered. Rising calibrations do not change it.
    A class of too few patients (fewer than 1 / alpha - 1) is in every set.
    Source: Vovk 2012, arXiv:1209.2673 (conditional on the label); Sadinle, Lei and Wasserman 2019,
    doi:10.1080/01621459.2017.1395341 (sets of least ambiguity); Lee, Barber and Willett 2023,
    arXiv:2306.06342 (rows grouped by patient)
    """
    groups = np.arange(labels.size).astype(np.str_) if patients is None else patients
    positive, negative = labels == 1, labels == 0
    lowest = -_quantile(-probabilities[positive], groups[positive], 1 - alpha_positive)
    highest = _quantile(probabilities[negative], groups[negative], 1 - alpha_negative)
    beyond = min(float(np.nextafter(highest, np.inf)), _ABOVE_ONE)  # highest itself still fits class 0
    lowest = max(lowest, 0.0)
    return SelectiveRule(min(lowest, beyond), max(lowest, beyond), alpha_positive, alpha_negative)


def _quantile(scores: Scores, groups: NDArray[np.str_], level: float) -> float:
    """Return the least score that the level's share reaches, each group and the new one weighing the same."""
    if scores.size == 0:
        return float("inf")
    _, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / counts[member[order]]) / (counts.size + 1)
    place = int(np.searchsorted(reached, level - _ROUNDING))
    return float(scores[order[place]]) if place < scores.size else float("inf")
