import io

import cv2
import numpy as np
import pytest
from rich.console import Console

from rayhook.inference.training.preview import preview
from rayhook.inference.training.train import prepare


@pytest.fixture(scope="module")
def sheet(recipe, places, tmp_path_factory):
    there = places(tmp_path_factory.mktemp("preview") / "preview.png")
    material = prepare(recipe, there, console=Console(file=io.StringIO()))
    png = preview(recipe, material, rows=4, columns=3)
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def test_the_sheet_has_a_tile_for_each_row_and_column(sheet):
    assert sheet.shape == (4 * 164, 3 * 164, 3)


def test_half_of_the_rows_have_the_outline_of_a_mask(sheet):
    green = (sheet[..., 1] > 200) & (sheet[..., 0] < 150) & (sheet[..., 2] < 100)
    assert [bool(row.any()) for row in np.split(green, 4)] == [True, True, False, False]


def test_the_images_of_a_row_differ(sheet):
    first, second = sheet[:160, 164:324].astype(int), sheet[:160, 328:488].astype(int)
    assert np.abs(first - second).max() > 50
