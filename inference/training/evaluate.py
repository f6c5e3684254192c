"""Figures of a package as it ships: its weights, its engine, its preprocessing, on patients held out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.aggregate import max_of_median3
from rayhook.inference.engine import InferenceEngine, LocalEngine
from rayhook.inference.predict import Prediction, predict
from rayhook.inference.preprocess import Float, normalise
from rayhook.inference.registry import Estimate, Evaluation, ModelPackage
from rayhook.inference.training.dataset import Cohort, DatasetRefused, load_cohort, read_samples
from rayhook.inference.training.metrics import binary_metrics, cluster_bootstrap

_SLICE_LIMITS = (
    "Every patient has a tumour, so specificity is that of tumour-free slices of patients with tumour; "
    "labels are one published segmentation; 8-bit images of three institutions also seen in training."
)
_SERIES_LIMITS = "Sensitivity only: no patient without tumour is in the data set, so series-level specificity is not evaluated."


@dataclass(frozen=True, slots=True)
class Scores:
    """The answers for a cohort's images, in its order; first label only."""

    probabilities: NDArray[np.float64]
    logits: NDArray[np.float64]
    abstained: NDArray[np.bool_]
    cams: Float


def evaluate(
    package: ModelPackage, dataset_dir: Path, split: str, *, cache_dir: Path, threads: int = 1
) -> tuple[Evaluation, ...]:
    """Return the figures on one split: slices, slices of each site, and series.

    Abstentions count as they would be answered, and their rate is among the figures.
    Raises DatasetRefused if the split is empty or shares a patient with another.
    """
    samples = [sample for sample in read_samples(dataset_dir) if sample.split == split]
    if not samples:
        raise DatasetRefused(f"rule split-exists: no sample of split {split}")
    cohort = load_cohort(samples, dataset_dir, package.manifest.preprocessing)
    engine = LocalEngine(package, cache_dir, threads=threads)
    scores = score(package, engine, cohort.planes)
    engine.close()
    return measure(package, cohort, scores, name=f"{dataset_dir.name}, split {split}")


def measure(package: ModelPackage, cohort: Cohort, scores: Scores, *, name: str) -> tuple[Evaluation, ...]:
    """Return the figures of scores already had; see evaluate."""
    everyone = np.ones(len(cohort.samples), np.bool_)
    sites = [(f"site {site}", cohort.sites == site) for site in np.unique(cohort.sites)]
    slices = [
        _of_slices(package, cohort, scores, chosen, name=name, subset=subset)
        for subset, chosen in [("all", everyone), *sites]
    ]
    return (*slices, _of_series(package, cohort, scores, name))


def score(package: ModelPackage, engine: InferenceEngine, planes: Float) -> Scores:
    """Return the package's answers for planes (n, size, size) in 0..1."""
    count = len(package.manifest.labels)
    answers: list[Prediction] = []
    for plane in planes:
        image = normalise(plane, recipe=package.manifest.preprocessing)
        answers += predict(package, engine, image)[::count]
    return Scores(
        probabilities=np.array([a.probability for a in answers]),
        logits=np.array([a.logit for a in answers]),
        abstained=np.array([a.abstained for a in answers], np.bool_),
        cams=np.stack([a.cam for a in answers]),
    )


def pointing_hits(cohort: Cohort, cams: Float) -> NDArray[np.float64]:
    """Return 1 where the map's hottest cell meets the lesion mask, 0 where not, NaN without a mask.

    Source: Zhang et al. 2016, arXiv:1608.00507, section 4.2 (pointing game), at the map's resolution
    """
    side = cams.shape[1]
    cell = cohort.masks.shape[1] // side
    lesions = cohort.masks.reshape(-1, side, cell, side, cell).max(axis=(2, 4)).reshape(-1, side * side)
    hottest = cams.reshape(-1, side * side).argmax(axis=1)
    hits = (lesions[np.arange(len(lesions)), hottest] > 0).astype(np.float64)
    return np.where(lesions.max(axis=1) > 0, hits, np.nan)


def _of_slices(
    package: ModelPackage,
    cohort: Cohort,
    scores: Scores,
    chosen: NDArray[np.bool_],
    *,
    name: str,
    subset: str,
) -> Evaluation:
    labels, probabilities = cohort.labels[chosen], scores.probabilities[chosen]
    abstained, hits = scores.abstained[chosen], pointing_hits(cohort, scores.cams)[chosen]
    threshold = package.manifest.labels[0].threshold

    def figures(index: NDArray[np.int64]) -> Mapping[str, float]:
        found = hits[index][
            (labels[index] == 1) & (probabilities[index] >= threshold) & np.isfinite(hits[index])
        ]
        return {
            **binary_metrics(labels[index], probabilities[index], threshold=threshold),
            "abstention": float(abstained[index].mean()),
            "pointing": float(found.mean()) if found.size else float("nan"),
        }

    patients = cohort.patients[chosen]
    return Evaluation(
        dataset=name,
        subset=subset,
        unit="slice",
        patients=len(np.unique(patients)),
        count=labels.size,
        positives=int(labels.sum()),
        estimates=_finite(cluster_bootstrap(patients, figures)),
        limits=_SLICE_LIMITS,
    )


def _of_series(package: ModelPackage, cohort: Cohort, scores: Scores, name: str) -> Evaluation:
    """Return how many series with tumour reach the threshold, aggregated as the service does."""
    patients = np.unique(cohort.patients)
    peaks = np.array([_series_probability(cohort, scores, patient) for patient in patients])
    threshold = package.manifest.labels[0].threshold
    figures = cluster_bootstrap(
        patients, lambda index: {"sensitivity": float(np.mean(peaks[index] >= threshold))}
    )
    return Evaluation(
        dataset=name,
        subset="all",
        unit="series",
        patients=patients.size,
        count=patients.size,
        positives=patients.size,
        estimates=figures,
        limits=_SERIES_LIMITS,
    )


def _series_probability(cohort: Cohort, scores: Scores, patient: str) -> float:
    """Return the largest median over three adjacent slices that were answered, 0 if none was."""
    rows = np.flatnonzero((cohort.patients == patient) & ~scores.abstained)
    ordered = rows[np.argsort(cohort.slices[rows], kind="stable")]
    return max_of_median3([float(p) for p in scores.probabilities[ordered]]).probability if rows.size else 0.0


def _finite(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name: e for name, e in estimates.items() if np.isfinite([e.value, e.low, e.high]).all()}
