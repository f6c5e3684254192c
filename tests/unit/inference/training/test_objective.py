import numpy as np
import pytest
import tensorflow as tf

from rayhook.inference.training.objective import (
    Objective,
    balance,
    cell_targets,
    known_cells,
    score_cells,
    score_images,
)
from rayhook.inference.training.recipe import Optimisation
from rayhook.inference.training.stream import Batch

LABELS_ONLY = Optimisation(mask_loss=0)


def _batch(targets, shares=None, masks=None):
    count = len(targets)
    return Batch(
        planes=tf.zeros((count, 8, 8)),
        masks=tf.zeros((count, 8, 8)) if masks is None else tf.constant(masks, tf.float32),
        targets=tf.constant(targets, tf.float32),
        shares=tf.constant(shares or [1 / count] * count, tf.float32),
    )


def _loss(options, logits, batch, class_weights=(1.0, 1.0), cells=0.0):
    maps = tf.fill((len(logits), 4, 4, 1), cells)
    return float(Objective(options, class_weights)(tf.constant(logits)[:, tf.newaxis], maps, batch))


def test_the_loss_of_an_image_is_its_cross_entropy():
    assert _loss(LABELS_ONLY, [0.0, 0.0], _batch([0, 1])) == pytest.approx(np.log(2))


def test_a_row_of_no_share_costs_nothing():
    batch = _batch([0, 1], shares=[1.0, 0.0])
    assert _loss(LABELS_ONLY, [0.0, -50.0], batch) == pytest.approx(np.log(2))


def test_a_soft_target_is_weighted_between_the_classes():
    assert _loss(LABELS_ONLY, [0.0], _batch([0.5]), (1.0, 3.0)) == pytest.approx(2 * np.log(2))


def test_smoothing_takes_the_target_off_the_ends():
    options = Optimisation(mask_loss=0, label_smoothing=0.2)
    certain = _loss(options, [30.0], _batch([1]))
    assert certain == pytest.approx(0.1 * 30, rel=1e-4)


def test_balance_gives_both_classes_the_same_sum():
    targets = np.array([1, 0, 0, 0], np.float32)
    negative, positive = balance(targets, np.ones(4, np.float32))
    assert 3 * negative == pytest.approx(positive)


def test_without_a_label_loss_the_cells_alone_count():
    options = Optimisation(label_loss=0, mask_loss=2.0)
    assert _loss(options, [50.0], _batch([0])) == pytest.approx(2 * np.log(2))


def test_cells_inside_a_mask_weigh_what_the_recipe_says():
    options = Optimisation(label_loss=0, mask_loss=1.0, mask_positive=3.0)
    assert _loss(options, [0.0], _batch([1], masks=np.ones((1, 8, 8)))) == pytest.approx(3 * np.log(2))


def test_a_cell_is_lesion_from_a_quarter_of_its_area():
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, 0, 0] = mask[0, 4:8, 4:8] = 1
    cells = cell_targets(tf.constant(mask), 2).numpy()[0]
    np.testing.assert_allclose(cells, [[0.25, 0], [0, 1]])


def test_images_are_scored_by_auc():
    loss, score = score_images(np.array([0, 1, 1]), np.array([-1.0, 2.0, 0.5]))
    assert score == 1.0
    assert 0 < loss < np.log(2)


def test_cells_are_scored_by_average_precision_without_the_uncertain_ones():
    targets, cells = np.array([[1.0, 0.2, 0.0, 1.0]]), np.array([[3.0, 9.0, 2.0, 1.0]])
    assert score_cells(targets, cells)[1] == pytest.approx((1 + 2 / 3) / 2)


def test_a_small_lesion_across_four_cells_is_lesion_in_each():
    mask = np.zeros((1, 16, 16), np.float32)
    mask[0, 7:9, 7:9] = 1
    np.testing.assert_allclose(cell_targets(tf.constant(mask), 2).numpy()[0], 0.5)


def test_cells_where_nothing_is_known_count_for_nothing():
    mask = np.full((1, 16, 16), -1, np.float32)
    mask[0, :8] = 0
    np.testing.assert_array_equal(known_cells(tf.constant(mask), 2).numpy()[0], [[1, 1], [0, 0]])
