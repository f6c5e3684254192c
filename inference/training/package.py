"""From a finished run to a model package: quantised, calibrated, evaluated, written."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

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
from rayhook.inference.predict import calibrate, feature_distance
from rayhook.inference.preprocess import Float, Preprocessing, normalise
from rayhook.inference.registry import (
    MANIFEST,
    REFERENCE,
    WEIGHTS,
    Abstention,
    Label,
    Manifest,
    ModelPackage,
    ModelStatus,
    OutOfDistribution,
    Quantisation,
    encode_manifest,
    unit_rows,
)
from rayhook.inference.training.calibrate import (
    fit_platt,
    out_of_distribution_threshold,
    threshold_at_sensitivity,
)
from rayhook.inference.training.dataset import Cohort, load_cohort, read_samples, split_fit_dev
from rayhook.inference.training.evaluate import Scores, measure, score
from rayhook.inference.training.foreign import foreign_planes, synthetic_planes
from rayhook.inference.training.metrics import auc
from rayhook.inference.training.recipe import Recipe, read_recipe
from rayhook.inference.training.train import load_best

HELD_OUT = "val"

_REFERENCE_ROWS = 1024
_NEIGHBOUR = 5
_BATCH = 32


@dataclass(frozen=True, slots=True)
class _Outputs:
    """logits: (n, labels).  features: (n, 2048).  cam: (n, h, w, labels)."""

    logits: Float
    features: Float
    cam: Float


def package(
    recipe_path: Path,
    run_dir: Path,
    dataset_dir: Path,
    output_dir: Path,
    *,
    cache_dir: Path,
    foreign: Mapping[str, Path] | None = None,
    threads: int = 1,
) -> ModelPackage:
    """Write the package of a run's best weights to output_dir and return it.

    Calibration, threshold and reference come from training patients alone; every figure is of the
    quantised weights in the serving engine, on the split held out.
    foreign: folders of images that the model is not meant for, by what they are.
    """
    recipe = read_recipe(recipe_path)
    samples = read_samples(dataset_dir)
    training = [s for s in samples if s.split == "train"]
    fit, dev = (
        load_cohort(part, dataset_dir, recipe.preprocessing)
        for part in split_fit_dev(training, dev_share=recipe.selection.dev_share, seed=recipe.seed)
    )
    held_out = load_cohort([s for s in samples if s.split == HELD_OUT], dataset_dir, recipe.preprocessing)
    model = load_best(recipe, run_dir)
    before = _outputs(model, held_out.planes, recipe.preprocessing)
    packed = quantise(weights_of(model))
    assign_weights(model, dequantise(packed))
    packed |= quantise({REFERENCE: _reference(_outputs(model, fit.planes, recipe.preprocessing).features)})
    manifest = _measured(recipe, model, dev, unit_rows(dequantise(packed)[REFERENCE]))
    built = _write(output_dir, manifest, packed)
    with contextlib.closing(LocalEngine(built, cache_dir, threads=threads)) as engine:
        scores = score(built, engine, held_out.planes)
        declined = _abstentions(built, engine, held_out, foreign or {})
    shipped = replace(
        built.manifest,
        evaluations=measure(built, held_out, scores, name=f"{dataset_dir.name}, split {HELD_OUT}"),
        quantisation=_quantisation(held_out, before.logits[:, 0], scores),
        abstentions=declined,
    )
    return _write(output_dir, shipped, packed)


def _outputs(model: Any, planes: Float, preprocessing: Preprocessing) -> _Outputs:
    infer = tf.function(lambda images: model(images, training=False))
    batches = (planes[i : i + _BATCH] for i in range(0, len(planes), _BATCH))
    parts = [infer(tf.constant(normalise(batch, recipe=preprocessing))) for batch in batches]
    joined = {
        name: np.concatenate([p[name].numpy() for p in parts]) for name in ("logits", "features", "cam")
    }
    return _Outputs(**joined)


def _reference(features: Float) -> Float:
    """Return at most _REFERENCE_ROWS of the features, evenly spaced over the training images."""
    rows = np.linspace(0, len(features) - 1, min(_REFERENCE_ROWS, len(features))).round().astype(int)
    return unit_rows(features[rows])


def _measured(recipe: Recipe, model: Any, dev: Cohort, reference: Float) -> Manifest:
    """Return the manifest with all that the development patients decide, and nothing evaluated yet."""
    words, selection = recipe.manifest, recipe.selection
    outputs = _outputs(model, dev.planes, recipe.preprocessing)
    calibration = fit_platt(outputs.logits[:, 0].astype(np.float64), dev.labels)
    probabilities = np.array([calibrate(float(logit), calibration) for logit in outputs.logits[:, 0]])
    threshold = threshold_at_sensitivity(probabilities, dev.labels, sensitivity=selection.sensitivity)
    peaks = outputs.cam[dev.labels == 1, :, :, 0].max(axis=(1, 2))
    distances = feature_distance(outputs.features, reference, neighbour=_NEIGHBOUR)
    golden = golden_input(recipe.preprocessing.input_size)
    label = words.labels[0]
    return Manifest(
        id=words.id,
        version=words.version,
        title=words.title,
        intended_use=words.intended_use,
        limits=words.limits,
        status=ModelStatus.EXPERIMENTAL,
        modality=words.modality,
        body_parts=words.body_parts,
        sop_class_uids=words.sop_class_uids,
        sequence=words.sequence,
        output_stride=recipe.output_stride,
        preprocessing=recipe.preprocessing,
        labels=(
            Label(
                name=label.name,
                finding=label.finding,
                body_site=label.body_site,
                threshold=threshold,
                calibration=calibration,
                cam_scale=float(np.median(peaks)),
                radlex=label.radlex,
            ),
        ),
        ood=OutOfDistribution(
            threshold=out_of_distribution_threshold(distances, share=selection.in_distribution),
            neighbour=_NEIGHBOUR,
            reference=f"{len(reference)} training images; {selection.in_distribution:.0%} of development images lie within",
        ),
        golden_logits=tuple(float(v) for v in model(golden[np.newaxis], training=False)["logits"].numpy()[0]),
        weights_sha256="",
        licence=words.licence,
        training_data=words.training_data,
        recipe_sha256=recipe.sha256,
        card=words.card,
    )


def _write(folder: Path, manifest: Manifest, packed: Arrays) -> ModelPackage:
    """Write weights, then the manifest that pins them, and return the package."""
    digest = save_weights(folder / WEIGHTS, packed)
    pinned = replace(manifest, weights_sha256=digest)
    write_atomically(folder / MANIFEST, encode_manifest(pinned))
    return ModelPackage(folder=folder, manifest=pinned)


def _quantisation(held_out: Cohort, before: Float, after: Scores) -> Quantisation:
    """Return what int8 weights changed in the logits of the held-out images."""
    difference = np.abs(after.logits - before)
    return Quantisation(
        scheme="int8 weights, symmetric, one scale a channel and block of 32; float32 biases and arithmetic",
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        auc_float32=auc(held_out.labels, before.astype(np.float64)),
        auc_shipped=auc(held_out.labels, after.logits),
    )


def _abstentions(
    built: ModelPackage, engine: LocalEngine, held_out: Cohort, foreign: Mapping[str, Path]
) -> tuple[Abstention, ...]:
    """Return how often the model abstains on images that it is not meant for."""
    preprocessing = built.manifest.preprocessing
    sets = synthetic_planes(preprocessing, held_out.planes)
    sets |= {name: foreign_planes(folder, preprocessing) for name, folder in foreign.items()}
    return tuple(
        Abstention(name, len(planes), float(score(built, engine, planes).abstained.mean()))
        for name, planes in sets.items()
    )
