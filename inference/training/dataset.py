"""Labelled image folders: rows, patients, splits, and planes in memory."""

import csv
import hashlib
import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float, Preprocessing, to_plane
from rayhook.inference.training.recipe import Data, SoftTarget

LABELS = "labels.csv"
UNRATED = -1

_NONE: Mapping[str, str] = MappingProxyType({})


class DatasetRefused(ValueError):
    """A labelled folder that must not be trained or evaluated on; the message names the rule."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of labels.csv.

    mask: None for an image without a lesion or without a drawing of it.  label: 0 or 1, or UNRATED for a
    row that only trains.  slice: position in its series, 0 where unknown.  group: of rows that show the
    same thing, the path where there is none.  target: what training aims at, 0 to 1.
    attributes: all columns of the row, or none; see read_samples.
    """

    path: str
    mask: str | None
    label: int
    patient_id: str
    site: str
    slice: int
    split: str
    group: str = ""
    spacing_mm: float | None = None
    target: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)


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


def find_dataset(name: str, datasets: Path, cache: Path) -> Path:
    """Return the folder of a data set below datasets; NAME.tar beside it is unpacked into cache once.

    Raises DatasetRefused if there is neither.
    """
    folder, archive = datasets / name, datasets / f"{name}.tar"
    if (folder / LABELS).is_file():
        return folder
    if not archive.is_file():
        raise DatasetRefused(f"rule dataset-exists: neither {name}/{LABELS} nor {name}.tar is in {datasets}")
    size_and_time = f"{archive.stat().st_size}.{archive.stat().st_mtime_ns}"
    target = cache / f"{name}-{hashlib.sha256(size_and_time.encode()).hexdigest()[:12]}"
    if not target.exists():
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        try:
            partial.replace(target)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return target / name


def read_samples(
    folder: Path,
    data: Data | None = None,
    *,
    for_training: bool = False,
    needs_split: bool = True,
) -> tuple[Sample, ...]:
    """Return the rows of folder/labels.csv that carry a label.

    data: how the columns are read; by default `label`, and `site` where there is one.
    for_training: also the rows that train with a soft target alone, with the label UNRATED; and without
    attributes, which for hundreds of thousands of rows take more memory than all else.
    needs_split: whether the column of splits has to be there; without it, the split is "".
    Raises DatasetRefused if a patient is in two splits, a column named in data is missing, or a label
    is neither 0, 1 nor excluded.
    """
    with (folder / LABELS).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        data = data or Data(dataset=folder.name, site="site" if "site" in columns else "")
        _refuse_missing(columns if needs_split else columns | {"split"}, data)
        samples = tuple(_sample(row, data, keep=not for_training) for row in reader)
    refuse_shared_patients(samples)
    trains = data.target is not None and data.target.excluded_rows and for_training
    return tuple(sample for sample in samples if sample.label != UNRATED or trains)


def refuse_shared_patients(samples: Iterable[Sample]) -> None:
    """Raise DatasetRefused if any patient is in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[sample.patient_id].add(sample.split)
    shared = sum(len(names) > 1 for names in splits.values())
    if shared:
        raise DatasetRefused(f"rule one-patient-one-split: {shared} patients are in more than one split")


def refuse_overlap(first: Iterable[Sample], second: Iterable[Sample]) -> None:
    """Raise DatasetRefused if any patient is on both sides."""
    shared = len({s.patient_id for s in first} & {s.patient_id for s in second})
    if shared:
        raise DatasetRefused(f"rule one-patient-one-split: {shared} patients are on both sides")


def split_fit_dev(
    samples: Sequence[Sample], *, dev_share: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the training rows as those to fit and those to develop on, by patient.

    Within each stratum, that is site and whether the patient has a positive row, dev_share of the
    patients develop. Unrated rows decide nothing and develop nothing, so that the split is the same
    with and without them; those of a developing patient are left out.
    """
    random = np.random.default_rng(seed)
    dev: set[str] = set()
    for _, patients in sorted(patients_by_stratum(samples).items()):
        count = max(1, round(dev_share * len(patients)))
        dev.update(str(p) for p in random.permutation(patients)[:count])
    fit = tuple(s for s in samples if s.patient_id not in dev)
    developing = tuple(s for s in samples if s.patient_id in dev and s.label != UNRATED)
    refuse_overlap(fit, developing)
    return fit, developing


def patients_by_stratum(samples: Iterable[Sample]) -> dict[tuple[str, bool], list[str]]:
    """Return the patients with rated rows, sorted, by site and whether any of their rows is positive."""
    found: dict[str, tuple[str, bool]] = {}
    for sample in samples:
        if sample.label != UNRATED:
            site, positive = found.get(sample.patient_id, (sample.site, False))
            found[sample.patient_id] = (site, positive or sample.label == 1)
    strata: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for patient, stratum in sorted(found.items()):
        strata[stratum].append(patient)
    return dict(strata)


def load_cohort(samples: Sequence[Sample], folder: Path, preprocessing: Preprocessing) -> Cohort:
    """Return the samples with their images read and brought through the serving preprocessing."""
    side = preprocessing.input_size
    planes = np.empty((len(samples), side, side), np.float32)
    masks = np.zeros_like(planes)
    for index, sample in enumerate(samples):
        planes[index], masks[index] = load_sample(sample, folder, preprocessing)
    return Cohort(samples=tuple(samples), planes=planes, masks=masks)


def load_sample(sample: Sample, folder: Path, preprocessing: Preprocessing) -> tuple[Float, Float]:
    """Return the scaled plane (size, size) of one row and its mask, all 0 where it has none."""
    pixels = read_grey(folder / sample.path).astype(np.float32)
    spacing = None if sample.spacing_mm is None else (sample.spacing_mm, sample.spacing_mm)
    plane, geometry = to_plane(pixels, pixel_spacing_mm=spacing, recipe=preprocessing)
    if sample.mask is None:
        return plane, np.zeros_like(plane)
    lesion = read_grey(folder / sample.mask) > np.iinfo(np.uint8).max // 2
    return plane, geometry.to_input(lesion.astype(np.float32))


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Return an image file as grey levels (rows, columns); raises DatasetRefused if it is none."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise DatasetRefused(f"rule readable-image: {path.name} is missing or not an image")
    return image.astype(np.uint8, copy=False)


def _refuse_missing(columns: set[str], data: Data) -> None:
    target = data.target.column if data.target else ""
    named = {"path", "patient_id", "split", data.label, data.group, data.spacing, data.site, target} - {""}
    if named - columns:
        raise DatasetRefused(f"rule named-columns: {LABELS} lacks {', '.join(sorted(named - columns))}")


def _sample(row: dict[str, str], data: Data, *, keep: bool) -> Sample:
    label = _label(row, data)
    return Sample(
        path=row["path"],
        mask=row.get("mask") or None,
        label=label,
        patient_id=intern(row["patient_id"]),
        site=intern(row[data.site]) if data.site else "",
        slice=int(row.get("slice") or 0),
        split=row.get("split", ""),
        group=row[data.group] if data.group else row["path"],
        spacing_mm=_spacing(row, data.spacing) if data.spacing else None,
        target=float(label) if data.target is None else _soft(row, data.target),
        attributes=row if keep else _NONE,
    )


def _label(row: dict[str, str], data: Data) -> int:
    value = row[data.label] if data.label else str(int(bool(row.get("mask"))))
    if value in data.exclude:
        return UNRATED
    if value not in {"0", "1"}:
        raise DatasetRefused(f"rule binary-label: column {data.label} must be 0, 1 or excluded")
    return int(value)


def _spacing(row: dict[str, str], column: str) -> float:
    try:
        spacing = float(row[column])
    except ValueError:
        spacing = 0.0
    if not 0 < spacing < float("inf"):
        raise DatasetRefused(f"rule positive-spacing: column {column} must be a length in mm")
    return spacing


def _soft(row: dict[str, str], target: SoftTarget) -> float:
    try:
        value = float(row[target.column])
    except ValueError as error:
        raise DatasetRefused(f"rule numeric-target: column {target.column} must be a number") from error
    return min(1.0, max(0.0, (value - target.low) / (target.high - target.low)))
