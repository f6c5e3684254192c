"""Training: fit patients in, the best averaged weights out; a killed run resumes exactly."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
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
    Arrays,
    assign_weights,
    build_resnet50,
    import_imagenet,
    save_weights,
    weights_of,
)
from rayhook.inference.preprocess import normalise
from rayhook.inference.training.augment import Augmenter
from rayhook.inference.training.dataset import Cohort, load_cohort, read_samples, split_fit_dev
from rayhook.inference.training.metrics import auc
from rayhook.inference.training.recipe import Recipe, read_recipe

STATE = "state.safetensors"
BEST = "best.safetensors"
HISTORY = "history.json"


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the fit patients gave; dev_* are of the averaged weights."""

    epoch: int
    loss: float
    dev_loss: float
    dev_auc: float


@dataclass(frozen=True, slots=True)
class RunState:
    """How far a run has come; history is one entry an epoch."""

    recipe_sha256: str
    history: tuple[Epoch, ...] = field(default=())

    @property
    def best(self) -> Epoch | None:
        """Return the epoch with the highest development AUC, the earlier of equals."""
        return max(self.history, key=lambda e: (e.dev_auc, -e.epoch), default=None)

    def is_over(self, *, epochs: int, patience: int) -> bool:
        """Return whether all epochs are done or the best one is too long ago."""
        done = len(self.history)
        return done >= epochs or (self.best is not None and done - 1 - self.best.epoch >= patience)


def train(
    recipe_path: Path,
    dataset_dir: Path,
    output_dir: Path,
    imagenet_weights: Path,
    *,
    console: Console | None = None,
) -> RunState:
    """Train by a recipe on the folder's training patients and return the run's history.

    Writes state.safetensors (resume), best.safetensors (float32 weights) and history.json after each
    epoch; called again on the same output_dir it goes on where it was.
    Raises DatasetRefused on a patient in two splits, ValueError if output_dir is of another recipe.
    """
    recipe = read_recipe(recipe_path)
    rows = [s for s in read_samples(dataset_dir) if s.split == "train"]
    fit, dev = split_fit_dev(rows, dev_share=recipe.selection.dev_share, seed=recipe.seed)
    trainer = Trainer(
        recipe,
        load_cohort(fit, dataset_dir, recipe.preprocessing),
        load_cohort(dev, dataset_dir, recipe.preprocessing),
    )
    import_imagenet(trainer.model, imagenet_weights)
    import_imagenet(trainer.averaged, imagenet_weights)
    return trainer.run(output_dir, console=console or Console(stderr=True))


class Trainer:
    """The network, its moving average, the optimiser and the random state of one run."""

    def __init__(self, recipe: Recipe, fit: Cohort, dev: Cohort) -> None:
        keras.utils.set_random_seed(recipe.seed)
        self.recipe, self.fit, self.dev = recipe, fit, dev
        size, stride = recipe.preprocessing.input_size, recipe.output_stride
        self.model = build_resnet50(size, recipe.labels, output_stride=stride)
        self.averaged = build_resnet50(size, recipe.labels, output_stride=stride)
        self.averaged.set_weights(self.model.get_weights())
        self._cells = keras.layers.Conv2D(1, 1, name="mask_head")
        self._cells.build(self.model.output["feature_map"].shape)
        self._augment = Augmenter(recipe.augmentation, seed=recipe.seed)
        self._trainable = [*self.model.trainable_variables, *self._cells.trainable_variables]
        self._optimizer = self._build_optimizer()
        positive = float(np.clip(fit.labels.mean(), 0.01, 0.99))
        self._class_weights = (0.5 / (1 - positive), 0.5 / positive)
        self._step = tf.function(self._step_eagerly)
        self._infer = tf.function(lambda images: self.averaged(images, training=False)["logits"])

    def run(self, output_dir: Path, *, console: Console) -> RunState:
        """Run the epochs that are left and return the history."""
        state = self._resume(output_dir)
        options = self.recipe.optimisation
        while not state.is_over(epochs=options.epochs, patience=options.patience):
            epoch = len(state.history)
            loss = self._fit_epoch(epoch, console)
            dev_loss, dev_auc = self._measure()
            state = replace(state, history=(*state.history, Epoch(epoch, loss, dev_loss, dev_auc)))
            self._keep(output_dir, state)
            console.log(f"epoch {epoch + 1}: loss {loss:.4f}, dev loss {dev_loss:.4f}, dev AUC {dev_auc:.4f}")
        return state

    def predict_logits(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the averaged network's logits (n, labels) for planes (n, size, size)."""
        batch = self.recipe.optimisation.batch
        parts = [
            self._infer(
                tf.constant(normalise(planes[i : i + batch], recipe=self.recipe.preprocessing))
            ).numpy()
            for i in range(0, len(planes), batch)
        ]
        return np.concatenate(parts)

    def _build_optimizer(self) -> Any:
        options = self.recipe.optimisation
        steps = self._steps_per_epoch()
        warmup = max(1, round(options.warmup_epochs * steps))
        schedule = keras.optimizers.schedules.CosineDecay(
            options.learning_rate / 100,
            max(1, options.epochs * steps - warmup),
            alpha=0.01,
            warmup_target=options.learning_rate,
            warmup_steps=warmup,
        )
        optimizer = keras.optimizers.AdamW(
            schedule, weight_decay=options.weight_decay, global_clipnorm=options.clip_norm
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(self._trainable)
        return optimizer

    def _steps_per_epoch(self) -> int:
        return -(-len(self.fit.samples) // self.recipe.optimisation.batch)

    def _batches(self, epoch: int) -> Iterator[Any]:
        """Yield planes, masks (n, size, size, 1) and labels (n, 1) in the epoch's own order."""
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.fit.samples))
        planes, masks = tf.constant(self.fit.planes), tf.constant(self.fit.masks)
        labels = tf.constant(self.fit.labels, tf.float32)
        rows = tf.data.Dataset.from_tensor_slices(order).batch(self.recipe.optimisation.batch)
        batches = rows.map(
            lambda i: (
                tf.gather(planes, i)[..., tf.newaxis],
                tf.gather(masks, i)[..., tf.newaxis],
                tf.gather(labels, i)[:, tf.newaxis],
            )
        )
        yield from batches.prefetch(2)

    def _fit_epoch(self, epoch: int, console: Console) -> float:
        """Return the mean loss of one pass over the fit patients."""
        losses = []
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.4f}"), console=console
        ) as progress:
            task = progress.add_task("fit", total=self._steps_per_epoch(), epoch=epoch + 1, loss=float("nan"))
            for planes, masks, labels in self._batches(epoch):
                losses.append(float(self._step(planes, masks, labels)))
                progress.update(task, advance=1, loss=float(np.mean(losses[-20:])))
        return float(np.mean(losses))

    def _step_eagerly(self, planes: Any, masks: Any, labels: Any) -> Any:
        """Change the weights and their average by one batch and return its loss."""
        planes, masks = self._augment(planes, masks)
        preprocessing = self.recipe.preprocessing
        images = (planes - tf.constant(preprocessing.mean)) / tf.constant(preprocessing.std)
        with tf.GradientTape() as tape:
            loss = self._loss(self.model(images, training=True), masks, labels)
        self._optimizer.apply(tape.gradient(loss, self._trainable), self._trainable)
        momentum = self.recipe.optimisation.averaging
        for mean, variable in zip(self.averaged.variables, self.model.variables, strict=True):
            mean.assign(momentum * mean + (1 - momentum) * variable)
        return loss

    def _loss(self, output: dict[str, Any], masks: Any, labels: Any) -> Any:
        """Return class-weighted cross-entropy of the slices plus that of the map's cells."""
        negative, positive = self._class_weights
        slices = tf.nn.sigmoid_cross_entropy_with_logits(labels, output["logits"])
        loss = tf.reduce_mean(slices * tf.where(labels > 0, positive, negative))
        if self.recipe.optimisation.mask_loss == 0:
            return loss
        cells = self._cells(output["feature_map"])
        share = tf.image.resize(masks, cells.shape[1:3], method="area")
        target = tf.minimum(share * 4.0, 1.0)
        dense = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(target, cells))
        return loss + self.recipe.optimisation.mask_loss * dense

    def _measure(self) -> tuple[float, float]:
        """Return cross-entropy and AUC of the averaged weights on the development patients."""
        logits = self.predict_logits(self.dev.planes)[:, 0].astype(np.float64)
        labels = self.dev.labels
        return float(np.mean(np.logaddexp(0.0, logits) - labels * logits)), auc(labels, logits)

    def _keep(self, output_dir: Path, state: RunState) -> None:
        """Write the best weights if they are new, then the whole state in one atomic file."""
        if state.best is state.history[-1]:
            save_weights(output_dir / BEST, weights_of(self.averaged))
        document = json.dumps(asdict(state))
        save_weights(output_dir / STATE, self._arrays(), metadata={"run": document})
        (output_dir / HISTORY).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")

    def _arrays(self) -> Arrays:
        return {name: np.asarray(variable.numpy()) for name, variable in self._state_variables()}

    def _state_variables(self) -> Iterator[tuple[str, Any]]:
        groups = {
            "model": self.model.variables,
            "averaged": self.averaged.variables,
            "cells": self._cells.variables,
            "optimizer": self._optimizer.variables,
            "augment": self._augment.variables,
        }
        for group, variables in groups.items():
            for index, variable in enumerate(variables):
                yield f"{group}.{index}", variable

    def _resume(self, output_dir: Path) -> RunState:
        """Return the state kept in output_dir, with all variables set from it, or that of a new run."""
        path = output_dir / STATE
        if not path.exists():
            return RunState(recipe_sha256=self.recipe.sha256)
        with safe_open(path, framework="numpy") as file:
            document = json.loads(file.metadata()["run"])
            if document["recipe_sha256"] != self.recipe.sha256:
                raise ValueError("output_dir holds a run of another recipe")
            for name, variable in self._state_variables():
                variable.assign(file.get_tensor(name))
        return RunState(document["recipe_sha256"], tuple(Epoch(**entry) for entry in document["history"]))


def load_best(recipe: Recipe, output_dir: Path) -> Any:
    """Return the Keras model with the best float32 weights of a run."""
    model = build_resnet50(recipe.preprocessing.input_size, recipe.labels, output_stride=recipe.output_stride)
    with safe_open(output_dir / BEST, framework="numpy") as file:
        assign_weights(model, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model
