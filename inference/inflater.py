"""Inflating a data set piece by piece: a deflate bomb is never let out whole.

Spec: DICOM PS3.5 A.5 (Deflated Explicit VR Little Endian), RFC 1951
"""

import zlib

from rayhook.fhir.errors import ImageRefused


class Inflater:
    """Inflates a raw deflate stream as far as it is told to, never further."""

    def __init__(self, compressed: bytes) -> None:
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        self._rest = compressed
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def finished(self) -> bool:
        return self._stream.eof

    def inflate(self, up_to: int) -> bytes:
        """Return all that has been inflated, at most `up_to` bytes."""
        while self._size < up_to and not self._stream.eof:
            try:
                part = self._stream.decompress(self._rest, up_to - self._size)
            except zlib.error as error:
                raise ImageRefused(
                    "the deflated data set is damaged", code="truncated_pixel_data", expression="PixelData"
                ) from error
            self._rest = self._stream.unconsumed_tail
            self._parts.append(part)
            self._size += len(part)
            if not part:
                break
        self._parts = [b"".join(self._parts)]
        return self._parts[0]
