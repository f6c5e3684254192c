"""A training recipe: everything that decides a run, in one TOML file beside the code."""

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rayhook.inference.preprocess import Preprocessing
from rayhook.inference.registry import Coding, SequenceRule, SourceAttribute

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes of a training plane; fractions of the side, of a turn, of the 0..1 range."""

    flip: bool = True
    rotation: float = 0.04
    zoom: float = 0.12
    translation: float = 0.06
    brightness: float = 0.05
    contrast: float = 0.2
    gamma: float = 0.3
    noise: float = 0.02
    erasing: float = 0.25


@dataclass(frozen=True, slots=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay.

    mask_loss: weight of the auxiliary loss on the lesion masks, 0 for none.
    averaging: momentum of the moving average of the weights that is evaluated and shipped.
    patience: epochs without a better development AUC before the run stops.
    """

    epochs: int = 10
    batch: int = 32
    learning_rate: float = 1e-4
    warmup_epochs: float = 1.0
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    mask_loss: float = 0.5
    averaging: float = 0.98
    patience: int = 4


@dataclass(frozen=True, slots=True)
class Selection:
    """How the training patients are used.

    dev_share: of the training patients, held for stopping, calibration, threshold and reference.
    sensitivity: that the threshold reaches on the development patients.
    in_distribution: share of development images inside the out-of-distribution threshold.
    """

    dev_share: float = 0.2
    sensitivity: float = 0.9
    in_distribution: float = 0.99


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
    sequence: SequenceRule
    labels: tuple[LabelWords, ...]
    licence: str
    training_data: str
    card: tuple[SourceAttribute, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """One run: seed, input, network, augmentation, optimisation, patients, and the manifest's words.

    sha256: of all that changes the weights, so not of the manifest's words.
    """

    seed: int
    output_stride: int
    preprocessing: Preprocessing
    augmentation: Augmentation
    optimisation: Optimisation
    selection: Selection
    manifest: ManifestWords
    sha256: str

    @property
    def labels(self) -> int:
        """Return the number of outputs."""
        return len(self.manifest.labels)


def read_recipe(path: Path) -> Recipe:
    """Return the recipe of a TOML file; raises TypeError or ValidationError on one that does not fit."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Recipe(
        seed=table["seed"],
        output_stride=table["output_stride"],
        preprocessing=Preprocessing(**_tuples(table["preprocessing"])),
        augmentation=Augmentation(**table.get("augmentation", {})),
        optimisation=Optimisation(**table.get("optimisation", {})),
        selection=Selection(**table.get("selection", {})),
        manifest=msgspec.convert(table["manifest"], ManifestWords),
        sha256=_digest({key: value for key, value in table.items() if key != "manifest"}),
    )


def _digest(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
