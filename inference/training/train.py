"""Training: fit patients in, the best averaged weights out; a killed run resumes exactly."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open

from rayhook.inference.model import (
    assign_weights,
    build_resnet50,
    import_imagenet,
    save_weights,
    weights_of,
)
from rayhook.inference.preprocess import normalise, to_channels
from rayhook.inference.training.checkpoint import (
    BEST,
    HISTORY,
    STATE,
    Epoch,
    RunState,
    Variables,
    restore_state,
    save_state,
)
from rayhook.inference.training.dataset import Sample, find_dataset, read_samples, split_fit_dev
from rayhook.inference.training.distribute import (
    be_deterministic,
    choose_precision,
    is_chief,
    make_strategy,
)
from rayhook.inference.training.objective import (
    Objective,
    balance,
    cell_targets,
    score_cells,
    score_images,
)
from rayhook.inference.training.places import Places
from rayhook.inference.training.recipe import MaskHead, Precision, Recipe
from rayhook.inference.training.shards import Shards, cached_shards
from rayhook.inference.training.stream import Batch, Stream, row_weights
from rayhook.inference.training.tracking import Tracker

__all__ = ["BEST", "HISTORY", "STATE", "Epoch", "RunState", "Trainer", "load_best", "train"]


@dataclass(frozen=True, slots=True)
class Material:
    """Labelled rows and their preprocessed planes: record k of the shards is row k."""

    samples: tuple[Sample, ...]
    shards: Shards

    def rows(self, chosen: Sequence[Sample]) -> NDArray[np.int64]:
        """Return the records of some of the samples."""
        places = {sample.path: index for index, sample in enumerate(self.samples)}
        return np.array([places[sample.path] for sample in chosen], np.int64)


def train(recipe: Recipe, places: Places, *, console: Console | None = None) -> RunState:
    """Train by a recipe on the training patients of its data set and return the run's history.

    Writes state.safetensors (resume), best.safetensors (float32 weights) and history.json after each
    epoch; called again with the same output it goes on where it was.
    Raises DatasetRefused on a patient in two splits, ValueError if the output is of another recipe.
    """
    console = console or Console(stderr=True)
    be_deterministic(recipe.seed)
    strategy = make_strategy(places.strategy, devices=places.devices)
    material = prepare(recipe, places, console=console)
    training = [sample for sample in material.samples if sample.split == "train"]
    fit, dev = split_fit_dev(training, dev_share=recipe.selection.dev_share, seed=recipe.seed)
    trainer = Trainer(recipe, material, fit, dev, strategy=strategy)
    import_imagenet(trainer.model, places.imagenet_weights)
    tracker = Tracker(recipe, places.output, places.tracking, console=console) if is_chief(strategy) else None
    return trainer.run(places.output, console=console, tracker=tracker)


def prepare(recipe: Recipe, places: Places, *, console: Console) -> Material:
    """Return the rows of the recipe's data set with their planes, preprocessed if the cache lacks them."""
    folder = find_dataset(recipe.data.dataset, places.datasets, places.cache)
    samples = read_samples(folder, recipe.data, for_training=True)
    with _progress(console) as progress:
        task = progress.add_task(f"preprocessing {folder.name}", total=len(samples))
        shards = cached_shards(
            samples, folder, recipe.preprocessing, places.cache, advance=lambda: progress.advance(task)
        )
    return Material(samples, shards)


class SummedAdamW(keras.optimizers.AdamW):  # type: ignore[misc]  # keras ships no types
    """AdamW for gradients that are summed over replicas already: clipping by norm needs the sum."""

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


class Trainer:
    """The network, its moving average, the optimiser and the stream of one run."""

    def __init__(
        self,
        recipe: Recipe,
        material: Material,
        fit: Sequence[Sample],
        dev: Sequence[Sample],
        *,
        strategy: tf.distribute.Strategy,
    ) -> None:
        self.recipe, self.material, self.dev = recipe, material, tuple(dev)
        self._data = f"{material.shards.folder.name}-{_digest(fit, dev)}"
        self.precision = choose_precision(recipe.precision)
        self._strategy = strategy
        targets = np.array([sample.target for sample in fit], np.float32)
        weights = row_weights(fit, recipe.data.weight)
        self.stream = Stream(
            material.shards, material.rows(fit), targets=targets, weights=weights, recipe=recipe
        )
        self._objective = Objective(recipe.optimisation, balance(targets, weights))
        keras.utils.set_random_seed(recipe.seed % 2**32)
        with strategy.scope():
            self.model = _build(recipe, self.precision)
            self._cells = keras.layers.Dense(1, name="mask_head", dtype="float32")
            self._cells.build(self.model.output["feature_map"].shape)
            self._trained = _trained(self.model, recipe.optimisation.frozen_stages)
            if recipe.optimisation.mask_loss > 0 and recipe.optimisation.mask_head is MaskHead.OWN:
                self._trained += self._cells.trainable_variables
            self._optimizer = self._build_optimizer()
            self._means = [tf.Variable(v.numpy(), trainable=False) for v in self.model.variables]
        self.averaged = _build(recipe, Precision.FLOAT32)
        self._step = tf.function(self._step_eagerly)
        self._infer = tf.function(lambda images: self.averaged(images, training=False))

    def run(self, output_dir: Path, *, console: Console, tracker: Tracker | None = None) -> RunState:
        """Run the epochs that are left and return the history."""
        for mean, variable in zip(self._means, self.model.variables, strict=True):
            mean.assign(variable.numpy())
        fresh = RunState(self.recipe.sha256, data=self._data)
        state = restore_state(output_dir, fresh, self._variables())
        options = self.recipe.optimisation
        if tracker is not None:
            tracker.start(state, precision=self.precision, replicas=self._strategy.num_replicas_in_sync)
        while not state.is_over(epochs=options.epochs, patience=options.patience):
            started = time.monotonic()
            epoch = len(state.history)
            loss = self._fit_epoch(epoch, console)
            self._average()
            logits, dev_loss, dev_auc = self._measure()
            state = replace(state, history=(*state.history, Epoch(epoch, loss, dev_loss, dev_auc)))
            if is_chief(self._strategy):
                self._keep(output_dir, state)
            if tracker is not None:
                tracker.log(state, labels=[s.label for s in self.dev], logits=logits)
            self._tell(state, time.monotonic() - started, console)
        if tracker is not None:
            tracker.finish(state)
        return state

    def predict(self, samples: Sequence[Sample]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the averaged network's logits (n,) and map (n, h, w) of the first label."""
        rows, batch = self.material.rows(samples), self.recipe.optimisation.batch
        logits, cams = [], []
        for start in range(0, rows.size, batch):
            planes, _ = self.material.shards.read(rows[start : start + batch])
            output = self._infer(tf.constant(normalise(planes, recipe=self.recipe.preprocessing)))
            logits.append(output["logits"].numpy()[:, 0])
            cams.append(output["cam"].numpy()[..., 0])
        return np.concatenate(logits).astype(np.float64), np.concatenate(cams).astype(np.float64)

    def _build_optimizer(self) -> Any:
        options, steps = self.recipe.optimisation, self.stream.steps
        warmup = max(1, round(options.warmup_epochs * steps))
        schedule = keras.optimizers.schedules.CosineDecay(
            options.learning_rate / 100,
            max(1, options.epochs * steps - warmup),
            alpha=0.01,
            warmup_target=options.learning_rate,
            warmup_steps=warmup,
        )
        optimizer: Any = SummedAdamW(
            schedule, weight_decay=options.weight_decay, global_clipnorm=options.clip_norm
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        if self.precision is Precision.MIXED_FLOAT16:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self._trained)
        return optimizer

    def _fit_epoch(self, epoch: int, console: Console) -> float:
        """Return the mean loss of one pass over the fit patients."""
        losses: list[float] = []
        replicas = self._strategy.num_replicas_in_sync

        def own(context: Any) -> tf.data.Dataset:
            count = replicas // context.num_input_pipelines
            first = context.input_pipeline_id * count
            return self.stream.dataset(epoch, replicas=replicas, chosen=range(first, first + count))

        with _progress(console) as progress:
            task = progress.add_task(f"epoch {epoch + 1}", total=self.stream.steps)
            for batch in self._strategy.distribute_datasets_from_function(own):
                losses.append(float(self._step(batch)))
                recent = f"epoch {epoch + 1}, loss {np.mean(losses[-20:]):.4f}"
                progress.update(task, advance=1, description=recent)
        return float(np.mean(losses))

    def _step_eagerly(self, batch: Batch) -> Any:
        """Change the weights and their average by one batch and return its loss."""
        losses = self._strategy.run(self._replica_step, args=(batch,))
        momentum = self.recipe.optimisation.averaging
        for mean, variable in zip(self._means, self.model.variables, strict=True):
            self._strategy.extended.update(
                mean, lambda m, v: m.assign(momentum * m + (1 - momentum) * v), args=(variable.value,)
            )
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(self, batch: Batch) -> Any:
        images = to_channels(batch.planes[..., tf.newaxis], recipe=self.recipe.preprocessing)
        with tf.GradientTape() as tape:
            loss = self._loss(images, batch)
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self._trained)
        if self._strategy.num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        self._optimizer.apply(gradients, self._trained)
        return loss

    def _loss(self, images: Any, batch: Batch) -> Any:
        """Return the loss from the feature map on in float32, whatever came before it was in."""
        feature_map = tf.cast(self.model(images, training=True)["feature_map"], tf.float32)
        head = self.model.get_layer("head")
        logits = tf.reduce_mean(feature_map, axis=(1, 2)) @ head.kernel + head.bias
        if self.recipe.optimisation.mask_head is MaskHead.LABEL:
            cells = (feature_map @ head.kernel + head.bias)[..., :1]
        else:
            cells = self._cells(feature_map)
        return self._objective(logits, cells, batch)

    def _average(self) -> None:
        for mean, variable in zip(self._means, self.averaged.variables, strict=True):
            variable.assign(mean.numpy())

    def _measure(self) -> tuple[NDArray[np.float64], float, float]:
        """Return logits, loss and score of the averaged weights on the development patients.

        Every worker scores; the chief's figures count, lest one stops and the others wait for it.
        """
        logits, cams = self.predict(self.dev)
        labels = np.array([sample.label for sample in self.dev], np.int64)
        if self.recipe.optimisation.mask_head is MaskHead.LABEL:
            loss, score = score_cells(self.cell_targets(self.dev, cams.shape[1]), cams)
        else:
            loss, score = score_images(labels, logits)
        loss, score = _from_chief(self._strategy, (loss, score))
        return logits, loss, score

    def cell_targets(self, samples: Sequence[Sample], side: int) -> NDArray[np.float64]:
        """Return what the cells of the samples' maps are scored against (n, side, side)."""
        rows, batch = self.material.rows(samples), self.recipe.optimisation.batch
        parts = [
            cell_targets(self.material.shards.read(rows[start : start + batch])[1], side).numpy()
            for start in range(0, rows.size, batch)
        ]
        return np.concatenate(parts).astype(np.float64)

    def _keep(self, output_dir: Path, state: RunState) -> None:
        """Write the best weights if they are new, then the whole state in one atomic file."""
        if state.best is state.history[-1]:
            save_weights(output_dir / BEST, weights_of(self.averaged))
        save_state(output_dir, state, self._variables())

    def _variables(self) -> Variables:
        return {
            "model": self.model.variables,
            "averaged": self._means,
            "cells": self._cells.variables,
            "optimizer": self._optimizer.variables,
        }

    def _tell(self, state: RunState, seconds: float, console: Console) -> None:
        last, options = state.history[-1], self.recipe.optimisation
        left = (options.epochs - len(state.history)) * seconds / 60
        console.log(
            f"epoch {last.epoch + 1} of {options.epochs}: loss {last.loss:.4f}, dev loss {last.dev_loss:.4f}, "
            f"dev {self.score_name} {last.dev_auc:.4f}; {seconds:.0f} s, at most {left:.0f} min left"
        )

    @property
    def score_name(self) -> str:
        """Return what the development score is."""
        own = self.recipe.optimisation.mask_head is MaskHead.OWN
        return "AUC" if own else "average precision of cells"


def load_best(recipe: Recipe, output_dir: Path) -> Any:
    """Return the Keras model with the best float32 weights of a run."""
    model = _build(recipe, Precision.FLOAT32)
    with safe_open(output_dir / BEST, framework="numpy") as file:
        assign_weights(model, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model


def _build(recipe: Recipe, precision: Precision) -> Any:
    """Return the recipe's network, its layers computing in that precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(str(precision))
    try:
        return build_resnet50(
            recipe.preprocessing.input_size,
            recipe.labels,
            output_stride=recipe.output_stride,
            stages=recipe.stages,
        )
    finally:
        keras.config.set_dtype_policy(before)


def _trained(model: Any, frozen_stages: int) -> list[Any]:
    """Return the variables that train: all, or all after the stem and so many stages."""
    frozen = ("conv1", *(f"layer{stage}." for stage in range(1, frozen_stages + 1)))
    kept = [layer for layer in model.layers if not (frozen_stages and layer.name.startswith(frozen))]
    return [variable for layer in kept for variable in layer.trainable_variables]


def _digest(fit: Sequence[Sample], dev: Sequence[Sample]) -> str:
    """Return what tells runs on other rows of the same images apart."""
    paths = [[sample.path for sample in part] for part in (fit, dev)]
    return hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:12]


def _from_chief(strategy: tf.distribute.Strategy, values: tuple[float, float]) -> tuple[float, float]:
    """Return the chief's values on every worker."""
    resolver = strategy.cluster_resolver
    if resolver is None or len(resolver.cluster_spec().as_dict().get("worker", ())) < 2:  # noqa: PLR2004
        return values
    own = tf.constant(values if is_chief(strategy) else (0.0, 0.0), tf.float64)
    replicas = strategy.num_replicas_in_sync // strategy.extended._num_workers  # noqa: SLF001
    summed = strategy.run(
        lambda: tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own / replicas)
    )
    first, second = strategy.experimental_local_results(summed)[0].numpy()
    return float(first), float(second)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
