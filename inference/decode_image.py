"""One DICOM file's bytes to pixels, in the process that calls it: the decoder's child, nobody else.

Spec: DICOM PS3.4 N.2 (the order of Modality LUT and VOI LUT)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.dicom_attributes import Attributes
from rayhook.inference.dicom_header import Header, check_trailer, read_header
from rayhook.inference.instance_attributes import meta_warnings, read_instance_attributes, read_uids
from rayhook.inference.lut import (
    FrameAttributes,
    ModalityTransform,
    read_modality_transforms,
    read_voi_lut,
    read_window,
    to_display,
    to_grey,
)
from rayhook.inference.pixel_description import PixelDescription, read_description
from rayhook.inference.source_header import read_source_header
from rayhook.inference.stored_pixels import SUPPORTED, PixelReader
from rayhook.inference.study import InstanceAttributes

_EXACT = 1 << 24


@dataclass(frozen=True, slots=True)
class DecodedImage:
    attributes: InstanceAttributes
    pixels: NDArray[np.float32]
    display: NDArray[np.uint8]
    warnings: tuple[str, ...]
    source_header: bytes = b""


def decode_image(
    data: bytes, limits: DecodeLimits, *, allow: Callable[[PixelDescription], None]
) -> DecodedImage:
    """Return the image. `allow` is told what it will cost before any pixel is decoded.

    Raises ImageRefused.
    """
    header = read_header(data, limits)
    check_pixels(header)
    attributes = Attributes.from_header(header)
    uids = read_uids(attributes)
    description = describe(header, attributes, limits=limits)
    allow(description)
    frames = FrameAttributes.read(attributes, frames=description.frames)
    window = read_window(frames)
    told = read_instance_attributes(header, uids, frames, description, window)
    transforms = read_modality_transforms(frames, description, sop_class_uid=uids["SOPClassUID"])
    reader = PixelReader(header, attributes, description)
    trailer = check_trailer(header, reader.body, reader.end, limits)
    pixels, display = _render(reader, frames, description, transforms)
    warnings = {
        *header.walk.warnings,
        *meta_warnings(header, uids),
        *reader.warnings,
        *trailer,
        *_colour(description),
    }
    return DecodedImage(told, pixels, display, tuple(sorted(warnings)), read_source_header(frames))


def check_pixels(header: Header) -> None:
    if header.walk.pixels is None:
        raise ImageRefused("the file holds no pixels", code="no_pixel_data", expression="PixelData")


def describe(header: Header, attributes: Attributes, *, limits: DecodeLimits) -> PixelDescription:
    """Return what a file that has pixels announces of them. Raises ImageRefused."""
    assert header.walk.pixels is not None
    if header.transfer_syntax_uid not in SUPPORTED:
        raise ImageRefused(
            "TransferSyntaxUID is not supported",
            code="unsupported_transfer_syntax",
            expression="TransferSyntaxUID",
        )
    return read_description(attributes, tag=header.walk.pixels.tag, limits=limits)


def _render(
    reader: PixelReader,
    frames: FrameAttributes,
    description: PixelDescription,
    transforms: tuple[ModalityTransform, ...],
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Fill both arrays frame by frame; MONOCHROME1 becomes MONOCHROME2 in both."""
    inverted = description.photometric_interpretation == "MONOCHROME1"
    voi_lut = read_voi_lut(frames.top, description)
    shape = (description.frames, description.rows, description.columns)
    pixels, display = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for index, stored in enumerate(reader.frames()):
        grey = to_grey(stored, description, frames.top)
        _note_precision(grey, reader)
        values = transforms[index].apply(grey)
        if not np.isfinite(values).all():
            raise ImageRefused(
                "pixel values must be finite numbers", code="non_finite_pixels", expression="PixelData"
            )
        levels = to_display(values, read_window(frames, index), voi_lut)
        pixels[index] = transforms[index].apply_mirrored(grey, description) if inverted else values
        display[index] = 255 - levels if inverted else levels
    return pixels, display


def _note_precision(grey: NDArray[np.generic], reader: PixelReader) -> None:
    wide = grey.dtype.itemsize > 2  # noqa: PLR2004 (16 bits fit float32)
    if wide and not np.array_equal(grey.astype(np.float32), grey.astype(np.float64)):
        reader.warnings.add("precision_reduced")


def _colour(description: PixelDescription) -> tuple[str, ...]:
    grey = description.photometric_interpretation in ("MONOCHROME1", "MONOCHROME2")
    return () if grey else ("colour_converted_to_luminance",)
