import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from rayhook.inference.training.places import Places
from rayhook.inference.training.recipe import RECIPES, Recipe, read_recipe
from tests.unit.inference.training.packages import make_nodules, make_package

_SLICES = 4
TINY = {
    'dataset = "mri_lgg"': 'dataset = "labelled"',
    "input_size = 160": "input_size = 32",
    "output_stride = 16": "output_stride = 8\nstages = 2",
    "epochs = 8": "epochs = 2",
    "batch = 32": "batch = 8",
    "dev_share = 0.2": "dev_share = 0.5",
    "in_distribution = 0.99": "in_distribution = 0.9",
}


def _slice(random: np.random.Generator, *, lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a head of noise, with a bright disc or without, and the disc's mask."""
    y, x = np.mgrid[0:48, 0:48]
    head = (y - 24) ** 2 / 20**2 + (x - 24) ** 2 / 16**2 < 1
    row, column = random.integers(16, 32, 2)
    disc = (y - row) ** 2 + (x - column) ** 2 < 36 if lesion else np.zeros_like(head)
    image = head * 60 + disc * 90 + random.integers(0, 12, head.shape)
    return image.astype(np.uint8), disc.astype(np.uint8) * 255


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small labelled folder: 8 training and 2 held-out patients of two sites, 4 slices each."""
    folder = tmp_path_factory.mktemp("datasets") / "labelled"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for patient in range(10):
        for index in range(_SLICES):
            name = f"p{patient}_{index:02}.png"
            lesion = (patient + index) % 2 == 1
            image, mask = _slice(random, lesion=lesion)
            cv2.imwrite(str(folder / "images" / name), image)
            cv2.imwrite(str(folder / "masks" / name), mask)
            rows.append(
                {
                    "path": f"images/{name}",
                    "mask": f"masks/{name}" if lesion else "",
                    "label": int(lesion),
                    "patient_id": f"p{patient}",
                    "site": "AB"[patient % 2],
                    "slice": index,
                    "split": "train" if patient < 8 else "val",
                }
            )
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session")
def recipe_path(tmp_path_factory) -> Path:
    """A recipe for the labelled folder that takes seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    text = (RECIPES / "mri_flair_tumour.toml").read_text()
    for before, after in TINY.items():
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def recipe(recipe_path) -> Recipe:
    return read_recipe(recipe_path)


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """Weights to start from, as the ImageNet file has them."""
    import keras

    from rayhook.inference.model import build_resnet50, weights_of

    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("start") / "start.npz"
    np.savez(path, **{k: v for k, v in weights_of(build_resnet50(32, 1)).items() if k[:4] != "head"})
    return path


@pytest.fixture(scope="session")
def places(labelled_folder, start, tmp_path_factory) -> Callable[[Path], Places]:
    """Where a run with this output finds and leaves things."""
    cache = tmp_path_factory.mktemp("cache")

    def at(output: Path) -> Places:
        return Places(
            datasets=labelled_folder.parent,
            output=output,
            imagenet_weights=start,
            cache=cache,
            tracking=f"sqlite:///{output.parent / 'mlflow.db'}",
        )

    return at


@pytest.fixture(scope="session")
def nodules(tmp_path_factory) -> Path:
    """A labelled folder like that of lung nodules: one patient of split train, nine of split test."""
    return make_nodules(tmp_path_factory.mktemp("nodules") / "sealed")


@pytest.fixture(scope="session")
def models(tmp_path_factory, nodules) -> Path:
    """A folder with a tiny package that rates nodules, and a tiny finder."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("ct_lung_nodule", "ct_lung_nodule_finder"):
        make_package(folder / name, read_recipe(RECIPES / f"{name}.toml"), nodules)
    return folder
