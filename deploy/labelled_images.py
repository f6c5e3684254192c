"""Folders of labelled images, as data sets are handed on: `labels.csv` and images, one row an image.

Every row is checked before any image is read, so that a bad row is told before anything is written.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from rayhook.fhir.errors import InvalidRequest

LABELS = "labels.csv"
# A person's name of 64 characters has room for "DATASET^" and this. Spec: DICOM PS3.5 6.2 (PN).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,55}", re.ASCII)
_NAME_RULE = "must be 1 to 56 letters, digits, dots, hyphens and underscores"
_WHOLE = re.compile(r"\d{1,5}", re.ASCII)
_AGE = re.compile(r"\d{1,3}", re.ASCII)
_TRAILING_NUMBER = re.compile(r"\d{1,5}$", re.ASCII)
_SEXES: dict[str, Literal["", "F", "M"]] = {"": "", "?": "", "Female": "F", "Male": "M", "F": "F", "M": "M"}
_UNKNOWN = frozenset(("", "?"))
_MAX_MM = 100.0
_TOLD_ERRORS = 3


class Kind(StrEnum):
    """What a folder's images are, by the name of the data set whose columns it has."""

    CT_LIDC = "ct_lidc"
    CXR_JSRT = "cxr_jsrt"
    CXR_NIH = "cxr_nih"
    MG_MIAS = "mg_mias"
    MRI_LGG = "mri_lgg"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of labels.csv. `line` counts the header as line 1; `path` is that of the image file."""

    kind: Kind
    line: int
    columns: Mapping[str, str]
    path: Path
    patient_id: str


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """What a row says of its image. `study` and `series` are names within the patient.

    number: the slice's, or 1.  spacing_mm, slice_mm: of a CT crop.  age: as DICOM's AS.
    """

    row: Row
    study: str
    series: str
    number: int = 1
    spacing_mm: float | None = None
    slice_mm: float | None = None
    sex: Literal["", "F", "M"] = ""
    age: str | None = None
    laterality: Literal["L", "R"] | None = None

    @property
    def place(self) -> tuple[str, str, str, int]:
        return self.row.patient_id, self.study, self.series, self.number


@dataclass(frozen=True, slots=True)
class _Columns:
    """`telling` are those that no other kind has, `needed` those that a row cannot be read without."""

    telling: frozenset[str]
    needed: frozenset[str]


_COLUMNS = {
    Kind.CT_LIDC: _Columns(
        frozenset(("nodule_id", "pixel_mm")), frozenset(("nodule_id", "slice", "pixel_mm", "slice_mm"))
    ),
    Kind.CXR_JSRT: _Columns(frozenset(("label_nodule", "gender")), frozenset(("age", "gender"))),
    Kind.CXR_NIH: _Columns(frozenset(("finding", "source_px")), frozenset()),
    Kind.MG_MIAS: _Columns(frozenset(("index_parity", "abnormality")), frozenset(("index_parity",))),
    Kind.MRI_LGG: _Columns(frozenset(("brain_frac", "slice")), frozenset(("slice",))),
}


class _BrokenRule(ValueError):
    """One row's fault: the column and the rule, never the value."""


def read_labelled_images(
    dataset: Path, *, kind: Kind | None = None, split: str | None = None
) -> tuple[LabelledImage, ...]:
    """Return the rows of dataset/labels.csv, those of one split only where one is named.

    kind: told by the columns where none is given.
    Raises InvalidRequest if the kind cannot be told, a column is missing, a row breaks a rule or no row is left.
    """
    header, rows = _read(dataset / LABELS)
    kind = kind or _told_kind(header)
    _require_columns(header, kind, split)
    kept = [(line, row) for line, row in rows if split is None or row.get("split") == split]
    if not kept:
        raise InvalidRequest(f"{LABELS} has no rows" + (" of that split" if split else ""))
    return _checked(kept, partial(_image, dataset, kind))


def _read(path: Path) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
    """Return the header, and each row with the number of its line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            return header, [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise InvalidRequest(f"the data set folder has no {LABELS}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{LABELS} cannot be read as UTF-8 comma-separated values") from error


def _told_kind(header: Sequence[str]) -> Kind:
    told = [kind for kind, columns in _COLUMNS.items() if columns.telling <= set(header)]
    if len(told) == 1:
        return told[0]
    known = "; ".join(f"{kind}: {', '.join(sorted(one.telling))}" for kind, one in _COLUMNS.items())
    many = "fit more than one kind" if told else "fit no kind"
    raise InvalidRequest(
        f"the columns of {LABELS} {many} of data set ({known}); name it with --kind", code="unknown_kind"
    )


def _require_columns(header: Sequence[str], kind: Kind, split: str | None) -> None:
    needed = {"path", "patient_id", *_COLUMNS[kind].needed, *(("split",) if split is not None else ())}
    missing = sorted(needed - set(header))
    if missing:
        raise InvalidRequest(f"{LABELS} of kind {kind} needs the columns {', '.join(missing)}")
    if len(set(header)) < len(header):
        raise InvalidRequest(f"{LABELS} has two columns of one name")


def _checked(
    rows: Iterable[tuple[int, dict[str, str]]], read: Callable[[int, dict[str, str]], LabelledImage]
) -> tuple[LabelledImage, ...]:
    images: list[LabelledImage] = []
    problems: list[str] = []
    taken: dict[tuple[str, str, str, int], int] = {}
    for line, row in rows:
        try:
            image = read(line, row)
        except _BrokenRule as error:
            problems.append(f"row {line}: {error}")
            continue
        first = taken.setdefault(image.place, line)
        if first != line:
            problems.append(f"row {line}: is the same image of the same series as row {first}")
        images.append(image)
    if problems:
        more = len(problems) - _TOLD_ERRORS
        told = "; ".join(problems[:_TOLD_ERRORS]) + (f"; and {more} rows more" if more > 0 else "")
        raise InvalidRequest(f"{LABELS} {told}", code="invalid_row")
    return tuple(images)


def _image(dataset: Path, kind: Kind, line: int, columns: dict[str, str]) -> LabelledImage:
    if None in columns or None in columns.values():
        raise _BrokenRule("must have one value a column")
    path = _file(dataset, columns["path"])
    patient_id = _name("patient_id", columns["patient_id"])
    if columns.get("mask"):
        _file(dataset, columns["mask"], column="mask")
    return _READERS[kind](Row(kind, line, columns, path, patient_id))


def _flair_slice(row: Row) -> LabelledImage:
    return LabelledImage(row, "head", series="flair", number=_whole("slice", row))


def _ct_crop(row: Row) -> LabelledImage:
    owner, _, nodule = row.columns["nodule_id"].partition("/")
    if owner != row.patient_id:
        raise _BrokenRule("nodule_id must be patient_id/name")
    return LabelledImage(
        row,
        "chest",
        series=_name("nodule_id", nodule),
        number=_whole("slice", row),
        spacing_mm=_millimetres("pixel_mm", row),
        slice_mm=_millimetres("slice_mm", row),
    )


def _nih_film(row: Row) -> LabelledImage:
    """A patient's films are of different days: each is a study."""
    return LabelledImage(row, _name("path", row.path.stem), series="film")


def _jsrt_film(row: Row) -> LabelledImage:
    sex, age = _SEXES.get(row.columns["gender"]), row.columns["age"]
    if sex is None:
        raise _BrokenRule("gender must be Male, Female or empty")
    if age not in _UNKNOWN and not _AGE.fullmatch(age):
        raise _BrokenRule("age must be whole years, or empty")
    told = None if age in _UNKNOWN else f"{int(age):03d}Y"
    return LabelledImage(row, "chest", series="film", sex=sex, age=told)


def _mammogram(row: Row) -> LabelledImage:
    side = row.columns["index_parity"]
    if side == "L":
        return LabelledImage(row, "breasts", series="left", laterality="L")
    if side == "R":
        return LabelledImage(row, "breasts", series="right", laterality="R")
    raise _BrokenRule("index_parity must be L or R")


_READERS = {
    Kind.CT_LIDC: _ct_crop,
    Kind.CXR_JSRT: _jsrt_film,
    Kind.CXR_NIH: _nih_film,
    Kind.MG_MIAS: _mammogram,
    Kind.MRI_LGG: _flair_slice,
}


def series_number(image: LabelledImage) -> int:
    """Return the number that ends the series' name, as in nodule-3; else 1, and 2 for a right breast."""
    found = _TRAILING_NUMBER.search(image.series)
    return int(found[0]) if found else 1 + (image.laterality == "R")


def _file(dataset: Path, text: str, *, column: str = "path") -> Path:
    told = PurePosixPath(text)
    if not text or told.is_absolute() or ".." in told.parts or "\0" in text:
        raise _BrokenRule(f"{column} must name a file in the data set folder")
    path = dataset / told
    if not path.is_file():
        raise _BrokenRule(f"{column} names no file")
    return path


def _name(column: str, text: str) -> str:
    if not _NAME.fullmatch(text):
        raise _BrokenRule(f"{column} {_NAME_RULE}")
    return text


def _whole(column: str, row: Row) -> int:
    if not _WHOLE.fullmatch(row.columns[column]):
        raise _BrokenRule(f"{column} must be a whole number, 0 or more")
    return int(row.columns[column])


def _millimetres(column: str, row: Row) -> float:
    try:
        value = float(row.columns[column])
    except ValueError as error:
        raise _BrokenRule(f"{column} must be a number") from error
    if not math.isfinite(value) or not 0 < value <= _MAX_MM:
        raise _BrokenRule(f"{column} must be more than 0 and at most {_MAX_MM:g} mm")
    return value
