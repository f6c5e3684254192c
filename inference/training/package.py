"""From a finished run to a model package: quantised, calibrated, checked, evaluated, written."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.console import Console

from rayhook.inference.engine import LocalEngine
from rayhook.inference.litert import golden_input
from rayhook.inference.model import (
    Arrays,
    assign_weights,
    dequantise,
    quantise,
    save_weights,
    weights_of,
    write_atomically,
)
from rayhook.inference.nodule import mean_logit
from rayhook.inference.predict import calibrate, feature_distance, inner_averages
from rayhook.inference.preprocess import Float, Preprocessing, normalise
from rayhook.inference.registry import (
    CHECK_BIAS,
    CHECK_KERNEL,
    MANIFEST,
    REFERENCE,
    WEIGHTS,
    Abstention,
    Calibration,
    InputCheck,
    Label,
    Manifest,
    ModelPackage,
    OutOfDistribution,
    Quantisation,
    Role,
    encode_manifest,
    unit_rows,
)
from rayhook.inference.training.calibrate import (
    fit_platt,
    out_of_distribution_threshold,
    threshold_at_sensitivity,
)
from rayhook.inference.training.calibration_fit import choose_calibration
from rayhook.inference.training.conformal import fit_rule
from rayhook.inference.training.dataset import Sample, find_dataset, read_samples, split_fit_dev
from rayhook.inference.training.evaluate import Scores, evaluate_package, score, to_evaluations
from rayhook.inference.training.foreign import foreign_planes, synthetic_planes
from rayhook.inference.training.input_check import LinearCheck, fit_input_check
from rayhook.inference.training.metrics import auc
from rayhook.inference.training.model_card import model_card
from rayhook.inference.training.objective import cell_targets
from rayhook.inference.training.recipe import Recipe
from rayhook.inference.training.shards import cached_shards
from rayhook.inference.training.train import load_best

HELD_OUT = "val"
REPORT = "evaluation.json"
CARD = "MODEL_CARD.md"

_REFERENCE_ROWS = 1024
_CHECK_ROWS = 1500
_NEIGHBOUR = 5
_BATCH = 32
_FULL_CELL = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of the data set with their planes and masks, each (n, size, size)."""

    samples: tuple[Sample, ...]
    planes: Float
    masks: Float

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([sample.label for sample in self.samples], np.int64)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """logits: (n, labels).  features, early: (n, channels).  cam: (n, h, w, labels)."""

    logits: Float
    features: Float
    early: Float
    cam: Float

    @property
    def averages(self) -> Float:
        return inner_averages(self.early, self.features)


def package(
    recipe: Recipe,
    run_dir: Path,
    datasets: Path,
    output_dir: Path,
    *,
    cache_dir: Path,
    foreign: Sequence[str] = (),
    threads: int = 1,
    console: Console | None = None,
) -> ModelPackage:
    """Write the package of a run's best weights to output_dir and return it.

    Calibration, threshold, "not sure", reference and input check come from training patients alone;
    every figure is of the quantised weights in the serving engine, on the split held out. Beside the
    package lie its evaluation and the model card that is made from both.
    foreign: names of data sets that the model is not meant for; one half of each teaches the input
    check, the other measures it.
    """
    folder = find_dataset(recipe.data.dataset, datasets, cache_dir)
    fit, dev, held_out = _parts(recipe, folder, cache_dir)
    others = {name: find_dataset(name, datasets, cache_dir) for name in foreign}
    model = load_best(recipe, run_dir)
    before = _outputs(model, held_out.planes, recipe.preprocessing)
    packed = quantise(weights_of(model))
    assign_weights(model, dequantise(packed))
    manifest, extra = _described(recipe, model, fit, dev, others)
    packed |= extra
    built = _write(output_dir, manifest, packed)
    with contextlib.closing(LocalEngine(built, cache_dir, threads=threads)) as engine:
        scores = score(built, engine, held_out.planes)
        declined = () if manifest.check is None else _abstentions(built, engine, held_out, others)
    measured = replace(
        built.manifest,
        quantisation=_quantisation(recipe, held_out, before, scores),
        abstentions=declined,
    )
    built = _write(output_dir, measured, packed)
    report = evaluate_package(
        built, recipe, folder, HELD_OUT, cache_dir=cache_dir, threads=threads, console=console
    )
    shipped = _write(output_dir, replace(measured, evaluations=to_evaluations(report)), packed)
    write_atomically(output_dir / REPORT, report.to_json())
    write_atomically(output_dir / CARD, model_card(shipped.manifest, report).encode())
    return shipped


def _parts(recipe: Recipe, folder: Path, cache: Path) -> tuple[Part, Part, Part]:
    """Return the rows to fit, to develop on, and held out."""
    samples = read_samples(folder, recipe.data)
    shards = cached_shards(samples, folder, recipe.preprocessing, cache)
    places = {sample.path: index for index, sample in enumerate(samples)}
    training = [sample for sample in samples if sample.split == "train"]
    fit, dev = split_fit_dev(training, dev_share=recipe.selection.dev_share, seed=recipe.seed)
    held_out = tuple(sample for sample in samples if sample.split == HELD_OUT)
    parts = []
    for chosen in (fit, dev, held_out):
        planes, masks = shards.read([places[sample.path] for sample in chosen])
        parts.append(Part(tuple(chosen), planes, masks))
    return parts[0], parts[1], parts[2]


def _outputs(model: Any, planes: Float, preprocessing: Preprocessing) -> _Outputs:
    infer = tf.function(lambda images: model(images, training=False))
    batches = (planes[i : i + _BATCH] for i in range(0, len(planes), _BATCH))
    parts = [infer(tf.constant(normalise(batch, recipe=preprocessing))) for batch in batches]
    names = ("logits", "features", "early", "cam")
    return _Outputs(**{name: np.concatenate([p[name].numpy() for p in parts]) for name in names})


def _described(
    recipe: Recipe, model: Any, fit: Part, dev: Part, others: Mapping[str, Path]
) -> tuple[Manifest, Arrays]:
    """Return the manifest with all that training patients decide, and the arrays that go with it."""
    words = recipe.manifest
    golden = golden_input(recipe.preprocessing.input_size)
    outputs = _outputs(model, dev.planes, recipe.preprocessing)
    is_finder = words.role is Role.FINDER
    label = _finder_label(recipe, dev, outputs) if is_finder else _label(recipe, dev, outputs)
    manifest = Manifest(
        id=words.id,
        version=words.version,
        title=words.title,
        intended_use=words.intended_use,
        limits=words.limits,
        status=words.status,
        modality=words.modality,
        also_modalities=words.also_modalities,
        body_parts=words.body_parts,
        sop_class_uids=words.sop_class_uids,
        sequence=words.sequence,
        tomography=words.tomography,
        view=words.view,
        role=words.role,
        finder=words.finder,
        enabled=words.enabled,
        output_stride=recipe.output_stride,
        stages=recipe.stages,
        preprocessing=recipe.preprocessing,
        labels=(label,),
        ood=None,
        golden_logits=tuple(float(v) for v in model(golden[np.newaxis], training=False)["logits"].numpy()[0]),
        weights_sha256="",
        licence=words.licence,
        training_data=words.training_data,
        recipe_sha256=recipe.sha256,
        card=words.card,
    )
    if is_finder:
        return manifest, {}
    return _checked(manifest, model, fit, outputs, others=others, share=recipe.selection.in_distribution)


def _label(recipe: Recipe, dev: Part, outputs: _Outputs) -> Label:
    """Return the label as calibrated and cut on development patients, by group where rows are grouped."""
    logits, labels, patients = _by_group(dev, outputs.logits[:, 0].astype(np.float64))
    choice = choose_calibration(logits, labels, patients, methods=recipe.selection.calibration)
    if not isinstance(choice.calibration, Calibration):
        raise TypeError("selection.calibration: a manifest carries Platt scaling or a temperature only")
    probabilities = np.array([calibrate(float(logit), choice.calibration) for logit in logits])
    selection = recipe.selection
    threshold = threshold_at_sensitivity(probabilities, labels, sensitivity=selection.sensitivity)
    rule = fit_rule(
        probabilities,
        labels,
        patients,
        alpha_positive=selection.alpha,
        alpha_negative=selection.alpha,
    ).around(threshold)
    peaks = outputs.cam[dev.labels == 1, :, :, 0].max(axis=(1, 2))
    words = recipe.manifest.labels[0]
    return Label(
        name=words.name,
        finding=words.finding,
        body_site=words.body_site,
        threshold=threshold,
        calibration=choice.calibration,
        cam_scale=float(np.median(peaks)),
        radlex=words.radlex,
        unsure=(rule.low, rule.high) if rule.low < rule.high else None,
    )


def _finder_label(recipe: Recipe, dev: Part, outputs: _Outputs) -> Label:
    """Return the label of a finder: cells calibrated, cut where that share of nodules keeps a cell."""
    cells = outputs.cam[..., 0].astype(np.float64)
    labels, logits = _sure_cells(dev, cells)
    calibration = fit_platt(logits, labels)
    targets = cell_targets(dev.masks, cells.shape[1]).numpy()
    inside = np.where(targets >= _FULL_CELL, cells, -np.inf).max(axis=(1, 2))
    groups = np.array([sample.group for sample in dev.samples], np.str_)
    best = np.array([inside[groups == name].max() for name in np.unique(groups)])
    scores = np.array([calibrate(float(value), calibration) for value in best[np.isfinite(best)]])
    words = recipe.manifest.labels[0]
    return Label(
        name=words.name,
        finding=words.finding,
        body_site=words.body_site,
        threshold=threshold_at_sensitivity(
            scores, np.ones(scores.size, np.int64), sensitivity=recipe.selection.sensitivity
        ),
        calibration=calibration,
        cam_scale=float(np.median(best[np.isfinite(best)])),
        radlex=words.radlex,
    )


def _by_group(
    part: Part, logits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.str_]]:
    """Return logits, labels and patients of the things that rows show: of nodules, or of the rows."""
    names = np.array([sample.group or sample.path for sample in part.samples], np.str_)
    order, first = np.unique(names, return_index=True)
    joined = np.array([mean_logit([float(v) for v in logits[names == name]]) for name in order])
    patients = np.array([part.samples[k].patient_id for k in first], np.str_)
    return joined, part.labels[first], patients


def _checked(
    manifest: Manifest,
    model: Any,
    fit: Part,
    outputs: _Outputs,
    *,
    others: Mapping[str, Path],
    share: float,
) -> tuple[Manifest, Arrays]:
    """Return the manifest with its two rules on foreign images, and the arrays that they need.

    outputs: of the development patients' images.
    """
    preprocessing = manifest.preprocessing
    own = _outputs(model, _spread(fit.planes, _CHECK_ROWS), preprocessing)
    kinds = _foreign(preprocessing, fit.planes, others, part=0)
    averages = {name: _outputs(model, planes, preprocessing).averages for name, planes in kinds.items()}
    check = fit_input_check(own.averages, averages, outputs.averages, share=share)
    reference = unit_rows(_spread(own.features, _REFERENCE_ROWS))
    packed = quantise({REFERENCE: reference})
    shipped = unit_rows(dequantise(packed)[REFERENCE])
    distances = feature_distance(outputs.features, shipped, neighbour=_NEIGHBOUR)
    far = OutOfDistribution(
        threshold=out_of_distribution_threshold(distances, share=share),
        neighbour=_NEIGHBOUR,
        reference=f"{len(reference)} training images; {share:.1%} of development images lie within",
    )
    told = InputCheck(threshold=check.threshold, kinds=tuple(kinds))
    return replace(manifest, ood=far, check=told), packed | _arrays(check)


def _arrays(check: LinearCheck) -> Arrays:
    return {CHECK_KERNEL: check.kernel, CHECK_BIAS: check.bias}


def _foreign(
    preprocessing: Preprocessing, planes: Float, others: Mapping[str, Path], *, part: int
) -> dict[str, Float]:
    return synthetic_planes(preprocessing, planes, seed=part) | {
        name: foreign_planes(folder, preprocessing, part=part) for name, folder in others.items()
    }


def _spread(rows: Float, count: int) -> Float:
    """Return at most so many of the rows, evenly spaced."""
    chosen: Float = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    return chosen


def _write(folder: Path, manifest: Manifest, packed: Arrays) -> ModelPackage:
    """Write weights, then the manifest that pins them, and return the package."""
    digest = save_weights(folder / WEIGHTS, packed)
    pinned = replace(manifest, weights_sha256=digest)
    write_atomically(folder / MANIFEST, encode_manifest(pinned))
    return ModelPackage(folder=folder, manifest=pinned)


def _quantisation(recipe: Recipe, held_out: Part, before: _Outputs, after: Scores) -> Quantisation:
    """Return what int8 weights changed on the held-out images: in their logits, or in a finder's cells."""
    labels, own, shipped = held_out.labels, before.logits[:, 0], after.logits
    if recipe.manifest.role is Role.FINDER:
        labels, own = _sure_cells(held_out, before.cam[..., 0])
        _, shipped = _sure_cells(held_out, after.cams)
    difference = np.abs(shipped - own)
    return Quantisation(
        scheme="int8 weights, symmetric, one scale a channel and block of 32; float32 biases and arithmetic",
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        auc_float32=auc(labels, own.astype(np.float64)),
        auc_shipped=auc(labels, shipped.astype(np.float64)),
    )


def _sure_cells(part: Part, cells: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return label and logit of the cells (n, h, w) that are of a lesion for the most part, or of none."""
    targets = cell_targets(part.masks, cells.shape[1]).numpy()
    sure = (targets == 0) | (targets >= _FULL_CELL)
    return (targets[sure] > 0).astype(np.int64), cells[sure]


def _abstentions(
    built: ModelPackage, engine: LocalEngine, held_out: Part, others: Mapping[str, Path]
) -> tuple[Abstention, ...]:
    """Return how often the model declines images that it is not meant for, and those that it is."""
    sets = _foreign(built.manifest.preprocessing, held_out.planes, others, part=1)
    sets = {f"intended images, {HELD_OUT}": held_out.planes, **sets}
    return tuple(
        Abstention(name, len(planes), float(score(built, engine, planes).abstained.mean()))
        for name, planes in sets.items()
    )
