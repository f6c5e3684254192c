"""Reading the attributes that pixels, routing and reports need; everything else stays unread.

Every value is checked as it is read: one of the right type, finite, or the image is refused.
"""

import math
import re
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.dicom_header import Header, is_uid

_READ_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_CHARACTER_SET = 0x00080005
_MAX_TEXT = 256
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(\.\d{1,6})?)?)?", re.ASCII)
_DATETIME = re.compile(r"(\d{8})(\d{2,6}(?:\.\d{1,6})?)?([+-]\d{4})?", re.ASCII)
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})", re.ASCII)


def missing(keyword: str) -> ImageRefused:
    return ImageRefused(f"{keyword} is missing", code="missing_attribute", expression=keyword)


def invalid(keyword: str, rule: str) -> ImageRefused:
    return ImageRefused(f"{keyword} {rule}", code="invalid_attribute", expression=keyword)


class Attributes:
    """One data set, the top level or a sequence's item, read attribute by attribute."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @classmethod
    def from_header(cls, header: Header) -> "Attributes":
        """Hand the walked elements to pydicom raw: nothing is converted before it is asked for."""
        raw: dict[BaseTag, Any] = {}
        for tag, element in header.walk.elements.items():
            sequence = element.vr in ("SQ", "UN") and tag in _SEQUENCES
            raw[BaseTag(tag)] = RawDataElement(
                BaseTag(tag),
                "SQ" if sequence else (None if header.implicit else element.vr),
                element.length,
                element.value(header.body),
                element.offset,
                header.implicit or (sequence and element.vr == "UN"),
                header.little_endian,
            )
        dataset = Dataset(raw)
        encoding = _encoding(dataset)
        dataset.set_original_encoding(header.implicit, header.little_endian, encoding)
        return cls(dataset)

    @property
    def dataset(self) -> Dataset:
        return self._dataset

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._dataset

    def value(self, keyword: str) -> Any:
        """Return the converted value, None where it is absent or empty."""
        try:
            value = self._dataset.get(keyword)
        except _READ_ERRORS as error:
            raise invalid(keyword, "cannot be read") from error
        empty = value is None or (isinstance(value, str | bytes) and not value)
        return None if empty else value

    def items(self, keyword: str) -> tuple["Attributes", ...]:
        value = self.value(keyword)
        if value is None:
            return ()
        try:
            items = list(value)
        except _READ_ERRORS as error:
            raise invalid(keyword, "cannot be read") from error
        if not all(isinstance(item, Dataset) for item in items):
            raise invalid(keyword, "is not a sequence")
        return tuple(Attributes(item) for item in items)

    def first_item(self, keyword: str) -> "Attributes | None":
        items = self.items(keyword)
        return items[0] if items else None

    def data(self, keyword: str) -> bytes | None:
        value = self.value(keyword)
        if value is not None and not isinstance(value, bytes):
            raise invalid(keyword, "must be bytes")
        return value

    def words(self, keyword: str) -> NDArray[np.uint16] | None:
        """Return 16-bit words, however they are told (US, SS or OW)."""
        value = self.value(keyword)
        if value is None:
            return None
        if isinstance(value, bytes):
            order = "<" if self._dataset.original_encoding[1] is not False else ">"
            return np.frombuffer(value[: len(value) // 2 * 2], f"{order}u2").astype(np.uint16)
        numbers = np.asarray(self.numbers(keyword), np.int64)
        return (numbers & 0xFFFF).astype(np.uint16)

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Return all values. Raises ImageRefused unless each is a finite number."""
        value = self.value(keyword)
        values = value if isinstance(value, MultiValue | list) else () if value is None else (value,)
        try:
            numbers = tuple(float(v) for v in values)
        except _READ_ERRORS as error:
            raise invalid(keyword, "is not a number") from error
        if not all(map(math.isfinite, numbers)):
            raise ImageRefused(
                f"{keyword} is not a finite number", code="non_finite_pixels", expression=keyword
            )
        return numbers

    def number(self, keyword: str) -> float | None:
        """Return the first value."""
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def integer(self, keyword: str) -> int | None:
        numbers = self.numbers(keyword)
        if not numbers:
            return None
        if len(numbers) > 1 or not numbers[0].is_integer():
            raise invalid(keyword, "must be one whole number")
        return int(numbers[0])

    def required_integer(self, keyword: str) -> int:
        value = self.integer(keyword)
        if value is None:
            raise missing(keyword)
        return value

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return all values, without control characters, each cut to a length a person can read."""
        value = self.value(keyword)
        values = value if isinstance(value, MultiValue | list) else () if value is None else (value,)
        return tuple(_clean(str(v)) for v in values)

    def text(self, keyword: str) -> str | None:
        return "\\".join(self.texts(keyword)) or None

    def required_text(self, keyword: str) -> str:
        text = self.text(keyword)
        if text is None:
            raise missing(keyword)
        return text

    def uid(self, keyword: str) -> str:
        """Return a UID as its bytes tell it: pydicom would strip what does not belong there."""
        raw = self._dataset.get_item(keyword)
        value = None if raw is None else raw.value
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value or "")
        text = text.rstrip("\0 ")
        if not text:
            raise missing(keyword)
        if not is_uid(text):
            raise ImageRefused(f"{keyword} is not a UID", code="invalid_uid", expression=keyword)
        return text


def _encoding(dataset: Dataset) -> list[str]:
    if _CHARACTER_SET not in dataset:
        return ["iso8859"]
    try:
        return convert_encodings(dataset[_CHARACTER_SET].value)
    except _READ_ERRORS as error:
        raise invalid("SpecificCharacterSet", "is not known") from error


def _clean(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()[:_MAX_TEXT]


def acquisition_datetime(attributes: Attributes) -> datetime | None:
    """Return when the image was made; aware only where the file tells its offset from UTC.

    Spec: DICOM PS3.3 C.12.1.1.8 (TimezoneOffsetFromUTC), PS3.5 6.2 (DA, TM, DT)
    """
    zone = _zone(attributes.text("TimezoneOffsetFromUTC") or "")
    whole = _DATETIME.fullmatch(attributes.text("AcquisitionDateTime") or "")
    if whole is not None:
        return _datetime(whole[1], whole[2], _zone(whole[3] or "") or zone)
    for kind in ("Acquisition", "Content", "Series", "Study"):
        date, time = attributes.text(f"{kind}Date"), attributes.text(f"{kind}Time")
        if date is not None:
            return _datetime(date, time, zone)
    return None


def _datetime(date: str, time: str | None, zone: timezone | None) -> datetime | None:
    day = _DATE.fullmatch(date)
    if day is None:
        return None
    clock = _TIME.fullmatch(time or "")
    hour, minute, second = (int(part or 0) for part in (clock.groups()[:3] if clock else (0, 0, 0)))
    fraction = float(clock[4] or 0) if clock else 0.0
    try:
        return datetime(
            int(day[1]), int(day[2]), int(day[3]), hour, minute, min(second, 59), int(fraction * 1e6),
            tzinfo=zone,
        )  # fmt: skip
    except ValueError:
        return None


def _zone(offset: str) -> timezone | None:
    match = _OFFSET.fullmatch(offset)
    if match is None:
        return None
    delta = timedelta(hours=int(match[2]), minutes=int(match[3]))
    if delta >= timedelta(days=1):
        return None
    return timezone(-delta if match[1] == "-" else delta) if delta else UTC


def _tags(keywords: Iterable[str]) -> frozenset[int]:
    return frozenset(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None)


_SEQUENCES = _tags(
    (
        "AnatomicRegionSequence",
        "ModalityLUTSequence",
        "PerFrameFunctionalGroupsSequence",
        "SharedFunctionalGroupsSequence",
        "VOILUTSequence",
    )
)
