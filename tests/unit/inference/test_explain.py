import cv2
import numpy as np

from rayhook.inference.explain import heatmap, render_overlay_png, render_png
from rayhook.inference.preprocess import BrainSlice, prepare


def _pixels() -> np.ndarray:
    pixels = np.zeros((120, 200), np.float32)
    pixels[10:110, 50:150] = 100 + np.arange(100)
    return pixels


def _geometry():
    return prepare(_pixels(), pixel_spacing_mm=(1.0, 1.0), recipe=BrainSlice(input_size=64)).geometry


def test_heat_is_on_the_original_grid_between_0_and_1():
    cam = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    heat = heatmap(cam, _geometry(), scale=1.0)
    assert heat.shape == (120, 200)
    assert heat.min() >= 0.0
    assert heat.max() <= 1.0


def test_heat_lies_where_the_map_is_hot():
    cam = np.zeros((8, 8), np.float32)
    cam[1, 6] = 5.0
    row, column = np.unravel_index(heatmap(cam, _geometry(), scale=5.0).argmax(), (120, 200))
    assert row < 40
    assert column > 110


def test_no_heat_without_positive_evidence():
    assert not heatmap(np.full((8, 8), -3.0, np.float32), _geometry(), scale=1.0).any()


def test_no_heat_outside_the_crop():
    heat = heatmap(np.ones((8, 8), np.float32), _geometry(), scale=1.0)
    assert not heat[:, :20].any()


def test_png_holds_the_pixels():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = cv2.imdecode(np.frombuffer(render_png(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, pixels)


def test_overlay_changes_only_the_hot_pixels():
    pixels = np.full((16, 16), 80, np.uint8)
    heat = np.zeros((16, 16), np.float32)
    heat[4, 5] = 1.0
    decoded = cv2.imdecode(np.frombuffer(render_overlay_png(pixels, heat), np.uint8), cv2.IMREAD_COLOR)
    changed = (decoded != 80).any(axis=2)
    assert changed.sum() == 1
    assert changed[4, 5]
