"""The structure of a DICOM file, walked and measured before any library may build objects from it.

Spec: DICOM PS3.5 7.1 (data elements), 7.5 (nesting), PS3.10 7.1 (file meta information)
"""

import functools
import importlib
import re
import struct
from dataclasses import dataclass, replace
from types import ModuleType

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.inflater import Inflater

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00009
_PIXEL_TAGS = frozenset((PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA))

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TRANSFER_SYNTAX = 0x00020010
_LONG = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_TEXT = frozenset(
    ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
)
_ONE_VALUE = frozenset(("LT", "ST", "UR", "UT"))
_SIZES = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
_KNOWN = _LONG | _TEXT | frozenset(_SIZES)
# PS3.5 7.1, 7.8.1: command elements, file meta information, and groups that nobody may use.
_ILLEGAL_GROUPS = frozenset((0x0000, 0x0001, 0x0002, 0x0003, 0x0005, 0x0007, 0xFFFF))
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*", re.ASCII)
_MAX_UID = 64
_META_START = 132
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_TRAILER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Element:
    """Where one element begins and where its value lies in the body."""

    tag: int
    vr: str
    start: int
    offset: int
    length: int

    def value(self, body: bytes) -> bytes:
        return bytes(body[self.offset : self.offset + self.length])


@dataclass(frozen=True, slots=True)
class Walk:
    """The elements of one level, up to the pixel data where there are any."""

    elements: dict[int, Element]
    pixels: Element | None
    end: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """A file whose structure keeps to the limits. `body` is the data set, inflated as far as is needed."""

    transfer_syntax_uid: str
    media_storage_sop_class_uid: str | None
    media_storage_sop_instance_uid: str | None
    implicit: bool
    little_endian: bool
    body: bytes
    start: int
    walk: Walk
    inflater: Inflater | None


def malformed(message: str, *, tag: int | None = None, code: str = "malformed_header") -> ImageRefused:
    return ImageRefused(message, code=code, expression=None if tag is None else name_of(tag))


@functools.cache
def _dictionary() -> ModuleType:
    """Return pydicom's data dictionary; imported at first use, as that takes a second."""
    return importlib.import_module("pydicom.datadict")


def name_of(tag: int) -> str:
    """Return the keyword of a tag, or its number where it has none."""
    return _dictionary().keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def is_uid(value: str) -> bool:
    """Spec: DICOM PS3.5 9.1."""
    return len(value) <= _MAX_UID and _UID.fullmatch(value) is not None


def read_header(data: bytes, limits: DecodeLimits) -> Header:
    """Return the walked file. Raises ImageRefused with the limit or the element at fault."""
    _check_preamble(data)
    meta, end = _walk_meta(data, limits)
    syntax = _meta_uid(data, meta, _TRANSFER_SYNTAX)
    if syntax is None:
        raise malformed("TransferSyntaxUID is missing", tag=_TRANSFER_SYNTAX, code="missing_attribute")
    implicit, little = syntax == _IMPLICIT, syntax != _BIG_ENDIAN
    inflater = Inflater(data[end:]) if syntax == _DEFLATED else None
    body, start = (data, end) if inflater is None else (inflater.inflate(limits.max_header_bytes), 0)
    walker = Walker(body, implicit=implicit, little_endian=little, limits=limits)
    try:
        walk = walker.walk(start)
    except ImageRefused as error:
        if inflater is not None and len(body) >= limits.max_header_bytes:
            raise _too_long(limits) from error
        raise
    return Header(
        transfer_syntax_uid=syntax,
        media_storage_sop_class_uid=_meta_uid(data, meta, 0x00020002),
        media_storage_sop_instance_uid=_meta_uid(data, meta, 0x00020003),
        implicit=implicit,
        little_endian=little,
        body=body,
        start=start,
        walk=walk,
        inflater=inflater,
    )


def inflate_pixels(header: Header, pixel_bytes: int) -> bytes:
    """Return the whole body, once the attributes have said how long it may be."""
    if header.inflater is None or header.walk.pixels is None:
        return header.body
    cap = header.walk.pixels.offset + pixel_bytes + _TRAILER_BYTES
    body = header.inflater.inflate(cap + 1)
    if len(body) > cap:
        raise malformed(
            "the deflated data set is longer than its attributes announce",
            tag=PIXEL_DATA,
            code="header_limit_exceeded",
        )
    if not header.inflater.finished:
        raise malformed("the deflated data set is cut off", tag=PIXEL_DATA, code="truncated_pixel_data")
    return body


def check_trailer(header: Header, body: bytes, position: int, limits: DecodeLimits) -> tuple[str, ...]:
    """Walk what follows the pixel data; return warnings."""
    if position >= len(body):
        return ()
    if (
        not any(memoryview(body)[position : position + _TRAILER_BYTES])
        and len(body) - position < _TRAILER_BYTES
    ):
        return ("trailing_padding",)
    walker = Walker(body, implicit=header.implicit, little_endian=header.little_endian, limits=limits)
    walk = walker.walk(position)
    if walk.pixels is not None or walk.elements.keys() & header.walk.elements.keys():
        raise malformed("an attribute occurs twice", tag=PIXEL_DATA)
    if min(walk.elements) <= PIXEL_DATA:
        raise malformed("an attribute stands after the pixel data", tag=min(walk.elements))
    return walk.warnings


def _check_preamble(data: bytes) -> None:
    """Spec: DICOM PS3.10 7.1; CVE-2019-11687 (a preamble that makes the file executable)."""
    if len(data) < _META_START or data[128:_META_START] != b"DICM":
        raise malformed("the file has no DICM prefix", code="not_dicom")
    preamble = data[:128]
    if any(preamble) and not preamble.startswith(_TIFF):
        raise malformed("the preamble must be zero or TIFF", code="bad_preamble")


def _walk_meta(data: bytes, limits: DecodeLimits) -> tuple[dict[int, Element], int]:
    walker = Walker(data, implicit=False, little_endian=True, limits=limits)
    walk = walker.walk(_META_START, only_group=b"\x02\x00")
    if not walk.elements:
        raise malformed("the file has no file meta information", code="not_dicom")
    return walk.elements, walk.end


def _meta_uid(data: bytes, meta: dict[int, Element], tag: int) -> str | None:
    element = meta.get(tag)
    if element is None or element.length == 0:
        return None
    text = element.value(data).rstrip(b"\0").decode("ascii", "replace")
    if not is_uid(text):
        raise malformed(f"{name_of(tag)} is not a UID", tag=tag, code="invalid_uid")
    return text


def _too_long(limits: DecodeLimits) -> ImageRefused:
    return ImageRefused(
        f"the header is longer than max_header_bytes ({limits.max_header_bytes})",
        code="header_limit_exceeded",
        expression="PixelData",
    )


@dataclass(slots=True)
class _Level:
    """One open data set or sequence. `end` is None where a delimiter ends it.

    The items of `fragments` (an icon's compressed pixels) hold bytes, not elements.
    """

    tag: int
    is_sequence: bool
    end: int | None
    implicit: bool
    little_endian: bool
    fragments: bool = False
    previous: int = -1


class Walker:
    """Walks elements without recursion and without copying values."""

    def __init__(self, body: bytes, *, implicit: bool, little_endian: bool, limits: DecodeLimits) -> None:
        self._body = body
        self._implicit = implicit
        self._little_endian = little_endian
        self._limits = limits
        self._count = 0
        self._warnings: set[str] = set()
        self._elements: dict[int, Element] = {}
        self._levels: list[_Level] = []
        self._is_meta = False

    def walk(self, start: int, *, only_group: bytes | None = None) -> Walk:
        """Return the top level's elements, up to the pixel data or the first element of another group."""
        self._levels = [
            _Level(
                tag=0, is_sequence=False, end=len(self._body), implicit=self._implicit,
                little_endian=self._little_endian,
            )
        ]  # fmt: skip
        self._is_meta = only_group is not None
        position = start
        while self._levels:
            level = self._levels[-1]
            if level.end is not None and position >= level.end:
                self._close(level, position)
                continue
            if only_group is not None and self._body[position : position + 2] != only_group:
                break
            element = self._read(position, level)
            if element.tag in _PIXEL_TAGS and len(self._levels) == 1:
                return self._result(element, position)
            position = self._enter(element, level)
        return self._result(None, position)

    def _result(self, pixels: Element | None, position: int) -> Walk:
        return Walk(self._elements, pixels, position, tuple(sorted(self._warnings)))

    def _close(self, level: _Level, position: int) -> None:
        if level.end is not None and position > level.end:
            raise malformed("an element is longer than what holds it", tag=level.tag)
        self._levels.pop()

    def _read(self, position: int, level: _Level) -> Element:
        """Return the element header at `position`; its value is not looked at."""
        order = "<" if level.little_endian else ">"
        try:
            group, number = struct.unpack_from(f"{order}HH", self._body, position)
            tag = group << 16 | number
            if group == 0xFFFE or level.is_sequence or level.implicit:  # noqa: PLR2004 (PS3.5 7.5)
                (length,) = struct.unpack_from(f"{order}L", self._body, position + 4)
                vr = "" if group == 0xFFFE else _implicit_vr(tag, length)  # noqa: PLR2004 (PS3.5 7.5)
                return Element(tag, vr, position, position + 8, length)
            return self._read_explicit(position, tag, order)
        except struct.error as error:
            tag = None if level.previous < 0 else level.previous
            raise malformed("the file ends inside an element", tag=tag) from error

    def _read_explicit(self, position: int, tag: int, order: str) -> Element:
        vr = self._body[position + 4 : position + 6].decode("latin-1")
        if vr not in _KNOWN:
            raise malformed(f"{name_of(tag)} has no known value representation", tag=tag)
        if vr in _LONG:
            (length,) = struct.unpack_from(f"{order}L", self._body, position + 8)
            return Element(tag, vr, position, position + 12, length)
        (length,) = struct.unpack_from(f"{order}H", self._body, position + 6)
        return Element(tag, vr, position, position + 8, length)

    def _enter(self, element: Element, level: _Level) -> int:
        """Account for the element and return where to go on."""
        if element.tag >> 16 == 0xFFFE:  # noqa: PLR2004 (PS3.5 7.5)
            return self._delimiter(element, level)
        if level.is_sequence:
            raise malformed(f"{name_of(level.tag)} holds something that is no item", tag=level.tag)
        self._account(element, level)
        if element.vr == "SQ" or element.length == UNDEFINED:
            return self._open_sequence(element, level)
        self._check_value(element, level)
        return element.offset + element.length

    def _delimiter(self, element: Element, level: _Level) -> int:
        tag, length = element.tag, element.length
        if tag == _ITEM and level.fragments:
            if length == UNDEFINED:
                raise malformed(f"{name_of(level.tag)} holds a fragment without a length", tag=level.tag)
            return element.offset + length
        if tag == _ITEM and level.is_sequence:
            self._open_item(element, level)
            return element.offset
        ends = _SEQUENCE_END if level.is_sequence else _ITEM_END
        if tag != ends or level.end is not None or length != 0 or len(self._levels) == 1:
            raise malformed(f"{name_of(level.tag)} is not nested well", tag=level.tag or None)
        self._levels.pop()
        if len(self._levels) == 1:
            opened = self._elements[level.tag]
            self._elements[level.tag] = replace(opened, length=element.start - opened.offset)
        return element.offset

    def _open_item(self, element: Element, level: _Level) -> None:
        self._levels.append(
            _Level(
                tag=level.tag, is_sequence=False, end=self._end_of(element, level), implicit=level.implicit,
                little_endian=level.little_endian,
            )
        )  # fmt: skip
        if len(self._levels) // 2 > self._limits.max_nesting:
            raise self._exceeded("max_nesting", level.tag)

    def _open_sequence(self, element: Element, level: _Level) -> int:
        fragments = element.tag == PIXEL_DATA and element.vr in ("OB", "OW")
        if element.vr not in ("SQ", "UN") and not fragments:
            raise malformed(f"{name_of(element.tag)} has no length", tag=element.tag)
        # PS3.5 6.2.2 note 2: what was unknown and of undefined length is Implicit VR Little Endian inside.
        unknown = element.vr == "UN"
        self._levels.append(
            _Level(
                tag=element.tag, is_sequence=True, end=self._end_of(element, level),
                implicit=level.implicit or unknown, little_endian=level.little_endian or unknown,
                fragments=fragments,
            )
        )  # fmt: skip
        return element.offset

    def _end_of(self, element: Element, level: _Level) -> int | None:
        if element.length == UNDEFINED:
            return None
        end = element.offset + element.length
        if end > len(self._body) or (level.end is not None and end > level.end):
            raise malformed(f"{name_of(element.tag)} is longer than what holds it", tag=element.tag)
        return end

    def _account(self, element: Element, level: _Level) -> None:
        self._count += 1
        if self._count > self._limits.max_elements:
            raise self._exceeded("max_elements", element.tag)
        top = len(self._levels) == 1
        if element.tag >> 16 in _ILLEGAL_GROUPS and not self._is_meta:
            raise malformed(f"{name_of(element.tag)} belongs to no data set", tag=element.tag)
        if element.tag == level.previous or (top and element.tag in self._elements):
            raise malformed(f"{name_of(element.tag)} occurs twice", tag=element.tag)
        if element.tag < level.previous:
            self._warnings.add("elements_out_of_order")
        level.previous = element.tag
        if top:
            self._elements[element.tag] = element

    def _check_value(self, element: Element, level: _Level) -> None:
        end = element.offset + element.length
        if end > (len(self._body) if level.end is None else level.end):
            raise malformed(f"{name_of(element.tag)} is longer than the file", tag=element.tag)
        if element.length % 2:
            self._warnings.add("odd_length")
        if element.vr in _TEXT:
            if element.length > self._limits.max_text_bytes:
                raise self._exceeded("max_text_bytes", element.tag)
            if element.vr in _ONE_VALUE:
                return
            values = self._body.count(b"\\", element.offset, end) + 1
        else:
            values = element.length // _SIZES.get(element.vr, element.length + 1)
        if values > self._limits.max_multiplicity:
            raise self._exceeded("max_multiplicity", element.tag)

    def _exceeded(self, limit: str, tag: int) -> ImageRefused:
        return ImageRefused(
            f"{name_of(tag)} exceeds {limit} ({getattr(self._limits, limit)})",
            code="header_limit_exceeded",
            expression=name_of(tag),
        )


def _implicit_vr(tag: int, length: int) -> str:
    try:
        vr = str(_dictionary().dictionary_VR(tag))
    except KeyError:
        vr = "UN"
    if length == UNDEFINED and vr != "SQ":
        return "SQ" if tag not in _PIXEL_TAGS else "OW"
    return vr[:2]
