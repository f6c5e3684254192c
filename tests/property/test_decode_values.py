"""Whatever the values, the bits and the way they are written, the decoder gives them back."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.codestream import read_jpeg, read_jpeg2000, read_rle
from rayhook.inference.decode import Decoder
from rayhook.inference.decode_image import decode_image
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.dicom_header import is_uid, read_header
from rayhook.inference.pixel_description import PixelDescription
from tests.doubles.dicom_files import SYNTAXES, dataset, encode, picture

FILES = {syntax: encode(dataset(picture(32, 32)), syntax) for syntax in SYNTAXES}
# These encoders give up on small or noisy pictures; the unit tests hold both to their word.
CANNOT_ENCODE_NOISE = (uid.JPEGLSLossless, uid.JPEG2000Lossless)
DESCRIPTION = PixelDescription(
    rows=32,
    columns=32,
    frames=1,
    samples=1,
    bits_allocated=16,
    bits_stored=12,
    signed=False,
    photometric_interpretation="MONOCHROME2",
    planar=False,
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    bits_and_sign=st.tuples(st.integers(9, 16), st.booleans()),
    syntax=st.sampled_from([syntax for syntax in SYNTAXES if syntax not in CANNOT_ENCODE_NOISE]),
)
def test_any_bits_in_any_syntax_come_back(
    decoder: Decoder, seed: int, shape: tuple[int, int], bits_and_sign: tuple[int, bool], syntax: str
) -> None:
    bits, signed = bits_and_sign
    values = np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.int32)
    if signed:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    kind = np.int16 if signed else np.uint16
    made = dataset(values.astype(kind), BitsStored=bits, HighBit=bits - 1)
    decoded = decoder.decode(encode(made, syntax))
    np.testing.assert_array_equal(decoded.pixels[0], values)


@settings(max_examples=60, deadline=None)
@given(
    slope=st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-6),
    intercept=st.floats(-1e6, 1e6),
    inverted=st.booleans(),
)
def test_rescaling_is_that_of_double_precision(slope: float, intercept: float, inverted: bool) -> None:
    slope, intercept = float(f"{slope:.8g}"), float(f"{intercept:.8g}")
    stored = 4095 - picture() if inverted else picture()
    made = dataset(
        stored,
        RescaleSlope=f"{slope:.8g}",
        RescaleIntercept=f"{intercept:.8g}",
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    decoded = decode_image(encode(made), DecodeLimits(), allow=lambda _: None)
    expected = (picture().astype(np.float64) * slope + intercept).astype(np.float32)
    np.testing.assert_array_equal(decoded.pixels[0], expected)


@settings(max_examples=400, deadline=None)
@given(
    syntax=st.sampled_from(SYNTAXES),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=6)), min_size=1, max_size=5),
    cut=st.none() | st.floats(0.1, 1),
)
def test_a_damaged_file_is_an_image_or_a_refusal(
    syntax: str, changes: list[tuple[float, bytes]], cut: float | None
) -> None:
    data = bytearray(FILES[syntax])
    for place, patch in changes:
        position = 132 + int(place * (len(data) - 140))
        data[position : position + len(patch)] = patch
    if cut is not None:
        del data[int(cut * len(data)) :]
    try:
        decoded = decode_image(bytes(data), DecodeLimits(), allow=lambda _: None)
    except ImageRefused as error:
        refusal = error
    else:
        assert np.isfinite(decoded.pixels).all()
        return
    assert refusal.code != "image_refused"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_a_header_of_any_bytes_is_read_or_refused(body: bytes) -> None:
    start = FILES[uid.ExplicitVRLittleEndian][:132]
    try:
        header = read_header(start + body, DecodeLimits())
    except ImageRefused:
        return
    assert is_uid(header.transfer_syntax_uid)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x02\0\0\0\x40\0\0\0"]),
)
def test_codestream_headers_of_any_bytes_are_read_or_refused(frame: bytes, start: bytes) -> None:
    readers = (
        lambda data: read_jpeg(data, DESCRIPTION, processes=frozenset((0xC0, 0xC3))),
        lambda data: read_jpeg2000(data, DESCRIPTION),
        lambda data: read_rle(data, DESCRIPTION),
    )
    for read in readers:
        try:
            read(start + frame)
        except ImageRefused as error:
            refusal = error
        else:
            continue
        assert refusal.expression == "PixelData"


@given(st.text(max_size=80))
def test_only_digits_and_dots_make_a_uid(text: str) -> None:
    if is_uid(text):
        assert set(text) <= set("0123456789.")
        assert len(text) <= 64
