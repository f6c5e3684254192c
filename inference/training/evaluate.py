"""Figures of a package as it ships: its weights, its engine, its preprocessing, on patients held out."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from rayhook.inference.engine import InferenceEngine, LocalEngine
from rayhook.inference.predict import Prediction, predict
from rayhook.inference.preprocess import Float, normalise
from rayhook.inference.registry import Estimate, Label, Manifest, ModelPackage, Role
from rayhook.inference.training.bootstrap import ROUNDS, Questions, estimates
from rayhook.inference.training.comparison import subset_difference
from rayhook.inference.training.conformal import SelectiveRule
from rayhook.inference.training.dataset import LABELS, Cohort, load_cohort
from rayhook.inference.training.dataset_notes import DatasetNotes, notes_on
from rayhook.inference.training.evaluated import Evaluated, step, to_evaluations
from rayhook.inference.training.evaluation_pictures import Material, draw
from rayhook.inference.training.evaluation_report import (
    Baseline,
    EvaluationReport,
    Resampling,
    Subgroup,
    Threshold,
    UnitFigures,
    baseline,
    environment,
    file_sha256,
    finite,
    prevalence_table,
    without_prevalences,
)
from rayhook.inference.training.evaluation_rows import rows_to_evaluate
from rayhook.inference.training.evaluation_units import Counted, Scores, count
from rayhook.inference.training.explanation_check import Pointing, explain, point
from rayhook.inference.training.metrics import Scores as Values
from rayhook.inference.training.metrics import reliability_bins
from rayhook.inference.training.recipe import Recipe
from rayhook.inference.training.subgroups import measured, of_classes, subgroups

__all__ = ["Scores", "evaluate", "evaluate_package", "score", "to_evaluations"]

THRESHOLD_SOURCE = (
    "from the package's manifest, where packaging wrote it: the highest that finds at least {share} of the "
    "positives among the development patients, who are training patients. Nothing was chosen on these rows."
)

_WHOLE = ("series", "patient")
_OF_IMAGES = ("pointing", "iou")


def evaluate_package(
    package: ModelPackage,
    recipe: Recipe,
    dataset_dir: Path,
    split: str | None,
    *,
    cache_dir: Path,
    threads: int = 1,
    console: Console | None = None,
    rounds: int = ROUNDS,
) -> EvaluationReport:
    """Return the report of a package on a labelled folder; see evaluate."""
    found = evaluate(
        package,
        recipe,
        dataset_dir,
        split,
        cache_dir=cache_dir,
        threads=threads,
        console=console,
        rounds=rounds,
    )
    return found.report


def evaluate(
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
    """Return the evaluation of a package on one split, or on all that is not of split train.

    recipe: how labels.csv is read.  series: a folder of DICOM files, for finders.  Images that the model declines count as they would be answered, and
    their share is among the figures.
    Raises DatasetRefused if no row is left or a patient is in two splits.
    """
    if package.manifest.role is Role.FINDER:
        from rayhook.inference.training.evaluate_finder import evaluate_finder

        return evaluate_finder(
            package,
            recipe,
            dataset_dir,
            split,
            cache_dir=cache_dir,
            threads=threads,
            console=console,
            rounds=rounds,
            series=series,
        )
    samples, name = rows_to_evaluate(dataset_dir, recipe.data, split)
    with step(console, "reading images"):
        cohort = load_cohort(samples, dataset_dir, package.manifest.preprocessing)
    with (
        contextlib.closing(LocalEngine(package, cache_dir, threads=threads)) as engine,
        step(console, "asking the model", len(samples)) as advance,
    ):
        scores = score(package, engine, cohort.planes, advance=advance)
    case = _Case(package, recipe, dataset_dir, cohort, scores, rounds)
    with step(console, "estimating"):
        report = case.report(name)
    label = package.manifest.labels[0]
    material = Material(label, cohort, scores.cams, case.units[0], case.trivial, report)
    return Evaluated(report, lambda: draw(material))


def score(
    package: ModelPackage,
    engine: InferenceEngine,
    planes: Float,
    *,
    advance: Callable[[], Any] = lambda: None,
) -> Scores:
    """Return the package's answers for planes (n, size, size) in 0..1; advance is called after each."""
    labels = len(package.manifest.labels)
    answers: list[Prediction] = []
    for plane in planes:
        image = normalise(plane, recipe=package.manifest.preprocessing)
        answers += predict(package, engine, image)[::labels]
        advance()
    return Scores(
        probabilities=np.nan_to_num(np.array([a.probability for a in answers])),
        logits=np.nan_to_num(np.array([a.logit for a in answers])),
        abstained=np.array([a.abstained for a in answers], np.bool_),
        cams=np.stack([a.cam for a in answers]),
    )


@dataclass(frozen=True)
class _Case:
    """All that figures are computed from."""

    package: ModelPackage
    recipe: Recipe
    folder: Path
    cohort: Cohort
    scores: Scores
    rounds: int

    @cached_property
    def notes(self) -> DatasetNotes:
        return notes_on(self.recipe.data.dataset)

    @cached_property
    def units(self) -> tuple[Counted, ...]:
        return count(self.package.manifest, self.cohort, self.scores)

    def report(self, split: str) -> EvaluationReport:
        """Return the report; the first unit is the one it is told by."""
        manifest, found = self.package.manifest, point(self.cohort, self.scores.cams)
        first, *others = self.units
        answers = first.answers
        figures = self.estimates(first, found)
        return EvaluationReport(
            model_id=manifest.id,
            model_version=manifest.version,
            model_status=manifest.status.value,
            weights_sha256=manifest.weights_sha256,
            label=manifest.labels[0].name,
            dataset=self.folder.name,
            split=split,
            labels_sha256=file_sha256(self.folder / LABELS),
            unit=first.unit,
            patients=np.unique(answers.patients).size,
            count=answers.labels.size,
            positives=int(answers.labels.sum()),
            threshold=_threshold(manifest, self.recipe),
            estimates={**of_classes(answers, without_prevalences(figures)), **self.unseen(first)},
            prevalence_table=prevalence_table(figures, self.notes.prevalences),
            reliability=reliability_bins(answers.labels, answers.probabilities),
            selection=_selection(manifest.labels[0], self.recipe),
            subgroups=self.subgroups(first, found),
            baselines=self.baselines(first),
            explanation=explain(self.package, self.cohort, self.scores.cams, found, rounds=self.rounds),
            other_units=tuple(self.other(unit, found) for unit in others),
            limits=self.notes.limits,
            resampling=Resampling(self.rounds, 0),
            environment=environment(),
        )

    def estimates(
        self, unit: Counted, found: Pointing, rows: NDArray[np.bool_] | None = None
    ) -> dict[str, Estimate]:
        """Return the figures of a unit, or of some rows of it."""
        chosen = np.ones(unit.answers.labels.size, np.bool_) if rows is None else rows
        more = {
            "declined": unit.declined[chosen].astype(np.float64),
            "unsure": unit.unsure[chosen].astype(np.float64),
            "pointing": unit.row_means(found.pointing)[chosen],
            "iou": unit.row_means(found.iou)[chosen],
        }
        questions = Questions(self.notes.prevalences, specificities=self.notes.specificities)
        return estimates(unit.answers.chosen(chosen), questions, more=more, rounds=self.rounds)

    def subgroups(self, unit: Counted, found: Pointing) -> tuple[Subgroup, ...]:
        samples = [self.cohort.samples[k] for k in unit.shown]
        return measured(
            unit.answers,
            subgroups(samples, known_sites=self.notes.known_sites),
            lambda rows: self.estimates(unit, found, rows),
        )

    def other(self, unit: Counted, found: Pointing) -> UnitFigures:
        answers = unit.answers
        figures = of_classes(answers, without_prevalences(self.estimates(unit, found)))
        if unit.unit in _WHOLE:
            figures = {name: one for name, one in figures.items() if name not in _OF_IMAGES}
        return UnitFigures(
            unit=unit.unit,
            patients=np.unique(answers.patients).size,
            count=answers.labels.size,
            positives=int(answers.labels.sum()),
            estimates=dict(figures),
            limits=self.notes.joined_limits,
        )

    def unseen(self, unit: Counted) -> Mapping[str, Estimate]:
        """Return what is lost on sites that were not in training, where there are both."""
        sites = np.array([self.cohort.samples[k].site for k in unit.shown], np.str_)
        unseen = ~np.isin(sites, sorted(self.notes.known_sites))
        if not self.notes.known_sites or unseen.all() or not unseen.any():
            return {}
        answers = unit.answers
        lost = subset_difference(
            answers.labels, answers.probabilities, answers.patients, subset=unseen, rounds=self.rounds
        )
        return finite({"unseen_minus_seen_sites_auc": lost})

    @cached_property
    def trivial(self) -> dict[str, Values]:
        """Return the trivial scores of each unit, those that every unit has."""
        unit = self.units[0]
        found = {
            one.name: unit.row_means(np.array([one.score(s, self.folder) for s in self.cohort.samples]))
            for one in self.notes.baselines
        }
        return {name: values for name, values in found.items() if np.isfinite(values).all()}

    def baselines(self, unit: Counted) -> tuple[Baseline, ...]:
        scores = self.trivial.items()
        return tuple(baseline(name, values, unit.answers, rounds=self.rounds) for name, values in scores)


def _threshold(manifest: Manifest, recipe: Recipe) -> Threshold:
    share = f"{recipe.selection.sensitivity:.0%}"
    return Threshold(manifest.labels[0].threshold, THRESHOLD_SOURCE.format(share=share))


def _selection(label: Label, recipe: Recipe) -> SelectiveRule | None:
    if label.unsure is None:
        return None
    return SelectiveRule(*label.unsure, recipe.selection.alpha, recipe.selection.alpha)
