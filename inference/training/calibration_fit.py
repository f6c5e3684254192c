"""From development logits to probabilities: temperature, isotonic, and a choice among them by patient."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.registry import Calibration
from rayhook.inference.training.calibrate import fit_platt

Values = NDArray[np.float64]
Labels = NDArray[np.int64]

ISOTONIC_ROWS = 1000
ISOTONIC_ROWS_A_CLASS = 100
ISOTONIC_PATIENTS = 50

_HALVINGS = 200
_WIDEST = 1e6


@dataclass(frozen=True, slots=True)
class IsotonicCalibration:
    """A rising curve through knots, straight between them and level beyond the first and the last."""

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]


AnyCalibration = Calibration | IsotonicCalibration


def calibrated(logits: Values, calibration: AnyCalibration) -> Values:
    """Return the calibrated probabilities."""
    if isinstance(calibration, IsotonicCalibration):
        return np.interp(logits, calibration.logits, calibration.probabilities)
    return _sigmoid(calibration.a * logits + calibration.b)


def fit_temperature(logits: Values, labels: Labels) -> Calibration:
    """Return the scaling without offset of least cross-entropy on Platt's smoothed targets, a = 1 / T.

    Raises ValueError if there is only one class.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2
    """
    target = _targets(labels)
    scale = float(np.abs(logits).max()) or 1.0
    low, high = 1 / (_WIDEST * scale), _WIDEST / scale
    for _ in range(_HALVINGS):  # the slope of a convex loss rises in a: its root is bisected
        middle = float(np.sqrt(low * high))
        slope = float(logits @ (_sigmoid(middle * logits) - target))
        low, high = (middle, high) if slope < 0 else (low, middle)
    return Calibration(a=float(np.sqrt(low * high)), b=0.0)


def fit_isotonic(logits: Values, labels: Labels) -> IsotonicCalibration:
    """Return the rising curve of least squares on Platt's smoothed targets, never 0 or 1.

    The pools of adjacent violators are joined at their centres, so the curve is level only beyond the
    outermost. There scores become equal: areas are to be computed from logits.
    Raises ValueError if there is only one class.
    Source: Zadrozny and Elkan 2002, doi:10.1145/775047.775151; Oron and Flournoy 2017,
    doi:10.1080/19466315.2017.1286256 (centred pools)
    """
    target = _targets(labels)
    places, inverse, counts = np.unique(logits, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, target) / counts
    pools = _pool(places, means, counts.astype(np.float64))
    return IsotonicCalibration(
        logits=tuple(pool.centre for pool in pools), probabilities=tuple(pool.level for pool in pools)
    )


@dataclass(frozen=True, slots=True)
class _Pool:
    centre: float
    level: float
    weight: float

    def joined(self, other: "_Pool") -> "_Pool":
        weight = self.weight + other.weight
        share = other.weight / weight
        return _Pool(
            self.centre + share * (other.centre - self.centre),
            self.level + share * (other.level - self.level),
            weight,
        )


def _pool(places: Values, levels: Values, weights: Values) -> list[_Pool]:
    """Return the pools of adjacent violators, of rising levels."""
    pools: list[_Pool] = []
    for place, level, weight in zip(places, levels, weights, strict=True):
        pools.append(_Pool(float(place), float(level), float(weight)))
        while len(pools) > 1 and pools[-2].level >= pools[-1].level:
            last = pools.pop()
            pools[-1] = pools[-1].joined(last)
    return pools


@dataclass(frozen=True, slots=True)
class CalibrationChoice:
    """The calibration taken, fitted on all rows, and the cross-validated log loss of each candidate."""

    method: str
    calibration: AnyCalibration
    log_loss: dict[str, float]


_METHODS: Mapping[str, Callable[[Values, Labels], AnyCalibration]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}
METHODS = tuple(_METHODS)


def choose_calibration(
    logits: Values,
    labels: Labels,
    patients: NDArray[np.str_],
    *,
    methods: Collection[str] = METHODS,
    folds: int = 5,
    seed: int = 0,
) -> CalibrationChoice:
    """Return the calibration of least log loss on patients that it was not fitted on; the simpler of equals.

    methods: which of METHODS may be chosen; a manifest carries all but isotonic.
    Isotonic is a candidate from 1000 rows, 100 a class and 50 patients on: below, it overfits.
    Raises ValueError if a fold leaves only one class to fit on.
    Source: Niculescu-Mizil and Caruana 2005, doi:10.1145/1102351.1102430 (isotonic needs about 1000 rows)
    """
    place = patient_folds(labels, patients, folds=folds, seed=seed)
    candidates = [m for m in _METHODS if m in methods and (m != "isotonic" or _enough(labels, patients))]
    losses = {name: _held_out_loss(name, logits, labels, place) for name in candidates}
    best = min(candidates, key=lambda name: losses[name])
    return CalibrationChoice(best, _METHODS[best](logits, labels), losses)


def patient_folds(labels: Labels, patients: NDArray[np.str_], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row; patients with and without a positive row are spread evenly."""
    names, member = np.unique(patients, return_inverse=True)
    positive = np.bincount(member, labels) > 0
    shuffled = np.random.default_rng(seed).permutation(names.size)
    dealt = shuffled[np.argsort(positive[shuffled], kind="stable")]
    fold = np.empty(names.size, np.int64)
    fold[dealt] = np.arange(names.size) % folds
    return fold[member]


def log_loss(labels: Labels, probabilities: Values) -> float:
    """Return the mean negative log-likelihood of the labels."""
    said = np.where(labels == 1, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(said, np.finfo(np.float64).tiny)).mean())


def _enough(labels: Labels, patients: NDArray[np.str_]) -> bool:
    rarer = min(int(labels.sum()), labels.size - int(labels.sum()))
    return (
        labels.size >= ISOTONIC_ROWS
        and rarer >= ISOTONIC_ROWS_A_CLASS
        and np.unique(patients).size >= ISOTONIC_PATIENTS
    )


def _held_out_loss(name: str, logits: Values, labels: Labels, place: NDArray[np.int64]) -> float:
    probabilities = np.empty(labels.size)
    for fold in np.unique(place):
        held = place == fold
        probabilities[held] = calibrated(logits[held], _METHODS[name](logits[~held], labels[~held]))
    return log_loss(labels, probabilities)


def _targets(labels: Labels) -> Values:
    """Return Platt's targets, which keep the probabilities away from 0 and 1."""
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError("calibration needs images with and without the finding")
    return np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _sigmoid(values: Values) -> Values:
    probability: Values = 0.5 * (1 + np.tanh(values / 2))
    return probability
