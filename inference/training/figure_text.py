"""The words and digits in which figures are shown, the same on the page and on the card."""

from collections.abc import Iterable, Mapping

from rayhook.inference.registry import Estimate
from rayhook.inference.training.evaluation_report import Explanation

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
    "declined": "Share declined by the input check",
    "unsure": "Share too near to the threshold",
    "pointing": "Pointing game",
    "iou": "Heatmap's intersection over union",
    "unseen_minus_seen_sites_auc": "AUC of unseen sites minus that of sites seen in training",
    "sensitivity_any_slice": "Sensitivity in any slice of the nodule",
    "sensitivity_of_four": "Sensitivity of the four strongest candidates, whatever their score",
    "sensitivity_of_four_any_slice": "The same, in any slice of the nodule",
    "candidates_per_view": "Candidates in a crop",
    "candidates_per_slice": "Candidates in a slice of a whole series",
    "false_per_80_cm2": "False candidates per 80 cm2 of lung-like area",
    "in_searched_area": "Share of nodules that reach into the area searched",
    "slices_with_candidates": "Share of slices with a candidate",
}

_SMALLEST_P = 0.001
_FROC, _FALSE = "sensitivity_at_", "_false_per_80_cm2"


def title(name: str) -> str:
    """Return what a figure is called in words."""
    if name.startswith(_FROC) and name.endswith(_FALSE):
        rate = name.removeprefix(_FROC).removesuffix(_FALSE)
        return f"Sensitivity at {rate} false candidates per 80 cm2, threshold chosen on these rows"
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


def counted(number: int, unit: str) -> str:
    """Return a number of units in words."""
    plural = unit if unit.endswith("s") else f"{unit}s"
    return f"{number} {unit if number == 1 else plural}"


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


def heatmap_figures(found: Explanation) -> list[tuple[str, Estimate]]:
    """Return what is known of the heatmap as (title, figure)."""
    figures = [
        (f"Pointing game: {found.pointing_rule}", found.pointing),
        (f"Intersection over union: {found.iou_rule}", found.iou),
        ("Pointing of a random point", found.by_chance),
        ("Pointing of the image's centre", found.at_centre),
        ("Pointing game by cell of the map: the hottest cell meets the mask", found.pointing_by_cell),
        ("Pointing of a random cell", found.by_chance_by_cell),
        ("Rank correlation, in size, of the maps of different images", found.between_images),
    ]
    for one in found.randomised:
        figures += [
            (f"Rank correlation, in size, with the map of a random {one.part}", one.similarity),
            (f"Pointing game with a random {one.part}", one.pointing),
        ]
    return [(words, figure) for words, figure in figures if figure is not None]
