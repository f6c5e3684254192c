"""How good a model is known to be, in words and numbers for the page."""

from collections.abc import Iterator
from dataclasses import dataclass

from rayhook.inference.registry import Estimate, Evaluation, Manifest
from rayhook.smart_app.numbers import percent, plural, unit_name

_AT_PREVALENCE = "_at_prevalence_"
_NAMES = {
    "auc": ("Area under the ROC curve", "1 is perfect, 0.5 is chance"),
    "sensitivity": ("Sensitivity", "of those with the finding, the share that is marked"),
    "specificity": ("Specificity", "of those without it, the share that is not marked"),
    "ppv": (
        "Positive predictive value",
        "of those marked, the share that has it, at the prevalence of this set",
    ),
    "npv": (
        "Negative predictive value",
        "of those not marked, the share without it, at the prevalence of this set",
    ),
    "accuracy": ("Accuracy", "the share that is rightly marked or not marked"),
    "average_precision": ("Average precision", "mean positive predictive value over all thresholds"),
    "brier": ("Brier score", "mean squared error of the probability, 0 is perfect"),
    "ece": ("Calibration error", "mean gap between probability and observed share"),
    "abstention": ("Abstained", "the share that the model declined to judge"),
    "accuracy_answered": ("Accuracy where it answered", "without those that the model declined to judge"),
    "sensitivity_answered": (
        "Sensitivity where it answered",
        "without those that the model declined to judge",
    ),
    "specificity_answered": (
        "Specificity where it answered",
        "without those that the model declined to judge",
    ),
    "pointing": (
        "Heatmap on the finding",
        "of those rightly marked, the share whose hottest point lies on it",
    ),
    "iou": ("Heatmap and outline", "shared area of the hottest part and the finding, 1 is perfect"),
}
_RATES = frozenset(
    {
        "abstention",
        "accuracy",
        "accuracy_answered",
        "npv",
        "pointing",
        "ppv",
        "sensitivity",
        "sensitivity_answered",
        "specificity",
        "specificity_answered",
    }
)


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    meaning: str
    value: str
    interval: str


@dataclass(frozen=True, slots=True)
class ModelView:
    intended_use: str
    limits: tuple[str, ...]
    evaluated_on: str
    figures: tuple[Figure, ...]


def model_view(manifest: Manifest) -> ModelView:
    evaluation = next(iter(manifest.evaluations), None)
    own = () if evaluation is None or not evaluation.limits else (evaluation.limits,)
    return ModelView(
        intended_use=manifest.intended_use,
        limits=manifest.limits + own,
        evaluated_on="" if evaluation is None else _evaluated_on(evaluation),
        figures=() if evaluation is None else tuple(_figures(evaluation)),
    )


def unit_of(manifest: Manifest | None) -> str:
    """Return what the model's figures count, in the plural, as "nodules"."""
    evaluation = None if manifest is None else next(iter(manifest.evaluations), None)
    return "images" if evaluation is None else plural(evaluation.unit, 2)


def _evaluated_on(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.dataset}, {evaluation.subset}: {evaluation.patients} "
        f"{plural('patient', evaluation.patients)}, {evaluation.count} "
        f"{plural(evaluation.unit, evaluation.count)}, {evaluation.positives} with the finding. "
        f"Figures are per {unit_name(evaluation.unit)}; intervals are over patients."
    )


def _figures(evaluation: Evaluation) -> Iterator[Figure]:
    for key, estimate in evaluation.estimates.items():
        yield _figure(key, estimate)


def _figure(key: str, estimate: Estimate) -> Figure:
    kind, _, prevalence = key.partition(_AT_PREVALENCE)
    name, meaning = _NAMES.get(kind, (key.replace("_", " "), ""))
    if prevalence:
        name, meaning = f"{name} at {percent(float(prevalence))}", "if that share of those examined had it"
    show = percent if kind in _RATES else "{:.3f}".format
    return Figure(name, meaning, show(estimate.value), f"{show(estimate.low)} to {show(estimate.high)}")
