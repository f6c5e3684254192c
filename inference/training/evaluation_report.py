"""All that an evaluation found, as one tree: written as JSON, read back, and shown by the page and the card."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rayhook.inference.registry import Estimate
from rayhook.inference.training.bootstrap import Answers
from rayhook.inference.training.comparison import auc_difference, auc_estimate, delong_test, obuchowski_test
from rayhook.inference.training.conformal import SelectiveRule
from rayhook.inference.training.localisation import IOU_RULE, POINTING_RULE
from rayhook.inference.training.metrics import ReliabilityBin, Scores

INTERVALS = "95 % percentile intervals over resamples of whole patients"

_LIBRARIES = ("ai-edge-litert", "numpy", "opencv-python-headless", "rayhook", "tensorflow")
_CPU = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Threshold:
    """The probability from which an answer is positive, and on whose data it was chosen."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class PrevalenceRow:
    """Predictive values at a prevalence; None where no image would be called so."""

    prevalence: float
    ppv: Estimate | None
    npv: Estimate | None


@dataclass(frozen=True, slots=True)
class Subgroup:
    """Figures of the rows that share a value, as site HT."""

    name: str
    value: str
    patients: int
    count: int
    positives: int
    estimates: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A trivial score on the same rows; difference is the model's AUC minus its own.

    clustered_p is the test that counts: DeLong's takes rows of one patient as independent. None where
    there is one class only.
    """

    name: str
    auc: Estimate | None
    difference: Estimate | None
    delong_p: float | None
    clustered_p: float | None


@dataclass(frozen=True, slots=True)
class Randomised:
    """What becomes of the heatmap when a part of the network has random weights.

    count: images.  similarity: size of the rank correlation, cell by cell, with the trained network's
    map; 1 if the weights do not matter.  pointing: of the random network's map, None without masks.
    Source: Adebayo et al. 2018, arXiv:1810.03292, section 3 (model parameter randomisation)
    """

    part: str
    count: int
    similarity: Estimate
    pointing: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How well the heatmap points at the reader's mask, beside what no model scores.

    count: rows with the finding and a mask.  by_chance: a random point.  at_centre: the image's centre.
    *_by_cell: at the map's own resolution, where a cell counts as lesion if any part of it does.
    between_images: similarity, as in Randomised, of the trained maps of different images.
    """

    count: int
    pointing: Estimate | None = None
    iou: Estimate | None = None
    by_chance: Estimate | None = None
    at_centre: Estimate | None = None
    pointing_by_cell: Estimate | None = None
    by_chance_by_cell: Estimate | None = None
    between_images: Estimate | None = None
    randomised: tuple[Randomised, ...] = ()
    pointing_rule: str = POINTING_RULE
    iou_rule: str = IOU_RULE


@dataclass(frozen=True, slots=True)
class UnitFigures:
    """Figures by another unit than the report's own: the nodule of its crops, the series of its slices."""

    unit: str
    patients: int
    count: int
    positives: int
    estimates: dict[str, Estimate]
    limits: str


@dataclass(frozen=True, slots=True)
class Resampling:
    """How the intervals came about."""

    rounds: int
    seed: int
    method: str = INTERVALS


@dataclass(frozen=True, slots=True)
class Environment:
    """What the figures were computed with; libraries by name."""

    python: str
    cpu: str
    libraries: dict[str, str]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Figures of one model on one split of one data set.

    unit: what is counted, as "slice", "crop" or "film".  labels_sha256: of labels.csv.
    limits: what the data set cannot show.
    """

    model_id: str
    model_version: str
    model_status: str
    weights_sha256: str
    label: str
    dataset: str
    split: str
    labels_sha256: str
    unit: str
    patients: int
    count: int
    positives: int
    threshold: Threshold
    estimates: dict[str, Estimate]
    prevalence_table: tuple[PrevalenceRow, ...]
    reliability: tuple[ReliabilityBin, ...]
    selection: SelectiveRule | None
    subgroups: tuple[Subgroup, ...]
    baselines: tuple[Baseline, ...]
    explanation: Explanation | None
    other_units: tuple[UnitFigures, ...]
    limits: tuple[str, ...]
    resampling: Resampling
    environment: Environment

    @property
    def prevalence(self) -> float:
        """Return the share of positives among the rows."""
        return self.positives / self.count

    def to_json(self) -> bytes:
        """Return one object: each estimate stands at its top as {"value", "low", "high"}, beside the rest.

        JSON has no NaN: what could not be estimated has to be left out beforehand, see finite.
        Raises ValueError if an estimate has the name of a field.
        """
        document: dict[str, Any] = msgspec.to_builtins(self)
        figures: dict[str, Any] = document.pop("estimates")
        if clash := figures.keys() & document.keys():
            raise ValueError(f"estimates must not be named {sorted(clash)}")
        text = msgspec.json.encode({**document, "prevalence": self.prevalence, **figures})
        return msgspec.json.format(text, indent=2) + b"\n"


def read_report(document: bytes) -> EvaluationReport:
    """Return the report of a JSON document; raises msgspec.ValidationError if it is none."""
    found = msgspec.json.decode(document, type=dict[str, Any])
    found.pop("prevalence", None)
    known = {field.name for field in fields(EvaluationReport)}
    rest = {name: value for name, value in found.items() if name in known}
    figures = {name: value for name, value in found.items() if name not in known}
    return msgspec.convert({**rest, "estimates": figures}, EvaluationReport)


def finite(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return the estimates that have a value and an interval."""
    return {name: found for name, found in estimates.items() if _known(found) is not None}


def prevalence_table(
    estimates: Mapping[str, Estimate], prevalences: Sequence[float]
) -> tuple[PrevalenceRow, ...]:
    """Return the predictive values that bootstrap.estimates gave at each prevalence."""
    return tuple(
        PrevalenceRow(
            prevalence,
            _known(estimates[f"ppv_at_prevalence_{prevalence:g}"]),
            _known(estimates[f"npv_at_prevalence_{prevalence:g}"]),
        )
        for prevalence in prevalences
    )


def without_prevalences(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return the finite estimates that the prevalence table does not hold."""
    return {name: found for name, found in finite(estimates).items() if "_at_prevalence_" not in name}


def subgroup(name: str, value: str, answers: Answers, estimates: Mapping[str, Estimate]) -> Subgroup:
    """Return the figures of some rows, those alone that could be estimated."""
    return Subgroup(
        name=name,
        value=value,
        patients=np.unique(answers.patients).size,
        count=answers.labels.size,
        positives=int(answers.labels.sum()),
        estimates=without_prevalences(estimates),
    )


def baseline(name: str, scores: Scores, answers: Answers, *, rounds: int, seed: int = 0) -> Baseline:
    """Return the comparison of the model's ranking with that of a trivial score."""
    labels, patients = answers.labels, answers.patients
    apart = auc_difference(labels, answers.probabilities, scores, patients, rounds=rounds, seed=seed)
    pair = (labels, answers.probabilities, scores)
    return Baseline(
        name=name,
        auc=_known(auc_estimate(labels, scores, patients, rounds=rounds, seed=seed)),
        difference=_known(apart),
        delong_p=_number(delong_test(*pair).p),
        clustered_p=_number(obuchowski_test(*pair, patients).p),
    )


def file_sha256(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment(libraries: Sequence[str] = _LIBRARIES) -> Environment:
    """Return what this process runs on."""
    return Environment(
        python=platform.python_version(),
        cpu=_cpu(),
        libraries={name: importlib.metadata.version(name) for name in libraries},
    )


def _cpu() -> str:
    """Return the processor's name where Linux tells it."""
    lines = _CPU.read_text().splitlines() if _CPU.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _known(found: Estimate) -> Estimate | None:
    return found if np.isfinite([found.value, found.low, found.high]).all() else None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
