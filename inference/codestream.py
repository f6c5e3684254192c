"""Headers of compressed frames, read before a decoder is: they must agree with the attributes.

A decoder allocates what the codestream says, not what the attributes say, and several decoders
fill up a codestream that was cut off without a word; so both are checked here.
Spec: ITU-T T.81 B (JPEG), T.87 C (JPEG-LS), T.800 A (JPEG 2000), DICOM PS3.5 G (RLE)
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from rayhook.inference.encapsulation import mismatch, truncated
from rayhook.inference.pixel_description import PixelDescription

_SOI, _EOI, _SOS, _DRI, _DNL = 0xD8, 0xD9, 0xDA, 0xDD, 0xDC
_SOF = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7))
_RESTARTS = range(0xD0, 0xD8)
_JPEG_LS = 0xF7
_END = b"\xff\xd9"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_BOXES = 4096
_MAX_TILES = 65_535
_RLE_SEGMENTS = 15
_RLE_HEADER = 64


@dataclass(frozen=True, slots=True)
class Codestream:
    """A frame whose header agrees with the attributes; `data` begins and ends with its markers.

    `own_sign`: values of fewer bits than BitsStored are two's complement of those bits, as is the custom
    for JPEG-LS and JPEG 2000.
    """

    data: bytes
    precision: int
    signed: bool
    own_sign: bool


@dataclass(frozen=True, slots=True)
class _Segment:
    """One marker segment; `start` and `end` bound its parameters."""

    marker: int
    start: int
    end: int


def read_jpeg(frame: bytes, description: PixelDescription, *, processes: frozenset[int]) -> Codestream:
    """Return the checked codestream of JPEG or JPEG-LS.

    processes: the SOF markers that the transfer syntax permits.
    Raises ImageRefused (pixel_data_mismatch, truncated_pixel_data).
    """
    if not frame.startswith(b"\xff\xd8"):
        raise mismatch("the frame is no JPEG codestream")
    data = _up_to_end(frame)
    segments = list(_segments(data))
    markers = [segment.marker for segment in segments]
    headers = [segment for segment in segments if segment.marker in _SOF]
    if len(headers) != 1 or _DNL in markers:
        raise mismatch("the JPEG codestream does not have one frame header")
    if _SOS not in markers or markers.index(_SOS) < markers.index(headers[0].marker):
        raise truncated("the JPEG codestream has no scan after its frame header")
    if headers[0].marker not in processes:
        raise mismatch("the JPEG process is not that of the transfer syntax")
    precision, rows, columns, components = struct.unpack_from(">BHHB", data, headers[0].start)
    _agree(description, rows, columns, components, precision)
    return Codestream(data, precision, signed=False, own_sign=headers[0].marker == _JPEG_LS)


def read_jpeg2000(frame: bytes, description: PixelDescription) -> Codestream:
    """Return the checked codestream, without the boxes of a JP2 file around it.

    Raises ImageRefused (pixel_data_mismatch, truncated_pixel_data).
    """
    begin = frame.find(_J2K_START, 0, _JP2_BOXES)
    if begin < 0:
        raise mismatch("the frame is no JPEG 2000 codestream")
    data = _up_to_end(frame[begin:])
    precision, signed, tiles = _siz(data, description)
    _check_tile_parts(data, tiles)
    return Codestream(data, precision, signed, own_sign=True)


def read_rle(frame: bytes, description: PixelDescription) -> list[bytes]:
    """Return the segments. Raises ImageRefused (pixel_data_mismatch, truncated_pixel_data)."""
    if len(frame) < _RLE_HEADER:
        raise truncated("the RLE header is cut off")
    count, *offsets = struct.unpack_from("<16L", frame)
    expected = description.samples * -(-description.bits_allocated // 8)
    if count != expected or count > _RLE_SEGMENTS:
        raise mismatch("the number of RLE segments does not fit SamplesPerPixel and BitsAllocated")
    starts = offsets[:count]
    if starts[0] != _RLE_HEADER or any(offsets[count:]):
        raise mismatch("the RLE header is not well formed")
    ends = [*starts[1:], len(frame)]
    if any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise truncated("an RLE segment is cut off")
    return [frame[start:end] for start, end in zip(starts, ends, strict=True)]


def _up_to_end(frame: bytes) -> bytes:
    """Return the codestream without what pads it; EOI and EOC are the same two bytes."""
    end = frame.rfind(_END) + len(_END)
    if end < len(_END) or frame[end:].strip(b"\0\xff"):
        raise truncated("the codestream has no end")
    return frame[:end]


def _agree(description: PixelDescription, rows: int, columns: int, components: int, precision: int) -> None:
    if (rows, columns) != (description.rows, description.columns):
        raise mismatch("the codestream's size is not Rows by Columns")
    if components != description.samples:
        raise mismatch("the codestream's components are not SamplesPerPixel")
    if not 1 <= precision <= max(8, description.bits_allocated):
        raise mismatch("the codestream's precision is beyond BitsAllocated")


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield all segments between SOI and EOI, stepping over the entropy-coded data of each scan."""
    position, restarts, jpeg_ls = 2, False, False
    while (segment := _segment(data, position)).marker != _EOI:
        yield segment
        position = segment.end
        jpeg_ls = jpeg_ls or segment.marker == _JPEG_LS
        if segment.marker == _DRI:
            restarts = any(data[segment.start : segment.end])
        if segment.marker == _SOS:
            position = _end_of_scan(data, position, restarts=restarts, jpeg_ls=jpeg_ls)
    if segment.end != len(data):
        raise truncated("the JPEG codestream ends early")


def _segment(data: bytes, position: int) -> _Segment:
    while data[position : position + 2] == b"\xff\xff":
        position += 1
    if len(data) < position + 2 or data[position] != 0xFF:  # noqa: PLR2004 (marker prefix)
        raise truncated("the JPEG codestream is damaged")
    marker = data[position + 1]
    if marker == _EOI:
        return _Segment(marker, position, position + 2)
    length = int.from_bytes(data[position + 2 : position + 4], "big")
    start, end = position + 4, position + 2 + length
    shortest = 8 if marker in _SOF else 2
    if length < shortest or end > len(data) or marker in (0, 1, _SOI, *_RESTARTS):
        raise truncated("the JPEG codestream is damaged")
    return _Segment(marker, start, end)


def _end_of_scan(data: bytes, position: int, *, restarts: bool, jpeg_ls: bool) -> int:
    """Return where the next marker segment begins; restart markers must come in turn."""
    turn = 0
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            raise truncated("the JPEG scan has no end")
        following = data[position + 1]
        if following == 0 or (jpeg_ls and following < 0x80):  # noqa: PLR2004 (T.87: a stuffed bit)
            position += 2
        elif following == 0xFF:  # noqa: PLR2004 (fill byte)
            position += 1
        elif following in _RESTARTS:
            if not restarts or following - 0xD0 != turn:
                raise truncated("the JPEG scan's restart markers are not in turn")
            turn = (turn + 1) % 8
            position += 2
        else:
            return position


def _siz(data: bytes, description: PixelDescription) -> tuple[int, bool, int]:
    """Return precision, signedness and number of tiles."""
    try:
        length, _, x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, components = struct.unpack_from(
            ">HHLLLLLLLLH", data, 4
        )
        parts = [struct.unpack_from(">BBB", data, 42 + 3 * i) for i in range(components)]
    except struct.error as error:
        raise truncated("the JPEG 2000 header is cut off") from error
    if length != 38 + 3 * components or len(set(parts)) != 1:
        raise mismatch("the JPEG 2000 components differ from each other")
    depth, step_x, step_y = parts[0]
    if (step_x, step_y) != (1, 1):
        raise mismatch("the JPEG 2000 components are subsampled")
    precision = (depth & 0x7F) + 1
    _agree(description, y1 - y0, x1 - x0, components, precision)
    if tile_x == 0 or tile_y == 0 or tile_x0 > x0 or tile_y0 > y0:
        raise mismatch("the JPEG 2000 tiles are not well formed")
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    if tiles > min(_MAX_TILES, description.pixels):
        raise mismatch("the JPEG 2000 codestream has too many tiles")
    return precision, bool(depth & 0x80), tiles


def _check_tile_parts(data: bytes, tiles: int) -> None:
    """Walk from tile-part to tile-part: each must end where the next begins, and no tile may be missing."""
    position = _end_of_main_header(data)
    seen: set[int] = set()
    while data[position : position + 2] == b"\xff\x90":
        try:
            _, tile, length = struct.unpack_from(">HHL", data, position + 2)
        except struct.error as error:
            raise truncated("a JPEG 2000 tile is cut off") from error
        seen.add(tile)
        position = len(data) - 2 if length == 0 else position + length
        if (length and length < 14) or position > len(data) - 2:  # noqa: PLR2004 (SOT and SOD alone)
            raise truncated("a JPEG 2000 tile is cut off")
    if position != len(data) - 2:
        raise truncated("the JPEG 2000 tiles do not reach the end")
    if seen != set(range(tiles)):
        raise truncated("a JPEG 2000 tile is missing")


def _end_of_main_header(data: bytes) -> int:
    position = 2
    while data[position : position + 2] != b"\xff\x90":
        if position + 4 > len(data) or data[position] != 0xFF:  # noqa: PLR2004 (marker prefix)
            raise truncated("the JPEG 2000 header is cut off")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position
