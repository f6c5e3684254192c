"""`rayhook dicomize`: a labelled image folder as a folder of DICOM files, with labels that name them.

OUT holds PATIENT/STUDY/SERIES/NNN.dcm, `labels.csv` once every file is written, and `dicomize.json`, which
says what the command wrote there: it neither replaces nor removes anything else.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from rayhook.deploy.dicom_series import WrittenInstance
from rayhook.deploy.labelled_images import LABELS, Kind, LabelledImage, read_labelled_images
from rayhook.deploy.wrap import dicom_path, wrap
from rayhook.fhir.errors import InvalidRequest, RayhookError

MARKER = "dicomize.json"
_UIDS = ("sop_instance_uid", "series_instance_uid", "study_instance_uid")


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run writes in its folder: `files` are relative to it; not complete until all are there."""

    complete: bool
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dicomization:
    """What is going to be written, every row of it checked. Nothing is written before `write`."""

    dataset: Path
    out: Path
    images: tuple[LabelledImage, ...]
    earlier: tuple[str, ...]

    def write(self) -> Iterator[WrittenInstance]:
        """Write the files one by one, then the labels; an earlier run's files that are not written anew go.

        Raises InvalidRequest, saying what was written, if an image file or the folder is not as it must be.
        """
        written: list[WrittenInstance] = []
        try:
            self._begin()
            for image in self.images:
                written.append(wrap(image, self.out / dicom_path(image)))
                yield written[-1]
            self._finish(written)
        except (RayhookError, OSError) as error:
            raise InvalidRequest(
                f"{_told(error)}; {self.unfinished(len(written))}", code=_code(error)
            ) from error

    def unfinished(self, count: int) -> str:
        """Say what the folder holds if the run ends after `count` files."""
        return (
            f"{count} of {len(self.images)} DICOM files are in the output folder, {LABELS} is not; "
            "run the command again to write them all"
        )

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(str(dicom_path(image)) for image in self.images)

    def _begin(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        ours = {*self.earlier, *self.files}
        _write_marker(self.out, Marker(complete=False, files=tuple(sorted(ours))))
        for name in {LABELS, *self.earlier} - set(self.files):
            _remove(self.out, PurePosixPath(name))

    def _finish(self, written: list[WrittenInstance]) -> None:
        _write_labels(self, written)
        _write_marker(self.out, Marker(complete=True, files=self.files))


def plan_dicomization(
    dataset: Path, out: Path, *, kind: Kind | None = None, split: str | None = None, limit: int | None = None
) -> Dicomization:
    """Return what is to be written: the rows of labels.csv, of one split, at most the first `limit`.

    Raises InvalidRequest if a row breaks a rule, or `out` holds what an earlier run did not write.
    """
    if out.exists() and out.samefile(dataset):
        raise InvalidRequest("the output folder is the data set folder", code="output_not_empty")
    images = read_labelled_images(dataset, kind=kind, split=split)[:limit]
    planned = Dicomization(dataset, out, images, _earlier(out))
    strange = [name for name in planned.files if name not in planned.earlier and (out / name).exists()]
    if strange:
        raise InvalidRequest(
            f"the output folder holds {len(strange)} files of the same names that {MARKER} does not list",
            code="output_not_empty",
        )
    return planned


def _earlier(out: Path) -> tuple[str, ...]:
    """Return the files that an earlier run wrote, or was going to write, in the folder."""
    if not out.exists():
        return ()
    if not out.is_dir():
        raise InvalidRequest("the output is no folder", code="output_not_empty")
    if (out / MARKER).is_file():
        return _read_marker(out / MARKER).files
    if any(out.iterdir()):
        raise InvalidRequest(
            f"the output folder is not empty and has no {MARKER} of an earlier run", code="output_not_empty"
        )
    return ()


def _read_marker(path: Path) -> Marker:
    try:
        marker = msgspec.json.decode(path.read_bytes(), type=Marker)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidRequest(
            f"{MARKER} in the output folder cannot be read", code="output_not_empty"
        ) from error
    for name in marker.files:
        told = PurePosixPath(name)
        if told.is_absolute() or ".." in told.parts or told.suffix != ".dcm":
            raise InvalidRequest(
                f"{MARKER} in the output folder names no DICOM file of it", code="output_not_empty"
            )
    return marker


def _write_marker(out: Path, marker: Marker) -> None:
    unfinished = out / f".{MARKER}.part"
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(marker), indent=1))
    unfinished.replace(out / MARKER)


def _remove(out: Path, name: PurePosixPath) -> None:
    """Remove a file of ours, and the folders that it leaves empty."""
    path = out / name
    path.unlink(missing_ok=True)
    for folder in list(path.parents)[: len(name.parts) - 1]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_labels(planned: Dicomization, written: list[WrittenInstance]) -> None:
    """Write every column of the source; `path` becomes the DICOM file's, `mask` is as seen from the folder."""
    unfinished = planned.out / f".{LABELS}.part"
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*planned.images[0].row.columns, "source_path", *_UIDS])
        writer.writeheader()
        for image, instance in zip(planned.images, written, strict=True):
            writer.writerow(_labels_row(planned, image, instance))
    unfinished.replace(planned.out / LABELS)


def _labels_row(planned: Dicomization, image: LabelledImage, instance: WrittenInstance) -> dict[str, str]:
    columns = image.row.columns
    row = {**columns, "path": str(dicom_path(image)), "source_path": columns["path"]}
    if columns.get("mask"):
        mask = planned.dataset.resolve() / columns["mask"]
        row["mask"] = Path(os.path.relpath(mask, planned.out.resolve())).as_posix()
    return row | {uid: getattr(instance, uid) for uid in _UIDS}


def _told(error: RayhookError | OSError) -> str:
    return error.message if isinstance(error, RayhookError) else f"a file cannot be used: {error.strerror}"


def _code(error: RayhookError | OSError) -> str:
    return error.code if isinstance(error, RayhookError) else "file_error"
