"""The pictures of a classifier's evaluation, by the name of their file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayhook.inference.preprocess import Float
from rayhook.inference.registry import Label
from rayhook.inference.training.bootstrap import roc_band
from rayhook.inference.training.contact_sheet import Example, contact_sheet, draw_examples
from rayhook.inference.training.dataset import Cohort
from rayhook.inference.training.evaluation_report import EvaluationReport
from rayhook.inference.training.evaluation_units import Counted
from rayhook.inference.training.explanation_check import on_grid
from rayhook.inference.training.metrics import Scores as Values
from rayhook.inference.training.plots import (
    ForestRow,
    confidence_of,
    forest_plot,
    reliability_plot,
    risk_coverage_plot,
    roc_plot,
    score_plot,
)
from rayhook.inference.training.report_page import Picture


@dataclass(frozen=True, slots=True)
class Material:
    """What the pictures are drawn from. trivial: scores of each unit, by name."""

    label: Label
    cohort: Cohort
    cams: Float
    unit: Counted
    trivial: Mapping[str, Values]
    report: EvaluationReport


def draw(material: Material) -> dict[str, Picture]:
    """Return the pictures."""
    answers, report = material.unit.answers, material.report
    pictures = {
        "reliability": Picture("Calibration", reliability_plot(answers, report.reliability)),
        "scores": Picture("Probabilities by class", score_plot(answers, report.selection)),
        "risk_coverage": Picture(
            "Errors among the answered, the surest first",
            risk_coverage_plot(answers, confidence_of(answers.probabilities, answers.threshold)),
        ),
        "examples": Picture(
            "Drawn by lot, at most one a patient; right of each image the heatmap and the reader's outline",
            contact_sheet(_examples(material)),
            wide=True,
        ),
    }
    if 0 < report.positives < report.count:
        band = roc_band(
            answers.labels, answers.probabilities, answers.patients, rounds=report.resampling.rounds
        )
        roc = roc_plot(answers, band=band, baselines=material.trivial)
        pictures = {"roc": Picture("ROC curve", roc), **pictures}
    if any(part.estimates for part in report.subgroups):
        pictures["subgroups"] = Picture("Subgroups", forest(report), wide=True)
    return pictures


def forest(report: EvaluationReport, names: Sequence[str] = ("auc", "sensitivity", "specificity")) -> bytes:
    """Return the figures of all and of each subgroup that has some, one panel a figure."""
    whole = ForestRow("all", report.patients, report.count, report.estimates)
    parts = [
        ForestRow(f"{part.name} {part.value}", part.patients, part.count, part.estimates)
        for part in report.subgroups
        if part.estimates
    ]
    return forest_plot([whole, *parts], names)


def _examples(material: Material) -> dict[str, list[Example]]:
    drawn = draw_examples(material.unit.answers)
    return {
        name: [_example(material, int(material.unit.shown[unit]), int(unit)) for unit in units]
        for name, units in drawn.items()
    }


def _example(material: Material, row: int, unit: int) -> Example:
    plane, mask = material.cohort.planes[row], material.cohort.masks[row]
    heat = on_grid(material.cams[row : row + 1], plane.shape[0])[0] / np.float32(material.label.cam_scale)
    return Example(
        caption=f"probability {material.unit.answers.probabilities[unit]:.2f}",
        plane=plane,
        heat=np.clip(heat, 0, 1),
        mask=mask if mask.any() else None,
    )
