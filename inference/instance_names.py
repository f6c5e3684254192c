"""The UIDs of an instance, as far as they could be read: also of a file whose image was refused."""

from dataclasses import dataclass
from typing import Self

from rayhook.fhir.errors import ImageRefused
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.study import InstanceAttributes


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
