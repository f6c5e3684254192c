import numpy as np
import pytest

from rayhook.inference.training.augment import Augmenter
from rayhook.inference.training.recipe import Augmentation

STILL = Augmentation(
    flip=False, rotation=0, zoom=0, translation=0, brightness=0, contrast=0, gamma=0, noise=0, erasing=0
)


@pytest.fixture(scope="module")
def planes():
    y, x = np.mgrid[0:32, 0:32]
    disc = ((y - 12) ** 2 + (x - 20) ** 2 < 25).astype(np.float32)
    return np.repeat(disc[np.newaxis, :, :, np.newaxis], 4, axis=0) * 0.8 + 0.1


def test_no_change_is_the_identity(planes):
    changed, masks = Augmenter(STILL, seed=0)(planes, planes)
    np.testing.assert_allclose(np.asarray(changed), planes, atol=1e-4)
    np.testing.assert_allclose(np.asarray(masks), planes, atol=1e-4)


def test_planes_stay_between_0_and_1(planes):
    changed, _ = Augmenter(Augmentation(), seed=0)(planes, planes)
    assert np.asarray(changed).min() >= 0.0
    assert np.asarray(changed).max() <= 1.0


def test_mask_moves_with_the_plane(planes):
    moved = Augmentation(
        rotation=0.1, zoom=0.2, translation=0.2, brightness=0, contrast=0, gamma=0, noise=0, erasing=0
    )
    changed, masks = Augmenter(moved, seed=3)(planes, planes)
    np.testing.assert_allclose(np.asarray(changed), np.clip(np.asarray(masks), 0, 1), atol=1e-5)
    assert np.abs(np.asarray(masks) - planes).max() > 0.1


def test_the_same_state_gives_the_same_changes(planes):
    first, second = Augmenter(Augmentation(), seed=5), Augmenter(Augmentation(), seed=5)
    first(planes, planes)
    for mine, theirs in zip(second.variables, first.variables, strict=True):
        mine.assign(theirs)
    np.testing.assert_array_equal(np.asarray(first(planes, planes)[0]), np.asarray(second(planes, planes)[0]))
