"""Plots of an evaluation as PNG, the same bytes for the same figures; no global drawing state is left."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayhook.inference.registry import Estimate
from rayhook.inference.training.bootstrap import Answers, RocBand
from rayhook.inference.training.conformal import SelectiveRule
from rayhook.inference.training.figure_text import percent
from rayhook.inference.training.metrics import (
    Labels,
    ReliabilityBin,
    Scores,
    area,
    operating_points,
    risk_coverage,
    weighted_rate,
)

INK, MUTED, LINE = "#1b2430", "#55616f", "#dbe0e8"
MODEL, POSITIVE, NEGATIVE = "#24418f", "#d9641e", "#5b7fb5"

_OTHERS = ("#7a5195", "#2a7f62", "#9a6a00", "#8a8f98")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}
DPI = 144
_SQUARE = (4.8, 4.6)
_WIDE = (5.8, 3.8)
_CONFIDENT = 1e-12
_BINS = 25

P = ParamSpec("P")


def png(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """Return a drawing function that answers with PNG bytes, whatever the user's matplotlib settings."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        file = io.BytesIO()
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            draw(*args, **kwargs).savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()

    return drawn


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


@png
def roc_plot(
    answers: Answers, *, band: RocBand | None = None, baselines: Mapping[str, Scores] | None = None
) -> Figure:
    """Return the ROC curve with its band, the operating point and the curves of the baselines."""
    figure, axes = _axes(_SQUARE)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
    if band is not None:
        axes.fill_between(band.false_positive_rate, band.low, band.high, color=MODEL, alpha=0.15, linewidth=0)
    for colour, (name, scores) in zip(_OTHERS, (baselines or {}).items(), strict=False):
        _curve(axes, answers.labels, scores, name, colour, width=1.2)
    _curve(axes, answers.labels, answers.probabilities, "model", MODEL, width=2.0)
    _operating_point(axes, answers)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 - specificity", ylabel="sensitivity")
    axes.set_title("ROC curve, 95 % band over patients" if band else "ROC curve")
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    return figure


def _curve(axes: Axes, labels: Labels, scores: Scores, name: str, colour: str, *, width: float) -> None:
    points = operating_points(labels, scores)
    axes.plot(
        points.false_positive_rate[0],
        points.sensitivity[0],
        color=colour,
        linewidth=width,
        label=f"{name}, AUC {area(points)[0]:.3f}",
    )


def _operating_point(axes: Axes, answers: Answers) -> None:
    ones = np.ones((1, answers.labels.size))
    truth = answers.labels == 1
    sensitivity = weighted_rate(answers.positive, truth, ones)[0]
    specificity = weighted_rate(~answers.positive, ~truth, ones)[0]
    axes.plot(
        [1 - specificity],
        [sensitivity],
        marker="o",
        markersize=8,
        color=POSITIVE,
        markeredgecolor="white",
        linestyle="none",
        zorder=5,
        label=f"threshold {answers.threshold:.3f}: sens. {sensitivity:.3f}, spec. {specificity:.3f}",
    )


@png
def reliability_plot(answers: Answers, bins: Sequence[ReliabilityBin]) -> Figure:
    """Return observed against predicted shares with their intervals, over a histogram of probabilities."""
    figure = Figure(figsize=(4.8, 5.4), dpi=DPI, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    observed = np.array([[b.observed.value, b.observed.low, b.observed.high] for b in bins]).T
    predicted = np.array([b.predicted for b in bins])
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
    spread = np.maximum(np.stack([observed[0] - observed[1], observed[2] - observed[0]]), 0)
    axes.errorbar(
        predicted,
        observed[0],
        yerr=spread,
        color=MODEL,
        marker="o",
        markersize=5,
        linewidth=1.2,
        elinewidth=1.0,
        capsize=2.5,
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share with the finding")
    axes.set_title("Calibration, 95 % Wilson intervals")
    below.hist(answers.probabilities, bins=np.linspace(0, 1, _BINS + 1).tolist(), color=MODEL, alpha=0.75)
    below.set(xlabel="calibrated probability", ylabel="images", yscale="log")
    return figure


@png
def risk_coverage_plot(answers: Answers, confidence: Scores) -> Figure:
    """Return the error rate against the share answered, the most confident first."""
    correct = answers.positive == (answers.labels == 1)
    coverage, risk = risk_coverage(correct, confidence)
    figure, axes = _axes(_WIDE)
    axes.step(coverage, risk, where="post", color=MODEL, linewidth=1.8)
    answered = answers.answered
    if answered.any():
        axes.plot(
            [answered.mean()],
            [1 - correct[answered].mean()],
            marker="o",
            markersize=8,
            color=POSITIVE,
            markeredgecolor="white",
            linestyle="none",
            label=f"as shipped: {percent(answered.mean())} answered, {percent(1 - correct[answered].mean())} wrong",
        )
        axes.legend(loc="upper left")
    axes.set(xlim=(0, 1.01), xlabel="share of images answered", ylabel="error rate among them")
    axes.set_ylim(bottom=0)
    axes.set_title("Risk and coverage")
    return figure


@png
def score_plot(answers: Answers, rule: SelectiveRule | None = None) -> Figure:
    """Return the histograms of the probabilities by class, with the threshold and the unsure range."""
    figure, axes = _axes(_WIDE)
    edges = np.linspace(0, 1, _BINS + 1).tolist()
    for value, colour, name in ((0, NEGATIVE, "without the finding"), (1, POSITIVE, "with the finding")):
        chosen = answers.probabilities[answers.labels == value]
        label = f"{name} (n = {chosen.size})"
        axes.hist(chosen, bins=edges, histtype="step", color=colour, linewidth=1.6, label=label)
        axes.hist(chosen, bins=edges, histtype="stepfilled", color=colour, alpha=0.25)
    if rule is not None and rule.high > rule.low:
        axes.axvspan(rule.low, min(rule.high, 1.0), color=MUTED, alpha=0.15, linewidth=0, label="not sure")
    axes.axvline(
        answers.threshold,
        color=INK,
        linewidth=1.2,
        linestyle="--",
        label=f"threshold {answers.threshold:.3f}",
    )
    axes.set(xlim=(0, 1), xlabel="calibrated probability", ylabel="images (log scale)", yscale="log")
    axes.set_title("Probabilities by class")
    axes.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.18))
    return figure


@png
def froc_plot(false_rate: Scores, sensitivity: Scores, now: tuple[float, float]) -> Figure:
    """Return sensitivity against false candidates per 80 cm2 as the threshold falls; now: as shipped."""
    figure, axes = _axes(_WIDE)
    axes.step(false_rate, sensitivity, where="post", color=MODEL, linewidth=1.8)
    axes.plot(
        [now[0]],
        [now[1]],
        marker="o",
        markersize=8,
        color=POSITIVE,
        markeredgecolor="white",
        linestyle="none",
        label=f"as shipped: {now[1]:.3f} at {now[0]:.2f}",
    )
    axes.set(ylim=(0, 1.01), xlabel="false candidates per 80 cm²", ylabel="nodules found")
    axes.set_xlim(left=0)
    axes.set_title("Free-response ROC")
    axes.legend(loc="lower right")
    return figure


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One line of a forest plot: what it is of, how many, and its figures by name."""

    name: str
    patients: int
    count: int
    estimates: Mapping[str, Estimate]


@png
def forest_plot(
    rows: Sequence[ForestRow], names: Sequence[str] = ("auc", "sensitivity", "specificity")
) -> Figure:
    """Return figures of subgroups with their intervals, one panel a figure; the first row is the reference."""
    figure = Figure(figsize=(8.2, 1.2 + 0.3 * len(rows)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _forest_panel(axes, rows, name)
    panels[0].set_yticks(
        range(len(rows)), [f"{row.name}\n{row.patients} patients, n = {row.count}" for row in rows]
    )
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _forest_panel(axes: Axes, rows: Sequence[ForestRow], name: str) -> None:
    lowest = 1.0
    for place, row in enumerate(rows):
        found = row.estimates.get(name)
        if found is None or not np.isfinite([found.value, found.low, found.high]).all():
            continue
        colour = INK if place == 0 else MODEL
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.4)
        axes.plot([found.value], [place], marker="s", markersize=5, color=colour, linestyle="none")
        if place == 0:
            axes.axvline(found.value, color=MUTED, linewidth=0.8, linestyle=":")
        lowest = min(lowest, found.low)
    axes.set_xlim(max(0.0, lowest - 0.05), 1.01)
    axes.set_title("AUC" if name == "auc" else name.replace("_", " "))
    axes.grid(visible=False, axis="y")


def confidence_of(probabilities: Scores, threshold: float) -> Scores:
    """Return how far each probability is from the threshold, in log odds, for the risk-coverage curve."""
    inner = np.clip(probabilities, _CONFIDENT, 1 - _CONFIDENT)
    odds: Scores = np.log(inner / (1 - inner)) - np.log(threshold / (1 - threshold))
    return np.abs(odds)
