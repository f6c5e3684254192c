"""Random changes of training planes, as Keras layers; the lesion mask follows the plane's geometry.

The changes of a sample are a function of its key alone: neither the order of the samples, nor their
batch, nor how many workers share them, nor a stop in between changes them.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rayhook.inference.training.recipe import Augmentation

UNKNOWN = -1.0
"""What a mask says where nothing is known of the plane."""

_LESION = 0.5
_ROOM = 3
_DARK_SHARE = 0.4


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


class RandomEdges(keras.layers.Layer):  # type: ignore[misc]
    """Move sides of a plane in, up to the lesion; (1, n, n, 2) of plane and mask, the mask UNKNOWN beyond."""

    generator: KeyedSeed

    def __init__(self, probability: float) -> None:
        super().__init__(dtype="float32")
        self.probability = probability

    def call(self, both: Any) -> Any:
        lesion = both[0, ..., 1] > _LESION
        top, bottom = self._line(tf.reduce_any(lesion, axis=1))
        left, right = self._line(tf.reduce_any(lesion, axis=0))
        inside = _between(top, bottom, both.shape[1])[:, tf.newaxis] & _between(left, right, both.shape[2])
        mirrored = tf.gather(both[0], _mirror(top, bottom, both.shape[1]), axis=0)
        mirrored = tf.gather(mirrored, _mirror(left, right, both.shape[2]), axis=1)
        is_dark = self._uniform() < _DARK_SHARE
        plane = tf.where(inside, both[0, ..., 0], tf.where(is_dark, 0.0, mirrored[..., 0]))
        return tf.stack([plane, tf.where(inside, both[0, ..., 1], UNKNOWN)], axis=-1)[tf.newaxis]

    def _line(self, lesion: Any) -> tuple[Any, Any]:
        """Return the first and the last place of a line (n,) that stays, both outside the lesion."""
        size = lesion.shape[0]
        places = tf.where(lesion)[:, 0]
        found = tf.size(places) > 0
        first = tf.where(found, tf.reduce_min(places), size // 2)
        last = tf.where(found, tf.reduce_max(places), size // 2)
        start = self._part() * tf.cast(tf.maximum(first - _ROOM, 0), tf.float32)
        stop = self._part() * tf.cast(tf.maximum(size - 1 - last - _ROOM, 0), tf.float32)
        return tf.cast(start, tf.int64), size - 1 - tf.cast(stop, tf.int64)

    def _part(self) -> Any:
        return tf.where(self._uniform() < self.probability, self._uniform(), 0.0)

    def _uniform(self) -> Any:
        return keras.random.uniform((), seed=self.generator)


def _between(first: Any, last: Any, size: int) -> Any:
    places = tf.range(size, dtype=tf.int64)
    return (places >= first) & (places <= last)


def _mirror(first: Any, last: Any, size: int) -> Any:
    """Return for each place of a line the place within first..last that it mirrors."""
    length = tf.maximum(last - first, 1)
    turn = tf.math.floormod(tf.range(size, dtype=tf.int64) - first, 2 * length)
    return first + tf.where(turn > length, 2 * length - turn, turn)


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
        self._edges = RandomEdges(recipe.edges) if recipe.edges > 0 else None
        self._shift = np.array([0.0, -UNKNOWN], np.float32)
        self._geometry = [RandomAffine(recipe), *_flips(recipe)]
        self._values = [RandomGamma(recipe.gamma), *_values(recipe)]
        for layer in (*([self._edges] if self._edges else []), *self._geometry, *self._values):
            _draw_from(layer, self._seeds)

    def __call__(self, plane: Any, mask: Any, key: Any) -> tuple[Any, Any]:
        """Return changed plane and mask, each (size, size) float32; see sample_key for the key."""
        self._seeds.restart(key)
        both = tf.stack([plane, mask], axis=-1)[tf.newaxis]
        if self._edges is not None:
            both = (
                self._edges(both) + self._shift
            )  # now 0, with which a plane's surroundings are filled, is UNKNOWN
        for layer in self._geometry:
            both = layer(both, training=True) if isinstance(layer, keras.layers.RandomFlip) else layer(both)
        if self._edges is not None:
            both -= self._shift
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
