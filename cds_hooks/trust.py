"""Who calls, which FHIR server is meant, and whose data it is: all three have to agree before anything is read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.principal import CDSClientPrincipal
from rayhook.auth.registry import EHR
from rayhook.auth.tokens import verify_cds_client
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.models import FHIRAuthorization, HookRequest
from rayhook.fhir.errors import IdentityConflict, InvalidRequest, RateLimited, RayhookError, Unauthenticated
from rayhook.fhir.references import parse_reference

SERVER_ERRORS = 500


def authenticate(
    dependencies: CDSDependencies, authorization: str | None, *, audience: str
) -> CDSClientPrincipal:
    """Return who signed the call; a refusal is in the audit with its reason, and reaches the caller without it."""
    try:
        return verify_cds_client(
            authorization,
            audience=audience,
            registry=dependencies.registry,
            jwks=dependencies.jwks,
            sessions=dependencies.unsynced,
            clock=dependencies.clock,
        )
    except Unauthenticated as error:
        detail = {"reason": error.code, "audience": audience}
        kind = AuditKind.CDS_HOOKS_CLIENT_REFUSED
        with dependencies.sessions() as session:
            entry = AuditEntry(kind, Outcome.MINOR_FAILURE, detail=detail)
            dependencies.refusals.record(session, dependencies.audit, entry)
            session.commit()
        raise


@dataclass(slots=True)
class Attempt:
    """What is known of a call while it is read, for the audit of its refusal."""

    principal: CDSClientPrincipal
    service_id: str
    patient_id: str | None = None
    user_id: str | None = None


@contextmanager
def refusals_audited(dependencies: CDSDependencies, attempt: Attempt) -> Iterator[None]:
    """Leave an event for every refusal of the block, in a transaction of its own: that of the work is gone."""
    try:
        yield
    except RayhookError as error:
        if isinstance(error, RateLimited) and not error.is_first:
            raise
        entry = AuditEntry(
            AuditKind.CDS_HOOKS_REQUEST_REFUSED,
            Outcome.MINOR_FAILURE if error.status < SERVER_ERRORS else Outcome.SERIOUS_FAILURE,
            ehr_id=attempt.principal.ehr.id,
            agent=attempt.principal.issuer,
            client_id=attempt.principal.issuer,
            jti=attempt.principal.jti,
            patient_id=attempt.patient_id,
            entities=() if attempt.user_id is None else (attempt.user_id,),
            detail={"service": attempt.service_id, "reason": error.code, "field": error.expression or ""},
        )
        record(dependencies, [entry])
        raise


def record(dependencies: CDSDependencies, entries: Iterable[AuditEntry]) -> None:
    with dependencies.sessions() as session:
        for entry in entries:
            dependencies.audit.record(session, entry)
        session.commit()


def fhir_base_url(request: HookRequest, ehr: EHR) -> str:
    """Return the registered FHIR base that the call is about; a call that names none means the first.

    Raises InvalidRequest for any that is not one of the caller's own.
    """
    if request.fhir_server is None:
        if request.fhir_authorization is not None:
            raise InvalidRequest("fhirServer is missing beside fhirAuthorization", expression="fhirServer")
        return ehr.fhir_base_urls[0]
    base = request.fhir_server.removesuffix("/")
    if base not in ehr.fhir_base_urls:
        raise InvalidRequest(
            "fhirServer is not a FHIR server that is registered for the caller",
            code="fhir_server_not_registered",
            expression="fhirServer",
        )
    return base


def check_token_patient(authorization: FHIRAuthorization | None, patient_id: str) -> None:
    if authorization is not None and authorization.patient not in {None, patient_id}:
        raise _conflict("fhirAuthorization.patient")


def check_prefetched_patient(resource: dict[str, object] | None, patient_id: str) -> None:
    if resource is not None and resource.get("id") != patient_id:
        raise _conflict("prefetch.patient.id")


def check_subject(subject: object, *, patient_id: str, base_url: str, path: str) -> None:
    """Raise IdentityConflict unless the reference `subject` names the call's patient on the call's server."""
    try:
        reference = parse_reference(subject if isinstance(subject, str) else "")
    except InvalidRequest as error:
        raise _conflict(path) from error
    if (reference.type, reference.id) != ("Patient", patient_id) or not reference.is_at(base_url):
        raise _conflict(path)


def check_named_patient(element: object, *, patient_id: str, base_url: str, path: str) -> None:
    """Raise IdentityConflict where the Reference `element` is there and does not name the call's patient."""
    if element is not None:
        reference = element.get("reference") if isinstance(element, dict) else None
        check_subject(reference, patient_id=patient_id, base_url=base_url, path=path)


def _conflict(path: str) -> IdentityConflict:
    return IdentityConflict(f"{path} is not the patient of context.patientId", expression=path)
