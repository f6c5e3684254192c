"""One claim of a job, and what the audit is told of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.fhir.errors import EgressDenied, RayhookError, Unprocessable
from rayhook.fhir.references import oid_uri
from rayhook.inference.delivery import Delivery
from rayhook.inference.job_table import Authorization, ClaimedJob
from rayhook.inference.lease import Hold
from rayhook.inference.results import DeliveryState
from rayhook.inference.study import AnalysisStatus, StudyResult

AGENT = "rayhook"

_KINDS = {
    AnalysisStatus.ABSTAINED: AuditKind.INFERENCE_STUDY_ABSTAINED,
    AnalysisStatus.ANALYSED: AuditKind.INFERENCE_STUDY_ANALYSED,
    AnalysisStatus.OUT_OF_SCOPE: AuditKind.INFERENCE_STUDY_OUT_OF_SCOPE,
    AnalysisStatus.REFUSED: AuditKind.INFERENCE_STUDY_REFUSED,
}


@dataclass(slots=True)
class Attempt:
    """One claim of a job, and how far its retrieval has come.

    authorization: None too where the token has run out.
    """

    claimed: ClaimedJob
    authorization: Authorization | None
    hold: Hold
    instances: int = 0
    is_retrieving: bool = False


def access_entry(
    claimed: ClaimedJob,
    kind: AuditKind,
    outcome: Outcome = Outcome.SUCCESS,
    *,
    entities: tuple[str, ...] = (),
    detail: Mapping[str, str] | None = None,
) -> AuditEntry:
    reference = claimed.reference
    return AuditEntry(
        kind,
        outcome,
        ehr_id=reference.ehr_id,
        agent=AGENT,
        patient_id=reference.patient_id,
        entities=(
            f"Patient/{reference.patient_id}",
            f"ImagingStudy/{reference.imaging_study_id}",
            oid_uri(reference.study_instance_uid),
            *entities,
        ),
        detail={"job": claimed.id, **(detail or {})},
        request_id=claimed.request_id,
    )


def result_entry(attempt: Attempt, result: StudyResult) -> AuditEntry:
    model = result.model
    detail = {"images": str(len(result.instances))}
    if model is not None:
        detail |= {"model": f"{model.id}:{model.version}", "weights_sha256": model.weights_sha256}
    return access_entry(attempt.claimed, _KINDS[result.status], detail=detail)


def reused_entry(attempt: Attempt, result_id: str) -> AuditEntry:
    return access_entry(attempt.claimed, AuditKind.INFERENCE_RESULT_REUSED, detail={"result": result_id})


def interrupted_access(attempt: Attempt, error: RayhookError) -> Iterator[AuditEntry]:
    """Yield what had been received of the study, or where it must not be fetched from."""
    detail = {"code": error.code, "instances": str(attempt.instances)}
    if attempt.is_retrieving:
        yield access_entry(
            attempt.claimed, AuditKind.DICOMWEB_STUDY_FAILED, Outcome.SERIOUS_FAILURE, detail=detail
        )
    if isinstance(error, EgressDenied):
        yield access_entry(
            attempt.claimed, AuditKind.TRANSPORT_ADDRESS_REFUSED, Outcome.SERIOUS_FAILURE, detail=detail
        )


def end_entry(attempt: Attempt, error: RayhookError) -> AuditEntry:
    refused = isinstance(error, Unprocessable)
    kind = AuditKind.INFERENCE_STUDY_REFUSED if refused else AuditKind.INFERENCE_JOB_FAILED
    return access_entry(attempt.claimed, kind, Outcome.SERIOUS_FAILURE, detail={"code": error.code})


def put_off_entry(claimed: ClaimedJob, error: RayhookError) -> AuditEntry:
    return access_entry(
        claimed, AuditKind.INFERENCE_JOB_POSTPONED, Outcome.MINOR_FAILURE, detail={"code": error.code}
    )


def delivery_entry(attempt: Attempt, delivery: Delivery) -> AuditEntry:
    if delivery.state is DeliveryState.DELIVERED:
        return access_entry(attempt.claimed, AuditKind.FHIR_RESULT_WRITTEN, entities=delivery.written)
    permitted = delivery.state is not DeliveryState.NOT_PERMITTED
    outcome = Outcome.SERIOUS_FAILURE if permitted else Outcome.MINOR_FAILURE
    return access_entry(
        attempt.claimed, AuditKind.FHIR_RESULT_WRITE_REFUSED, outcome, detail={"code": delivery.detail or ""}
    )
