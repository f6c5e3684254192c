"""What a finder proposes in the slices of whole series, where nothing says what is a nodule."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayhook.fhir.errors import ImageRefused, OutOfScope
from rayhook.inference.candidates import MAX_CANDIDATES, find_candidates
from rayhook.inference.decode import DecodeLimits, Decoder
from rayhook.inference.engine import InferenceEngine
from rayhook.inference.local import find_files
from rayhook.inference.lungs import segment_lungs
from rayhook.inference.registry import ModelPackage
from rayhook.inference.training.bootstrap import weighted_bootstrap
from rayhook.inference.training.dataset import DatasetRefused
from rayhook.inference.training.evaluation_report import UnitFigures, finite
from rayhook.inference.training.metrics import Scores as Values
from rayhook.inference.training.metrics import Weights, weighted_mean

_LIMITS = f"Slices in which lung is seen, at most {MAX_CANDIDATES} candidates in each; what of them is a nodule is unknown."
_ONE_PATIENT = (
    "Of one patient: the interval is over slices, which are alike, and says nothing of other patients."
)


@dataclass(frozen=True, slots=True)
class _Slice:
    patient: str
    candidates: int


def count_candidates(
    folder: Path, package: ModelPackage, engine: InferenceEngine, *, rounds: int
) -> UnitFigures:
    """Return how many candidates a slice with lung has; raises DatasetRefused if there is no such slice."""
    slices = list(_slices(folder, package, engine))
    if not slices:
        raise DatasetRefused(f"rule ct-slices: {folder.name} holds no CT slice that shows lung")
    counts = np.array([one.candidates for one in slices], np.float64)
    patients = np.array([one.patient for one in slices], np.str_)
    alone = np.unique(patients).size == 1
    clusters = np.arange(counts.size).astype(np.str_) if alone else patients

    def figures(weights: Weights) -> Mapping[str, Values]:
        return {
            "candidates_per_slice": weighted_mean(counts, weights),
            "slices_with_candidates": weighted_mean((counts > 0).astype(np.float64), weights),
        }

    return UnitFigures(
        unit="slice of a whole series",
        patients=np.unique(patients).size,
        count=counts.size,
        positives=0,
        estimates=finite(weighted_bootstrap(clusters, figures, rounds=rounds)),
        limits=f"{_LIMITS} {_ONE_PATIENT}" if alone else _LIMITS,
    )


def _slices(folder: Path, package: ModelPackage, engine: InferenceEngine) -> Iterator[_Slice]:
    """Yield the readable CT slices of a folder in which lung is seen."""
    limits = DecodeLimits()
    with Decoder() as decoder:
        for path in find_files([folder]):
            try:
                decoded = decoder.decode(path.read_bytes(), limits=limits)
            except (ImageRefused, OutOfScope):
                continue
            spacing = decoded.attributes.pixel_spacing_mm
            if decoded.attributes.modality != package.manifest.modality or spacing is None:
                continue
            hu = decoded.pixels[0]
            if segment_lungs(hu, spacing).any():
                found = find_candidates(hu, pixel_spacing_mm=spacing, finder=package, engine=engine)
                yield _Slice(decoded.attributes.patient_id or "", len(found))
