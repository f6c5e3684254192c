"""Our own FHIR R4 endpoint: the results of one patient, for a SMART session or an EHR's token.

Spec: FHIR R4 http.html, search.html; SMART App Launch 2.2.0, "Token Introspection"
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.jose import take_apart
from rayhook.auth.principal import SMARTUser
from rayhook.auth.registry import EHR
from rayhook.auth.roles import Permission
from rayhook.auth.smart import discover, introspect
from rayhook.fhir.errors import Forbidden, NotFound, RayhookError, Unauthenticated
from rayhook.fhir.r4 import encode_json
from rayhook.inference.jobs import results_for_patient
from rayhook.smart_app.access import Gate, agent_of
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.fhir_search import SERVED, ResultSearch, parse_search, resources_of

MEDIA_TYPE = "application/fhir+json"
_JWT_ALGORITHMS = ("ES256", "ES384", "RS256", "RS384")
_JWT_DOTS = 2


class FHIRAccess:
    """Says who asks, and reads that patient's resources together with the audit event."""

    def __init__(self, deps: SMARTDependencies, gate: Gate) -> None:
        self._deps = deps
        self._gate = gate

    def user(self, request: Request) -> SMARTUser:
        """Return the holder of the bearer token, or without one, of the session cookie."""
        authorization = request.headers.get("Authorization")
        if authorization is None:
            return self._permitted(self._gate.viewer(request).user)
        try:
            user = self._introspected(authorization)
        except RayhookError as error:
            raise self._gate.refused(error, None) from error
        if user.patient_id is None:
            raise self._gate.refused(Forbidden("the token names no patient"), user)
        return self._permitted(user)

    def _permitted(self, user: SMARTUser) -> SMARTUser:
        permission = Permission.SMART_APP_FHIR_READ
        if user.can(permission):
            return user
        error = Forbidden("your role does not allow this", code="role_insufficient")
        raise self._gate.refused(error, user, permission=permission)

    def _introspected(self, authorization: str) -> SMARTUser:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("Authorization is not Bearer", code="token_missing")
        ehr = self._issuer_of(token)
        configuration = discover(self._deps.transport, ehr)
        return introspect(
            self._deps.transport,
            self._deps.keyring,
            ehr,
            configuration,
            token=token,
            clock=self._deps.clock,
        )

    def _issuer_of(self, token: str) -> EHR:
        """Return the one EHR to show the token to: no EHR ever sees another's.

        An opaque token says nothing of its issuer, so it is accepted only where there is no choice.
        """
        candidates = [ehr for ehr in self._deps.registry if ehr.smart is not None and ehr.smart.introspection]
        if token.count(".") == _JWT_DOTS:
            issuer = take_apart(token, algorithms=_JWT_ALGORITHMS).claims.get("iss")
            candidates = [ehr for ehr in candidates if ehr.smart is not None and ehr.smart.issuer == issuer]
        if len(candidates) != 1:
            raise Unauthenticated("the token's issuer is not known", code="issuer_unknown")
        return candidates[0]

    def read(self, user: SMARTUser, resource_type: str, resource_id: str) -> dict[str, Any]:
        found = self._find(user, resource_type, "r", AuditKind.SMART_APP_FHIR_READ, [("_id", resource_id)])
        if not found:
            raise self._gate.refused(NotFound(f"{resource_type}: no resource has this id"), user)
        return found[0]

    def search(self, user: SMARTUser, search: ResultSearch) -> list[dict[str, Any]]:
        return self._find(
            user, search.resource_type, "s", AuditKind.SMART_APP_FHIR_SEARCHED, list(search.filters)
        )

    def _find(
        self,
        user: SMARTUser,
        resource_type: str,
        interaction: str,
        kind: AuditKind,
        filters: list[tuple[str, str]],
    ) -> list[dict[str, Any]]:
        self._require(user, resource_type, interaction)
        assert user.patient_id is not None
        deps = self._deps
        with deps.sessions() as session:
            results = results_for_patient(session, deps.keyring, user.ehr.id, user.patient_id)
            found = resources_of(results, resource_type, filters)
            deps.audit.record(
                session,
                AuditEntry(
                    kind=kind,
                    ehr_id=user.ehr.id,
                    agent=agent_of(user),
                    patient_id=user.patient_id,
                    entities=tuple(f"{resource_type}/{one['id']}" for one in found),
                    detail={"client": user.client_id},
                ),
            )
            session.commit()
        return found

    def _require(self, user: SMARTUser, resource_type: str, interaction: str) -> None:
        if resource_type not in SERVED:
            raise NotFound("this resource type is not served here")
        if not user.scopes.permits(None, resource_type, interaction):
            error = Forbidden(f"the granted scope does not allow {interaction} on {resource_type}")
            raise self._gate.refused(error, user)


def build_fhir_router(deps: SMARTDependencies, gate: Gate) -> APIRouter:
    router = APIRouter(prefix="/fhir", tags=["fhir"])
    access = FHIRAccess(deps, gate)
    asking = Annotated[SMARTUser, Depends(access.user)]
    base_url = f"{deps.public_base_url}/fhir"

    @router.get("/metadata")
    def metadata() -> Response:
        return _fhir_response(capability_statement(base_url))

    @router.get("/{resource_type}")
    def search(resource_type: str, request: Request, user: asking) -> Response:
        wanted = parse_search(resource_type, request.query_params.multi_items(), patient_id=user.patient_id)
        return _fhir_response(wanted.bundle(access.search(user, wanted), base_url))

    @router.get("/{resource_type}/{resource_id}")
    def read(resource_type: str, resource_id: str, user: asking) -> Response:
        return _fhir_response(access.read(user, resource_type, resource_id))

    return router


def capability_statement(base_url: str) -> dict[str, Any]:
    """Spec: FHIR R4 CapabilityStatement; SMART App Launch 2.2.0, "Conformance"."""
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-01",
        "kind": "instance",
        "software": {"name": "Rayhook"},
        "implementation": {"description": "Rayhook results, investigational", "url": base_url},
        "fhirVersion": "4.0.1",
        "format": ["json"],
        "rest": [
            {
                "mode": "server",
                "security": {
                    "service": [
                        {
                            "coding": [
                                {
                                    "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                                    "code": "SMART-on-FHIR",
                                }
                            ]
                        }
                    ],
                    "description": "A SMART session, or a bearer token that its issuer confirms by introspection.",
                },
                "resource": [
                    {
                        "type": resource_type,
                        "interaction": [{"code": "read"}, {"code": "search-type"}],
                        "searchParam": [{"name": name, "type": kind} for name, kind in parameters.items()],
                    }
                    for resource_type, parameters in SERVED.items()
                ],
            }
        ],
    }


def _fhir_response(resource: dict[str, Any]) -> Response:
    return Response(encode_json(resource), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
