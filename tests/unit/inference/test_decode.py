import hashlib
import struct
from collections.abc import Callable
from datetime import datetime
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid

from rayhook.inference.decode import Decoder
from tests.doubles.dicom_files import (
    INSTANCE,
    SYNTAX_NAMES,
    SYNTAXES,
    dataset,
    encapsulated,
    encode,
    item,
    picture,
    save,
)
from tests.doubles.jpeg_lossless import encode_lossless


@pytest.mark.parametrize("syntax", SYNTAXES, ids=SYNTAX_NAMES)
def test_every_lossless_syntax_gives_the_same_values(decoder: Decoder, syntax: str) -> None:
    decoded = decoder.decode(encode(dataset(picture()), syntax))
    np.testing.assert_array_equal(decoded.pixels[0], picture())
    assert decoded.warnings == ()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=SYNTAX_NAMES)
def test_all_frames_are_decoded(decoder: Decoder, syntax: str) -> None:
    frames = np.stack([picture(seed=seed) for seed in range(3)])
    decoded = decoder.decode(encode(dataset(frames), syntax))
    np.testing.assert_array_equal(decoded.pixels, frames)


def _signed() -> bytes:
    values = picture().astype(np.int16) - 2048
    return encode(dataset(values, RescaleSlope=1, RescaleIntercept=2048))


def _monochrome1() -> bytes:
    return encode(dataset(4095 - picture(), PhotometricInterpretation="MONOCHROME1"))


def _high_bit_overlay() -> bytes:
    overlay = (np.arange(48 * 64).reshape(48, 64) % 3 == 0).astype(np.uint16)
    return encode(dataset(picture() | (overlay << 15)))


def _modality_lut() -> bytes:
    table = (np.arange(4096)[::-1]).astype(np.uint16)
    lut = item(LUTDescriptor=[4096, 0, 16], ModalityLUTType="US", LUTData=table.tobytes())
    lut["LUTDescriptor"].VR = "US"
    lut["LUTData"].VR = "OW"
    return encode(dataset(4095 - picture(), ModalityLUTSequence=[lut]))


def _slope() -> bytes:
    return encode(dataset(picture(), RescaleSlope=0.5, RescaleIntercept=10, RescaleType="US"))


def _icon() -> bytes:
    icon = dataset(picture(8, 8))
    nested_item = pydicom.Dataset()
    for keyword in ("Rows", "Columns", "BitsAllocated", "PixelData", "SamplesPerPixel"):
        nested_item[keyword] = icon[keyword]
    return encode(dataset(picture(), IconImageSequence=[nested_item]))


@pytest.mark.parametrize("make", [_signed, _monochrome1, _high_bit_overlay, _modality_lut, _icon])
def test_other_ways_to_tell_the_same_image_give_the_same_values(
    decoder: Decoder, make: Callable[[], bytes]
) -> None:
    np.testing.assert_array_equal(decoder.decode(make()).pixels[0], picture())


def test_a_fractional_slope_is_applied_in_double_precision(decoder: Decoder) -> None:
    expected = (picture().astype(np.float64) * 0.5 + 10).astype(np.float32)
    np.testing.assert_array_equal(decoder.decode(_slope()).pixels[0], expected)


def test_signed_pixels_below_zero_keep_their_sign_without_the_spare_bits(decoder: Decoder) -> None:
    values = picture().astype(np.int16) - 2048
    decoded = decoder.decode(encode(dataset((values & 0x0FFF).astype(np.uint16), PixelRepresentation=1)))
    np.testing.assert_array_equal(decoded.pixels[0], values)


def test_monochrome1_is_mirrored_within_the_rescaled_range(decoder: Decoder) -> None:
    attributes: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    plain = decoder.decode(encode(dataset(picture(), **attributes)))
    inverted = encode(dataset(4095 - picture(), PhotometricInterpretation="MONOCHROME1", **attributes))
    np.testing.assert_array_equal(decoder.decode(inverted).pixels, plain.pixels)


def test_monochrome1_is_shown_as_its_monochrome2_twin(decoder: Decoder) -> None:
    attributes: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = decoder.decode(encode(dataset(picture(), **attributes)))
    inverted = encode(dataset(4095 - picture(), PhotometricInterpretation="MONOCHROME1", **attributes))
    difference = plain.display.astype(int) - decoder.decode(inverted).display
    assert np.abs(difference).max() <= 1


def test_each_frame_has_its_own_pixel_value_transformation(decoder: Decoder) -> None:
    frames = np.stack([picture(), picture()])
    groups = [
        item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")]
        )
        for slope in (1, 3)
    ]
    decoded = decoder.decode(encode(dataset(frames, PerFrameFunctionalGroupsSequence=groups)))
    np.testing.assert_array_equal(decoded.pixels[1], 3 * decoded.pixels[0])


def test_shared_functional_groups_tell_spacing_and_timing(decoder: Decoder) -> None:
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[2, 3])],
        MREchoSequence=[item(EffectiveEchoTime=120.0)],
    )
    made = dataset(picture(), PixelSpacing=None, SharedFunctionalGroupsSequence=[shared])
    attributes = decoder.decode(encode(made)).attributes
    assert (attributes.pixel_spacing_mm, attributes.echo_time_ms) == ((2.0, 3.0), 120.0)


@pytest.mark.parametrize("quality", [60, 95])
def test_jpeg_baseline_is_near_its_source(decoder: Decoder, quality: int) -> None:
    smooth = cv2.GaussianBlur(picture(64, 64, high=256).astype(np.uint8), (0, 0), 3)
    _, coded = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, quality])
    data = encapsulated(dataset(smooth), uid.JPEGBaseline8Bit, [coded.tobytes()])
    assert np.abs(decoder.decode(data).pixels[0] - smooth).max() <= 6


def test_jpeg_with_restart_markers_is_whole(decoder: Decoder) -> None:
    smooth = cv2.GaussianBlur(picture(64, 64, high=256).astype(np.uint8), (0, 0), 3)
    _, coded = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])
    data = encapsulated(dataset(smooth), uid.JPEGBaseline8Bit, [coded.tobytes()])
    assert np.abs(decoder.decode(data).pixels[0] - smooth).max() <= 6


def test_jpeg_lossless_with_restart_markers_is_exact(decoder: Decoder) -> None:
    stream = encode_lossless(picture(), precision=12, restart_rows=5)
    data = encapsulated(dataset(picture()), uid.JPEGLosslessSV1, [stream])
    np.testing.assert_array_equal(decoder.decode(data).pixels[0], picture())


def test_a_frame_may_lie_in_several_fragments(decoder: Decoder) -> None:
    stream = encode_lossless(picture(), precision=12)
    made = dataset(picture())
    whole = encapsulated(made, uid.JPEGLosslessSV1, [stream])
    halves = b"".join(
        struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part
        for part in (
            stream[: len(stream) // 2 // 2 * 2],
            stream[len(stream) // 2 // 2 * 2 :] + b"\0" * (len(stream) % 2),
        )
    )
    start = whole.rindex(struct.pack("<HHL", 0xFFFE, 0xE000, len(stream) + len(stream) % 2))
    cut = whole[:start] + halves + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    np.testing.assert_array_equal(decoder.decode(cut).pixels[0], picture())


def test_colour_becomes_luminance_and_says_so(decoder: Decoder) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    made = dataset(red[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    made.PixelData = red.tobytes()
    decoded = decoder.decode(save(made))
    assert decoded.warnings == ("colour_converted_to_luminance",)
    np.testing.assert_allclose(decoded.pixels, 0.299 * 200, rtol=1e-6)


def test_the_display_follows_the_window(decoder: Decoder) -> None:
    decoded = decoder.decode(encode(dataset(picture(), WindowCenter=1000, WindowWidth=400)))
    stored, shown = picture(), decoded.display[0]
    assert shown[stored < 800].max(initial=0) == 0
    assert shown[stored > 1200].min(initial=255) == 255


def test_attributes_are_told(decoder: Decoder) -> None:
    made = dataset(
        picture(),
        AcquisitionDate="20260102",
        AcquisitionTime="030405",
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=[0, 0, 12.5],
        InversionTime=2500,
        SeriesDescription="ax\u202e FLAIR\x07",
        SpecificCharacterSet="ISO_IR 192",
        WindowCenter=[40, 50],
        WindowWidth=[80, 90],
    )
    attributes = decoder.decode(encode(made)).attributes
    assert attributes.sop_instance_uid == INSTANCE
    assert attributes.acquisition_datetime == datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 (no zone is told)
    assert attributes.slice_location_mm == 12.5
    assert attributes.inversion_time_ms == 2500
    assert attributes.series_description == "ax FLAIR"
    assert attributes.pixel_spacing_mm == (0.5, 0.75)
    assert attributes.window == (40, 80)


def test_the_digest_is_that_of_the_file(decoder: Decoder) -> None:
    data = encode(dataset(picture()))
    assert decoder.decode(data).sha256 == hashlib.sha256(data).hexdigest()


def test_pixels_may_be_written_to_without_changing_another_decode(decoder: Decoder) -> None:
    data = encode(dataset(picture()))
    decoder.decode(data).pixels[:] = 0
    np.testing.assert_array_equal(decoder.decode(data).pixels[0], picture())


def test_stale_file_meta_uids_are_a_warning(decoder: Decoder) -> None:
    stale = INSTANCE[:-1] + "2"
    data = encode(dataset(picture())).replace(INSTANCE.encode(), stale.encode(), 1)
    decoded = decoder.decode(data)
    assert decoded.warnings == ("file_meta_differs",)
    assert decoded.attributes.sop_instance_uid == INSTANCE


# No package that the project uses writes HTJ2K; this stream is OpenJPH's, of the picture below.
HTJ2K = bytes.fromhex(
    "ff4fff5100294000000000100000000c0000000000000000000000100000000c000000000000000000010f0101ff500008"
    "00020000000aff52000c00020001000504044001ff5c00132088909090909090909090909090888888ff64001700014f70"
    "656e4a50482056657220302e32362e332eff90000a00000000007f0001ff93c000265ff40507740000c00012c00013007e"
    "0187740078f603877400c00013400013003edf01027400bbbb00423400c00015300005601cc7fda02230827600e635af79"
    "cdfbc05281beb600c0002ae00016a0082184d0e78a7a700277009e7af2e4c993274f9efefa10807bf64201ecba00ffd9"
)


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K])
def test_high_throughput_jpeg_2000_is_exact(decoder: Decoder, syntax: str) -> None:
    values = (np.arange(12 * 16).reshape(12, 16) * 21).astype(np.uint16)
    made = dataset(values, BitsStored=16, HighBit=15)
    np.testing.assert_array_equal(decoder.decode(encapsulated(made, syntax, [HTJ2K])).pixels[0], values)
