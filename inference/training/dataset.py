"""Labelled image folders: rows, patients, splits, and planes in memory."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float, Preprocessing, to_plane


class DatasetRefused(ValueError):
    """A labelled folder that must not be trained or evaluated on; the message names the rule."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of labels.csv; mask is None for a slice without a lesion."""

    path: str
    mask: str | None
    label: int
    patient_id: str
    site: str
    slice: int
    split: str


@dataclass(frozen=True, slots=True)
class Cohort:
    """Samples with their scaled planes (n, size, size) in 0..1 and lesion masks of the same shape."""

    samples: tuple[Sample, ...]
    planes: Float
    masks: Float

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return the labels (n,), 0 or 1."""
        return np.array([sample.label for sample in self.samples], np.int64)

    @property
    def patients(self) -> NDArray[np.str_]:
        """Return the patient of each sample (n,)."""
        return np.array([sample.patient_id for sample in self.samples], np.str_)

    @property
    def sites(self) -> NDArray[np.str_]:
        """Return the site of each sample (n,)."""
        return np.array([sample.site for sample in self.samples], np.str_)

    @property
    def slices(self) -> NDArray[np.int64]:
        """Return the position of each sample in its series (n,)."""
        return np.array([sample.slice for sample in self.samples], np.int64)


def read_samples(folder: Path) -> tuple[Sample, ...]:
    """Return the rows of folder/labels.csv.

    Raises DatasetRefused if a patient is in two splits or a label is neither 0 nor 1.
    """
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        samples = tuple(_sample(row) for row in csv.DictReader(file))
    refuse_shared_patients(samples)
    return samples


def refuse_shared_patients(samples: Iterable[Sample]) -> None:
    """Raise DatasetRefused if any patient is in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[sample.patient_id].add(sample.split)
    shared = sum(len(names) > 1 for names in splits.values())
    if shared:
        raise DatasetRefused(f"rule one-patient-one-split: {shared} patients are in more than one split")


def split_fit_dev(
    samples: Sequence[Sample], *, dev_share: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the training rows as those to fit and those to develop on, by patient, within each site."""
    sites: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        sites[sample.site].add(sample.patient_id)
    random = np.random.default_rng(seed)
    dev: set[str] = set()
    for _, patients in sorted(sites.items()):
        count = max(1, round(dev_share * len(patients)))
        dev.update(str(p) for p in random.permutation(sorted(patients))[:count])
    fit = tuple(s for s in samples if s.patient_id not in dev)
    return fit, tuple(s for s in samples if s.patient_id in dev)


def load_cohort(samples: Sequence[Sample], folder: Path, preprocessing: Preprocessing) -> Cohort:
    """Return the samples with their images read and brought through the serving preprocessing."""
    side = preprocessing.input_size
    planes = np.empty((len(samples), side, side), np.float32)
    masks = np.zeros_like(planes)
    for index, sample in enumerate(samples):
        pixels = read_grey(folder / sample.path).astype(np.float32)
        planes[index], geometry = to_plane(pixels, pixel_spacing_mm=None, recipe=preprocessing)
        if sample.mask is not None:
            lesion = read_grey(folder / sample.mask) > np.iinfo(np.uint8).max // 2
            masks[index] = geometry.to_input(lesion.astype(np.float32))
    return Cohort(samples=tuple(samples), planes=planes, masks=masks)


def _sample(row: dict[str, str]) -> Sample:
    if row["label"] not in {"0", "1"}:
        raise DatasetRefused("rule binary-label: column label must be 0 or 1")
    return Sample(
        path=row["path"],
        mask=row["mask"] or None,
        label=int(row["label"]),
        patient_id=row["patient_id"],
        site=row["site"],
        slice=int(row["slice"]),
        split=row["split"],
    )


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Return an image file as grey levels (rows, columns); raises DatasetRefused if it is none."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise DatasetRefused(f"rule readable-image: {path.name} is missing or not an image")
    return image.astype(np.uint8, copy=False)
