"""Compressed pixel data: from items to one codestream a frame.

Spec: DICOM PS3.5 A.4 (encapsulation), A.4.1-A.4.5 (fragments of each syntax)
"""

import struct

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.dicom_header import UNDEFINED, Header

_ITEM, _END = 0xFFFEE000, 0xFFFEE0DD
_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51")


def mismatch(message: str) -> ImageRefused:
    return ImageRefused(message, code="pixel_data_mismatch", expression="PixelData")


def truncated(message: str = "PixelData is cut off") -> ImageRefused:
    return ImageRefused(message, code="truncated_pixel_data", expression="PixelData")


def read_items(header: Header) -> tuple[list[tuple[int, int]], int]:
    """Return (start, end) of each item's value and where the pixel data end."""
    pixels = header.walk.pixels
    assert pixels is not None
    if pixels.length != UNDEFINED:
        raise mismatch("compressed PixelData must have an undefined length")
    body, position = header.body, pixels.offset
    items: list[tuple[int, int]] = []
    while True:
        try:
            group, number, length = struct.unpack_from("<HHL", body, position)
        except struct.error as error:
            raise truncated() from error
        position += 8
        tag = group << 16 | number
        if tag == _END and length == 0:
            return items, position
        if tag != _ITEM or length == UNDEFINED:
            raise mismatch("PixelData holds something that is no fragment")
        if position + length > len(body):
            raise truncated()
        items.append((position, position + length))
        position += length


def split_frames(
    body: bytes, items: list[tuple[int, int]], *, frames: int, extended: tuple[bytes, bytes] | None
) -> list[bytes]:
    """Return one codestream a frame.

    extended: ExtendedOffsetTable and ExtendedOffsetTableLengths, where the file has them.
    Raises ImageRefused (pixel_data_mismatch) where the fragments cannot be told apart without guessing.
    """
    if not items:
        raise mismatch("PixelData has no Basic Offset Table item")
    table, fragments = items[0], items[1:]
    if len(fragments) < frames:
        raise ImageRefused(
            "PixelData has fewer frames than NumberOfFrames",
            code="pixel_data_mismatch" if fragments else "truncated_pixel_data",
            expression="NumberOfFrames",
        )
    offsets = _extended(extended, frames) if extended is not None else _basic(body[slice(*table)])
    groups = _group(body, fragments, frames, offsets)
    return [b"".join(body[start:end] for start, end in group) for group in groups]


def _group(
    body: bytes, fragments: list[tuple[int, int]], frames: int, offsets: tuple[int, ...]
) -> list[list[tuple[int, int]]]:
    base = fragments[0][0] - 8
    positions = [start - 8 - base for start, _ in fragments]
    if offsets:
        if len(offsets) != frames or offsets[0] != 0 or not set(offsets) <= set(positions):
            raise mismatch("the offset table does not fit the fragments")
        starts = set(offsets)
    elif frames == 1:
        starts = {0}
    elif len(fragments) == frames:
        starts = set(positions)
    else:
        starts = {
            position
            for position, (start, _) in zip(positions, fragments, strict=True)
            if body.startswith(_STARTS, start)
        }
    groups: list[list[tuple[int, int]]] = []
    for position, fragment in zip(positions, fragments, strict=True):
        if position in starts:
            groups.append([])
        if not groups:
            raise mismatch("the first fragment begins no frame")
        groups[-1].append(fragment)
    if len(groups) != frames:
        raise mismatch("PixelData does not hold NumberOfFrames frames")
    return groups


def _basic(table: bytes) -> tuple[int, ...]:
    if len(table) % 4:
        raise mismatch("the Basic Offset Table has an odd length")
    return struct.unpack(f"<{len(table) // 4}L", table)


def _extended(extended: tuple[bytes, bytes], frames: int) -> tuple[int, ...]:
    offsets, lengths = extended
    if len(offsets) != 8 * frames or len(lengths) != 8 * frames:
        raise ImageRefused(
            "ExtendedOffsetTable does not fit NumberOfFrames",
            code="pixel_data_mismatch",
            expression="ExtendedOffsetTable",
        )
    return struct.unpack(f"<{frames}Q", offsets)
