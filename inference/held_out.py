"""What the evaluation beside a model's package found on patients held out: for the page, not for the model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from rayhook.fhir.errors import ModelIntegrityError
from rayhook.inference.registry import Estimate, ModelPackage

EVALUATION = "evaluation.json"


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Held-out cases of like probability: how many there were, and which share had the finding.

    low, high: the lowest and highest probability in it.  observed: with its Wilson interval.
    """

    low: float
    high: float
    count: int
    predicted: float
    observed: Estimate


@dataclass(frozen=True, slots=True)
class AtPrevalence:
    """Predictive values where that share of those examined has the finding."""

    prevalence: float
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An evaluation of exactly the weights that its digest names. `unit` is what was counted."""

    model_id: str
    weights_sha256: str
    label: str
    unit: str
    patients: int
    count: int
    positives: int
    reliability: tuple[ReliabilityBin, ...] = ()
    prevalence_table: tuple[AtPrevalence, ...] = ()
    limits: tuple[str, ...] = field(default=())

    def bin_of(self, probability: float) -> ReliabilityBin | None:
        """Return the bin that holds a probability, or the nearest: held-out values leave gaps between bins."""
        return min(self.reliability, key=lambda one: _distance(one, probability), default=None)


def load_held_out(packages: Iterable[ModelPackage]) -> Mapping[str, HeldOut]:
    """Return the evaluations by the SHA-256 of the weights that they are of; packages without one are left out.

    Raises ModelIntegrityError on one that does not fit, or is of other weights.
    """
    found = (held_out for package in packages if (held_out := _read(package)) is not None)
    return {one.weights_sha256: one for one in found}


def _read(package: ModelPackage) -> HeldOut | None:
    path = package.folder / EVALUATION
    if not path.is_file():
        return None
    try:
        held_out = msgspec.json.decode(path.read_bytes(), type=HeldOut)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelIntegrityError(f"{EVALUATION} of {package.manifest.id} does not fit: {error}") from error
    if held_out.weights_sha256 != package.manifest.weights_sha256:
        raise ModelIntegrityError(f"{EVALUATION} of {package.manifest.id} is of other weights")
    return held_out


def _distance(one: ReliabilityBin, probability: float) -> float:
    return max(one.low - probability, probability - one.high, 0.0)
