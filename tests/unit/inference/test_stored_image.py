"""Values as acquired: exactly what pydicom reads, in the smallest type, whatever the transfer syntax."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode import Decoder
from rayhook.inference.study import FrameScale
from tests.doubles.dicom_files import SYNTAX_NAMES, SYNTAXES, dataset, encode, item, picture


@pytest.mark.parametrize("syntax", SYNTAXES, ids=SYNTAX_NAMES)
@pytest.mark.parametrize("signed", [False, True])
def test_every_lossless_syntax_gives_the_stored_values(decoder: Decoder, syntax: str, signed: bool) -> None:
    values = picture().astype(np.int16) - 2048 if signed else picture()
    stored = decoder.decode_stored(encode(dataset(values), syntax))
    assert stored.description.dtype == ("int16" if signed else "uint16")
    np.testing.assert_array_equal(stored.pixels[0], values)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)
def test_a_real_file_gives_what_pydicom_reads(decoder: Decoder, name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    expected = pydicom.dcmread(path).pixel_array
    stored = decoder.decode_stored(path.read_bytes())
    np.testing.assert_array_equal(np.squeeze(stored.pixels), np.squeeze(expected))


def test_a_ct_keeps_its_rescale(decoder: Decoder) -> None:
    path = Path(str(get_testdata_file("CT_small.dcm")))
    stored = decoder.decode_stored(path.read_bytes())
    assert stored.description.scales == (FrameScale(1.0, -1024.0),)


def test_each_frame_keeps_a_scale(decoder: Decoder) -> None:
    frames = np.stack([picture(seed=seed) for seed in range(3)])
    stored = decoder.decode_stored(encode(dataset(frames, RescaleSlope=0.5, RescaleIntercept=10)))
    assert stored.description.scales == (FrameScale(0.5, 10.0),) * 3
    np.testing.assert_array_equal(stored.pixels, frames)


def test_monochrome1_stays_as_it_is_stored(decoder: Decoder) -> None:
    values = picture()
    stored = decoder.decode_stored(encode(dataset(values, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(stored.pixels[0], values)
    assert stored.attributes.photometric_interpretation == "MONOCHROME1"


def test_spare_bits_are_gone(decoder: Decoder) -> None:
    overlay = (np.arange(48 * 64).reshape(48, 64) % 3 == 0).astype(np.uint16)
    stored = decoder.decode_stored(encode(dataset(picture() | (overlay << 15))))
    np.testing.assert_array_equal(stored.pixels[0], picture())


def test_a_modality_table_is_applied(decoder: Decoder) -> None:
    table = np.arange(4096)[::-1].astype(np.uint16)
    lut = item(LUTDescriptor=[4096, 0, 16], ModalityLUTType="US", LUTData=table.tobytes())
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "OW"
    stored = decoder.decode_stored(encode(dataset(picture(), ModalityLUTSequence=[lut])))
    np.testing.assert_array_equal(stored.pixels[0], 4095 - picture())
    assert stored.description.scales == (FrameScale(1.0, 0.0),)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_is_rgb_of_eight_bits(decoder: Decoder, planar: int) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
    arranged = np.moveaxis(colours, -1, 0) if planar else colours
    made = dataset(
        colours[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar
    )
    made.PixelData = np.ascontiguousarray(arranged).tobytes()
    stored = decoder.decode_stored(encode(made))
    assert (stored.description.dtype, stored.description.samples) == ("uint8", 3)
    np.testing.assert_array_equal(stored.pixels[0], colours)


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "examples_ybr_color.dcm", "examples_palette.dcm"])
def test_other_colours_become_rgb(decoder: Decoder, name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    described = pydicom.dcmread(path)
    stored = decoder.decode_stored(path.read_bytes())
    assert stored.description.samples == 3
    assert stored.pixels.shape[1:3] == (described.Rows, described.Columns)


def test_a_lossy_source_is_told(decoder: Decoder) -> None:
    assert decoder.decode_stored(encode(dataset(picture(), LossyImageCompression="01"))).description.lossy


def test_a_file_without_pixels_is_refused(decoder: Decoder) -> None:
    made = dataset(picture())
    del made.PixelData
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    with pytest.raises(ImageRefused) as caught:
        decoder.decode_stored(buffer.getvalue())
    assert caught.value.code == "no_pixel_data"


def test_a_cut_off_file_is_refused_and_the_next_is_read(decoder: Decoder) -> None:
    whole = encode(dataset(picture()))
    with pytest.raises(ImageRefused):
        decoder.decode_stored(whole[:-400])
    np.testing.assert_array_equal(decoder.decode_stored(whole).pixels[0], picture())
