"""Our own FHIR R4 endpoint: one patient's results, for a SMART session or an EHR's token.

Spec: FHIR R4 http.html, search.html; SMART App Launch 2.2.0; RFC 6750, 9728
"""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.bearer import BearerTokens
from rayhook.auth.principal import SMARTUser
from rayhook.fhir.capability import (
    ResourceCapability,
    SearchParameter,
    ServerCapability,
    capability_statement,
)
from rayhook.fhir.errors import NotFound
from rayhook.smart_app.access import Gate, agent_of
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.fhir_access import Caller, FHIRAccess
from rayhook.smart_app.fhir_audit import AUDIT_PARAMETERS, build_audit_router
from rayhook.smart_app.fhir_negotiation import fhir_response, is_known, is_lenient, read_form, require_json
from rayhook.smart_app.fhir_parameters import INCLUDES, PARAMETERS, REVINCLUDES
from rayhook.smart_app.fhir_resources import PatientResources, Served, load_resources
from rayhook.smart_app.fhir_search import (
    CURSOR,
    Search,
    found_in,
    included_with,
    open_cursor,
    page_of,
    parse_search,
    require_served,
    seal_cursor,
    searchset,
)

PREFIX: Final = "/fhir/R4"
PROTECTED_RESOURCE: Final = f"/.well-known/oauth-protected-resource{PREFIX}"

_AI: Final = "http://hl7.org/fhir/uv/aitransparency/StructureDefinition"
_PROFILES: Final = {"Device": (f"{_AI}/AI-Device",), "Provenance": (f"{_AI}/AI-Provenance",)}
_SIGNED: Final = frozenset({"DiagnosticReport", "Observation"})
_SECURITY: Final = (
    "A SMART session of this service, or a bearer token of a registered EHR: its issuer confirms it by "
    "introspection (RFC 7662), or it is a JWT access token (RFC 9068) for this base URL. Scopes of SMART App "
    "Launch, version 1 and 2, are enforced. This service is no authorization server; "
    f"{PROTECTED_RESOURCE} names those whose tokens it takes."
)

Pairs = list[tuple[str, str]]


class ResourceViews:
    """Reads and searches, each with its audit event in the same transaction."""

    def __init__(self, deps: SMARTDependencies, gate: Gate, access: FHIRAccess) -> None:
        self._deps = deps
        self._gate = gate
        self._access = access
        self.base_url = f"{deps.public_base_url}{PREFIX}"

    def read(
        self,
        user: SMARTUser,
        resource_type: str,
        resource_id: str,
        *,
        version_id: str | None,
        named: str | None,
    ) -> Served:
        require_served(resource_type)
        caller = self._access.caller(user, named)
        grant = self._access.grant(caller, resource_type, "r")

        def find(resources: PatientResources) -> list[Served]:
            one = resources.read(resource_type, resource_id, version_id)
            return [one] if one is not None and grant.allows(one.resource) else []

        found = self._audited(caller, AuditKind.SMART_APP_FHIR_READ, find, resource_type)
        if not found:
            raise self._gate.refused(NotFound(f"{resource_type}: no resource has this id"), user)
        return found[0]

    def search(self, user: SMARTUser, resource_type: str, pairs: Pairs, *, lenient: bool) -> dict[str, Any]:
        require_served(resource_type)
        search, caller = self._asked(user, resource_type, pairs, lenient=lenient)
        grant = self._access.grant(caller, resource_type, "s")
        found: list[Served] = []
        included: list[Served] = []

        def find(resources: PatientResources) -> list[Served]:
            found.extend(found_in(search, resources, allows=grant.allows, base_url=self.base_url))
            shown = page_of(search, found)
            included.extend(
                included_with(search, shown, resources, allows=lambda one: self._access.included(caller, one))
            )
            return [*shown, *included]

        self._audited(
            caller,
            AuditKind.SMART_APP_FHIR_SEARCHED,
            find,
            resource_type,
            query=urlencode(search.pairs),
        )
        return searchset(
            search,
            found,
            included=included,
            base_url=self.base_url,
            cursor_at=lambda offset: self._cursor(search, offset, caller),
        )

    def _asked(
        self, user: SMARTUser, resource_type: str, pairs: Pairs, *, lenient: bool
    ) -> tuple[Search, Caller]:
        now = self._deps.clock()
        cursors = [value for name, value in pairs if name == CURSOR]
        if cursors:
            holder = Caller(user, "").holder
            search = open_cursor(
                self._deps.keyring, cursors[-1], resource_type=resource_type, holder=holder, now=now
            )
        else:
            search = parse_search(resource_type, pairs, as_of=now, lenient=lenient)
        return search, self._access.caller(user, search.patient_id)

    def _cursor(self, search: Search, offset: int, caller: Caller) -> str:
        return seal_cursor(self._deps.keyring, search, offset=offset, holder=caller.holder)

    def _audited(
        self,
        caller: Caller,
        kind: AuditKind,
        find: Callable[[PatientResources], Iterable[Served]],
        resource_type: str,
        *,
        query: str | None = None,
    ) -> list[Served]:
        """Find, then tell the audit, and only then let go of what was found: nobody waits for others' reading."""
        deps, user = self._deps, caller.user
        with (deps.reading or deps.sessions)() as session:
            resources = load_resources(
                session,
                deps.keyring,
                user.ehr.id,
                caller.patient_id,
                resource_type=resource_type,
                organization=deps.organization or "Rayhook",
            )
        found = list(find(resources))
        with deps.sessions() as session:
            deps.audit.record(
                session,
                AuditEntry(
                    kind=kind,
                    ehr_id=user.ehr.id,
                    agent=agent_of(user),
                    patient_id=caller.patient_id,
                    entities=tuple("/".join(one.key) for one in found),
                    client_id=user.client_id,
                    query=None if query is None else f"{resource_type}?{query}",
                    detail={"client": user.client_id},
                ),
            )
            session.commit()
        return found


def build_fhir_router(deps: SMARTDependencies, gate: Gate) -> APIRouter:
    tokens = BearerTokens(
        registry=deps.registry,
        transport=deps.transport,
        keyring=deps.keyring,
        jwks=deps.jwks,
        audience=f"{deps.public_base_url}{PREFIX}",
        clock=deps.clock,
    )
    access = FHIRAccess(gate, tokens, deps.fhir_limit)
    views = ResourceViews(deps, gate, access)
    router = APIRouter(tags=["fhir"])
    router.include_router(_open_routes(deps, views.base_url))
    # Before the others: their first part of the path is any type.
    router.include_router(build_audit_router(deps, gate, tokens, views.base_url), prefix=PREFIX)
    router.include_router(_patient_routes(views, access))
    return router


def _open_routes(deps: SMARTDependencies, base_url: str) -> APIRouter:
    router = APIRouter()
    statement = capability_statement(describe_server(base_url))
    protected = {
        "resource": base_url,
        "resource_name": "Rayhook results, investigational",
        "authorization_servers": [
            ehr.smart.issuer
            for ehr in deps.registry
            if ehr.smart is not None and (ehr.smart.introspection or ehr.smart.jwt_access_tokens)
        ],
        "bearer_methods_supported": ["header"],
        "scopes_supported": [
            f"{context}/{kind}.rs" for context in ("patient", "user", "system") for kind in PARAMETERS
        ],
    }

    @router.get(f"{PREFIX}/metadata", dependencies=[Depends(require_json)])
    def metadata() -> Response:
        return fhir_response(statement)

    @router.get(PROTECTED_RESOURCE)
    def protected_resource() -> Response:
        """Spec: RFC 9728, section 3."""
        return JSONResponse(protected)

    return router


def _patient_routes(views: ResourceViews, access: FHIRAccess) -> APIRouter:
    router = APIRouter(prefix=PREFIX, dependencies=[Depends(require_json)])
    asking = Annotated[SMARTUser, Depends(access.user)]

    @router.get("/{resource_type}")
    def search(resource_type: str, request: Request, user: asking) -> Response:
        pairs = request.query_params.multi_items()
        return fhir_response(views.search(user, resource_type, pairs, lenient=is_lenient(request)))

    @router.post("/{resource_type}/_search")
    def search_by_post(
        resource_type: str, request: Request, user: asking, pairs: Annotated[Pairs, Depends(read_form)]
    ) -> Response:
        return fhir_response(views.search(user, resource_type, pairs, lenient=is_lenient(request)))

    @router.get("/{resource_type}/{resource_id}")
    def read(resource_type: str, resource_id: str, request: Request, user: asking) -> Response:
        return _answer(request, user, resource_type, resource_id, None)

    @router.get("/{resource_type}/{resource_id}/_history/{version_id}")
    def vread(
        resource_type: str, resource_id: str, version_id: str, request: Request, user: asking
    ) -> Response:
        return _answer(request, user, resource_type, resource_id, version_id)

    def _answer(
        request: Request, user: SMARTUser, resource_type: str, resource_id: str, version_id: str | None
    ) -> Response:
        named = request.query_params.get("patient")
        one = views.read(user, resource_type, resource_id, version_id=version_id, named=named)
        headers = {"ETag": one.etag}
        if is_known(request, one.etag):
            return Response(status_code=304, headers=headers)
        return fhir_response(one.resource, headers=headers)

    return router


_AUDIT: Final = ResourceCapability(
    type="AuditEvent",
    interactions=("read", "search-type"),
    parameters={name: SearchParameter(kind=kind) for name, kind in AUDIT_PARAMETERS.items()},
    documentation=(
        "For compliance officers by their own session, and for systems with system/AuditEvent.rs, "
        "which see the events of their EHR."
    ),
)


def describe_server(base_url: str) -> ServerCapability:
    """Return what this endpoint does, from the tables that it does it by."""
    return ServerCapability(
        url=base_url,
        software="Rayhook",
        version=version("rayhook"),
        description="Rayhook results: investigational, not cleared for diagnosis",
        published="2026-11-25",
        security=_SECURITY,
        resources=[
            ResourceCapability(
                type=kind,
                interactions=("read", "vread", "search-type"),
                parameters={
                    name: SearchParameter(kind=one.kind.value, note=one.note)
                    for name, one in parameters.items()
                },
                includes=INCLUDES.get(kind, ()),
                revincludes=REVINCLUDES.get(kind, ()),
                profiles=_PROFILES.get(kind, ()),
                versioned=True,
                documentation=(
                    "A signature makes a new version." if kind in _SIGNED else "Is made once and not changed."
                ),
            )
            for kind, parameters in PARAMETERS.items()
        ]
        + [_AUDIT],
    )
