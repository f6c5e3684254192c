"""Whether the heatmap points at the lesion, and whether it is the trained weights that make it."""

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.litert import build_network
from rayhook.inference.model import Arrays, assign_weights
from rayhook.inference.preprocess import Float, normalise
from rayhook.inference.registry import Estimate, ModelPackage
from rayhook.inference.training.bootstrap import weighted_bootstrap
from rayhook.inference.training.dataset import Cohort
from rayhook.inference.training.evaluation_report import Explanation, Randomised, finite
from rayhook.inference.training.localisation import centre_hits, chance_hits, heatmap_iou, pointing_game
from rayhook.inference.training.metrics import Scores as Values
from rayhook.inference.training.metrics import Weights, midranks, ratio, weighted_mean

SAMPLE = 60
HEAD = "head"
HEAD_AND_LAST_STAGE = "head and last stage"

_DRAWS = 5
_BATCH = 20


@dataclass(frozen=True, slots=True)
class Pointing:
    """Figures of each row's heatmap against its mask, NaN where it has no finding or no mask."""

    pointing: Values
    iou: Values
    by_chance: Values
    at_centre: Values
    pointing_by_cell: Values
    by_chance_by_cell: Values


def point(cohort: Cohort, cams: Float) -> Pointing:
    """Return the figures of maps (n, h, w) brought to the input's grid, as they are shown."""
    chosen = np.flatnonzero((cohort.labels == 1) & (cohort.masks > 0).any(axis=(1, 2)))
    masks = cohort.masks[chosen] > cohort.masks.dtype.type(0.5)
    maps = on_grid(cams[chosen], cohort.masks.shape[1])
    solid = masks.astype(np.float32)
    cells = _cells(solid, cams.shape[1])

    def spread(values: Values) -> Values:
        everywhere = np.full(len(cohort.samples), np.nan)
        everywhere[chosen] = values
        return everywhere

    return Pointing(
        pointing=spread(pointing_game(maps, solid)),
        iou=spread(heatmap_iou(maps, solid)),
        by_chance=spread(chance_hits(solid)),
        at_centre=spread(centre_hits(solid)),
        pointing_by_cell=spread(pointing_game(cams[chosen], cells)),
        by_chance_by_cell=spread(chance_hits(cells)),
    )


def _cells(masks: Float, side: int) -> Float:
    """Return 1 for each cell of a map (n, side, side) that a mask touches, else 0."""
    cell = masks.shape[1] // side
    return np.asarray(masks.reshape(len(masks), side, cell, side, cell).max(axis=(2, 4)), np.float32)


def on_grid(maps: Float, side: int) -> Float:
    """Return maps (n, h, w) at (n, side, side), as the heatmap over an image is made."""
    grid = np.empty((len(maps), side, side), np.float32)
    for index, one in enumerate(maps):
        grid[index] = cv2.resize(np.asarray(one, np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    return grid


def explain(
    package: ModelPackage,
    cohort: Cohort,
    cams: Float,
    found: Pointing,
    *,
    rounds: int,
) -> Explanation:
    """Return the figures of the heatmap with their intervals, and of networks with random weights."""
    values = {field.name: getattr(found, field.name) for field in fields(Pointing)}
    figures = _means(cohort.patients, values, rounds)
    rows = _drawn(cohort, found)
    between, randomised = _randomised(package, cohort, cams, rows, rounds=rounds)
    return Explanation(
        count=int(np.isfinite(found.pointing).sum()),
        pointing=figures.get("pointing"),
        iou=figures.get("iou"),
        by_chance=figures.get("by_chance"),
        at_centre=figures.get("at_centre"),
        pointing_by_cell=figures.get("pointing_by_cell"),
        by_chance_by_cell=figures.get("by_chance_by_cell"),
        between_images=between,
        randomised=randomised,
    )


def _means(patients: NDArray[np.str_], values: Mapping[str, Values], rounds: int) -> dict[str, Estimate]:
    def figures(weights: Weights) -> Mapping[str, Values]:
        return {name: weighted_mean(row, weights) for name, row in values.items()}

    return finite(weighted_bootstrap(patients, figures, rounds=rounds))


def _drawn(cohort: Cohort, found: Pointing) -> NDArray[np.int64]:
    """Return at most SAMPLE rows by lot: with a mask if there are any, else with the finding, else any."""
    masked = np.flatnonzero(np.isfinite(found.pointing))
    positive = np.flatnonzero(cohort.labels == 1)
    rows = next((some for some in (masked, positive) if some.size), np.arange(len(cohort.samples)))
    return np.sort(np.random.default_rng(0).permutation(rows)[:SAMPLE])


def _randomised(
    package: ModelPackage,
    cohort: Cohort,
    cams: Float,
    rows: NDArray[np.int64],
    *,
    rounds: int,
) -> tuple[Estimate | None, tuple[Randomised, ...]]:
    part = Cohort(tuple(cohort.samples[k] for k in rows), cohort.planes[rows], cohort.masks[rows])
    trained = cams[rows]
    alike = similarity(trained, np.roll(trained, 1 + len(rows) // 2, axis=0))
    between = _means(part.patients, {"similarity": alike}, rounds).get("similarity")
    told = []
    for name, draws in random_cams(package, part.planes).items():
        values = {
            "similarity": np.mean([similarity(trained, maps) for maps in draws], axis=0),
            "pointing": np.mean([point(part, maps).pointing for maps in draws], axis=0),
        }
        figures = _means(part.patients, values, rounds)
        if "similarity" in figures:
            told.append(Randomised(name, len(rows), figures["similarity"], figures.get("pointing")))
    return between, tuple(told)


def similarity(first: Float, second: Float) -> Values:
    """Return the size of Spearman's rank correlation of each pair of maps (n, h, w), NaN for a flat one.

    Its size, because the sign of a random head is random.
    """
    ranked = [_ranks(maps.reshape(len(maps), -1)) for maps in (first, second)]
    centred = [ranks - ranks.mean(axis=1, keepdims=True) for ranks in ranked]
    lengths = [np.linalg.norm(ranks, axis=1) for ranks in centred]
    product = lengths[0] * lengths[1]
    both = np.abs((centred[0] * centred[1]).sum(axis=1))
    return ratio(both, product)


def _ranks(flat: Float) -> Values:
    return np.stack([midranks(row.astype(np.float64)) for row in flat])


def random_cams(package: ModelPackage, planes: Float) -> dict[str, list[Float]]:
    """Return the first label's maps (n, h, w) of networks with a random part, _DRAWS of each, by the part.

    The draws have other heads, and share the last stage where that is random.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported, or it is not heard
    model, weights = build_network(package.manifest), package.weights()
    images = normalise(planes, recipe=package.manifest.preprocessing)
    feature_maps = _feature_maps(model)
    found = {}
    for part, prefix in ((HEAD, ()), (HEAD_AND_LAST_STAGE, (f"layer{package.manifest.stages}.",))):
        assign_weights(model, redrawn(weights, prefix))
        features = feature_maps(images)
        heads = np.random.default_rng(0).normal(size=(_DRAWS, features.shape[-1])).astype(np.float32)
        found[part] = [np.asarray(features @ head, np.float32) for head in heads]
    return found


def redrawn(weights: Arrays, prefixes: tuple[str, ...]) -> Arrays:
    """Return the weights, those of the layers named drawn anew with the spread they had, biases 0."""
    drawn = dict(weights)
    for name, array in weights.items():
        if not name.startswith(prefixes):
            continue
        random = np.random.default_rng(zlib.crc32(name.encode()))
        spread = float(array.std()) if array.ndim > 1 else 0.0
        drawn[name] = random.normal(0.0, spread, array.shape).astype(np.float32)
    return drawn


def _feature_maps(model: Any) -> Callable[[Float], Float]:
    """Return what gives the network's last feature map of images, with the weights it has by then."""
    import keras
    import tensorflow as tf

    last = keras.Model(model.input, model.output["feature_map"])
    infer = tf.function(lambda batch: last(batch, training=False), reduce_retracing=True)

    def maps(images: Float) -> Float:
        parts = [infer(tf.constant(images[k : k + _BATCH])).numpy() for k in range(0, len(images), _BATCH)]
        return np.asarray(np.concatenate(parts), np.float32)

    return maps
