"""Model packages: what a model is for, how to run it, how good it was found, and its pinned weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from rayhook.fhir.errors import ModelIntegrityError, NotFound
from rayhook.inference.model import Arrays, load_weights, read_verified
from rayhook.inference.preprocess import Float, Preprocessing
from rayhook.inference.study import ModelIdentity

MODELS = Path(__file__).parent / "models"
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"

_TINY = 1e-12

REFERENCE = "reference.features"
CHECK_KERNEL = "check.kernel"
CHECK_BIAS = "check.bias"


class ModelStatus(StrEnum):
    """Whether a model was ever validated on the kind of images it would see; none is cleared."""

    EXPERIMENTAL = "experimental"
    VALIDATED = "validated"


class Role(StrEnum):
    """What a model's answers are for: a finding, or points for another model to rate."""

    CLASSIFIER = "classifier"
    FINDER = "finder"


@dataclass(frozen=True, slots=True)
class Coding:
    """Spec: FHIR R4 Coding."""

    system: str
    code: str
    display: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling of a logit: probability = 1 / (1 + exp(-(a * logit + b)))."""

    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Label:
    """One output of the network.

    threshold: calibrated probability from which the answer is positive.
    cam_scale: value of the class activation map that is shown as full heat.
    unsure: (low, high): a probability within low <= p < high is no answer but "not sure".
    """

    name: str
    finding: Coding
    body_site: Coding
    threshold: float
    calibration: Calibration
    cam_scale: float
    radlex: Coding | None = None
    unsure: tuple[float, float] | None = None

    def is_unsure(self, probability: float) -> bool:
        """Return whether a probability is too near to the threshold to be an answer."""
        return self.unsure is not None and self.unsure[0] <= probability < self.unsure[1]


@dataclass(frozen=True, slots=True)
class SequenceRule:
    """Which MR series a model is meant for.

    words: one of them in the series description, protocol or sequence name, case-insensitive.
    excluded_words: none of them there.  inversion_time_ms: where the attribute is present.
    """

    name: str
    plane: str
    words: tuple[str, ...]
    excluded_words: tuple[str, ...]
    inversion_time_ms: tuple[float, float]


@dataclass(frozen=True, slots=True)
class TomographyRule:
    """Which CT series a model is meant for.

    max_thickness_mm: of a slice, where SliceThickness is present.  excluded_words: none of them in the
    series description, protocol or study description.
    """

    name: str
    plane: str
    max_thickness_mm: float
    excluded_words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ViewRule:
    """Which radiographs a model is meant for.

    positions: values of ViewPosition.  words: one of them in a description, where ViewPosition is absent.
    excluded_words: none of them there.
    """

    name: str
    positions: tuple[str, ...]
    words: tuple[str, ...]
    excluded_words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutOfDistribution:
    """Distance of an image's features to its neighbour-th nearest training image that is too far."""

    threshold: float
    neighbour: int
    reference: str


@dataclass(frozen=True, slots=True)
class InputCheck:
    """A linear rule on the network's inner averages that tells images the model is not meant for.

    threshold: of the rule's value, above which there is no answer.  kinds: of images it learnt to tell.
    """

    threshold: float
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of the shipped weights on one set of patients.

    unit: what is counted, "slice" or "series".  estimates: by name, interval over patients.
    """

    dataset: str
    subset: str
    unit: str
    patients: int
    count: int
    positives: int
    estimates: dict[str, Estimate]
    limits: str


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What int8 weights changed against float32 on the held-out images."""

    scheme: str
    max_logit_difference: float
    mean_logit_difference: float
    auc_float32: float
    auc_shipped: float


@dataclass(frozen=True, slots=True)
class Abstention:
    """Share of images of one kind on which the model gave no answer."""

    images: str
    count: int
    rate: float


@dataclass(frozen=True, slots=True)
class SourceAttribute:
    """One attribute of the model card. Spec: 45 CFR 170.315(b)(11)(iv)(B), by its number there."""

    number: int
    title: str
    value: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is said about a model; the weights file is pinned by its digest.

    golden_logits: of the engine's deterministic synthetic input, for the self-test at warm-up.
    also_modalities: values of Modality that mean the same, as CR and DX do.
    sequence, tomography, view: exactly one, by modality.  finder: id of the model whose points this one
    rates.  enabled: whether it runs without being asked for by name.  stages: of the ResNet-50, 1 to 4.
    """

    id: str
    version: str
    title: str
    intended_use: str
    limits: tuple[str, ...]
    status: ModelStatus
    modality: str
    body_parts: tuple[str, ...]
    sop_class_uids: tuple[str, ...]
    output_stride: int
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    ood: OutOfDistribution | None
    golden_logits: tuple[float, ...]
    weights_sha256: str
    licence: str
    training_data: str
    recipe_sha256: str
    also_modalities: tuple[str, ...] = ()
    sequence: SequenceRule | None = None
    tomography: TomographyRule | None = None
    view: ViewRule | None = None
    role: Role = Role.CLASSIFIER
    finder: str | None = None
    enabled: bool = True
    stages: int = 4
    check: InputCheck | None = None
    quantisation: Quantisation | None = None
    evaluations: tuple[Evaluation, ...] = ()
    abstentions: tuple[Abstention, ...] = ()
    card: tuple[SourceAttribute, ...] = ()

    @property
    def input_size(self) -> int:
        """Return the side of the network's square input, in pixels."""
        return self.preprocessing.input_size

    @property
    def modalities(self) -> tuple[str, ...]:
        """Return the values of Modality that the model is meant for."""
        return (self.modality, *self.also_modalities)

    @property
    def map_side(self) -> int:
        """Return the side of the network's last feature map, in cells."""
        return self.input_size // self.output_stride


@dataclass(frozen=True)
class ModelPackage:
    """A folder with manifest.json and weights.safetensors.

    manifest_sha256: of the manifest's file as it was read; empty where it was not read from one.
    """

    folder: Path
    manifest: Manifest
    manifest_sha256: str = ""

    @property
    def weights_path(self) -> Path:
        """Return the path of the weights file."""
        return self.folder / WEIGHTS

    def weights(self) -> Arrays:
        """Return the float32 weights; raises ModelIntegrityError if they are not those pinned."""
        return load_weights(self.weights_path, sha256=self.manifest.weights_sha256)

    def verify(self) -> None:
        """Raise ModelIntegrityError unless the weights file is the one that the manifest pins."""
        read_verified(self.weights_path, sha256=self.manifest.weights_sha256)

    @cached_property
    def reference(self) -> Float:
        """Return features (m, feature_count) of training images, each of length 1; read once.

        Raises ModelIntegrityError as verify does.
        """
        return unit_rows(self._array(REFERENCE))

    @cached_property
    def check(self) -> tuple[Float, Float]:
        """Return the input check's kernel (early_count + feature_count,) and bias (1,); read once.

        Raises ModelIntegrityError as verify does.
        """
        return self._array(CHECK_KERNEL), self._array(CHECK_BIAS)

    def _array(self, name: str) -> Float:
        arrays = load_weights(self.weights_path, sha256=self.manifest.weights_sha256, prefix=name)
        if name not in arrays:
            raise ModelIntegrityError(f"weights file lacks {name}")
        return arrays[name]


def unit_rows(features: Float) -> Float:
    """Return each row divided by its length."""
    unit: Float = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _TINY)
    return unit


def load_models(folder: Path | None = None) -> tuple[ModelPackage, ...]:
    """Return the packages in a folder, by id; weights are read later.

    Raises ModelIntegrityError on a manifest that does not fit, or two of one id.
    """
    paths = sorted((folder or MODELS).glob(f"*/{MANIFEST}"))
    packages = tuple(_read(path) for path in paths)
    ids = [package.manifest.id for package in packages]
    if len(set(ids)) < len(ids):
        raise ModelIntegrityError("two model packages have the same id")
    return packages


def find_model(packages: Sequence[ModelPackage], model_id: str) -> ModelPackage | None:
    """Return the package of that id, if there is one."""
    return next((package for package in packages if package.manifest.id == model_id), None)


def select_models(packages: Sequence[ModelPackage], ids: Sequence[str] = ()) -> tuple[ModelPackage, ...]:
    """Return the packages to run: those named, in that order, else those enabled; then their finders.

    Where an image fits two models, the first takes it.
    Raises NotFound if an id names no package, ModelIntegrityError if a finder is not installed.
    """
    by_id = {package.manifest.id: package for package in packages}
    absent = sorted(set(ids) - by_id.keys())
    if absent:
        raise NotFound(f"no model is installed under the id {', '.join(absent)}", code="unknown_model")
    default = [m.id for m in (p.manifest for p in packages) if m.enabled and m.role is Role.CLASSIFIER]
    chosen = tuple(ids) or tuple(default)
    finders = [finder for id_ in chosen if (finder := by_id[id_].manifest.finder) is not None]
    if not set(finders) <= by_id.keys():
        raise ModelIntegrityError("a model names a finder that is not installed")
    return tuple(by_id[id_] for id_ in dict.fromkeys((*chosen, *finders)))


def identify(packages: Sequence[ModelPackage]) -> tuple[ModelIdentity, ...]:
    """Return the identities that results carry, each with that of its finder."""
    alone = {package.manifest.id: _identity(package) for package in packages}
    return tuple(
        replace(one, finder=alone.get(package.manifest.finder or ""))
        for one, package in zip(alone.values(), packages, strict=True)
    )


def _identity(package: ModelPackage) -> ModelIdentity:
    manifest = package.manifest
    return ModelIdentity(
        id=manifest.id,
        version=manifest.version,
        weights_sha256=manifest.weights_sha256,
        manifest_sha256=package.manifest_sha256,
        experimental=manifest.status is not ModelStatus.VALIDATED,
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _read(path: Path) -> ModelPackage:
    try:
        data = path.read_bytes()
        manifest = msgspec.json.decode(data, type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelIntegrityError(
            f"manifest of {path.parent.name} does not fit the schema: {error}"
        ) from error
    return ModelPackage(path.parent, manifest, hashlib.sha256(data).hexdigest())
