"""The UIDs of a result's DICOM objects: the same for the same images under the same model, anywhere.

Spec: RFC 9562 5.8 and B.2 (version 8 from SHA-256); DICOM PS3.5 B.2 (UUID-derived UIDs)
"""

import hashlib
import uuid
from enum import StrEnum
from typing import Any

import rfc8785

from rayhook.inference.report_key import model_key
from rayhook.inference.study import AnalysisStatus, InstanceResult, StudyResult

_SEEN = frozenset({AnalysisStatus.ABSTAINED, AnalysisStatus.ANALYSED})


class ObjectKind(StrEnum):
    """The DICOM objects that a result is written as, and the note that takes them back."""

    PARAMETRIC_MAP = "parametric_map"
    REJECTION_NOTE = "rejection_note"
    SECONDARY_CAPTURE = "secondary_capture"
    SR = "sr"
    VERIFIED_SR = "verified_sr"


def derived_uid(content: dict[str, Any]) -> str:
    """Return the UID of a name-based UUID over the content."""
    digest = bytearray(hashlib.sha256(rfc8785.dumps(content)).digest()[:16])
    digest[6] = 0x80 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    return f"2.25.{uuid.UUID(bytes=bytes(digest)).int}"


def seen_images(result: StudyResult) -> tuple[InstanceResult, ...]:
    """Return the images that the model saw, by their UIDs."""
    found = (i for i in result.instances if i.status in _SEEN and i.sop_instance_uid is not None)
    return tuple(sorted(found, key=lambda i: i.sop_instance_uid or ""))


def object_uid(result: StudyResult, kind: ObjectKind, part: str) -> str:
    """Return the UID of one part of one object of a result: other pixels, another model, another UID."""
    return derived_uid(
        {
            "study": result.study_instance_uid,
            "images": [[i.sop_instance_uid, i.sha256] for i in seen_images(result)],
            "model": None if result.model is None else model_key(result.model).value,
            "kind": kind.value,
            "part": part,
        }
    )


def observation_uid(result: StudyResult, code: str) -> str:
    """Return the UID under which the structured report tracks and observes a finding of the study."""
    return object_uid(result, ObjectKind.SR, f"finding.{code}")
