"""What augmentation makes of training images, on one contact sheet."""

from collections.abc import Sequence

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float
from rayhook.inference.training.augment import Augmenter, sample_key
from rayhook.inference.training.dataset import Sample
from rayhook.inference.training.recipe import Recipe
from rayhook.inference.training.train import Material

_OUTLINE = (60, 230, 120)
_SIDE = 160
_GAP = 4
_WHITE = 255
_HALF = 0.5


def preview(recipe: Recipe, material: Material, *, rows: int = 8, columns: int = 8) -> bytes:
    """Return a PNG: each row is one training image as it is, then in the run's first epochs.

    The outline is that of the lesion mask, which must stay on the lesion.
    """
    chosen = _choose(material.samples, rows, seed=recipe.seed)
    records = material.rows(chosen)
    planes, masks = material.shards.read(records)
    augment = Augmenter(recipe.augmentation)
    sheet = []
    for plane, mask, record in zip(planes, masks, records, strict=True):
        tiles = [_tile(plane, mask)]
        for epoch in range(columns - 1):
            key = sample_key(recipe.seed, epoch, tf.constant(record, tf.int64))
            changed, moved = augment(tf.constant(plane), tf.constant(mask), key)
            tiles.append(_tile(changed.numpy(), moved.numpy()))
        sheet.append(np.concatenate(tiles, axis=1))
    return cv2.imencode(".png", cv2.cvtColor(np.concatenate(sheet), cv2.COLOR_RGB2BGR))[1].tobytes()


def _choose(samples: Sequence[Sample], count: int, *, seed: int) -> list[Sample]:
    """Return training rows by lot, half of them positive where there are enough, one a patient."""
    random = np.random.default_rng(seed)
    training = [s for s in samples if s.split == "train"]
    shuffled = [training[i] for i in random.permutation(len(training))]
    kinds: dict[bool, dict[str, Sample]] = {True: {}, False: {}}
    for sample in shuffled:
        kinds[sample.label == 1].setdefault(sample.patient_id, sample)
    positive, negative = (list(kind.values()) for kind in kinds.values())
    wanted = max(count // 2, count - len(negative))
    return positive[:wanted] + negative[: count - len(positive[:wanted])]


def _tile(plane: Float, mask: Float) -> NDArray[np.uint8]:
    """Return an image as RGB with the mask's outline and a white edge."""
    grey = np.rint(np.clip(_enlarged(plane), 0, 1) * _WHITE).astype(np.uint8)
    tile = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    inside = (_enlarged(mask) > _HALF).astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, outlines, -1, _OUTLINE, 1)
    framed: NDArray[np.uint8] = np.pad(tile, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=_WHITE)
    return framed


def _enlarged(grid: Float) -> Float:
    return np.asarray(cv2.resize(grid, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR), np.float32)
