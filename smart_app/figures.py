"""How good a model is known to be, in words and numbers for the page."""

from collections.abc import Iterator
from dataclasses import dataclass

from rayhook.fhir.text import translatable
from rayhook.inference.registry import Estimate, Evaluation, Manifest
from rayhook.smart_app.finding_view import units_text
from rayhook.smart_app.i18n import decimal_text, ngettext
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.numbers import percent

_AT_PREVALENCE = "_at_prevalence_"
_AT_SPECIFICITY = "_at_specificity_"
_ALMOST_ONE = 0.999
_NAMES = {
    "auc": (translatable("Area under the ROC curve"), translatable("1 is perfect, 0.5 is chance")),
    "sensitivity": (
        translatable("Sensitivity"),
        translatable("of those with the finding, the share that is marked"),
    ),
    "specificity": (
        translatable("Specificity"),
        translatable("of those without it, the share that is not marked"),
    ),
    "ppv": (
        translatable("Positive predictive value"),
        translatable("of those marked, the share that has it, at the prevalence of this set"),
    ),
    "npv": (
        translatable("Negative predictive value"),
        translatable("of those not marked, the share without it, at the prevalence of this set"),
    ),
    "accuracy": (translatable("Accuracy"), translatable("the share that is rightly marked or not marked")),
    "average_precision": (
        translatable("Average precision"),
        translatable("mean positive predictive value over all thresholds"),
    ),
    "brier": (
        translatable("Brier score"),
        translatable("mean squared error of the probability, 0 is perfect"),
    ),
    "ece": (
        translatable("Calibration error"),
        translatable("mean gap between probability and observed share"),
    ),
    "abstention": (translatable("Abstained"), translatable("the share that the model declined to judge")),
    "accuracy_answered": (
        translatable("Accuracy where it answered"),
        translatable("without those that the model declined to judge"),
    ),
    "sensitivity_answered": (
        translatable("Sensitivity where it answered"),
        translatable("without those that the model declined to judge"),
    ),
    "specificity_answered": (
        translatable("Specificity where it answered"),
        translatable("without those that the model declined to judge"),
    ),
    "pointing": (
        translatable("Heatmap on the finding"),
        translatable("of those rightly marked, the share whose hottest point lies on it"),
    ),
    "iou": (
        translatable("Heatmap and outline"),
        translatable("shared area of the hottest part and the finding, 1 is perfect"),
    ),
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
        evaluated_on="" if evaluation is None else evaluated_on(evaluation),
        figures=() if evaluation is None else tuple(_figures(evaluation)),
    )


def unit_of(manifest: Manifest | None) -> str | None:
    """Return what a model's figures count, None where it is not known."""
    evaluation = None if manifest is None else next(iter(manifest.evaluations), None)
    return None if evaluation is None else evaluation.unit


def evaluated_on(evaluation: Evaluation) -> str:
    """Return on what and on how many the figures were measured."""
    counts = _(
        "%(dataset)s, %(subset)s: %(patients)s, %(count)s %(units)s, %(positives)s with the finding.",
        dataset=evaluation.dataset,
        subset=evaluation.subset,
        patients=ngettext(
            "%(number)s patient", "%(number)s patients", evaluation.patients, number=evaluation.patients
        ),
        count=evaluation.count,
        units=units_text(evaluation.unit),
        positives=evaluation.positives,
    )
    return f"{counts} {_('Figures count %(units)s; intervals are over patients.', units=units_text(evaluation.unit))}"


def _figures(evaluation: Evaluation) -> Iterator[Figure]:
    for key, estimate in evaluation.estimates.items():
        yield figure(key, estimate)


def figure(key: str, estimate: Estimate) -> Figure:
    """Return an estimate with its name and meaning in words."""
    kind, _mark, given = key.partition(_AT_PREVALENCE)
    if not given:
        kind, _mark, given = key.partition(_AT_SPECIFICITY)
    name, meaning = _NAMES.get(kind, (key.replace("_", " "), ""))
    name, meaning = _(name), _(meaning)
    if _AT_PREVALENCE in key:
        name = _("%(measure)s at a prevalence of %(share)s", measure=name, share=percent(float(given)))
        meaning = _("if that share of those examined had it")
    elif _AT_SPECIFICITY in key:
        name = _("%(measure)s at a specificity of %(share)s", measure=name, share=percent(float(given)))
    show = percent if kind in _RATES else _decimal
    between = _("%(low)s to %(high)s", low=show(estimate.low), high=show(estimate.high))
    return Figure(name, meaning, show(estimate.value), between)


def _decimal(value: float) -> str:
    """Return three digits; what is not perfect is not rounded to it."""
    if _ALMOST_ONE < value < 1:
        return f">\N{NO-BREAK SPACE}{decimal_text(_ALMOST_ONE, 3)}"
    return decimal_text(value, 3)
