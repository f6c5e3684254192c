"""One study, one patient: what the images of a study have to agree on before any of them is believed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayhook.fhir.errors import IdentityConflict
from rayhook.inference.study import DecodedInstance, InstanceAttributes


@dataclass(slots=True)
class IdentityGuard:
    """Sees every readable image of one study, in or out of scope.

    study_instance_uid: the study asked for, or None to take the first image's.
    patient_identifiers: identifier values of the FHIR Patient; empty where they are not known, and then
    the images only have to agree among themselves.
    """

    study_instance_uid: str | None = None
    patient_identifiers: frozenset[str] = frozenset()
    _first: InstanceAttributes | None = field(default=None, init=False)
    _pixels: dict[str, bytes] = field(default_factory=dict, init=False)

    def admit(self, decoded: DecodedInstance) -> bool:
        """Return False for a second copy of an image already seen.

        Raises IdentityConflict if the image is of another study or patient, or if it has the UID of
        another image.
        """
        self._check(decoded.attributes)
        digest = hashlib.sha256(decoded.pixels.tobytes()).digest()
        known = self._pixels.setdefault(decoded.attributes.sop_instance_uid, digest)
        if known is digest:
            return True
        if known != digest:
            raise IdentityConflict(
                "two images with different pixels have the same SOP Instance UID",
                code="duplicate_instance",
                expression="SOPInstanceUID",
            )
        return False

    def _check(self, attributes: InstanceAttributes) -> None:
        first = self._first = self._first or attributes
        if attributes.study_instance_uid != (self.study_instance_uid or first.study_instance_uid):
            raise IdentityConflict(
                "an image is of another study than the one asked for",
                code="study_mismatch",
                expression="StudyInstanceUID",
            )
        if attributes.patient_id != first.patient_id:
            raise IdentityConflict(
                "the images of the study name more than one patient",
                code="patient_mismatch",
                expression="PatientID",
            )
        if self.patient_identifiers and attributes.patient_id not in self.patient_identifiers:
            raise IdentityConflict(
                "the images are not of the patient in context",
                code="patient_mismatch",
                expression="PatientID",
            )


def identifier_values(patient: Mapping[str, Any]) -> frozenset[str]:
    """Return the values of a Patient's identifiers."""
    identifiers = patient.get("identifier", [])
    values = (item.get("value") for item in identifiers if isinstance(item, dict))
    return frozenset(value.strip() for value in values if isinstance(value, str) and value.strip())
