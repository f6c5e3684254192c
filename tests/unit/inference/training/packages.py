"""Small model packages with random weights, and a labelled folder as that of lung nodules, for the tests."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rayhook.inference.litert import golden_input
from rayhook.inference.model import build_resnet50, save_weights, weights_of
from rayhook.inference.patch import Patch
from rayhook.inference.preprocess import normalise
from rayhook.inference.registry import (
    MANIFEST,
    WEIGHTS,
    Calibration,
    Label,
    Manifest,
    ModelPackage,
    encode_manifest,
)
from rayhook.inference.training.dataset import load_cohort, read_samples
from rayhook.inference.training.recipe import Data, Recipe

_SIDE = 128
STRIDE = 8


def make_package(folder: Path, recipe: Recipe, nodules: Path) -> ModelPackage:
    """Write a package with the words of a recipe and a tiny network: random, but for its head.

    The head is the difference of the mean features of suspicious and benign nodules.
    """
    import keras

    keras.utils.set_random_seed(0)
    words, preprocessing = recipe.manifest, Patch(input_size=32, spacing_mm=1.5)
    model = build_resnet50(32, 1, output_stride=STRIDE, stages=2)
    _fit_head(model, nodules, preprocessing)
    golden = model(golden_input(32)[np.newaxis], training=False)["logits"].numpy()[0]
    label = words.labels[0]
    manifest = Manifest(
        **{name: getattr(words, name) for name in words.__dataclass_fields__ if name != "labels"},
        labels=(Label(label.name, label.finding, label.body_site, 0.5, Calibration(1.0, 0.0), 1.0),),
        output_stride=STRIDE,
        stages=2,
        preprocessing=preprocessing,
        ood=None,
        golden_logits=tuple(float(v) for v in golden),
        weights_sha256="",
        recipe_sha256=recipe.sha256,
    )
    folder.mkdir(parents=True)
    digest = save_weights(folder / WEIGHTS, weights_of(model))
    (folder / MANIFEST).write_bytes(encode_manifest(replace(manifest, weights_sha256=digest)))
    return ModelPackage(folder, replace(manifest, weights_sha256=digest))


def _fit_head(model: Any, nodules: Path, preprocessing: Patch) -> None:
    samples = read_samples(nodules, Data("", exclude=("-1",), spacing="pixel_mm"))
    cohort = load_cohort(samples, nodules, preprocessing)
    features = model(normalise(cohort.planes, recipe=preprocessing), training=False)["features"].numpy()
    benign, suspicious = (features[cohort.labels == label].mean(axis=0) for label in (0, 1))
    kernel = (suspicious - benign) / np.sum((suspicious - benign) ** 2)
    bias = np.array([-kernel @ (suspicious + benign) / 2])
    model.get_layer("head").set_weights([kernel[:, np.newaxis], bias])


def make_nodules(folder: Path, *, patients: int = 10, split: str = "test") -> Path:
    """Write a folder like that of lung nodules: one benign and one suspicious nodule a patient, two crops each."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for patient in range(patients):
        for label in (0, 1, -1):
            for part in range(2):
                radius = 5 + 4 * label + part + patient % 3
                rows.append(_crop(folder, random, patient=patient, label=label, part=part, radius=radius))
                rows[-1]["split"] = "train" if patient == 0 else split
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _crop(
    folder: Path, random: np.random.Generator, *, patient: int, label: int, part: int, radius: int
) -> dict[str, object]:
    name = f"p{patient}_n{label + 1}_s{part}.png"
    y, x = np.mgrid[:_SIDE, :_SIDE]
    disc = (y - 64) ** 2 + (x - 64) ** 2 < radius**2
    image = random.normal(40, 5, disc.shape) + 120 * disc + 140 * (y > 110)
    cv2.imwrite(str(folder / "images" / name), np.clip(image, 0, 255).astype(np.uint8))
    cv2.imwrite(str(folder / "masks" / name), disc.astype(np.uint8) * 255)
    return {
        "path": f"images/{name}",
        "mask": f"masks/{name}",
        "label": label,
        "patient_id": f"p{patient}",
        "nodule_id": f"p{patient}/n{label}",
        "slice": part,
        "malignancy_mean": 3 + label,
        "n_readers": 2 + patient % 3,
        "diameter_mm_median": 2 * 0.7 * radius,
        "pixel_mm": 0.7,
        "split": "",
    }
