"""The units in which a model's answers are counted: images, and what several images show together."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.aggregate import max_of_median3
from rayhook.inference.brain_slice import BrainSlice
from rayhook.inference.nodule import mean_logit
from rayhook.inference.patch import Patch
from rayhook.inference.predict import calibrate
from rayhook.inference.preprocess import Float
from rayhook.inference.registry import Label, Manifest
from rayhook.inference.training.bootstrap import Answers, by_unit
from rayhook.inference.training.dataset import Cohort
from rayhook.inference.training.metrics import Flags
from rayhook.inference.training.metrics import Scores as Values

Join = Callable[[Values], float]


@dataclass(frozen=True, slots=True)
class Scores:
    """The answers for a cohort's images, in its order; first label only.

    probabilities: 0 where the network's output was not finite.  abstained: whether the input check or
    the distance from the training images left the image without an answer.
    """

    probabilities: NDArray[np.float64]
    logits: NDArray[np.float64]
    abstained: NDArray[np.bool_]
    cams: Float


@dataclass(frozen=True, slots=True)
class Counted:
    """Answers counted by one unit.

    rows: of the cohort, those that each unit has.  shown: of them, the one with the largest lesion.
    declined: units left without an answer by the input check, whatever their probability.
    """

    unit: str
    answers: Answers
    rows: tuple[NDArray[np.int64], ...]
    shown: NDArray[np.int64]
    declined: Flags

    @property
    def unsure(self) -> Flags:
        """Return which units had a probability, but too near to the threshold."""
        return ~self.answers.answered & ~self.declined

    def row_means(self, values: Values) -> Values:
        """Return each unit's mean of the values that its rows have, NaN where they have none."""
        found = [values[row][np.isfinite(values[row])] for row in self.rows]
        return np.array([one.mean() if one.size else np.nan for one in found])


def count(manifest: Manifest, cohort: Cohort, scores: Scores) -> tuple[Counted, ...]:
    """Return the answers by each unit of the model, the one that its figures are told by first.

    Slices of MR, then series; nodules of CT, then their crops; films, then patients with several.
    """
    label = manifest.labels[0]
    groups = np.array([sample.group or sample.path for sample in cohort.samples], np.str_)
    match manifest.preprocessing:
        case BrainSlice():
            series = _joined(label, cohort, scores=scores, unit="series", keys=cohort.patients, join=_peak)
            return _images(label, cohort, scores, "slice"), series
        case Patch():
            crops = _images(label, cohort, scores, "crop")
            return _nodules(label, cohort, scores, groups), crops
        case _:
            films = _images(label, cohort, scores, "film")
            if np.unique(cohort.patients).size == cohort.patients.size:
                return (films,)
            patients = _joined(
                label, cohort, scores=scores, unit="patient", keys=cohort.patients, join=_highest
            )
            return films, patients


def _peak(probabilities: Values) -> float:
    """Return the probability of a series, as the service does."""
    return max_of_median3([float(p) for p in probabilities]).probability


def _highest(probabilities: Values) -> float:
    return float(probabilities.max())


def _images(label: Label, cohort: Cohort, scores: Scores, unit: str) -> Counted:
    rows = np.arange(len(cohort.samples))
    answers = _answers(label, cohort, scores, rows)
    return Counted(
        unit=unit,
        answers=_surely(answers, label),
        rows=tuple(rows[:, np.newaxis]),
        shown=rows,
        declined=scores.abstained,
    )


def _nodules(label: Label, cohort: Cohort, scores: Scores, groups: NDArray[np.str_]) -> Counted:
    """Return the answers by nodule, each of the mean logit of its crops, as the service rates it."""

    def rated(logits: Values) -> float:
        return calibrate(mean_logit([float(v) for v in logits]), label.calibration)

    crops = replace(scores, probabilities=scores.logits)
    return _joined(label, cohort, scores=crops, unit="nodule", keys=groups, join=rated)


def _joined(
    label: Label, cohort: Cohort, *, scores: Scores, unit: str, keys: NDArray[np.str_], join: Join
) -> Counted:
    """Return the answers by unit, of the rows that were not declined, in their order in the series."""
    order = np.argsort(cohort.slices, kind="stable")
    joined = by_unit(_answers(label, cohort, scores, order), keys[order], join)
    rows = tuple(np.flatnonzero(keys == name) for name in np.unique(keys))
    lesions = cohort.masks.sum(axis=(1, 2))
    return Counted(
        unit=unit,
        answers=_surely(joined, label),
        rows=rows,
        shown=np.array([row[lesions[row].argmax()] for row in rows], np.int64),
        declined=~joined.answered,
    )


def _answers(label: Label, cohort: Cohort, scores: Scores, rows: NDArray[np.int64]) -> Answers:
    return Answers(
        labels=cohort.labels[rows],
        probabilities=scores.probabilities[rows],
        patients=cohort.patients[rows],
        answered=~scores.abstained[rows],
        threshold=label.threshold,
    )


def _surely(answers: Answers, label: Label) -> Answers:
    """Return the answers without those that are too near to the threshold to be one."""
    unsure = np.array([label.is_unsure(float(p)) for p in answers.probabilities], np.bool_)
    return replace(answers, answered=answers.answered & ~unsure)
