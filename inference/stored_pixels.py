"""From PixelData to stored values, frame by frame.

One decoder a syntax: pylibjpeg-libjpeg for JPEG, CharLS for JPEG-LS, OpenJPEG for JPEG 2000 and HTJ2K,
pylibjpeg-rle for RLE. GDCM is left out: it ends the process on some files.
Spec: DICOM PS3.5 8.1 (native), 8.2 and A.4 (encapsulated), PS3.3 C.7.6.3.1
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jpeg_ls  # type: ignore[import-untyped]  # the package is not typed
import libjpeg.utils
import numpy as np
import openjpeg.utils
from numpy.typing import NDArray
from pydicom import uid
from rle.rle import decode_segment  # type: ignore[import-not-found]  # compiled, without stubs

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.codestream import Codestream, read_jpeg, read_jpeg2000, read_rle
from rayhook.inference.dicom_attributes import Attributes
from rayhook.inference.dicom_header import (
    DOUBLE_FLOAT_PIXEL_DATA,
    FLOAT_PIXEL_DATA,
    PIXEL_DATA,
    UNDEFINED,
    Header,
    inflate_pixels,
)
from rayhook.inference.encapsulation import mismatch, read_items, split_frames, truncated
from rayhook.inference.pixel_description import PixelDescription

Stored = NDArray[Any]

_NATIVE = frozenset(
    (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    )
)
_PROCESSES: dict[str, frozenset[int]] = {
    uid.JPEGBaseline8Bit: frozenset((0xC0,)),
    uid.JPEGExtended12Bit: frozenset((0xC0, 0xC1)),
    uid.JPEGLossless: frozenset((0xC3,)),
    uid.JPEGLosslessSV1: frozenset((0xC3,)),
    uid.JPEGLSLossless: frozenset((0xF7,)),
    uid.JPEGLSNearLossless: frozenset((0xF7,)),
}
_JPEG_2000 = frozenset(
    (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
)
_JPEG_LS = frozenset((uid.JPEGLSLossless, uid.JPEGLSNearLossless))
SUPPORTED = _NATIVE | _JPEG_2000 | frozenset(_PROCESSES) | {uid.RLELossless}

_FLOATS = {FLOAT_PIXEL_DATA: "f4", DOUBLE_FLOAT_PIXEL_DATA: "f8"}
# A scan that was cut off makes the decoder go on into what follows, or make up bits. With these two put after
# it, the first bit that is missing is read once as 1 and once as 0: only a whole image comes out the same.
_FILLERS = (b"\xaa" * 40, b"\x55" * 40)
_MARKER_AFTER_SCAN = re.compile(rb"\xff[\xd0-\xd7\xd9\xda\xc4\xdd]")


class PixelReader:
    """Stored values of one image, and where its pixel data end in the file's body."""

    def __init__(self, header: Header, attributes: Attributes, description: PixelDescription) -> None:
        pixels = header.walk.pixels
        assert pixels is not None
        self._description = description
        self._tag = pixels.tag
        self._little_endian = header.little_endian
        self.warnings: set[str] = set()
        if header.transfer_syntax_uid in _NATIVE:
            self.body, self.end = self._native_extent(header)
            self._frame: Callable[[int], Stored] = self._native_frame
            self._native, self._start = _in_byte_order(self.body, header, description)
            return
        if pixels.tag != PIXEL_DATA:
            raise mismatch("floating point pixels cannot be compressed")
        items, self.end = read_items(header)
        self.body = header.body
        self._streams = split_frames(
            header.body, items, frames=description.frames, extended=_extended(attributes)
        )
        decoder = _decoder(header.transfer_syntax_uid)
        # Every header is looked at before the first frame is decoded.
        self._frame = decoder(self._streams, description, self.warnings)

    def frames(self) -> Iterator[Stored]:
        """Yield (rows, columns) or (rows, columns, samples): signed as the attributes say, spare bits gone."""
        for index in range(self._description.frames):
            yield self._frame(index)

    def _native_extent(self, header: Header) -> tuple[bytes, int]:
        pixels, expected = header.walk.pixels, self._description.native_bytes
        assert pixels is not None
        if pixels.length == UNDEFINED:
            raise mismatch("uncompressed PixelData must have a length")
        if pixels.length < expected:
            raise truncated("PixelData is shorter than Rows, Columns and NumberOfFrames ask for")
        if pixels.length > expected + expected % 2:
            raise mismatch("PixelData is longer than Rows, Columns and NumberOfFrames ask for")
        body = inflate_pixels(header, pixels.length)
        if len(body) < pixels.offset + pixels.length:
            raise truncated()
        return body, pixels.offset + pixels.length

    def _native_frame(self, index: int) -> Stored:
        d = self._description
        if d.bits_allocated == 1:
            return self._packed_frame(index)
        size = d.native_bytes // d.frames
        kind = _FLOATS.get(self._tag, f"{'i' if d.signed else 'u'}{d.bits_allocated // 8}")
        dtype = np.dtype(kind).newbyteorder("<" if self._little_endian else ">")
        values: Stored = np.frombuffer(
            self._native, dtype, size // dtype.itemsize, offset=self._start + index * size
        )
        if self._tag in _FLOATS:
            return values.reshape(d.rows, d.columns)
        if d.photometric_interpretation == "YBR_FULL_422":
            return _from_422(values, d)
        return _without_spare_bits(_shape(values, d, planar=d.planar), d)

    def _packed_frame(self, index: int) -> Stored:
        """Spec: DICOM PS3.5 8.1.1: bits follow each other over the bounds of bytes, and of frames."""
        d = self._description
        first, count = index * d.pixels * d.samples, d.pixels * d.samples
        packed = np.frombuffer(
            self._native, np.uint8, (first % 8 + count + 7) // 8, offset=self._start + first // 8
        )
        bits: Stored = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + count]
        return _shape(bits, d, planar=d.planar)


def _in_byte_order(body: bytes, header: Header, d: PixelDescription) -> tuple[bytes, int]:
    """Return the bytes and where the pixels begin in them; bytes that were written as big-endian words swapped.

    Spec: DICOM PS3.5 7.3, 8.1.1
    """
    pixels = header.walk.pixels
    assert pixels is not None
    if header.little_endian or pixels.vr != "OW" or d.bits_allocated > 8:  # noqa: PLR2004 (bits of a byte)
        return body, pixels.offset
    words = np.frombuffer(body, ">u2", pixels.length // 2, offset=pixels.offset)
    return words.astype("<u2").tobytes(), 0


_FrameDecoder = Callable[[int], Stored]


def _decoder(syntax: str) -> Callable[[list[bytes], PixelDescription, set[str]], _FrameDecoder]:
    if syntax in _JPEG_2000:
        return _jpeg2000
    if syntax in _PROCESSES:
        processes = _PROCESSES[syntax]
        return lambda frames, d, warnings: _jpeg(frames, d, warnings, processes)
    return _rle


def _jpeg(
    frames: list[bytes], d: PixelDescription, warnings: set[str], processes: frozenset[int]
) -> _FrameDecoder:
    streams = [read_jpeg(frame, d, processes=processes) for frame in frames]
    decode = _charls if 0xF7 in processes else _libjpeg  # noqa: PLR2004 (SOF55 is JPEG-LS)
    return lambda index: _fitted(decode(streams[index].data, d), streams[index], d, warnings)


def _jpeg2000(frames: list[bytes], d: PixelDescription, warnings: set[str]) -> _FrameDecoder:
    streams = [read_jpeg2000(frame, d) for frame in frames]
    return lambda index: _fitted(_openjpeg(streams[index].data, d), streams[index], d, warnings)


def _rle(frames: list[bytes], d: PixelDescription, _warnings: set[str]) -> _FrameDecoder:
    segments = [read_rle(frame, d) for frame in frames]
    return lambda index: _from_segments(segments[index], d)


def _libjpeg(data: bytes, d: PixelDescription) -> Stored:
    first, second = (_decoded(partial(libjpeg.utils.decode, _filled(data, filler)), d) for filler in _FILLERS)
    if not np.array_equal(first, second):
        raise truncated("the JPEG scan is cut off")
    return first


def _filled(data: bytes, filler: bytes) -> bytes:
    """Return the codestream with more bits before each marker that ends a run of entropy-coded data."""
    scan = data.index(b"\xff\xda")
    return data[:scan] + _MARKER_AFTER_SCAN.sub(lambda m: filler + m[0], data[scan:])


def _charls(data: bytes, d: PixelDescription) -> Stored:
    def decode() -> Stored:
        values, info = jpeg_ls.decode_pixel_data(data)
        dtype = "<u1" if info["bits_per_sample"] <= 8 else "<u2"  # noqa: PLR2004 (bits of a byte)
        return _shape(np.frombuffer(values, dtype), d, planar=info["interleave_mode"] == 0)

    return _decoded(decode, d)


def _openjpeg(data: bytes, d: PixelDescription) -> Stored:
    return _decoded(lambda: openjpeg.utils.decode(data, j2k_format=0), d)


def _decoded(decode: Callable[[], Stored], d: PixelDescription) -> Stored:
    """Raises ImageRefused where the decoder does, or where it gives another shape than announced."""
    try:
        image = decode()
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise truncated("the codestream is damaged or cut off") from error
    if image.size != d.pixels * d.samples:
        raise mismatch("the decoded frame has another size than Rows by Columns")
    return image.reshape(d.rows, d.columns) if d.samples == 1 else image.reshape(d.rows, d.columns, -1)


def _from_segments(segments: list[bytes], d: PixelDescription) -> Stored:
    """Join byte planes, most significant first. Spec: DICOM PS3.5 G.2."""
    size = d.bits_allocated // 8 if d.bits_allocated > 1 else 1
    planes = np.empty((d.samples, d.pixels, size), np.uint8)
    expected = d.pixels if d.bits_allocated > 1 else (d.pixels + 7) // 8
    for number, segment in enumerate(segments):
        plane = _segment(segment, expected)
        if d.bits_allocated == 1:
            plane = np.unpackbits(plane, bitorder="little")[: d.pixels]
        planes[number // size, :, size - 1 - number % size] = plane
    values = planes.view(f"<{'i' if d.signed else 'u'}{size}").reshape(d.samples, d.rows, d.columns)
    image: Stored = values[0] if d.samples == 1 else np.moveaxis(values, 0, -1)
    return _without_spare_bits(image, d)


def _segment(segment: bytes, expected: int) -> NDArray[np.uint8]:
    try:
        plane = np.frombuffer(decode_segment(segment), np.uint8)
    except (RuntimeError, ValueError) as error:
        raise truncated("an RLE segment is damaged") from error
    if plane.size < expected:
        raise truncated("an RLE segment is cut off")
    # A padding byte to an even length may decode to one byte more, or to the header of an empty run.
    if plane.size > expected + 1:
        raise mismatch("an RLE segment is longer than Rows by Columns")
    return plane[:expected]


def _fitted(image: Stored, stream: Codestream, d: PixelDescription, warnings: set[str]) -> Stored:
    """Return the values as the attributes mean them: signed where they are, within BitsStored."""
    if stream.signed and not d.signed:
        raise mismatch("the codestream is signed, PixelRepresentation is not")
    if stream.precision != d.bits_stored:
        warnings.add("precision_differs_from_bits_stored")
    if d.signed and not stream.signed:
        image = _as_signed(image, stream, d)
    if image.min() < d.lowest or image.max() > d.highest:
        raise mismatch("the codestream holds values beyond BitsStored")
    return image


def _as_signed(image: Stored, stream: Codestream, d: PixelDescription) -> Stored:
    """Read an unsigned codestream as two's complement: of its own precision, or of BitsStored within it."""
    signed = _signed(image, stream.precision)
    if signed.max() <= d.highest and (stream.precision >= d.bits_stored or stream.own_sign):
        return signed
    if image.max() > d.mask or stream.precision < d.bits_stored:
        raise mismatch("the codestream's sign cannot be told from BitsStored")
    return _signed(image, d.bits_stored)


def _signed(image: Stored, bits: int) -> Stored:
    """Read unsigned values of `bits` bits as two's complement."""
    wide = image.astype(np.int32)
    return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)


def _without_spare_bits(image: Stored, d: PixelDescription) -> Stored:
    """Drop what lies above HighBit, such as an overlay, and carry the sign."""
    spare = d.bits_allocated - d.bits_stored
    if spare == 0 or d.bits_allocated == 1:
        return image
    if not d.signed:
        masked: Stored = image & image.dtype.type(d.mask)
        return masked
    native = image.astype(image.dtype.newbyteorder("="), copy=False)
    carried: Stored = np.right_shift(np.left_shift(native, spare), spare)
    return carried


def _shape(values: Stored, d: PixelDescription, *, planar: bool) -> Stored:
    if d.samples == 1:
        return values.reshape(d.rows, d.columns)
    if planar:
        return np.moveaxis(values.reshape(d.samples, d.rows, d.columns), 0, -1)
    return values.reshape(d.rows, d.columns, d.samples)


def _from_422(values: Stored, d: PixelDescription) -> Stored:
    """Repeat the colour of each pair. Spec: DICOM PS3.3 C.7.6.3.1.2: Y1 Y2 CB1 CR1."""
    if d.columns % 2:
        raise mismatch("YBR_FULL_422 needs an even number of Columns")
    quads = values.reshape(d.rows, d.columns // 2, 4)
    image = np.empty((d.rows, d.columns, 3), values.dtype)
    image[:, 0::2, 0], image[:, 1::2, 0] = quads[..., 0], quads[..., 1]
    image[..., 1:] = np.repeat(quads[..., 2:], 2, axis=1)
    return image


def _extended(attributes: Attributes) -> tuple[bytes, bytes] | None:
    offsets = attributes.data("ExtendedOffsetTable")
    if offsets is None:
        return None
    lengths = attributes.data("ExtendedOffsetTableLengths")
    if lengths is None:
        raise ImageRefused(
            "ExtendedOffsetTableLengths is missing",
            code="missing_attribute",
            expression="ExtendedOffsetTableLengths",
        )
    return offsets, lengths
