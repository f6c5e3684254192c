"""A training recipe: everything that decides a run, in one TOML file beside the code."""

import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from rayhook.inference.preprocess import Preprocessing
from rayhook.inference.registry import (
    Coding,
    ModelStatus,
    Role,
    SequenceRule,
    SourceAttribute,
    TomographyRule,
    ViewRule,
)

RECIPES = Path(__file__).parent / "recipes"


class Precision(StrEnum):
    """What the network computes in; its weights, logits and loss are float32 in each.

    auto: float16 on a GPU, bfloat16 on one of compute capability 8 and on a CPU with instructions for
    it, else float32.
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    MIXED_BFLOAT16 = "mixed_bfloat16"
    MIXED_FLOAT16 = "mixed_float16"


class Weighting(StrEnum):
    """Whether each row counts alike in the loss, or each group of rows."""

    ROW = "row"
    GROUP = "group"


class MaskHead(StrEnum):
    """What the loss on the lesion masks trains: a head of its own, or the label's head on each cell."""

    OWN = "own"
    LABEL = "label"


class Fill(StrEnum):
    """What lies beyond the edge of a plane that was turned, zoomed or moved; see Keras' fill_mode."""

    CONSTANT = "constant"
    NEAREST = "nearest"
    REFLECT = "reflect"
    WRAP = "wrap"


@dataclass(frozen=True, slots=True)
class SoftTarget:
    """A graded target, clip((value - low) / (high - low), 0, 1), in training only.

    excluded_rows: whether the rows that Data.exclude leaves out of every evaluation train with it.
    """

    column: str
    low: float
    high: float
    excluded_rows: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """How labels.csv of a labelled folder is read; a column named here must be there.

    dataset: folder below the datasets folder.  label: column of 0 and 1; "" takes the rows with a mask
    as positive.  exclude: values of label that are neither.  group: column of what several rows show,
    such as one nodule.  spacing: column of the pixel spacing in mm.  "" for no such column.
    """

    dataset: str
    label: str = "label"
    exclude: tuple[str, ...] = ()
    group: str = ""
    spacing: str = ""
    site: str = ""
    weight: Weighting = Weighting.ROW
    target: SoftTarget | None = None


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes of a training plane; fractions of the side, of a turn, of the 0..1 range.

    edges: probability that a side of the plane is moved in, up to the lesion, before all else; what is
    cut off is mirrored or black, and counts for nothing.  Where lesions lie in the middle of every
    labelled crop, the crop's own edge would tell where they are.
    rotation: 0.5 is any turn.  erasing: probability that a box of 2 to 8 % of the plane is blackened.
    """

    edges: float = 0.0
    flip: bool = True
    flip_vertical: bool = False
    rotation: float = 0.04
    zoom: float = 0.12
    translation: float = 0.06
    fill: Fill = Fill.CONSTANT
    brightness: float = 0.05
    contrast: float = 0.2
    gamma: float = 0.3
    noise: float = 0.02
    erasing: float = 0.25


@dataclass(frozen=True, slots=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay.

    label_loss, mask_loss: weights of the losses on labels and on lesion masks, 0 for none.
    mask_positive: weight of the cells inside a mask against those outside.
    mask_focus: power of how wrong a cell is that its loss is weighted by, 0 for none; Lin et al. 2017,
    arXiv:1708.02002, for graded targets Li et al. 2020, arXiv:2006.04388.
    averaging: momentum of the moving average of the weights that is evaluated and shipped.
    patience: epochs without a better development score before the run stops.
    mixup: alpha of the Beta distribution that mixes rows in pairs, 0 for none.
    frozen_stages: how many of the first stages, with the stem, keep their ImageNet weights.
    """

    epochs: int = 10
    batch: int = 32
    learning_rate: float = 1e-4
    warmup_epochs: float = 1.0
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    label_loss: float = 1.0
    mask_loss: float = 0.5
    mask_head: MaskHead = MaskHead.OWN
    mask_positive: float = 1.0
    mask_focus: float = 0.0
    averaging: float = 0.98
    patience: int = 4
    mixup: float = 0.0
    label_smoothing: float = 0.0
    frozen_stages: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """How the training patients are used.

    dev_share: of the training patients, held for stopping, calibration, threshold and reference.
    sensitivity: that the threshold reaches on the development patients.
    in_distribution: share of development images inside the out-of-distribution threshold, and inside
    that of the input check.
    calibration: the ways that may be chosen. Training weighs the classes alike, which moves the logits, so
    one without an intercept, such as temperature, has to be asked for.
    alpha: share of each class, among new patients, that may be answered wrongly; what would be more is
    "not sure".
    """

    dev_share: float = 0.2
    sensitivity: float = 0.9
    in_distribution: float = 0.99
    calibration: tuple[str, ...] = ("platt",)
    alpha: float = 0.1


@dataclass(frozen=True, slots=True)
class LabelWords:
    """What one output of the network means."""

    name: str
    finding: Coding
    body_site: Coding
    radlex: Coding | None = None


@dataclass(frozen=True, slots=True)
class ManifestWords:
    """The part of a manifest that is written by people and not measured; see registry.Manifest."""

    id: str
    version: str
    title: str
    intended_use: str
    limits: tuple[str, ...]
    modality: str
    body_parts: tuple[str, ...]
    sop_class_uids: tuple[str, ...]
    labels: tuple[LabelWords, ...]
    licence: str
    training_data: str
    also_modalities: tuple[str, ...] = ()
    sequence: SequenceRule | None = None
    tomography: TomographyRule | None = None
    view: ViewRule | None = None
    status: ModelStatus = ModelStatus.EXPERIMENTAL
    role: Role = Role.CLASSIFIER
    finder: str | None = None
    enabled: bool = True
    card: tuple[SourceAttribute, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """One run: seed, input, network, augmentation, optimisation, patients, and the manifest's words.

    sha256: of all that changes the weights, so not of the manifest's words.
    """

    seed: int
    output_stride: int
    data: Data
    preprocessing: Preprocessing
    manifest: ManifestWords
    sha256: str
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimisation: Optimisation = field(default_factory=Optimisation)
    selection: Selection = field(default_factory=Selection)
    stages: int = 4
    precision: Precision = Precision.AUTO

    @property
    def labels(self) -> int:
        """Return the number of outputs."""
        return len(self.manifest.labels)


def find_recipe(name: str) -> Path:
    """Return the path of a recipe: a TOML file, or the name of a bundled one.

    Raises FileNotFoundError naming the bundled ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = RECIPES / f"{name.removesuffix('.toml').replace('-', '_')}.toml"
    if bundled.is_file():
        return bundled
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
    raise FileNotFoundError(f"{name} is neither a TOML file nor a bundled recipe ({known})")


def read_recipe(path: Path) -> Recipe:
    """Return the recipe of a TOML file.

    Raises TypeError on an unknown key, msgspec.ValidationError on a missing one or a value that does not fit.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    digest = _digest({key: value for key, value in table.items() if key != "manifest"})
    recipe = msgspec.convert({**table, "sha256": digest}, Recipe)
    _refuse_unknown(table, msgspec.to_builtins(recipe), "")
    return recipe


def _digest(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _refuse_unknown(given: Any, taken: Any, where: str) -> None:
    """Raise TypeError if anything given was not taken: msgspec leaves out what a dataclass lacks."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key not in taken:
                raise TypeError(f"unknown key {where}{key}")
            _refuse_unknown(value, taken[key], f"{where}{key}.")
    elif isinstance(given, list):
        for index, (value, other) in enumerate(zip(given, taken, strict=True)):
            _refuse_unknown(value, other, f"{where}{index}.")
