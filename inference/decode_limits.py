"""What one image may cost before it is refused."""

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Bounds on one DICOM file.

    max_header_bytes: everything before the pixel data, after inflation.
    max_pixel_bytes: the pixels as stored, after decompression, all frames.
    max_memory_bytes: address space beyond what the idle child uses.
    timeout_s: wall time of the whole decode; the child's CPU seconds are bounded by the pixels' size as well.
    Spec: OWASP ASVS 5.0 V5.2 (file content and size)
    """

    max_file_bytes: int = 512 * _MIB
    max_header_bytes: int = 16 * _MIB
    max_pixel_bytes: int = 256 * _MIB
    max_memory_bytes: int = 2048 * _MIB
    max_nesting: int = 64
    max_elements: int = 100_000
    max_multiplicity: int = 65_536
    max_text_bytes: int = 1 * _MIB
    timeout_s: float = 30.0
