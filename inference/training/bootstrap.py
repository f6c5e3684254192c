"""Resampling of whole patients for many figures at once, and the figures that every evaluation gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Estimate
from rayhook.inference.training.metrics import (
    Flags,
    Labels,
    Scores,
    Weights,
    area,
    average_precision,
    estimate,
    ones,
    operating_points,
    predictive_values,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
    weighted_calibration_error,
    weighted_mean,
    weighted_rate,
    youden,
)

Figures = Callable[[Weights], Mapping[str, Scores]]

ROUNDS = 2000
PREVALENCES = (0.01, 0.05, 0.1, 0.3)

_CHUNK = 100
_GRID = 101


def weighted_bootstrap(
    clusters: NDArray[np.str_], figures: Figures, *, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Estimate]:
    """Return each figure with its 95 % percentile interval over resamples of whole clusters.

    figures: from weights (rounds, rows) to named figures (rounds,); a NaN in a round is left out.
    The resamples are those of metrics.cluster_bootstrap at the same seed.
    Source: Efron and Tibshirani 1993, chapter 13, with patients as the sampling unit.
    """
    draws = resample(clusters, figures, rounds=rounds, seed=seed)
    whole = figures(ones(clusters.size))
    return {name: estimate(float(value[0]), draws[name]) for name, value in whole.items()}


def resample(
    clusters: NDArray[np.str_], figures: Figures, *, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Scores]:
    """Return each figure's values over the resamples, (rounds, ...)."""
    names, member = np.unique(clusters, return_inverse=True)
    random = np.random.default_rng(seed)
    parts: list[Mapping[str, Scores]] = []
    for start in range(0, rounds, _CHUNK):  # memory stays that of one chunk
        drawn = random.integers(0, names.size, (min(_CHUNK, rounds - start), names.size))
        counts = np.stack([np.bincount(row, minlength=names.size) for row in drawn])
        parts.append(figures(counts[:, member].astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said of each row, beside the truth; answered is False where it said "not sure"."""

    labels: Labels
    probabilities: Scores
    patients: NDArray[np.str_]
    answered: Flags
    threshold: float

    @property
    def positive(self) -> Flags:
        """Return which rows reach the threshold."""
        return self.probabilities >= self.threshold

    def chosen(self, rows: Flags) -> "Answers":
        """Return the answers of some rows."""
        return Answers(
            self.labels[rows],
            self.probabilities[rows],
            self.patients[rows],
            self.answered[rows],
            self.threshold,
        )


def by_unit(answers: Answers, units: NDArray[np.str_], aggregate: Callable[[Scores], float]) -> Answers:
    """Return one row for each unit (a nodule of its crops, a series of its slices), in order of its name.

    aggregate: from the probabilities of the unit's answered rows, in their order, to the unit's own; of
    all rows if none was answered, and then the unit counts as not answered. A unit has the finding if a
    row of it has.
    """
    names, first = np.unique(units, return_index=True)
    rows = [np.flatnonzero(units == name) for name in names]
    kept = [row[answers.answered[row]] if answers.answered[row].any() else row for row in rows]
    return Answers(
        labels=np.array([answers.labels[row].max() for row in rows], np.int64),
        probabilities=np.array([aggregate(answers.probabilities[row]) for row in kept]),
        patients=answers.patients[first],
        answered=np.array([answers.answered[row].any() for row in rows], np.bool_),
        threshold=answers.threshold,
    )


@dataclass(frozen=True, slots=True)
class Questions:
    """At which prevalences, specificities and sensitivities figures are wanted."""

    prevalences: tuple[float, ...] = PREVALENCES
    specificities: tuple[float, ...] = ()
    sensitivities: tuple[float, ...] = ()


def estimates(
    answers: Answers,
    questions: Questions | None = None,
    *,
    more: Mapping[str, Scores] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return every figure of the answers with its interval over patients.

    Rates count all rows as they would be answered; *_answered leave out those that the model declined.
    more: further values a row, NaN where they do not apply, whose means are wanted.
    """
    asked, extra = questions or Questions(), more or {}

    def figures(weights: Weights) -> Mapping[str, Scores]:
        return {
            **_rates(answers, weights, asked.prevalences),
            **_curve(answers, weights, asked),
            **_probabilities(answers, weights),
            **_selective(answers, weights),
            **{name: weighted_mean(values, weights) for name, values in extra.items()},
        }

    return weighted_bootstrap(answers.patients, figures, rounds=rounds, seed=seed)


def _rates(answers: Answers, weights: Weights, prevalences: Sequence[float]) -> dict[str, Scores]:
    positive, truth = answers.positive, answers.labels == 1
    sensitivity = weighted_rate(positive, truth, weights)
    specificity = weighted_rate(~positive, ~truth, weights)
    figures = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": weighted_rate(truth, positive, weights),
        "npv": weighted_rate(~truth, ~positive, weights),
        "accuracy": weighted_mean((positive == truth).astype(np.float64), weights),
    }
    for prevalence in prevalences:
        ppv, npv = predictive_values(sensitivity, specificity, prevalence=prevalence)
        figures |= {f"ppv_at_prevalence_{prevalence:g}": ppv, f"npv_at_prevalence_{prevalence:g}": npv}
    return figures


def _curve(answers: Answers, weights: Weights, asked: Questions) -> dict[str, Scores]:
    points = operating_points(answers.labels, answers.probabilities, weights)
    return {
        "auc": area(points),
        "average_precision": average_precision(points),
        "youden": youden(points),
        **{
            f"sensitivity_at_specificity_{level:g}": sensitivity_at_specificity(points, level)
            for level in asked.specificities
        },
        **{
            f"specificity_at_sensitivity_{level:g}": specificity_at_sensitivity(points, level)
            for level in asked.sensitivities
        },
    }


def _probabilities(answers: Answers, weights: Weights) -> dict[str, Scores]:
    return {
        "brier": weighted_mean((answers.probabilities - answers.labels) ** 2, weights),
        "ece": weighted_calibration_error(answers.labels, answers.probabilities, weights),
    }


def _selective(answers: Answers, weights: Weights) -> dict[str, Scores]:
    positive, truth, answered = answers.positive, answers.labels == 1, answers.answered
    return {
        "abstention": weighted_mean((~answered).astype(np.float64), weights),
        "accuracy_answered": weighted_rate(positive == truth, answered, weights),
        "sensitivity_answered": weighted_rate(positive, truth & answered, weights),
        "specificity_answered": weighted_rate(~positive, ~truth & answered, weights),
    }


@dataclass(frozen=True, slots=True)
class RocBand:
    """Sensitivity on a grid of false positive rates, with the pointwise 95 % interval over patients."""

    false_positive_rate: Scores
    low: Scores
    high: Scores


def roc_band(
    labels: Labels, scores: Scores, clusters: NDArray[np.str_], *, rounds: int = ROUNDS, seed: int = 0
) -> RocBand:
    """Return the band of the ROC curve; rounds with one class only are left out."""
    grid = np.linspace(0.0, 1.0, _GRID)

    def heights(weights: Weights) -> Mapping[str, Scores]:
        points = operating_points(labels, scores, weights)
        rows = zip(points.false_positive_rate, points.sensitivity, strict=True)
        curves = np.stack([np.interp(grid, across, up) for across, up in rows])
        return {"height": np.where(np.isfinite(area(points))[:, np.newaxis], curves, np.nan)}

    drawn = resample(clusters, heights, rounds=rounds, seed=seed)["height"]
    finite = drawn[np.isfinite(drawn).all(axis=1)]
    low, high = np.percentile(finite, (2.5, 97.5), axis=0) if finite.size else np.full((2, _GRID), np.nan)
    return RocBand(grid, low, high)
