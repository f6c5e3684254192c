import numpy as np
import pytest

from rayhook.deploy.demo.phantom import CT_SLICES, FLAIR_SLICES, SIDE, chest_ct, head_flair

SEED = 7


@pytest.fixture(scope="module")
def lesion() -> np.ndarray:
    return head_flair(SEED, lesion=True)


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return head_flair(SEED, lesion=False)


def test_a_seed_always_gives_the_same_pixels(plain: np.ndarray) -> None:
    np.testing.assert_array_equal(head_flair(SEED, lesion=False), plain)


def test_another_seed_gives_another_head(plain: np.ndarray) -> None:
    assert not np.array_equal(head_flair(SEED + 1, lesion=False), plain)


def test_pixels_are_twelve_bits(lesion: np.ndarray) -> None:
    assert lesion.shape == (FLAIR_SLICES, SIDE, SIDE)
    assert lesion.max() < 4096


def test_the_lesion_is_brighter_than_brain_on_five_slices_and_nowhere_else(
    lesion: np.ndarray, plain: np.ndarray
) -> None:
    difference = lesion.astype(int) - plain
    changed = [index for index in range(FLAIR_SLICES) if np.abs(difference[index]).max() > 300]
    assert changed == [3, 4, 5, 6, 7]
    assert difference[5].max() > 500


def test_the_scalp_is_the_brightest_and_the_air_is_noise(plain: np.ndarray) -> None:
    middle = plain[4].astype(float)
    assert middle[:20].max() < 250
    assert np.median(middle[SIDE // 2 - 40 : SIDE // 2 + 40, SIDE // 2 - 30]) < middle.max() / 2


def test_the_ventricles_are_darker_than_the_brain_around_them(plain: np.ndarray) -> None:
    middle = plain[3].astype(float)
    ventricle, brain = middle[108:113, 135:140], middle[108:113, 160:165]
    assert ventricle.mean() < brain.mean() / 2


def test_the_chest_is_in_hounsfield_units() -> None:
    chest = chest_ct(1)
    assert chest.shape == (CT_SLICES, SIDE, SIDE)
    assert (chest[0, 0, 0], -950 < chest[0, 128, 76] < -700) == (pytest.approx(-1000, abs=80), True)
