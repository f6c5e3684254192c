import struct
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode import DecodeLimits, Decoder
from tests.doubles.dicom_files import (
    SYNTAX_NAMES,
    SYNTAXES,
    dataset,
    encapsulated,
    encode,
    item,
    nested,
    picture,
    raw_element,
    refusal,
    save,
    with_raw,
)
from tests.doubles.jpeg_lossless import encode_lossless


@pytest.mark.parametrize("syntax", SYNTAXES, ids=SYNTAX_NAMES)
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_a_file_that_is_cut_off_is_refused(decoder: Decoder, syntax: str, share: float) -> None:
    data = encode(dataset(picture(64, 64)), syntax)
    assert refusal(decoder, data[: int(len(data) * share)])[0] in ("truncated_pixel_data", "malformed_header")


def _halved(frame: bytes, *, end: bytes = b"") -> bytes:
    return frame[: len(frame) // 2] + end


def _streams() -> dict[str, tuple[str, bytes, np.ndarray]]:
    values = picture(64, 64)
    smooth = cv2.GaussianBlur((values >> 4).astype(np.uint8), (0, 0), 2)
    jpeg = cv2.imencode(".jpg", smooth)[1].tobytes()
    restarts = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes()
    compressed = {
        syntax: next(
            pydicom.encaps.generate_frames(
                pydicom.dcmread(BytesIO(encode(dataset(values), syntax))).PixelData, number_of_frames=1
            )
        )
        for syntax in (uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless)
    }
    lossless = encode_lossless(values, precision=12)
    return {
        "jpeg": (uid.JPEGBaseline8Bit, jpeg, smooth),
        "jpeg with restarts": (uid.JPEGBaseline8Bit, restarts, smooth),
        "jpeg lossless": (uid.JPEGLosslessSV1, lossless, values),
        "jpeg-ls": (uid.JPEGLSLossless, compressed[uid.JPEGLSLossless], values),
        "jpeg 2000": (uid.JPEG2000Lossless, compressed[uid.JPEG2000Lossless], values),
        "rle": (uid.RLELossless, compressed[uid.RLELossless], values),
    }


STREAMS = _streams()


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["no end", "an end put on"])
def test_half_a_codestream_is_refused(decoder: Decoder, kind: str, end: bytes) -> None:
    syntax, stream, values = STREAMS[kind]
    data = encapsulated(dataset(values), syntax, [_halved(stream.rstrip(b"\0"), end=end)])
    assert refusal(decoder, data)[0] == "truncated_pixel_data"


@pytest.mark.parametrize("kind", ["jpeg", "jpeg lossless", "jpeg-ls", "jpeg 2000"])
@pytest.mark.parametrize("lost", [4, 40])
def test_a_codestream_that_lacks_its_last_bytes_is_refused(decoder: Decoder, kind: str, lost: int) -> None:
    syntax, stream, values = STREAMS[kind]
    body = stream.rstrip(b"\0")[: -2 - lost]
    data = encapsulated(dataset(values), syntax, [body.rstrip(b"\xff") + b"\xff\xd9"])
    assert refusal(decoder, data)[0] == "truncated_pixel_data"


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(
    ("keyword", "value"), [("Rows", 63), ("Columns", 65), ("Rows", 4096), ("Columns", 1)]
)
def test_attributes_that_contradict_the_codestream_are_refused(
    decoder: Decoder, kind: str, keyword: str, value: int
) -> None:
    syntax, stream, values = STREAMS[kind]
    data = encapsulated(dataset(values, **{keyword: value}), syntax, [stream])
    assert refusal(decoder, data)[0] in ("pixel_data_mismatch", "truncated_pixel_data")


def test_a_lying_frame_header_is_refused_before_anything_is_allocated(decoder: Decoder) -> None:
    _, stream, values = STREAMS["jpeg"]
    position = stream.index(b"\xff\xc0") + 5
    lying = stream[:position] + struct.pack(">HH", 65_500, 65_500) + stream[position + 4 :]
    started = time.monotonic()
    code, _ = refusal(decoder, encapsulated(dataset(values), uid.JPEGBaseline8Bit, [lying]))
    assert code == "pixel_data_mismatch"
    assert time.monotonic() - started < 1


def test_a_lying_jpeg_2000_size_is_refused(decoder: Decoder) -> None:
    _, stream, values = STREAMS["jpeg 2000"]
    position = stream.index(b"\xff\x51") + 6
    lying = stream[:position] + struct.pack(">LL", 1 << 30, 1 << 30) + stream[position + 8 :]
    data = encapsulated(dataset(values), uid.JPEG2000Lossless, [lying])
    assert refusal(decoder, data)[0] == "pixel_data_mismatch"


def test_values_beyond_bits_stored_are_refused(decoder: Decoder) -> None:
    syntax, stream, values = STREAMS["jpeg 2000"]
    data = encapsulated(dataset(values, BitsStored=10, HighBit=9), syntax, [stream])
    assert refusal(decoder, data)[0] == "pixel_data_mismatch"


@pytest.mark.parametrize("frames", [2, 3])
def test_fewer_frames_than_announced_are_refused(decoder: Decoder, frames: int) -> None:
    syntax, stream, values = STREAMS["jpeg-ls"]
    data = encapsulated(dataset(values, NumberOfFrames=frames), syntax, [stream])
    assert refusal(decoder, data) == ("pixel_data_mismatch", "NumberOfFrames")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"SOPInstanceUID": "1.2.3/../../etc"}, ("invalid_uid", "MediaStorageSOPInstanceUID")),
        ({"StudyInstanceUID": "..\\..\\x"}, ("invalid_uid", "StudyInstanceUID")),
        ({"SeriesInstanceUID": "1.2." + "3" * 64}, ("invalid_uid", "SeriesInstanceUID")),
        ({"SeriesInstanceUID": "1.02.3"}, ("invalid_uid", "SeriesInstanceUID")),
        ({"FrameOfReferenceUID": "a.b"}, ("invalid_uid", "FrameOfReferenceUID")),
        ({"StudyInstanceUID": None}, ("missing_attribute", "StudyInstanceUID")),
        ({"StudyInstanceUID": ""}, ("missing_attribute", "StudyInstanceUID")),
        ({"Modality": None}, ("missing_attribute", "Modality")),
        ({"Rows": None}, ("missing_attribute", "Rows")),
        ({"Rows": 0}, ("invalid_attribute", "Rows")),
        ({"Columns": [64, 64]}, ("invalid_attribute", "Columns")),
        ({"BitsAllocated": 12}, ("invalid_attribute", "BitsAllocated")),
        ({"BitsStored": 17}, ("invalid_attribute", "BitsStored")),
        ({"HighBit": 15}, ("invalid_attribute", "HighBit")),
        ({"PixelRepresentation": 2}, ("invalid_attribute", "PixelRepresentation")),
        ({"PixelRepresentation": None}, ("missing_attribute", "PixelRepresentation")),
        ({"SamplesPerPixel": 3}, ("invalid_attribute", "SamplesPerPixel")),
        ({"PhotometricInterpretation": "CMYK"}, ("unsupported_photometric_interpretation",) * 1),
        ({"NumberOfFrames": 0}, ("invalid_attribute", "NumberOfFrames")),
        ({"NumberOfFrames": -5}, ("invalid_attribute", "NumberOfFrames")),
        ({"NumberOfFrames": 2_000_000_000}, ("image_too_large", "NumberOfFrames")),
        ({"NumberOfFrames": 2}, ("truncated_pixel_data", "PixelData")),
        ({"Rows": 65_535, "Columns": 65_535}, ("image_too_large", "Rows")),
        ({"Rows": 47}, ("pixel_data_mismatch", "PixelData")),
        ({"Rows": 49}, ("truncated_pixel_data", "PixelData")),
        ({"PixelData": None}, ("no_pixel_data", "PixelData")),
        ({"PixelSpacing": [0, 1]}, ("invalid_attribute", "PixelSpacing")),
        ({"PixelSpacing": [1]}, ("invalid_attribute", "PixelSpacing")),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, ("invalid_attribute", "RescaleSlope")),
        ({"RescaleSlope": 1}, ("missing_attribute", "RescaleIntercept")),
        ({"RescaleIntercept": 1}, ("missing_attribute", "RescaleSlope")),
        ({"SOPClassUID": uid.CTImageStorage, "Modality": "CT"}, ("missing_attribute", "RescaleIntercept")),
        ({"PerFrameFunctionalGroupsSequence": [item(), item()]}, ("pixel_data_mismatch", None)),
    ],
)
def test_attributes_that_make_no_sense_are_refused(
    decoder: Decoder, attributes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    with pydicom.config.disable_value_validation():
        data = save(dataset(picture(), **attributes))
    code, expression = refusal(decoder, data)
    assert code == expected[0]
    assert len(expected) < 2 or expected[1] in (None, expression)


@pytest.mark.parametrize(
    ("keyword", "raw"),
    [
        ("RescaleSlope", b"nan "),
        ("RescaleSlope", b"1e999 "),
        ("WindowWidth", b"inf "),
        ("PixelSpacing", b"nan\\1 "),
    ],
)
def test_numbers_that_are_not_finite_are_refused(decoder: Decoder, keyword: str, raw: bytes) -> None:
    made = dataset(picture(), PixelSpacing=None)
    others = {"RescaleSlope": "RescaleIntercept", "WindowWidth": "WindowCenter"}
    if keyword in others:
        setattr(made, others[keyword], 0)
    tag = int(pydicom.tag.Tag(keyword))
    raw += b" " * (len(raw) % 2)
    data = with_raw(save(made), raw_element(tag, "DS", raw))
    assert refusal(decoder, data) == ("non_finite_pixels", keyword)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_float_pixels_that_are_not_finite_are_refused(decoder: Decoder, value: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[2, 3] = value
    assert refusal(decoder, save(_float_pixels(values))) == ("non_finite_pixels", "PixelData")


def test_float_pixels_are_decoded(decoder: Decoder) -> None:
    values = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(decoder.decode(save(_float_pixels(values))).pixels[0], values)


def _float_pixels(values: np.ndarray) -> pydicom.Dataset:
    made = dataset(np.zeros(values.shape, np.uint16), BitsStored=None, HighBit=None, PixelRepresentation=None)
    made.BitsAllocated = 32
    del made.PixelData
    made.FloatPixelData = values.tobytes()
    return made


@pytest.mark.parametrize(
    ("descriptor", "entries", "extra"),
    [([4096, 0, 16], 4000, {}), ([0, 0, 16], 4096, {}), ([4096, 0, 8], 4096, {}), ([4096, 0, 0], 4096, {})],
)
def test_luts_that_contradict_themselves_are_refused(
    decoder: Decoder, descriptor: list[int], entries: int, extra: dict[str, Any]
) -> None:
    table = np.arange(entries, dtype=np.uint16)
    lut = item(LUTDescriptor=descriptor, ModalityLUTType="US", LUTData=table.tobytes())
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "OW"
    data = encode(dataset(picture(), ModalityLUTSequence=[lut], **extra))
    assert refusal(decoder, data) == ("unsupported_lut", "ModalityLUTSequence")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: b"", "not_dicom"),
        (lambda data: b"hello, I am no image", "not_dicom"),
        (lambda data: data[128:], "not_dicom"),
        (lambda data: b"MZ" + data[2:], "bad_preamble"),
        (lambda data: b"#!/bin/sh\n" + data[10:], "bad_preamble"),
        (
            lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.1\0"),
            "unsupported_transfer_syntax",
        ),
        (lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2/1\0"), "invalid_uid"),
        (lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"), "malformed_header"),
        (lambda data: data + b"PK\x03\x04 and more", "malformed_header"),
        (lambda data: data + raw_element(0x7FE00010, "OW", b"\0" * 4), "malformed_header"),
        (lambda data: with_raw(data, raw_element(0x00280010, "US", b"\x18\0")), "malformed_header"),
        (lambda data: with_raw(data, raw_element(0x00990010, "ZZ", b"")), "malformed_header"),
        (lambda data: with_raw(data, raw_element(0x00990010, "OB", b"", length=1 << 31)), "malformed_header"),
        (lambda data: with_raw(data, raw_element(0x00990010, "SQ", b"", length=1 << 31)), "malformed_header"),
        (lambda data: with_raw(data, nested(65)), "header_limit_exceeded"),
        (lambda data: with_raw(data, nested(5_000)), "header_limit_exceeded"),
    ],
)
def test_structures_that_are_not_sound_are_refused(
    decoder: Decoder, change: Callable[[bytes], bytes], code: str
) -> None:
    assert refusal(decoder, change(encode(dataset(picture()))))[0] == code


def test_nesting_within_the_limit_is_read(decoder: Decoder) -> None:
    data = with_raw(encode(dataset(picture())), nested(64))
    np.testing.assert_array_equal(decoder.decode(data).pixels[0], picture())


def test_a_tiff_preamble_is_allowed(decoder: Decoder) -> None:
    data = b"II*\0" + encode(dataset(picture()))[4:]
    np.testing.assert_array_equal(decoder.decode(data).pixels[0], picture())


@pytest.mark.parametrize(
    ("element", "limits"),
    [
        (
            b"".join(raw_element(0x00990000 + n, "US", b"\0\0") for n in range(0x1000, 0x1100)),
            {"max_elements": 200},
        ),
        (raw_element(0x00990010, "UT", b"x" * 4000), {"max_text_bytes": 2000}),
        (raw_element(0x00990010, "DS", b"\\".join([b"1"] * 3000) + b"\\"), {"max_multiplicity": 2000}),
        (raw_element(0x00990010, "US", b"\0\0" * 3000), {"max_multiplicity": 2000}),
    ],
)
def test_header_limits_name_the_limit(decoder: Decoder, element: bytes, limits: dict[str, int]) -> None:
    data = with_raw(encode(dataset(picture())), element)
    with pytest.raises(ImageRefused, match=next(iter(limits))) as caught:
        decoder.decode(data, limits=DecodeLimits(**limits))
    assert caught.value.code == "header_limit_exceeded"


def test_a_file_beyond_the_limit_is_not_even_sent(decoder: Decoder) -> None:
    code, _ = refusal(decoder, encode(dataset(picture())), DecodeLimits(max_file_bytes=100))
    assert code == "image_too_large"


def _deflated(dataset_bytes: bytes) -> bytes:
    plain = encode(dataset(picture()), uid.DeflatedExplicitVRLittleEndian)
    meta_end = plain.index(b"1.2.840.10008.1.2.1.99") + len(b"1.2.840.10008.1.2.1.99")
    read = pydicom.dcmread(BytesIO(plain), stop_before_pixels=True)
    end = 132 + 12 + read.file_meta.FileMetaInformationGroupLength
    assert end >= meta_end
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return plain[:end] + deflater.compress(dataset_bytes) + deflater.flush()


def _explicit_body() -> bytes:
    data = encode(dataset(picture()))
    return data[data.index(struct.pack("<HH2s", 0x0008, 0x0008, b"CS")) :]


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: b"\0" * (96 << 20),
        lambda: _explicit_body() + b"\0" * (96 << 20),
        lambda: _explicit_body() + raw_element(0xFFFCFFFC, "OB", b"\0" * (96 << 20)),
        lambda: raw_element(0x00090010, "OB", b"\0" * (96 << 20)) + _explicit_body(),
    ],
    ids=["zeros", "zeros after the pixels", "padding after the pixels", "a private element before"],
)
def test_a_deflate_bomb_is_refused_fast_and_small(decoder: Decoder, bomb: Callable[[], bytes]) -> None:
    data = _deflated(bomb())
    before, started = _peak_of_child(decoder), time.monotonic()
    assert refusal(decoder, data)[0] in ("header_limit_exceeded", "malformed_header")
    assert time.monotonic() - started < 2
    assert _peak_of_child(decoder) - before < 64 << 20


def _peak_of_child(decoder: Decoder) -> int:
    child = decoder._idle.queue[-1]
    child._await_ready()
    status = Path(f"/proc/{child._process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def test_half_a_deflated_stream_is_refused(decoder: Decoder) -> None:
    data = encode(dataset(picture(64, 64)), uid.DeflatedExplicitVRLittleEndian)
    assert refusal(decoder, data[:-1000])[0] == "truncated_pixel_data"
