"""What training lowers and what development patients are scored by; all in float32."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from rayhook.inference.training.metrics import auc, average_precision, operating_points
from rayhook.inference.training.recipe import Optimisation
from rayhook.inference.training.stream import Batch

_FULL_CELL = 0.25
_LEAST_SHARE = 0.02
_SURE = 0.5
_RAREST = 0.01


@dataclass(frozen=True, slots=True)
class Objective:
    """Class-weighted cross-entropy of the images plus cross-entropy of the map's cells.

    class_weights: of an image without and with the finding.
    """

    options: Optimisation
    class_weights: tuple[float, float]

    def __call__(self, logits: Any, cells: Any, batch: Batch) -> Any:
        """Return this replica's part of the step's loss; logits are (n, 1), cells (n, h, w, 1)."""
        options = self.options
        loss = tf.constant(0.0)
        if options.label_loss > 0:
            loss += options.label_loss * tf.reduce_sum(batch.shares * self._of_images(logits[:, 0], batch))
        if options.mask_loss > 0:
            target = cell_targets(batch.masks, cells.shape[1])
            dense = tf.nn.weighted_cross_entropy_with_logits(target, cells[..., 0], options.mask_positive)
            dense *= known_cells(batch.masks, cells.shape[1])
            if options.mask_focus > 0:
                dense *= tf.abs(target - tf.sigmoid(cells[..., 0])) ** options.mask_focus
            loss += options.mask_loss * tf.reduce_sum(batch.shares * tf.reduce_mean(dense, axis=(1, 2)))
        return loss

    def _of_images(self, logits: Any, batch: Batch) -> Any:
        negative, positive = self.class_weights
        smoothing = self.options.label_smoothing
        smooth = batch.targets * (1 - smoothing) + smoothing / 2
        weights = batch.targets * positive + (1 - batch.targets) * negative
        return weights * tf.nn.sigmoid_cross_entropy_with_logits(smooth, logits)


def balance(targets: NDArray[np.float32], weights: NDArray[np.float32]) -> tuple[float, float]:
    """Return the class weights with which both classes come to the same sum."""
    positive = float(np.clip(np.average(targets, weights=weights), _RAREST, 1 - _RAREST))
    return 0.5 / (1 - positive), 0.5 / positive


def cell_targets(masks: Any, side: int) -> Any:
    """Return for each cell of a map (n, side, side) how far it is lesion.

    1 from a quarter of its area, or from half the lesion, where that is less: a small one that lies
    across the corners of four cells is not lost.
    """
    share = _shares(tf.maximum(masks, 0.0), side)
    half = tf.reduce_sum(share, axis=(1, 2), keepdims=True) / 2
    return tf.minimum(share / tf.maximum(tf.minimum(half, _FULL_CELL), _LEAST_SHARE), 1.0)


def known_cells(masks: Any, side: int) -> Any:
    """Return 1 for each cell of a map (n, side, side) that is known for the most part, else 0; see UNKNOWN."""
    known = tf.cast(tf.greater_equal(masks, 0.0), tf.float32)
    return tf.cast(tf.greater(_shares(known, side), _SURE), tf.float32)


def _shares(masks: Any, side: int) -> Any:
    return tf.image.resize(masks[..., tf.newaxis], (side, side), method="area")[..., 0]


def score_images(labels: NDArray[np.int64], logits: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean cross-entropy and AUC."""
    return _cross_entropy(labels.astype(np.float64), logits), auc(labels, logits)


def score_cells(targets: NDArray[np.float64], cells: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean cross-entropy and average precision of a map's cells, as a finder is scored by.

    A cell is positive from half its full target on; one with less, but not 0, counts as neither.
    """
    flat, values = targets.ravel(), cells.ravel()
    sure = (flat == 0) | (flat >= _SURE)
    return _cross_entropy(flat, values), _precision(flat[sure] > 0, values[sure])


def _precision(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    return float(average_precision(operating_points(positive.astype(np.int64), scores))[0])


def _cross_entropy(targets: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))
