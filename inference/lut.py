"""Modality LUT, VOI LUT and colour: from stored values to values with a meaning, and to grey levels to look at.

Spec: DICOM PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.16.2.9 (Pixel Value Transformation)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.dicom_attributes import Attributes, invalid, missing
from rayhook.inference.pixel_description import PixelDescription

Float = NDArray[np.float32]
Stored = NDArray[Any]

_CT = frozenset(("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"))
_LUMINANCE = np.array((0.299, 0.587, 0.114), np.float32)
_EXACT = 1 << 24
_MAX_LUT_BITS = 16


@dataclass(frozen=True, slots=True)
class LookUpTable:
    """`first` is the stored value of the first entry; values outside take the first or the last entry."""

    first: int
    table: NDArray[np.uint16]
    bits: int

    def apply(self, values: Stored) -> Float:
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, self.table.size - 1)
        return self.table[index].astype(np.float32)


@dataclass(frozen=True, slots=True)
class ModalityTransform:
    """Either a straight line or a table, for one frame."""

    slope: float = 1.0
    intercept: float = 0.0
    lut: LookUpTable | None = None

    def apply(self, stored: Stored) -> Float:
        if self.lut is not None:
            return self.lut.apply(stored)
        if self._is_exact and stored.dtype.itemsize <= 2:  # noqa: PLR2004 (16 bits fit float32)
            values = stored.astype(np.float32)
            if self.slope != 1:
                values *= np.float32(self.slope)
            if self.intercept != 0:
                values += np.float32(self.intercept)
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            return (stored.astype(np.float64) * self.slope + self.intercept).astype(np.float32)

    @property
    def _is_exact(self) -> bool:
        whole = self.slope.is_integer() and self.intercept.is_integer()
        return whole and abs(self.slope) * (1 << 16) + abs(self.intercept) < _EXACT

    def apply_mirrored(self, stored: Stored, description: PixelDescription) -> Float:
        """Return the values of the same image with its stored values counted from the other end."""
        if self.lut is not None:
            return np.float32((1 << self.lut.bits) - 1) - self.lut.apply(stored)
        return self.apply(description.lowest + description.highest - stored)


@dataclass(frozen=True, slots=True)
class Window:
    center: float
    width: float
    function: str


@dataclass(frozen=True, slots=True)
class FrameAttributes:
    """What functional groups say about each frame; the top level stands where they are silent."""

    top: Attributes
    shared: Attributes | None
    per_frame: tuple[Attributes, ...]

    @classmethod
    def read(cls, top: Attributes, *, frames: int) -> "FrameAttributes":
        per_frame = top.items("PerFrameFunctionalGroupsSequence")
        if per_frame and len(per_frame) != frames:
            raise ImageRefused(
                "PerFrameFunctionalGroupsSequence does not have NumberOfFrames items",
                code="pixel_data_mismatch",
                expression="PerFrameFunctionalGroupsSequence",
            )
        return cls(top, top.first_item("SharedFunctionalGroupsSequence"), per_frame)

    def group(self, keyword: str, frame: int) -> Attributes | None:
        """Return the first item of a functional group for one frame."""
        for level in (self.per_frame[frame] if self.per_frame else None, self.shared):
            item = None if level is None else level.first_item(keyword)
            if item is not None:
                return item
        return None

    def within(self, group: str, keyword: str, frame: int = 0) -> Attributes | None:
        """Return whichever level tells `keyword` for one frame, None where none does."""
        item = self.group(group, frame)
        if item is not None and keyword in item:
            return item
        return self.top if keyword in self.top else None


def read_modality_transforms(
    frames: FrameAttributes, description: PixelDescription, *, sop_class_uid: str
) -> tuple[ModalityTransform, ...]:
    """Return one transform a frame."""
    lut = _modality_lut(frames.top, description)
    transforms = tuple(_transform(frames, index, lut) for index in range(description.frames))
    plain = any(transform == ModalityTransform() for transform in transforms)
    if plain and sop_class_uid in _CT and not _tells_rescale(frames):
        raise missing("RescaleIntercept")
    return transforms


def _tells_rescale(frames: FrameAttributes) -> bool:
    return frames.within("PixelValueTransformationSequence", "RescaleIntercept") is not None


def _transform(frames: FrameAttributes, index: int, lut: LookUpTable | None) -> ModalityTransform:
    source = frames.group("PixelValueTransformationSequence", index) or frames.top
    slope, intercept = source.number("RescaleSlope"), source.number("RescaleIntercept")
    if lut is not None:
        if slope is not None or intercept is not None:
            raise ImageRefused(
                "ModalityLUTSequence and RescaleSlope exclude each other",
                code="unsupported_lut",
                expression="ModalityLUTSequence",
            )
        return ModalityTransform(lut=lut)
    if slope is None and intercept is None:
        return ModalityTransform()
    if slope is None or intercept is None:
        raise missing("RescaleSlope" if slope is None else "RescaleIntercept")
    if slope == 0:
        raise invalid("RescaleSlope", "must not be 0")
    return ModalityTransform(slope, intercept)


def _modality_lut(top: Attributes, description: PixelDescription) -> LookUpTable | None:
    items = top.items("ModalityLUTSequence")
    if not items:
        return None
    if len(items) > 1:
        raise _unsupported("ModalityLUTSequence must have one item", "ModalityLUTSequence")
    return read_lut(items[0], description, sequence="ModalityLUTSequence")


def read_lut(item: Attributes, description: PixelDescription, *, sequence: str) -> LookUpTable:
    """Spec: DICOM PS3.3 C.11.1.1, C.11.2.1.1."""
    descriptor = item.numbers("LUTDescriptor")
    words = item.words("LUTData")
    if len(descriptor) != 3 or words is None:  # noqa: PLR2004 (entries, first value, bits)
        raise _unsupported("LUTDescriptor and LUTData must both be there", sequence)
    entries = int(descriptor[0]) & 0xFFFF or 1 << 16
    first, bits = int(descriptor[1]), int(descriptor[2])
    if description.signed and first >= 1 << 15:
        first -= 1 << 16
    if not 1 <= bits <= _MAX_LUT_BITS:
        raise _unsupported("LUTDescriptor's bits must be 1 to 16", sequence)
    if words.size != entries:
        if bits > 8 or words.size != (entries + 1) // 2:  # noqa: PLR2004 (two entries a word)
            raise _unsupported("LUTData does not have as many entries as LUTDescriptor says", sequence)
        words = words.astype("<u2").view(np.uint8)[:entries].astype(np.uint16)
    if words.max() >= 1 << bits:
        raise _unsupported("LUTData has entries beyond LUTDescriptor's bits", sequence)
    return LookUpTable(first, words, bits)


def _unsupported(message: str, keyword: str) -> ImageRefused:
    return ImageRefused(message, code="unsupported_lut", expression=keyword)


def to_grey(image: Stored, description: PixelDescription, attributes: Attributes) -> Stored:
    """Return one value a pixel: colour becomes its luminance."""
    photometric = description.photometric_interpretation
    if photometric == "PALETTE COLOR":
        try:
            coloured = apply_color_lut(np.ascontiguousarray(image), attributes.dataset)
        except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
            raise _unsupported("the palette cannot be read", "RedPaletteColorLookupTableData") from error
        return coloured[..., :3].astype(np.float32) @ _LUMINANCE
    if description.samples == 1:
        return image
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return image[..., 0]
    return image.astype(np.float32) @ _LUMINANCE


def read_window(frames: FrameAttributes, index: int = 0) -> Window | None:
    """Return the first window of a frame, None where there is none that makes sense.

    Spec: DICOM PS3.3 C.11.2.1.2, C.11.2.1.3
    """
    source = frames.within("FrameVOILUTSequence", "WindowWidth", index)
    if source is None:
        return None
    center, width = source.number("WindowCenter"), source.number("WindowWidth")
    function = source.text("VOILUTFunction") or "LINEAR"
    if center is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return None
    return Window(center, width, function)


def read_voi_lut(top: Attributes, description: PixelDescription) -> LookUpTable | None:
    item = top.first_item("VOILUTSequence")
    return None if item is None else read_lut(item, description, sequence="VOILUTSequence")


def to_display(values: Float, window: Window | None, lut: LookUpTable | None) -> NDArray[np.uint8]:
    """Return grey levels of one frame, larger is brighter; the whole range where nothing says otherwise."""
    if lut is not None and window is None:
        return _grey_levels(lut.apply(values), 0.0, float((1 << lut.bits) - 1))
    if window is None:
        return _grey_levels(values, float(values.min()), float(values.max()))
    if window.function == "SIGMOID":
        with np.errstate(over="ignore"):
            curve = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - window.center) / window.width))
        return _grey_levels(curve.astype(np.float32), 0.0, 1.0)
    if window.function == "LINEAR_EXACT":
        return _grey_levels(values, window.center - window.width / 2, window.center + window.width / 2)
    low = window.center - 0.5 - (window.width - 1) / 2
    return _grey_levels(values, low, low + window.width - 1)


def _grey_levels(values: Float, low: float, high: float) -> NDArray[np.uint8]:
    if high <= low:
        return np.where(values > low, np.uint8(255), np.uint8(0))
    scaled = np.subtract(values, np.float32(low))
    scaled *= np.float32(255.0 / (high - low))
    scaled += np.float32(0.5)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
