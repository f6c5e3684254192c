import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

_SLICES = 4


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
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
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
