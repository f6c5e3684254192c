"""An analysis that somebody asks for from the list of studies, as a hook would have asked for it."""

from dataclasses import replace

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import EgressDenied, InvalidRequest, NotFound
from rayhook.fhir.transport import origin_of
from rayhook.inference.jobs import Authorization, Priority, enqueue, job_key
from rayhook.inference.study import StudyReference
from rayhook.smart_app.access import Viewer, agent_of
from rayhook.smart_app.dependencies import SMARTDependencies


def start_analysis(deps: SMARTDependencies, viewer: Viewer, reference: StudyReference) -> str:
    """Queue the study with the viewer's own token and return the job's id; one under way is not begun twice.

    Raises NotFound where the EHR names no place of its images, EgressDenied for a place that is not registered,
    QueueFull where too many wait already.
    """
    if not reference.dicomweb_url and not reference.endpoint_ids:
        raise NotFound(
            "your EHR does not say where the images of this study are", code="no_dicomweb_endpoint"
        )
    if reference.dicomweb_url and not _is_registered(reference.dicomweb_url, viewer):
        raise _address_refused(deps, viewer, reference)
    lent = Authorization(
        viewer.session.access_token, str(viewer.session.scopes), viewer.session.access_token_expires_at
    )
    with deps.sessions() as session:
        row, is_new = enqueue(
            session,
            deps.keyring,
            reference,
            lent,
            key=job_key(reference, deps.models),
            request_id=request_id.get(),
            priority=Priority.ASAP,
            intake=deps.intake,
            clock=deps.clock,
        )
        if is_new:
            deps.audit.record(session, _entry(AuditKind.INFERENCE_JOB_ENQUEUED, viewer, reference))
        session.commit()
    if is_new:
        deps.queue.send(row.id)
    return row.id


def _is_registered(address: str, viewer: Viewer) -> bool:
    try:
        return origin_of(address) in viewer.ehr.image_origins
    except InvalidRequest:
        return False


def _address_refused(deps: SMARTDependencies, viewer: Viewer, reference: StudyReference) -> EgressDenied:
    entry = _entry(AuditKind.TRANSPORT_ADDRESS_REFUSED, viewer, reference)
    with deps.sessions() as session:
        deps.audit.record(
            session,
            replace(
                entry, outcome=Outcome.MINOR_FAILURE, detail={"reason": "dicomweb_address_not_registered"}
            ),
        )
        session.commit()
    return EgressDenied("the images are at an address that is not registered here")


def _entry(kind: AuditKind, viewer: Viewer, reference: StudyReference) -> AuditEntry:
    return AuditEntry(
        kind,
        ehr_id=viewer.ehr.id,
        agent=agent_of(viewer.user),
        patient_id=viewer.patient_id,
        entities=(
            f"ImagingStudy/{reference.imaging_study_id}",
            f"urn:oid:{reference.study_instance_uid}",
        ),
    )
