"""Random changes of training planes, as Keras layers; the lesion mask follows the plane's geometry."""

from typing import Any

import keras

from rayhook.inference.training.recipe import Augmentation


class RandomGamma(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Raise a 0..1 plane to a random power exp(u), u in -factor..factor, one for each image."""

    def __init__(self, factor: float, *, seed: int) -> None:
        super().__init__()
        self.factor = factor
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, planes: Any) -> Any:
        shape = (keras.ops.shape(planes)[0], 1, 1, 1)
        power = keras.random.uniform(shape, -self.factor, self.factor, seed=self.generator)
        return keras.ops.power(keras.ops.clip(planes, 1e-6, 1.0), keras.ops.exp(power))


class Augmenter:
    """Changes of geometry for plane and mask together, then of grey values for the plane alone."""

    def __init__(self, recipe: Augmentation, *, seed: int) -> None:
        self._geometry = keras.Sequential(_geometry(recipe, seed))
        self._values = keras.Sequential(_values(recipe, seed + 100))

    def __call__(self, planes: Any, masks: Any) -> tuple[Any, Any]:
        """Return changed planes and masks, each (n, size, size, 1)."""
        both = self._geometry(keras.ops.concatenate([planes, masks], axis=-1), training=True)
        changed = self._values(both[..., :1], training=True)
        return keras.ops.clip(changed, 0.0, 1.0), both[..., 1:]

    @property
    def variables(self) -> list[Any]:
        """Return the states of the random generators, which an exact resume needs."""
        return [*self._geometry.variables, *self._values.variables]


def _geometry(recipe: Augmentation, seed: int) -> list[Any]:
    fill = {"fill_mode": "constant", "fill_value": 0.0}
    layers = [
        keras.layers.RandomRotation(recipe.rotation, seed=seed, **fill),
        keras.layers.RandomZoom((-recipe.zoom, recipe.zoom), seed=seed + 1, **fill),
        keras.layers.RandomTranslation(recipe.translation, recipe.translation, seed=seed + 2, **fill),
    ]
    if recipe.flip:
        layers.append(keras.layers.RandomFlip("horizontal", seed=seed + 3))
    return layers


def _values(recipe: Augmentation, seed: int) -> list[Any]:
    grey = {"value_range": (0.0, 1.0)}
    return [
        RandomGamma(recipe.gamma, seed=seed),
        keras.layers.RandomContrast(recipe.contrast, seed=seed + 1, **grey),
        keras.layers.RandomBrightness(recipe.brightness, seed=seed + 2, **grey),
        keras.layers.GaussianNoise(recipe.noise, seed=seed + 3),
        keras.layers.RandomErasing(recipe.erasing, scale=(0.02, 0.08), fill_value=0.0, seed=seed + 4, **grey),
    ]
