from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files
from pydicom.pixels import apply_modality_lut

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode import Decoder

SHIPPED = sorted(
    Path(name) for name in get_testdata_files() if Path(name).is_file() and Path(name).suffix != ".py"
)


def _reference(path: Path) -> np.ndarray:
    read = pydicom.dcmread(path)
    stored = read.pixel_array
    if read.PhotometricInterpretation == "MONOCHROME1":
        stored = (1 << read.BitsStored) - 1 - stored
    return apply_modality_lut(stored, read).astype(np.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_shipped_files_are_decoded_exactly_or_refused(decoder: Decoder, path: Path) -> None:
    try:
        decoded = decoder.decode(path.read_bytes())
    except ImageRefused:
        return
    if "colour_converted_to_luminance" not in decoded.warnings:
        np.testing.assert_array_equal(decoded.pixels.squeeze(), _reference(path).squeeze())


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "CT_small.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "JPGExtended.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_rle_16bit_2frame.dcm",
        "examples_overlay.dcm",
        "examples_palette.dcm",
        "image_dfl.dcm",
        "rtdose_rle.dcm",
    ],
)
def test_shipped_files_that_are_sound_are_decoded(decoder: Decoder, name: str) -> None:
    decoded = decoder.decode(Path(get_testdata_files(name)[0]).read_bytes())
    assert np.isfinite(decoded.pixels).all()


def test_the_same_shipped_image_in_six_syntaxes_is_the_same(decoder: Decoder) -> None:
    names = ("MR_small", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
    files = [get_testdata_files(f"MR_small{name.removeprefix('MR_small')}.dcm")[0] for name in names]
    first, *others = (decoder.decode(Path(file).read_bytes()).pixels for file in files)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.dataset
def test_real_ct_slices_are_exact(decoder: Decoder, lidc_dicom: Path) -> None:
    files = sorted(lidc_dicom.rglob("*.dcm"))[::19]
    for path in files:
        np.testing.assert_array_equal(decoder.decode(path.read_bytes()).pixels[0], _reference(path))
