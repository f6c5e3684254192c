"""Synthetic DICOM files for the tests, in every transfer syntax, and broken ones."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode import DecodeLimits, Decoder
from tests.doubles.jpeg_lossless import encode_lossless
from tests.leaks import WORD

STUDY = "1.2.826.0.1.3680043.8.498.1"
SERIES = f"{STUDY}.1"
INSTANCE = f"{SERIES}.1"
PIXELS = 0x7FE00010

SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
)
SYNTAX_NAMES = [uid.UID(syntax).keyword for syntax in SYNTAXES]
_ENCODED = (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless)


def picture(rows: int = 48, columns: int = 64, *, seed: int = 1, high: int = 4096) -> NDArray[np.uint16]:
    """Return values that compress a little, with some noise, over the whole range."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, high - 1, rows * columns).reshape(rows, columns)
    noise = random.integers(-high // 32, high // 32 + 1, (rows, columns))
    return np.clip(np.rint(slope) + noise, 0, high - 1).astype(np.uint16)


def dataset(pixels: NDArray[Any], **attributes: Any) -> Dataset:
    """Return an MR image; attributes of None are left out. Pixels of three axes are frames."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid.MRImageStorage, uid.UID(INSTANCE)
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID = uid.MRImageStorage, INSTANCE
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, SERIES
    made.Modality, made.PatientID, made.ImageType = "MR", "P1", ["ORIGINAL", "PRIMARY", "M"]
    made.PatientComments, made.OtherPatientNames = f"{WORD} comments", f"{WORD}^MAIDEN"
    made.PixelSpacing = [0.5, 0.75]
    made.Rows, made.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        made.NumberOfFrames = pixels.shape[0]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = pixels.dtype.itemsize * 8
    made.BitsStored, made.HighBit = (12, 11) if made.BitsAllocated == 16 else (8, 7)
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = np.ascontiguousarray(pixels).tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def encode(made: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """Return the file in that transfer syntax, its native pixels compressed where it asks for that."""
    if syntax in _ENCODED:
        made.compress(syntax, generate_instance_uid=False)
    elif syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        _compress_jpeg(made)
    elif syntax == uid.ExplicitVRBigEndian:
        made.PixelData = np.frombuffer(made.PixelData, f"u{made.BitsAllocated // 8}").byteswap().tobytes()
    made.file_meta.TransferSyntaxUID = uid.UID(syntax)
    return save(made)


def encapsulated(made: Dataset, syntax: str, frames: list[bytes]) -> bytes:
    """Return the file with these codestreams as its frames."""
    made.PixelData = encapsulate(frames)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = uid.UID(syntax)
    return save(made)


def save(made: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def raw_element(tag: int, vr: str, value: bytes, *, length: int | None = None) -> bytes:
    """Return an explicit little-endian element; `length` may lie."""
    said = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in ("OB", "OW", "SQ", "UN", "UT"):
        return head + struct.pack("<HL", 0, said) + value
    return head + struct.pack("<H", said) + value


def with_raw(data: bytes, element: bytes) -> bytes:
    """Return the file with an element put before its PixelData (explicit little endian)."""
    position = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    return data[:position] + element + data[position:]


def nested(depth: int) -> bytes:
    """Return a private sequence that is so deep, every level of undefined length."""
    head = struct.pack("<HH2sHL", 0x0099, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    tail = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return (head + item) * depth + tail * depth


def item(**attributes: Any) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def _compress_jpeg(made: Dataset) -> None:
    frames = np.frombuffer(made.PixelData, "<u2").reshape(-1, made.Rows, made.Columns)
    mask = (1 << made.BitsStored) - 1
    streams = [encode_lossless(frame & mask, precision=made.BitsStored) for frame in frames]
    made.PixelData = encapsulate(streams)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True


def refusal(decoder: Decoder, data: bytes, limits: DecodeLimits | None = None) -> tuple[str, str | None]:
    """Return the code and the expression with which the file is refused, as it must be."""
    with pytest.raises(ImageRefused) as caught:
        decoder.decode(data, limits=limits)
    return caught.value.code, caught.value.expression
