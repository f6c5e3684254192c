"""A JPEG lossless encoder, small enough to be read: process 14, first-order prediction.

No package on PyPI encodes what so many hospitals' archives hold.
Spec: ITU-T T.81 H (lossless mode), F.1.2 (Huffman coding)
"""

import struct

import numpy as np
from numpy.typing import NDArray

_CODES = 17
_LENGTH = 5


def encode_lossless(image: NDArray[np.uint16], *, precision: int, restart_rows: int = 0) -> bytes:
    """Return the codestream; `restart_rows` puts a restart marker after so many rows."""
    rows, columns = image.shape
    header = b"\xff\xd8" + _segment(0xC3, struct.pack(">BHHB", precision, rows, columns, 1) + b"\x01\x11\x00")
    counts = bytes(_CODES if length == _LENGTH else 0 for length in range(1, 17))
    header += _segment(0xC4, b"\x00" + counts + bytes(range(_CODES)))
    if restart_rows:
        header += _segment(0xDD, struct.pack(">H", restart_rows * columns))
    header += _segment(0xDA, b"\x01\x01\x00\x01\x00\x00")
    step = restart_rows or rows
    chunks = [_scan(image[start : start + step], precision) for start in range(0, rows, step)]
    marked = b"".join(
        chunk + (b"" if last else bytes((0xFF, 0xD0 + number % 8)))
        for number, chunk in enumerate(chunks)
        for last in (number == len(chunks) - 1,)
    )
    return header + marked + b"\xff\xd9"


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _scan(image: NDArray[np.uint16], precision: int) -> bytes:
    wide = image.astype(np.int64)
    predicted = np.empty_like(wide)
    predicted[:, 1:] = wide[:, :-1]
    predicted[1:, 0] = wide[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    differences = ((wide - predicted + (1 << 15)) % (1 << 16)) - (1 << 15)
    bits = "".join(_code(int(difference)) for difference in differences.ravel())
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return data.replace(b"\xff", b"\xff\x00")


def _code(difference: int) -> str:
    if difference == -(1 << 15):
        return f"{16:0{_LENGTH}b}"
    size = abs(difference).bit_length()
    if size == 0:
        return "0" * _LENGTH
    value = difference if difference > 0 else difference + (1 << size) - 1
    return f"{size:0{_LENGTH}b}{value:0{size}b}"
