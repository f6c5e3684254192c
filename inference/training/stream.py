"""From shards on disk to augmented batches: what a training step is fed with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from rayhook.inference.training.augment import Augmenter, sample_key
from rayhook.inference.training.dataset import Sample
from rayhook.inference.training.recipe import Recipe, Weighting
from rayhook.inference.training.shards import Shards

_PREFETCH = 2


class Batch(NamedTuple):
    """What one replica gets for one step.

    planes, masks: (n, size, size).  targets: (n,), 0 to 1.  shares: (n,), what each row weighs in the
    step's loss; over all replicas they come to about 1.
    """

    planes: Any
    masks: Any
    targets: Any
    shares: Any


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one replica for one step; a row beyond the end of the epoch has the share 0.

    partners, mixes: the row that each is mixed with, and its own part in the mixture.
    """

    rows: NDArray[np.int64]
    shares: NDArray[np.float32]
    partners: NDArray[np.int64]
    mixes: NDArray[np.float32]


class Stream:
    """The epochs of a run: their order, their batches, and their changes, all from the recipe's seed.

    A batch is the same rows with the same changes however many replicas share it.
    """

    def __init__(
        self,
        shards: Shards,
        rows: NDArray[np.int64],
        *,
        targets: NDArray[np.float32],
        weights: NDArray[np.float32],
        recipe: Recipe,
    ) -> None:
        """Serve those rows of the shards; targets and weights are one a row, the weights 1 on average."""
        self._shards, self._rows = shards, rows
        self._targets, self._weights = targets, weights
        self._recipe = recipe
        self._augment = Augmenter(recipe.augmentation)
        # Traced once and called by each epoch's data set, which would trace it anew for seconds.
        self._change = tf.function(self._change_eagerly, autograph=False)

    @property
    def steps(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self._rows.size // self._recipe.optimisation.batch)

    def parts(self, epoch: int, *, replicas: int, chosen: Sequence[int]) -> Iterator[Part]:
        """Yield for each step the parts of the chosen replicas.

        Raises ValueError unless the batch can be shared evenly.
        """
        batch = self._recipe.optimisation.batch
        if batch % replicas:
            raise ValueError(f"a batch of {batch} cannot be shared by {replicas} replicas")
        random = np.random.default_rng([self._recipe.seed, epoch])
        order = random.permutation(self._rows.size)
        partners, mixes = self._mixture(random)
        for start in range(0, order.size, batch):
            places = order[start : start + batch]
            shares = np.zeros(batch, np.float32)
            shares[: places.size] = self._weights[places] / places.size
            padded = np.resize(places, batch)
            for replica in chosen:
                own = np.split(padded, replicas)[replica]
                share = np.split(shares, replicas)[replica]
                yield Part(own, share, partners[own], mixes[own])

    def dataset(self, epoch: int, *, replicas: int = 1, chosen: Sequence[int] = (0,)) -> tf.data.Dataset:
        """Return the batches of the chosen replicas, in turn for each step."""
        size = self._shards.size
        plane = tf.TensorSpec((None, size, size), tf.float32)
        line = tf.TensorSpec((None,), tf.float32)
        place = tf.TensorSpec((None, 2), tf.int64)
        rows = tf.data.Dataset.from_generator(
            lambda: (self._read(p, epoch) for p in self.parts(epoch, replicas=replicas, chosen=chosen)),
            output_signature=(Batch(plane, plane, line, line), place),
        )
        changed = rows.unbatch().map(self._change, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        share = self._recipe.optimisation.batch // replicas
        return changed.batch(share, drop_remainder=True).prefetch(_PREFETCH)

    def _change_eagerly(self, sample: Batch, place: Any) -> Batch:
        """Return one sample changed as its place (epoch, row) says."""
        key = sample_key(self._recipe.seed, place[0], place[1])
        plane, mask = self._augment(sample.planes, sample.masks, key)
        return sample._replace(planes=plane, masks=mask)

    def _read(self, part: Part, epoch: int) -> tuple[Batch, NDArray[np.int64]]:
        planes, masks = self._shards.read(self._rows[part.rows])
        targets = self._targets[part.rows]
        if self._recipe.optimisation.mixup > 0:
            others, other_masks = self._shards.read(self._rows[part.partners])
            mix = part.mixes[:, np.newaxis, np.newaxis]
            planes = mix * planes + (1 - mix) * others
            masks = mix * masks + (1 - mix) * other_masks
            targets = part.mixes * targets + (1 - part.mixes) * self._targets[part.partners]
        rows = self._rows[part.rows]
        return Batch(planes, masks, targets, part.shares), np.stack([np.full_like(rows, epoch), rows], axis=1)

    def _mixture(self, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        alpha = self._recipe.optimisation.mixup
        if alpha <= 0:
            return np.arange(self._rows.size), np.ones(self._rows.size, np.float32)
        mixes = random.beta(alpha, alpha, self._rows.size).astype(np.float32)
        return random.permutation(self._rows.size), mixes


def row_weights(samples: Sequence[Sample], weighting: Weighting) -> NDArray[np.float32]:
    """Return what each row weighs in the loss, 1 on average: alike, or alike for each group."""
    if weighting is Weighting.ROW:
        return np.ones(len(samples), np.float32)
    groups = np.array([sample.group for sample in samples], np.str_)
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1 / counts[inverse]
    return np.asarray(weights / weights.mean(), np.float32)
