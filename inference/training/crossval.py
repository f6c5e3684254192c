"""Cross-validation by patient: how good the recipe is, not one split of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from safetensors import safe_open

from rayhook.inference.model import assign_weights, import_imagenet, write_atomically
from rayhook.inference.training.calibrate import threshold_at_sensitivity
from rayhook.inference.training.dataset import (
    UNRATED,
    DatasetRefused,
    Sample,
    patients_by_stratum,
    refuse_overlap,
    split_fit_dev,
)
from rayhook.inference.training.distribute import be_deterministic, is_chief, make_strategy
from rayhook.inference.training.metrics import auc
from rayhook.inference.training.objective import score_cells
from rayhook.inference.training.places import Places
from rayhook.inference.training.recipe import MaskHead, Recipe
from rayhook.inference.training.tracking import Tracker
from rayhook.inference.training.train import BEST, STATE, Material, Trainer, prepare

RESULT = "result.json"

_GRID = 100_001
_COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Fold:
    """Patients that one training never sees."""

    name: str
    patients: frozenset[str]


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Figures on the patients of one fold, of weights, epoch and threshold chosen without them."""

    name: str
    patients: int
    count: int
    positives: int
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over the folds and its 95 % t-interval: mean -/+ t(k - 1) * deviation / sqrt(k).

    The folds share training patients, so that the interval is too narrow rather than too wide.
    Source: Bengio and Grandvalet 2004, jmlr.org/papers/v5/grandvalet04a.html
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What each fold gave, and all of them together."""

    recipe_sha256: str
    by: str
    folds: tuple[FoldResult, ...]
    figures: dict[str, Interval]


def crossvalidate(
    recipe: Recipe,
    places: Places,
    *,
    folds: int = 5,
    by_site: bool = False,
    all_splits: bool = False,
    console: Console | None = None,
) -> CrossValidation:
    """Train on all folds but one, for each; by_site leaves one site out at a time.

    Only patients of split `train` take part, unless all_splits.  Each fold has a folder below the
    output: a finished one is not run again, a killed one goes on where its last epoch ended.
    Raises DatasetRefused if there are too few patients or sites, or a patient on both sides.
    """
    console = console or Console(stderr=True)
    be_deterministic(recipe.seed)
    material = prepare(recipe, places, console=console)
    samples = [s for s in material.samples if all_splits or s.split == "train"]
    made = site_folds(samples) if by_site else patient_folds(samples, folds=folds, seed=recipe.seed)
    by = "site" if by_site else f"patient-{folds}"
    base = places.output / "crossval" / (f"{by}-all" if all_splits else by)
    results = []
    for fold in made:
        there = replace(places, output=base / fold.name, tracking=places.tracking or _store(places.output))
        console.log(f"{fold.name}: {len(fold.patients)} patients held out")
        results.append(_run(fold, recipe, material, samples, places=there, console=console))
    figures = {name: t_interval([r.figures[name] for r in results]) for name in results[0].figures}
    return CrossValidation(recipe.sha256, by, tuple(results), figures)


def patient_folds(samples: Sequence[Sample], *, folds: int, seed: int) -> tuple[Fold, ...]:
    """Return folds with alike numbers of patients of each site, with and without a positive row."""
    random = np.random.default_rng(seed)
    hands: list[list[str]] = [[] for _ in range(folds)]
    dealt = 0
    for _, patients in sorted(patients_by_stratum(samples).items()):
        for patient in random.permutation(patients):
            hands[dealt % folds].append(str(patient))
            dealt += 1
    if min(map(len, hands)) == 0:
        raise DatasetRefused(f"rule enough-patients: {dealt} patients do not fill {folds} folds")
    return tuple(Fold(f"fold-{k}", frozenset(hand)) for k, hand in enumerate(hands, start=1))


def site_folds(samples: Sequence[Sample]) -> tuple[Fold, ...]:
    """Return one fold a site; raises DatasetRefused unless there are two sites, all known."""
    sites = sorted({sample.site for sample in samples})
    if len(sites) < 2 or "" in sites:  # noqa: PLR2004
        raise DatasetRefused("rule sites-known: leaving a site out needs two named sites or more")
    return tuple(
        Fold(f"site-{site}", frozenset(s.patient_id for s in samples if s.site == site)) for site in sites
    )


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean with its t-interval; a fold without the figure (NaN) is left out."""
    known = np.array([value for value in values if np.isfinite(value)])
    mean = float(known.mean()) if known.size else float("nan")
    if known.size < 2:  # noqa: PLR2004
        return Interval(mean, float("nan"), float("nan"))
    half = t_quantile(known.size - 1) * float(known.std(ddof=1)) / known.size**0.5
    return Interval(mean, mean - half, mean + half)


def t_quantile(freedom: int) -> float:
    """Return the t within which 95 % of Student's distribution lies.

    With t = sqrt(freedom) * tan(angle) its density is cos(angle) ** (freedom - 1), which is summed.
    """
    angle = np.linspace(0, np.pi / 2, _GRID)[:-1]
    density = np.cos(angle) ** (freedom - 1)
    within = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(freedom**0.5 * np.tan(np.interp(_COVERAGE * within[-1], within, angle)))


def _store(output: Path) -> str:
    return f"sqlite:///{output.resolve().parent / 'mlflow.db'}"


def _run(
    fold: Fold,
    recipe: Recipe,
    material: Material,
    samples: Sequence[Sample],
    *,
    places: Places,
    console: Console,
) -> FoldResult:
    """Return the result of a fold, from its folder if it is there."""
    training = [s for s in samples if s.patient_id not in fold.patients]
    held_out = [s for s in samples if s.patient_id in fold.patients and s.label != UNRATED]
    refuse_overlap(training, held_out)
    known = _known(places.output / RESULT, recipe, fold)
    if known is not None:
        return known
    fit, dev = split_fit_dev(training, dev_share=recipe.selection.dev_share, seed=recipe.seed)
    keras.backend.clear_session()
    strategy = make_strategy(places.strategy, devices=places.devices)
    trainer = Trainer(recipe, material, fit, dev, strategy=strategy)
    import_imagenet(trainer.model, places.imagenet_weights)
    tracker = (
        Tracker(recipe, places.output, places.tracking, console=console, fold=fold.name)
        if is_chief(strategy)
        else None
    )
    trainer.run(places.output, console=console, tracker=tracker)
    with safe_open(places.output / BEST, framework="numpy") as file:
        assign_weights(trainer.averaged, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    result = FoldResult(
        fold.name,
        patients=len(fold.patients),
        count=len(held_out),
        positives=sum(s.label == 1 for s in held_out),
        figures=_figures(trainer, held_out),
    )
    if is_chief(strategy):
        _write(places.output, recipe, fold, result)
    return result


def _figures(trainer: Trainer, held_out: Sequence[Sample]) -> dict[str, float]:
    """Return the figures on held-out rows; the threshold is that of the development patients."""
    logits, cams = trainer.predict(held_out)
    if trainer.recipe.optimisation.mask_head is MaskHead.LABEL:
        _, precision = score_cells(trainer.cell_targets(held_out, cams.shape[1]), cams)
        return {"average_precision_of_cells": precision}
    labels, developing = _labels(held_out), _labels(trainer.dev)
    threshold = threshold_at_sensitivity(
        trainer.predict(trainer.dev)[0], developing, sensitivity=trainer.recipe.selection.sensitivity
    )
    positive = logits >= threshold
    return {
        "auc": auc(labels, logits),
        "sensitivity": _share(positive, labels == 1),
        "specificity": _share(~positive, labels == 0),
    }


def _labels(samples: Sequence[Sample]) -> NDArray[np.int64]:
    return np.array([sample.label for sample in samples], np.int64)


def _share(hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(hit[among].mean()) if among.any() else float("nan")


def _write(folder: Path, recipe: Recipe, fold: Fold, result: FoldResult) -> None:
    """Keep the result and drop the state, which only a resume needs."""
    document: Mapping[str, object] = {
        "recipe_sha256": recipe.sha256,
        "held_out": sorted(fold.patients),
        "result": asdict(result),
    }
    write_atomically(folder / RESULT, json.dumps(document, indent=1).encode())
    (folder / STATE).unlink(missing_ok=True)


def _known(path: Path, recipe: Recipe, fold: Fold) -> FoldResult | None:
    if not path.exists():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["recipe_sha256"] != recipe.sha256 or document["held_out"] != sorted(fold.patients):
        raise ValueError(f"{path.parent} holds a fold of another recipe or of other patients")
    return FoldResult(**document["result"])
