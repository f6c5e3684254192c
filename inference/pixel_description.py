"""What the attributes announce about the pixels, checked for sense before a byte of them is touched.

Spec: DICOM PS3.3 C.7.6.3 (Image Pixel Module)
"""

from dataclasses import dataclass

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.dicom_attributes import Attributes, invalid
from rayhook.inference.dicom_header import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA

_GREY = frozenset(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"))
_COLOUR = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"))
_FLOAT = frozenset(("MONOCHROME2",))
_BITS = {PIXEL_DATA: (1, 8, 16, 32), FLOAT_PIXEL_DATA: (32,), DOUBLE_FLOAT_PIXEL_DATA: (64,)}
_MAX_SIDE = 65_535
_COLOUR_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class PixelDescription:
    """`planar` is true where each colour has its own plane."""

    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric_interpretation: str
    planar: bool

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def frame_bytes(self) -> int:
        """Size of one frame as stored without compression; bits are packed over frames, see native_bytes."""
        return (self.pixels * self.samples * self.bits_allocated + 7) // 8

    @property
    def native_bytes(self) -> int:
        """Size of the whole value as stored without compression.

        Spec: DICOM PS3.5 8.1.1, 8.2; PS3.3 C.7.6.3.1.2 (YBR_FULL_422 holds two samples a pixel)
        """
        samples = 2 if self.photometric_interpretation == "YBR_FULL_422" else self.samples
        return (self.pixels * samples * self.frames * self.bits_allocated + 7) // 8

    @property
    def mask(self) -> int:
        return (1 << self.bits_stored) - 1

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits_stored - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.bits_stored - 1 if self.signed else self.bits_stored)) - 1


def read_description(attributes: Attributes, *, tag: int, limits: DecodeLimits) -> PixelDescription:
    """Return the description. Raises ImageRefused if it contradicts itself or goes beyond the limits."""
    frames = attributes.integer("NumberOfFrames")
    rows, columns = attributes.required_integer("Rows"), attributes.required_integer("Columns")
    samples = attributes.required_integer("SamplesPerPixel")
    photometric = attributes.required_text("PhotometricInterpretation")
    bits_allocated, bits_stored, signed = _bits(attributes, tag)
    for keyword, value in (("Rows", rows), ("Columns", columns)):
        if not 1 <= value <= _MAX_SIDE:
            raise invalid(keyword, f"must be 1 to {_MAX_SIDE}")
    if frames is not None and frames < 1:
        raise invalid("NumberOfFrames", "must be at least 1")
    _check_photometric(photometric, samples, tag=tag)
    description = PixelDescription(
        rows=rows,
        columns=columns,
        frames=1 if frames is None else frames,
        samples=samples,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        signed=signed,
        photometric_interpretation=photometric,
        planar=samples > 1 and attributes.integer("PlanarConfiguration") == 1,
    )
    _check_size(description, limits)
    return description


def _bits(attributes: Attributes, tag: int) -> tuple[int, int, bool]:
    allocated = attributes.required_integer("BitsAllocated")
    if allocated not in _BITS[tag]:
        raise invalid("BitsAllocated", f"must be one of {', '.join(map(str, _BITS[tag]))}")
    if tag != PIXEL_DATA:
        return allocated, allocated, True
    stored = attributes.required_integer("BitsStored")
    if not 1 <= stored <= allocated:
        raise invalid("BitsStored", "must be 1 to BitsAllocated")
    if attributes.required_integer("HighBit") != stored - 1:
        raise invalid("HighBit", "must be one less than BitsStored")
    representation = attributes.required_integer("PixelRepresentation")
    if representation not in (0, 1):
        raise invalid("PixelRepresentation", "must be 0 or 1")
    return allocated, stored, representation == 1


def _check_photometric(photometric: str, samples: int, *, tag: int) -> None:
    """Raise ImageRefused for an unknown interpretation; floating point pixels know one only."""
    if photometric not in (_GREY | _COLOUR if tag == PIXEL_DATA else _FLOAT):
        raise ImageRefused(
            "PhotometricInterpretation is not supported",
            code="unsupported_photometric_interpretation",
            expression="PhotometricInterpretation",
        )
    if samples != (1 if photometric in _GREY else _COLOUR_SAMPLES):
        raise invalid("SamplesPerPixel", "does not fit PhotometricInterpretation")


def _check_size(description: PixelDescription, limits: DecodeLimits) -> None:
    # A pixel becomes five bytes of answer however few it is stored in, hence two at least.
    stored = description.samples * -(-description.bits_allocated // 8)
    size = description.pixels * description.frames * max(2, stored)
    if size > limits.max_pixel_bytes:
        raise ImageRefused(
            f"Rows, Columns and NumberOfFrames ask for more than {limits.max_pixel_bytes} bytes",
            code="image_too_large",
            expression="NumberOfFrames" if description.frames > 1 else "Rows",
        )
