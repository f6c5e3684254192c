"""The same image gives the same probability: bit for bit here, and within 1e-5 by another runtime."""

import numpy as np
import pytest

from rayhook.inference.engine import LocalEngine
from rayhook.inference.litert import build_network
from rayhook.inference.model import assign_weights
from rayhook.inference.predict import calibrate
from rayhook.inference.preprocess import prepare

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def images(flair):
    """Heads of noise with discs of several grey levels, prepared as the service does."""
    y, x = np.mgrid[0:256, 0:256]
    head = ((y - 128) / 105) ** 2 + ((x - 128) / 85) ** 2 < 1
    made = []
    for level in (20, 60, 140):
        disc = (y - 110) ** 2 + (x - 150) ** 2 < 18**2
        noise = np.random.default_rng(level).normal(0, 6, head.shape)
        pixels = (head * 90 + disc * level + noise * head).astype(np.float32)
        made.append(prepare(pixels, pixel_spacing_mm=(0.9, 0.9), recipe=flair.manifest.preprocessing).image)
    return np.stack(made)


def probabilities(flair, logits: np.ndarray) -> np.ndarray:
    calibration = flair.manifest.labels[0].calibration
    return np.array([calibrate(float(logit), calibration) for logit in logits[:, 0]])


def test_another_engine_gives_the_same_bits(flair, local_engine, engine_cache, images):
    again = LocalEngine(flair, engine_cache)
    np.testing.assert_array_equal(
        again.run(images, TIMEOUT_S).logits, local_engine.run(images, TIMEOUT_S).logits
    )
    again.close()


def test_the_same_engine_gives_the_same_bits(local_engine, images):
    first, second = (local_engine.run(images, TIMEOUT_S) for _ in range(2))
    np.testing.assert_array_equal(first.cam, second.cam)


def test_more_threads_change_no_probability_by_more_than_1e_5(flair, local_engine, engine_cache, images):
    threaded = LocalEngine(flair, engine_cache, threads=2)
    one, two = (probabilities(flair, e.run(images, TIMEOUT_S).logits) for e in (local_engine, threaded))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    threaded.close()


def test_tensorflow_gives_the_same_probability_within_1e_5(flair, local_engine, images):
    """Another runtime with other kernels and another order of sums, as another machine would have."""
    model = build_network(flair.manifest)
    assign_weights(model, flair.weights())
    by_tensorflow = model(images, training=False)["logits"].numpy()
    np.testing.assert_allclose(
        probabilities(flair, by_tensorflow),
        probabilities(flair, local_engine.run(images, TIMEOUT_S).logits),
        rtol=0,
        atol=1e-5,
    )
