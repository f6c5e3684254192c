"""The UIDs of an instance, as far as they could be read: also of a file whose image was refused."""

from dataclasses import dataclass
from typing import Final, Self

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.study import InstanceAttributes

OWN_MANUFACTURER: Final = "The Rayhook authors"

_MANUFACTURER = 0x00080070
_SOP_CLASS_UID = 0x00080016
# Comprehensive 3D SR, Parametric Map, Secondary Capture.
_OWN_CLASSES = frozenset(
    {b"1.2.840.10008.5.1.4.1.1.88.34", b"1.2.840.10008.5.1.4.1.1.30", b"1.2.840.10008.5.1.4.1.1.7"}
)
_FIRST_BYTES = 16 << 10


def is_own_result(data: bytes, limits: DecodeLimits) -> bool:
    """Return whether a file is one of the objects that we write into studies, and so no image to look at.

    If it counted, a study would be another one for having our results in it, and be reported again.
    """
    if OWN_MANUFACTURER.encode() not in data[:_FIRST_BYTES]:
        return False
    from rayhook.inference.dicom_header import read_header

    try:
        header = read_header(data, limits)
    except ImageRefused:
        return False
    elements = header.walk.elements
    told = {
        tag: elements[tag].value(header.body) for tag in (_MANUFACTURER, _SOP_CLASS_UID) if tag in elements
    }
    is_ours = told.get(_MANUFACTURER, b"").strip() == OWN_MANUFACTURER.encode()
    return is_ours and told.get(_SOP_CLASS_UID, b"").rstrip(b"\0 ") in _OWN_CLASSES


@dataclass(frozen=True, slots=True)
class InstanceNames:
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    sop_class_uid: str | None = None

    @classmethod
    def of(cls, attributes: InstanceAttributes) -> Self:
        return cls(
            attributes.sop_instance_uid,
            attributes.study_instance_uid,
            attributes.series_instance_uid,
            attributes.sop_class_uid,
        )

    @classmethod
    def read(cls, data: bytes, limits: DecodeLimits) -> Self:
        """Return the UIDs of a file whose image was refused."""
        # Here, as pydicom takes a second to import, and the service can do without it until a file is refused.
        from rayhook.inference.dicom_attributes import Attributes
        from rayhook.inference.dicom_header import read_header
        from rayhook.inference.instance_attributes import read_uids

        try:
            uids = read_uids(Attributes.from_header(read_header(data, limits)))
        except ImageRefused:
            return cls()
        keywords = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID")
        return cls(*(uids[keyword] for keyword in keywords))

    @property
    def is_no_image(self) -> bool:
        """Return whether the standard says that such an object is not an image."""
        from pydicom.uid import UID

        if self.sop_class_uid is None:
            return False
        name = UID(self.sop_class_uid).name
        return name != self.sop_class_uid and "Image Storage" not in name
