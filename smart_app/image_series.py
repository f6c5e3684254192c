"""A series as the viewer needs it: its images in anatomical order, each with its geometry and grey scale.

Spec: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (functional groups), C.11.1, C.11.2; 10.7 (pixel spacing)
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rayhook.inference.dicom_json import JSONAttributes

MAX_IMAGES = 2_000

_MAX_SIDE = 65_535
_MAX_FRAMES = 10_000
_SAME_DIRECTION = 1e-3
_WITHOUT_IMAGES = frozenset(
    [
        "AU",
        "DOC",
        "ECG",
        "EPS",
        "HD",
        "KO",
        "PLAN",
        "PR",
        "REG",
        "RTDOSE",
        "RTPLAN",
        "RTRECORD",
        "RTSTRUCT",
        "RWV",
        "SEG",
        "SMR",
        "SR",
        "SRF",
        "TEXTUREMAP",
    ]
)


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """One line of the list of series. images: as the PACS counts them, None where it does not."""

    series_instance_uid: str
    modality: str
    number: int | None
    description: str
    body_part: str
    images: int | None


@dataclass(frozen=True, slots=True)
class WindowPreset:
    center: float
    width: float
    label: str


@dataclass(frozen=True, slots=True)
class ImageFrame:
    """One image of the stack; `frame` counts from 0 within its instance.

    spacing_mm: between rows, between columns; spacing_at: `patient`, or `detector` where magnification is in it.
    position and orientation are in the patient's coordinate system, millimetres.
    lossy: that the file was compressed with loss at some time.
    """

    sop_instance_uid: str
    frame: int
    number: int | None
    rows: int
    columns: int
    spacing_mm: tuple[float, float] | None
    spacing_at: str
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    slope: float
    intercept: float
    unit: str
    photometric_interpretation: str
    windows: tuple[WindowPreset, ...]
    voi_function: str
    lossy: bool
    acquisition: int

    @property
    def slice_location_mm(self) -> float | None:
        """Return the distance along the slice's normal."""
        if self.orientation is None or self.position is None:
            return None
        return float(np.dot(np.cross(self.orientation[:3], self.orientation[3:]), self.position))


@dataclass(frozen=True, slots=True)
class ImageSeries:
    """order: `position` or `instance_number`. left_out: how many images are beyond MAX_IMAGES."""

    series_instance_uid: str
    modality: str
    description: str
    body_part: str
    order: str
    frames: tuple[ImageFrame, ...]
    left_out: int


def summarise(found: Iterable[JSONAttributes]) -> tuple[SeriesSummary, ...]:
    """Return the series that have images, by their number; from a search for series, or from metadata."""
    series: dict[str, SeriesSummary] = {}
    counted: Counter[str] = Counter()
    for one in found:
        uid, modality = one.text("SeriesInstanceUID"), one.text("Modality") or "OT"
        if uid is None or modality in _WITHOUT_IMAGES:
            continue
        counted[uid] += 1
        series[uid] = SeriesSummary(
            series_instance_uid=uid,
            modality=modality,
            number=one.integer("SeriesNumber"),
            description=one.text("SeriesDescription") or "",
            body_part=one.text("BodyPartExamined") or "",
            images=_count(one, counted[uid]),
        )
    return tuple(
        sorted(series.values(), key=lambda s: (s.number is None, s.number or 0, s.series_instance_uid))
    )


def _count(one: JSONAttributes, seen: int) -> int | None:
    if "SOPInstanceUID" in one:
        return seen
    return one.integer("NumberOfSeriesRelatedInstances")


def read_series(series_instance_uid: str, instances: Sequence[JSONAttributes]) -> ImageSeries:
    """Return the series in order; what has no pixels, or contradicts itself, is left out."""
    frames = [frame for one in instances for frame in _frames(one)]
    order, ordered = _in_order(frames)
    first = instances[0] if instances else JSONAttributes({})
    return ImageSeries(
        series_instance_uid=series_instance_uid,
        modality=first.text("Modality") or "OT",
        description=first.text("SeriesDescription") or "",
        body_part=first.text("BodyPartExamined") or "",
        order=order,
        frames=tuple(ordered[:MAX_IMAGES]),
        left_out=max(0, len(ordered) - MAX_IMAGES),
    )


def _in_order(frames: list[ImageFrame]) -> tuple[str, list[ImageFrame]]:
    """Sort as the analysis does: along the slices' normal where they are parallel, else by number.

    Where places repeat, as in a dynamic series, one acquisition follows the other.
    """
    by_number = sorted(frames, key=lambda f: (f.number is None, f.number or 0, f.sop_instance_uid, f.frame))
    if len(frames) < 2 or not _are_parallel(frames):  # noqa: PLR2004 (one image has no order)
        return "instance_number", by_number
    for key in (_place, lambda f: (f.acquisition, *_place(f))):
        if len({key(frame) for frame in frames}) == len(frames):
            return "position", sorted(frames, key=key)
    return "instance_number", by_number


def _place(frame: ImageFrame) -> tuple[float, ...]:
    return (round(frame.slice_location_mm or 0.0, 3),)


def _are_parallel(frames: list[ImageFrame]) -> bool:
    if any(frame.slice_location_mm is None for frame in frames):
        return False
    orientations = np.array([frame.orientation for frame in frames], np.float64)
    return bool(np.ptp(orientations, axis=0).max() < _SAME_DIRECTION)


def _frames(one: JSONAttributes) -> Iterator[ImageFrame]:
    uid, rows, columns = one.text("SOPInstanceUID"), one.integer("Rows"), one.integer("Columns")
    count = one.integer("NumberOfFrames") or 1
    if uid is None or rows is None or columns is None:
        return
    if not (1 <= rows <= _MAX_SIDE and 1 <= columns <= _MAX_SIDE and 1 <= count <= _MAX_FRAMES):
        return
    shared = one.first_item("SharedFunctionalGroupsSequence")
    per_frame = one.items("PerFrameFunctionalGroupsSequence")
    for index in range(count):
        own = per_frame[index] if index < len(per_frame) else None
        yield _frame(_Levels(one, shared, own), uid, index, rows=rows, columns=columns)


@dataclass(frozen=True, slots=True)
class _Levels:
    """Where an attribute of one frame may stand: its own functional groups, the shared ones, the top."""

    top: JSONAttributes
    shared: JSONAttributes | None
    own: JSONAttributes | None

    def within(self, group: str, keyword: str) -> JSONAttributes:
        for level in (self.own, self.shared):
            item = None if level is None else level.first_item(group)
            if item is not None and keyword in item:
                return item
        return self.top

    def numbers(self, group: str, keyword: str, count: int) -> tuple[float, ...] | None:
        numbers = self.within(group, keyword).numbers(keyword)
        return numbers if len(numbers) == count else None


def _frame(levels: _Levels, uid: str, index: int, *, rows: int, columns: int) -> ImageFrame:
    top = levels.top
    rescale = levels.within("PixelValueTransformationSequence", "RescaleSlope")
    has_table = "ModalityLUTSequence" in top
    slope, intercept = rescale.number("RescaleSlope"), rescale.number("RescaleIntercept")
    spacing, spacing_at = _spacing(levels)
    voi = levels.within("FrameVOILUTSequence", "WindowWidth")
    return ImageFrame(
        sop_instance_uid=uid,
        frame=index,
        number=top.integer("InstanceNumber"),
        rows=rows,
        columns=columns,
        spacing_mm=spacing,
        spacing_at=spacing_at,
        orientation=levels.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        position=levels.numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        slope=1.0 if slope is None or slope == 0 or has_table else slope,
        intercept=0.0 if intercept is None or has_table else intercept,
        unit=_unit(top, rescale),
        photometric_interpretation=top.text("PhotometricInterpretation") or "MONOCHROME2",
        windows=_windows(voi),
        voi_function=voi.text("VOILUTFunction") or "LINEAR",
        lossy=top.text("LossyImageCompression") == "01",
        acquisition=top.integer("AcquisitionNumber") or 0,
    )


def _spacing(levels: _Levels) -> tuple[tuple[float, float] | None, str]:
    """Spec: DICOM PS3.3 10.7.1.3 (a projection's spacing is at the patient only where it was calibrated)."""
    for keyword, place in (("PixelSpacing", "patient"), ("ImagerPixelSpacing", "detector")):
        numbers = levels.numbers("PixelMeasuresSequence", keyword, 2)
        if numbers is not None and min(numbers) > 0:
            at_detector = (
                "ImagerPixelSpacing" in levels.top and "PixelSpacingCalibrationType" not in levels.top
            )
            return (numbers[0], numbers[1]), "detector" if at_detector else place
    return None, ""


def _unit(top: JSONAttributes, rescale: JSONAttributes) -> str:
    """Spec: DICOM PS3.3 C.11.1.1.2: `US` is unspecified; a CT without a type is in Hounsfield units."""
    told = rescale.text("RescaleType")
    if told is None:
        return "HU" if top.text("Modality") == "CT" else ""
    return "" if told in ("US", "OD") else told


def _windows(voi: JSONAttributes) -> tuple[WindowPreset, ...]:
    centers, widths = voi.numbers("WindowCenter"), voi.numbers("WindowWidth")
    labels = voi.texts("WindowCenterWidthExplanation")
    return tuple(
        WindowPreset(center, width, labels[n] if n < len(labels) else "")
        for n, (center, width) in enumerate(zip(centers, widths, strict=False))
        if width >= 1
    )


def series_json(series: ImageSeries, *, handle: str, image_handle: Callable[[str], str]) -> dict[str, object]:
    """Return the description that the viewer reads; nothing in it names the patient or a UID."""
    return {
        "handle": handle,
        "modality": series.modality,
        "description": series.description,
        "body_part": series.body_part,
        "order": series.order,
        "left_out": series.left_out,
        "frames": [_frame_json(frame, image_handle(frame.sop_instance_uid)) for frame in series.frames],
    }


def _frame_json(frame: ImageFrame, handle: str) -> dict[str, object]:
    return {
        "image": handle,
        "frame": frame.frame,
        "number": frame.number,
        "rows": frame.rows,
        "columns": frame.columns,
        "spacing": frame.spacing_mm,
        "spacing_at": frame.spacing_at,
        "orientation": frame.orientation,
        "position": frame.position,
        "slope": frame.slope,
        "intercept": frame.intercept,
        "unit": frame.unit,
        "photometric": frame.photometric_interpretation,
        "windows": [[w.center, w.width, w.label] for w in frame.windows],
        "voi_function": frame.voi_function,
        "lossy": frame.lossy,
    }
