import numpy as np
import pytest
import tensorflow as tf

from rayhook.inference.training.augment import Augmenter, sample_key
from rayhook.inference.training.recipe import Augmentation

STILL = Augmentation(
    flip=False, rotation=0, zoom=0, translation=0, brightness=0, contrast=0, gamma=0, noise=0, erasing=0
)
MOVED = Augmentation(
    rotation=0.5,
    zoom=0.2,
    translation=0.2,
    flip_vertical=True,
    brightness=0,
    contrast=0,
    gamma=0,
    noise=0,
    erasing=0,
)


@pytest.fixture(scope="module")
def plane():
    y, x = np.mgrid[0:32, 0:32]
    return ((y - 12) ** 2 + (x - 20) ** 2 < 25).astype(np.float32) * 0.8 + 0.1


@pytest.fixture(scope="module")
def augmented(plane):
    """The plane changed by a recipe for a row of an epoch."""

    def change(recipe, *, row, epoch=0, mask=plane):
        changed, moved = Augmenter(recipe)(tf.constant(plane), tf.constant(mask), sample_key(7, epoch, row))
        return changed.numpy(), moved.numpy()

    return change


def test_no_change_is_the_identity(augmented, plane):
    changed, mask = augmented(STILL, row=3)
    np.testing.assert_allclose(changed, plane, atol=1e-4)
    np.testing.assert_allclose(mask, plane, atol=1e-4)


def test_planes_stay_between_0_and_1(augmented):
    changed = np.stack([augmented(Augmentation(noise=0.5), row=row)[0] for row in range(8)])
    assert changed.min() >= 0.0
    assert changed.max() <= 1.0


@pytest.mark.parametrize("row", range(4))
def test_mask_moves_with_the_plane(augmented, plane, row):
    changed, mask = augmented(MOVED, row=row)
    np.testing.assert_allclose(changed, np.clip(mask, 0, 1), atol=1e-5)
    assert np.abs(mask - plane).max() > 0.1


def test_a_row_in_an_epoch_is_changed_the_same_each_time(augmented):
    first, again = (augmented(Augmentation(), row=5, epoch=2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("other", [{"row": 6, "epoch": 2}, {"row": 5, "epoch": 3}])
def test_other_rows_and_epochs_are_changed_otherwise(augmented, other):
    here = augmented(Augmentation(), row=5, epoch=2)[0]
    assert np.abs(augmented(Augmentation(), **other)[0] - here).max() > 0.1


def test_contrast_goes_both_ways(augmented, plane):
    still = {**dict.fromkeys(("rotation", "zoom", "translation", "brightness", "gamma", "noise"), 0)}
    recipe = Augmentation(flip=False, erasing=0, contrast=0.3, **still)
    spread = np.array([augmented(recipe, row=row)[0].std() for row in range(12)]) / plane.std()
    assert spread.min() < 0.95
    assert spread.max() > 1.02


def test_erasing_blackens_as_often_as_it_says(augmented):
    still = {**dict.fromkeys(("rotation", "zoom", "translation", "brightness", "gamma", "noise"), 0)}
    recipe = Augmentation(flip=False, erasing=0.5, contrast=0, **still)
    erased = [augmented(recipe, row=row)[0].min() == 0 for row in range(60)]
    assert 0.3 < np.mean(erased) < 0.7
