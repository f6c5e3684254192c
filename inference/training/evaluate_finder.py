"""Figures of a candidate finder: how many nodules it proposes, and at what cost in false candidates."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from rayhook.inference.candidates import MAX_CANDIDATES
from rayhook.inference.engine import InferenceEngine, LocalEngine
from rayhook.inference.registry import Estimate, ModelPackage
from rayhook.inference.training.bootstrap import ROUNDS, Answers, weighted_bootstrap
from rayhook.inference.training.dataset import LABELS, Sample, read_grey
from rayhook.inference.training.dataset_notes import notes_on
from rayhook.inference.training.evaluated import Evaluated, step
from rayhook.inference.training.evaluation_pictures import forest
from rayhook.inference.training.evaluation_report import (
    EvaluationReport,
    Resampling,
    Subgroup,
    Threshold,
    UnitFigures,
    environment,
    file_sha256,
    finite,
)
from rayhook.inference.training.evaluation_rows import rows_to_evaluate
from rayhook.inference.training.finder_series import count_candidates
from rayhook.inference.training.finder_views import Found, View, look, view
from rayhook.inference.training.metrics import Flags, Weights, ratio, weighted_mean, weighted_rate
from rayhook.inference.training.metrics import Scores as Values
from rayhook.inference.training.plots import froc_plot
from rayhook.inference.training.recipe import Recipe
from rayhook.inference.training.report_page import Picture
from rayhook.inference.training.subgroups import RATING, RULES, measured, subgroups
from rayhook.inference.training.trivial import number

FALSE_RATES = (0.25, 0.5, 1.0, 2.0, 4.0)

_MM2 = 8000.0
_OPAQUE = 127
_LIMITS = (
    f"Crops around one nodule, their edges moved in at random, with at most {MAX_CANDIDATES} candidates a crop; a whole slice has more lung in which to go wrong and no more candidates.",
    "A candidate on another true nodule of the crop counts as false; lung-like area is told by grey level alone.",
)
_CROP_LIMITS = "Every labelled crop, not the one with the largest outline alone."
_THRESHOLD = (
    "from the package's manifest, where packaging wrote it, of development patients, who are training patients. "
    "Nothing was chosen on these rows, but where a figure says so."
)


def evaluate_finder(
    package: ModelPackage,
    recipe: Recipe,
    dataset_dir: Path,
    split: str | None,
    *,
    cache_dir: Path,
    threads: int = 1,
    console: Console | None = None,
    rounds: int = ROUNDS,
    series: Path | None = None,
) -> Evaluated:
    """Return the evaluation of a finder by nodule, and in the slices of a DICOM folder if one is given.

    Raises DatasetRefused if no row is left or a patient is in two splits, or series shows no CT slice.
    """
    samples, name = rows_to_evaluate(dataset_dir, recipe.data, split)
    with contextlib.closing(LocalEngine(package, cache_dir, threads=threads)) as engine:
        with step(console, "looking for candidates", len(samples)) as advance:
            views, found = _look(samples, dataset_dir, package, engine, advance)
        with step(console, "reading the series"):
            slices = None if series is None else count_candidates(series, package, engine, rounds=rounds)
    case = _Case(package, recipe, dataset_dir, samples, views, found, rounds)
    with step(console, "estimating"):
        report = case.report(name, slices)
    return Evaluated(report, lambda: _pictures(case, report))


def _look(
    samples: Sequence[Sample],
    folder: Path,
    package: ModelPackage,
    engine: InferenceEngine,
    advance: Callable[[], Any],
) -> tuple[list[View], list[Found]]:
    views, found = [], []
    for sample in samples:
        pixels = read_grey(folder / sample.path)
        lesion = np.zeros(pixels.shape, np.bool_)
        if sample.mask is not None:
            lesion = read_grey(folder / sample.mask) > _OPAQUE
        one = view(pixels, lesion, sample.spacing_mm or 1.0, name=sample.path)
        views.append(one)
        found.append(look(one, radius_mm(sample, one), finder=package, engine=engine))
        advance()
    return views, found


def radius_mm(sample: Sample, one: View) -> float:
    """Return the nodule's radius: by the readers' diameter, else of a disc as large as its mask."""
    diameter = number(sample.attributes.get("diameter_mm_median"))
    if np.isfinite(diameter):
        return diameter / 2
    return float(np.sqrt(one.lesion.sum() / np.pi)) * one.spacing_mm


@dataclass(frozen=True)
class _Case:
    """All that figures are computed from, one view a crop."""

    package: ModelPackage
    recipe: Recipe
    folder: Path
    samples: tuple[Sample, ...]
    views: Sequence[View]
    found: Sequence[Found]
    rounds: int

    @property
    def threshold(self) -> float:
        return self.package.manifest.labels[0].threshold

    @cached_property
    def patients(self) -> NDArray[np.str_]:
        return np.array([sample.patient_id for sample in self.samples], np.str_)

    @cached_property
    def best(self) -> Values:
        """Return the score of the best hit in each view, 0 without one."""
        return np.array([one.best for one in self.found])

    @cached_property
    def false(self) -> Values:
        """Return the scores of all false candidates, falling."""
        return np.sort(np.array([score for one in self.found for score in one.false]))[::-1]

    @cached_property
    def groups(self) -> NDArray[np.str_]:
        return np.array([sample.group for sample in self.samples], np.str_)

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """Return for each nodule the view with the largest outline, before its edges were moved."""
        sizes = np.array([one.lesion.sum() for one in self.views])
        rows = [np.flatnonzero(self.groups == name) for name in np.unique(self.groups)]
        return np.array([row[sizes[row].argmax()] for row in rows], np.int64)

    @cached_property
    def best_of_any(self) -> Values:
        """Return for each view the best hit in any view of its nodule."""
        names, member = np.unique(self.groups, return_inverse=True)
        highest = np.zeros(names.size)
        np.maximum.at(highest, member, self.best)
        return np.asarray(highest[member], np.float64)

    @property
    def area(self) -> float:
        """Return the area looked at in all views, in units of 80 cm2."""
        return sum(one.area_mm2 for one in self.views) / _MM2

    def threshold_at(self, rate: float) -> float:
        """Return the lowest threshold at which no more than rate false candidates are left per 80 cm2."""
        allowed = int(rate * self.area)
        return float(np.nextafter(self.false[allowed], np.inf)) if allowed < self.false.size else 0.0

    def report(self, split: str, slices: UnitFigures | None) -> EvaluationReport:
        manifest = self.package.manifest
        estimates = self.estimates(self.nodules)
        if slices is not None and "candidates_per_slice" in slices.estimates:
            estimates["candidates_per_slice"] = slices.estimates["candidates_per_slice"]
        return EvaluationReport(
            model_id=manifest.id,
            model_version=manifest.version,
            model_status=manifest.status.value,
            weights_sha256=manifest.weights_sha256,
            label=manifest.labels[0].name,
            dataset=self.folder.name,
            split=split,
            labels_sha256=file_sha256(self.folder / LABELS),
            unit="nodule",
            patients=np.unique(self.patients).size,
            count=self.shown.size,
            positives=self.shown.size,
            threshold=Threshold(self.threshold, _THRESHOLD),
            estimates=estimates,
            prevalence_table=(),
            reliability=(),
            selection=None,
            subgroups=self.subgroups(),
            baselines=(),
            explanation=None,
            other_units=(self.crops(), *([] if slices is None else [slices])),
            limits=(*_LIMITS, *notes_on(self.recipe.data.dataset).limits[1:]),
            resampling=Resampling(self.rounds, 0),
            environment=environment(),
        )

    @cached_property
    def nodules(self) -> Flags:
        """Return which views stand for their nodule."""
        return np.isin(np.arange(len(self.samples)), self.shown)

    def estimates(self, rows: Flags) -> dict[str, Estimate]:
        """Return the figures with sensitivity over those views, and false candidates over all."""
        reached = np.array([one.is_reached for one in self.views])
        rates = {rate: self.threshold_at(rate) for rate in FALSE_RATES}

        def figures(weights: Weights) -> Mapping[str, Values]:
            return {
                "sensitivity": weighted_rate(self.hit(self.threshold), rows, weights),
                "sensitivity_any_slice": weighted_rate(self.best_of_any >= self.threshold, rows, weights),
                "sensitivity_of_four": weighted_rate(self.best > 0, rows, weights),
                "sensitivity_of_four_any_slice": weighted_rate(self.best_of_any > 0, rows, weights),
                "in_searched_area": weighted_rate(reached, rows, weights),
                **self.cost(weights),
                **{
                    f"sensitivity_at_{rate:g}_false_per_80_cm2": weighted_rate(self.hit(least), rows, weights)
                    for rate, least in rates.items()
                },
            }

        return finite(weighted_bootstrap(self.patients, figures, rounds=self.rounds))

    def hit(self, threshold: float) -> Flags:
        return np.asarray((self.best >= threshold) & (self.best > 0), np.bool_)

    def cost(self, weights: Weights) -> dict[str, Values]:
        """Return false candidates per 80 cm2, and candidates a view, at the threshold."""
        false = np.array([sum(score >= self.threshold for score in one.false) for one in self.found])
        hits = np.array([sum(score >= self.threshold for score in one.hits) for one in self.found])
        area = np.array([one.area_mm2 for one in self.views]) / _MM2
        return {
            "false_per_80_cm2": ratio(weights @ false, weights @ area),
            "candidates_per_view": weighted_mean((false + hits).astype(np.float64), weights),
        }

    def subgroups(self) -> tuple[Subgroup, ...]:
        samples = [self.samples[k] for k in self.shown]
        answers = Answers(
            labels=np.ones(self.shown.size, np.int64),
            probabilities=self.best[self.shown],
            patients=self.patients[self.shown],
            answered=np.ones(self.shown.size, np.bool_),
            threshold=self.threshold,
        )

        def sensitivity(rows: Flags) -> dict[str, Estimate]:
            def figures(weights: Weights) -> Mapping[str, Values]:
                return {"sensitivity": weighted_mean(hit[rows].astype(np.float64), weights)}

            return finite(weighted_bootstrap(answers.patients[rows], figures, rounds=self.rounds))

        hit = self.hit(self.threshold)[self.shown]
        return measured(answers, subgroups(samples, rules=(*RULES, RATING)), sensitivity)

    def crops(self) -> UnitFigures:
        everything = np.ones(len(self.samples), np.bool_)
        figures = self.estimates(everything)
        return UnitFigures(
            unit="crop",
            patients=np.unique(self.patients).size,
            count=everything.size,
            positives=everything.size,
            estimates={name: figures[name] for name in ("sensitivity",) if name in figures},
            limits=_CROP_LIMITS,
        )


def _pictures(case: _Case, report: EvaluationReport) -> dict[str, Picture]:
    scores = np.unique(np.concatenate([case.best, case.false]))[::-1]
    false = np.searchsorted(-case.false, -scores, side="right") / case.area
    hits = np.array([case.hit(float(score))[case.shown].mean() for score in scores])
    now = (
        report.estimates["false_per_80_cm2"].value,
        report.estimates["sensitivity"].value,
    )
    pictures = {"froc": Picture("Nodules found against false candidates", froc_plot(false, hits, now))}
    if any(part.estimates for part in report.subgroups):
        pictures["subgroups"] = Picture("Subgroups", forest(report, ("sensitivity",)), wide=True)
    return pictures
