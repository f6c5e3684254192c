"""The words and digits in which figures are shown, the same on the page and on the card."""

from collections.abc import Iterable, Mapping

from rayhook.inference.registry import Estimate

TITLES = {
    "auc": "AUC",
    "sensitivity": "Sensitivity at the threshold",
    "specificity": "Specificity at the threshold",
    "ppv": "PPV at the sample's prevalence",
    "npv": "NPV at the sample's prevalence",
    "accuracy": "Accuracy",
    "average_precision": "Average precision",
    "youden": "Youden index, best threshold",
    "brier": "Brier score",
    "ece": "Expected calibration error, 10 bins of equal count",
    "abstention": "Share not answered",
    "accuracy_answered": "Accuracy where answered",
    "sensitivity_answered": "Sensitivity where answered",
    "specificity_answered": "Specificity where answered",
}

_SMALLEST_P = 0.001


def title(name: str) -> str:
    """Return what a figure is called in words."""
    for start, words in (
        ("sensitivity_at_specificity_", "Sensitivity where specificity is"),
        ("specificity_at_sensitivity_", "Specificity where sensitivity is"),
    ):
        if name.startswith(start):
            return f"{words} {percent(float(name.removeprefix(start)))}, threshold chosen on these rows"
    return TITLES.get(name, name.replace("_", " ").capitalize())


def ordered(estimates: Mapping[str, Estimate]) -> list[tuple[str, Estimate]]:
    """Return the estimates as (title, figure): those named here first, then the rest by name."""
    known = [name for name in TITLES if name in estimates]
    rest = sorted(estimates.keys() - TITLES.keys())
    return [(title(name), estimates[name]) for name in (*known, *rest)]


def interval(found: Estimate | None) -> str:
    """Return a figure with its interval, to three decimals."""
    if found is None:
        return "not estimable"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def percent(share: float) -> str:
    """Return a share in percent, to one decimal."""
    return f"{round(100 * share, 1):g} %"


def p_value(p: float | None) -> str:
    """Return a p-value to three decimals, never 0."""
    if p is None:
        return "not testable"
    return f"{p:.3f}" if p >= _SMALLEST_P else f"below {_SMALLEST_P}"


def shown(estimates: Mapping[str, Estimate], names: Iterable[str]) -> list[str]:
    """Return the figures of those names as text, a dash where there is none."""
    return [interval(estimates[name]) if name in estimates else "-" for name in names]
