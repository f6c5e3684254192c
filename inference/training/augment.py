"""Random changes of training planes, as Keras layers; the lesion mask follows the plane's geometry.

The changes of a sample are a function of its key alone: neither the order of the samples, nor their
batch, nor how many workers share them, nor a stop in between changes them.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rayhook.inference.training.recipe import Augmentation


class KeyedSeed(keras.random.SeedGenerator):  # type: ignore[misc]  # keras ships no types
    """Seeds from a sample's key: the n-th draw on a key is the same whenever it is made."""

    def __init__(self) -> None:
        # The state variable of the base class is left out on purpose: there is no state.
        self.restart(tf.zeros(2, tf.int32))

    def restart(self, key: Any) -> None:
        """Draw from this key, (2,) int32, from now on."""
        self._key, self._draws = key, 0

    def next(self, ordered: bool = True) -> Any:  # noqa: ARG002  # the signature is Keras'
        self._draws += 1
        return tf.random.experimental.stateless_fold_in(self._key, self._draws)


class RandomAffine(keras.layers.Layer):  # type: ignore[misc]
    """Turn, zoom and move in one interpolation, so that fine structure is blurred once only."""

    generator: KeyedSeed

    def __init__(self, recipe: Augmentation) -> None:
        super().__init__(dtype="float32")
        self.recipe = recipe

    def call(self, images: Any) -> Any:
        recipe, size = self.recipe, images.shape[1]
        angle = 2 * np.pi * self._draw(recipe.rotation)
        scale = 1 + self._draw(recipe.zoom)
        right, down = (size * self._draw(recipe.translation) for _ in range(2))
        cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
        middle = (size - 1) / 2
        matrix = [
            cos,
            -sin,
            middle - middle * (cos - sin) + right,
            sin,
            cos,
            middle - middle * (sin + cos) + down,
            0.0,
            0.0,
        ]
        return keras.ops.image.affine_transform(
            images, tf.stack(matrix)[tf.newaxis], fill_mode=str(recipe.fill), fill_value=0.0
        )

    def _draw(self, factor: float) -> Any:
        return keras.random.uniform((), -factor, factor, seed=self.generator)


class RandomGamma(keras.layers.Layer):  # type: ignore[misc]
    """Raise a 0..1 plane to a random power exp(u), u in -factor..factor."""

    generator: KeyedSeed

    def __init__(self, factor: float) -> None:
        super().__init__(dtype="float32")
        self.factor = factor

    def call(self, images: Any) -> Any:
        power = keras.random.uniform((), -self.factor, self.factor, seed=self.generator)
        return keras.ops.power(keras.ops.clip(images, 1e-6, 1.0), keras.ops.exp(power))


class Augmenter:
    """Changes of geometry for plane and mask together, then of grey values for the plane alone."""

    def __init__(self, recipe: Augmentation) -> None:
        self._seeds = KeyedSeed()
        self._geometry = [RandomAffine(recipe), *_flips(recipe)]
        self._values = [RandomGamma(recipe.gamma), *_values(recipe)]
        for layer in (*self._geometry, *self._values):
            _draw_from(layer, self._seeds)

    def __call__(self, plane: Any, mask: Any, key: Any) -> tuple[Any, Any]:
        """Return changed plane and mask, each (size, size) float32; see sample_key for the key."""
        self._seeds.restart(key)
        both = tf.stack([plane, mask], axis=-1)[tf.newaxis]
        for layer in self._geometry:
            both = layer(both, training=True) if isinstance(layer, keras.layers.RandomFlip) else layer(both)
        image = both[..., :1]
        for layer in self._values:
            image = layer(image) if isinstance(layer, RandomGamma) else layer(image, training=True)
        return tf.clip_by_value(image[0, ..., 0], 0.0, 1.0), both[0, ..., 1]


def sample_key(seed: int, epoch: Any, row: Any) -> Any:
    """Return the key (2,) int32 of a row in an epoch of a run."""
    fold = tf.random.experimental.stateless_fold_in
    return fold(fold(tf.constant([seed % 2**31, seed // 2**31], tf.int32), epoch), row)


def _draw_from(layer: Any, seeds: KeyedSeed) -> None:
    """Let a layer draw its random numbers from seeds, past Keras' tracking: they have no state to track."""
    name = "seed_generator" if isinstance(layer, keras.layers.GaussianNoise) else "generator"
    object.__setattr__(layer, name, seeds)


def _flips(recipe: Augmentation) -> list[Any]:
    ways = {"horizontal": recipe.flip, "vertical": recipe.flip_vertical}
    return [keras.layers.RandomFlip(way, seed=0, dtype="float32") for way, wanted in ways.items() if wanted]


def _values(recipe: Augmentation) -> list[Any]:
    # Keras takes a lone number of these two as a range from 0; twice the number is what is meant.
    contrast, erasing = (recipe.contrast,) * 2, (recipe.erasing,) * 2
    grey = {"value_range": (0.0, 1.0), "seed": 0, "dtype": "float32"}
    return [
        keras.layers.RandomContrast(contrast, **grey),
        keras.layers.RandomBrightness(recipe.brightness, **grey),
        keras.layers.GaussianNoise(recipe.noise, seed=0, dtype="float32"),
        keras.layers.RandomErasing(erasing, scale=(0.02, 0.08), fill_value=0.0, **grey),
    ]
