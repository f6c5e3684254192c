import numpy as np
import pytest

from rayhook.inference.training.dataset import Sample
from rayhook.inference.training.trivial import black_share, by_column, foreground_mean, number


def test_a_column_is_a_score(tmp_path):
    sample = Sample("a", None, 0, "p", "", 0, "val", attributes={"diameter": "7.5"})
    assert by_column("size", "diameter").score(sample, tmp_path) == 7.5


@pytest.mark.parametrize("text", [None, "", "unknown"])
def test_what_is_no_number_is_unknown(text):
    assert np.isnan(number(text))


def test_the_mean_of_the_head_leaves_out_the_air():
    image = np.zeros((10, 10), np.uint8)
    image[3:7, 3:7] = 80
    assert foreground_mean(image) == 80


def test_an_empty_image_has_no_foreground():
    assert foreground_mean(np.zeros((10, 10), np.uint8)) == 0


def test_black_is_grey_level_0():
    assert black_share(np.array([[0, 1], [0, 255]], np.uint8)) == 0.5
