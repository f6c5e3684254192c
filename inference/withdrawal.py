"""Studies that their EHR takes back: what waits or is in hand of them ends."""

import time
from collections.abc import Callable, Iterable
from typing import Final

from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.keys import Keyring
from rayhook.fhir.references import oid_uri
from rayhook.inference.claims import cancel_study
from rayhook.inference.job_table import JobRow
from rayhook.inference.study import StudyReference

# Spec: FHIR R4 ImagingStudy.status
WITHDRAWN: Final = frozenset({"cancelled", "entered-in-error"})


def cancel_withdrawn(
    session: Session,
    keyring: Keyring,
    audit: AuditLog,
    studies: Iterable[StudyReference],
    *,
    clock: Callable[[], float] = time.time,
) -> tuple[JobRow, ...]:
    """End the jobs of these studies, each with its entry in the audit, and return them as they ended."""
    ended = []
    for study in studies:
        for row in cancel_study(session, keyring, study, clock=clock):
            audit.record(session, _entry(row, study))
            ended.append(row)
    return tuple(ended)


def _entry(row: JobRow, study: StudyReference) -> AuditEntry:
    return AuditEntry(
        AuditKind.INFERENCE_JOB_CANCELLED,
        ehr_id=study.ehr_id,
        agent="rayhook",
        patient_id=study.patient_id,
        entities=(f"ImagingStudy/{study.imaging_study_id}", oid_uri(study.study_instance_uid)),
        detail={"job": row.id, "code": row.error_code or ""},
    )
