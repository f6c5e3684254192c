"""One DICOM file's stored values, as acquired, for a viewer that applies the LUTs itself.

Runs in the decoder's child, nobody else.
Spec: DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode_image import check_pixels, describe
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.dicom_attributes import Attributes
from rayhook.inference.dicom_header import check_trailer, read_header
from rayhook.inference.instance_attributes import read_instance_attributes, read_uids
from rayhook.inference.lut import FrameAttributes, LookUpTable, read_modality_transforms, read_window
from rayhook.inference.pixel_description import PixelDescription
from rayhook.inference.stored_pixels import PixelReader
from rayhook.inference.study import FrameScale, StoredDescription, StoredInstance

_GREY = frozenset(("MONOCHROME1", "MONOCHROME2"))
_YBR = frozenset(("YBR_FULL", "YBR_FULL_422"))
_BYTE_BITS = 8


def read_stored_image(
    data: bytes, limits: DecodeLimits, *, allow: Callable[[PixelDescription], None]
) -> StoredInstance:
    """Return the image. `allow` is told what it will cost before any pixel is decoded.

    Raises ImageRefused.
    """
    header = read_header(data, limits)
    check_pixels(header)
    attributes = Attributes.from_header(header)
    description = describe(header, attributes, limits=limits)
    uids = read_uids(attributes)
    allow(description)
    frames = FrameAttributes.read(attributes, frames=description.frames)
    told = read_instance_attributes(header, uids, frames, description, read_window(frames))
    transforms = read_modality_transforms(frames, description, sop_class_uid=uids["SOPClassUID"])
    reader = PixelReader(header, attributes, description)
    trailer = check_trailer(header, reader.body, reader.end, limits)
    has_table = any(transform.lut is not None for transform in transforms)
    values = [
        _with_table(_as_shown(frame, description, attributes), transform.lut)
        for frame, transform in zip(reader.frames(), transforms, strict=True)
    ]
    pixels = np.stack(values)
    stored = StoredDescription(
        dtype=pixels.dtype.name,
        samples=pixels.shape[-1] if pixels.ndim == 4 else 1,  # noqa: PLR2004 (frames, rows, columns, samples)
        scales=tuple(
            FrameScale(1.0, 0.0) if has_table else FrameScale(one.slope, one.intercept) for one in transforms
        ),
        lossy=attributes.text("LossyImageCompression") == "01",
        warnings=tuple(sorted({*header.walk.warnings, *reader.warnings, *trailer})),
    )
    return StoredInstance(told, stored, pixels)


def _with_table(values: NDArray[Any], lut: LookUpTable | None) -> NDArray[Any]:
    """A Modality LUT that is a table is applied here: its output is what a viewer scales."""
    if lut is None:
        return values
    applied: NDArray[Any] = lut.apply(values).astype(np.uint16)
    return applied


def _as_shown(frame: NDArray[Any], description: PixelDescription, attributes: Attributes) -> NDArray[Any]:
    """Return grey values as stored in the smallest little-endian type, or RGB of 8 bits."""
    photometric = description.photometric_interpretation
    if photometric in _GREY:
        return _packed(frame, description)
    if photometric == "PALETTE COLOR":
        return _palette(frame, attributes)
    levels = _eight_bits(frame, description.bits_stored)
    if photometric in _YBR:
        converted: NDArray[Any] = convert_color_space(levels, "YBR_FULL", "RGB")
        return converted
    return levels


def _packed(frame: NDArray[Any], description: PixelDescription) -> NDArray[Any]:
    if frame.dtype.kind == "f":
        finite = frame.astype("<f4")
        if not np.isfinite(finite).all():
            raise ImageRefused(
                "pixel values must be finite numbers", code="non_finite_pixels", expression="PixelData"
            )
        return finite
    bits = next(size for size in (8, 16, 32) if description.bits_stored <= size)
    return np.ascontiguousarray(frame).astype(f"<{'i' if description.signed else 'u'}{bits // 8}")


def _palette(frame: NDArray[Any], attributes: Attributes) -> NDArray[np.uint8]:
    try:
        coloured = apply_color_lut(np.ascontiguousarray(frame), attributes.dataset)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise ImageRefused(
            "the palette cannot be read", code="unsupported_lut", expression="RedPaletteColorLookupTableData"
        ) from error
    return _eight_bits(coloured[..., :3], coloured.dtype.itemsize * 8)


def _eight_bits(image: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if bits <= _BYTE_BITS:
        return np.ascontiguousarray(image).astype(np.uint8)
    return np.ascontiguousarray(image >> (bits - _BYTE_BITS)).astype(np.uint8)
