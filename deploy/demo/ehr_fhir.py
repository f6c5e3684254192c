"""The demo EHR's FHIR R4 endpoint, open to patient-bound access tokens only."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, Response, StreamingResponse

from rayhook.auth.scopes import ScopeSet
from rayhook.deploy.demo.ehr_authorization import AuthorizationServer
from rayhook.deploy.demo.ehr_bundle import SearchQuery, as_seen, search_bundle, visible_to
from rayhook.deploy.demo.ehr_faults import EHRFaults
from rayhook.deploy.demo.ehr_search import SEARCHABLE
from rayhook.deploy.demo.ehr_store import Created, Resource, ResourceStore, etag_of
from rayhook.deploy.demo.ehr_subscriptions import Notifier
from rayhook.deploy.demo.ehr_tokens import AccessToken
from rayhook.deploy.demo.ledger import Act, Ledger, NoLedger, Outcome
from rayhook.fhir.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    RayhookError,
    Unauthenticated,
    UpstreamUnavailable,
    operation_outcome,
)

MEDIA_TYPE = "application/fhir+json"
_REFERENCES = frozenset({"based-on", "patient", "subject", "target"})


class FHIRRoute(APIRoute):
    """Answers errors as OperationOutcome, and plays the faults that a test has switched on."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_faults(request: Request) -> Response:
            faults: EHRFaults = request.app.state.demo.faults
            await asyncio.sleep(faults.slow_s)
            try:
                if faults.fhir_status is not None or random.random() < faults.fail_share:  # noqa: S311 - chance
                    raise UpstreamUnavailable("switched off by a test")
                response = await handle(request)
            except RayhookError as error:
                response = _error_response(error, faults.fhir_status)
            return _dripping(response, faults.drip_s) if faults.drip_s else response

        return with_faults


def _error_response(error: RayhookError, status: int | None) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
    return JSONResponse(
        operation_outcome(error), status_code=status or error.status, headers=headers, media_type=MEDIA_TYPE
    )


def _dripping(response: Response, pause_s: float) -> Response:
    async def bytes_slowly() -> AsyncIterator[bytes]:
        for byte in bytes(response.body):
            await asyncio.sleep(pause_s)
            yield bytes([byte])

    return StreamingResponse(bytes_slowly(), response.status_code, media_type=response.media_type)


def _bearer(request: Request, authorization: Annotated[str, Header()] = "") -> AccessToken:
    server: AuthorizationServer = request.app.state.demo.authorization
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("a bearer token is required")
    try:
        return server.find(token)
    except NotFound as error:
        raise Unauthenticated("the access token is unknown or has expired") from error


async def _json_body(request: Request) -> Resource:
    try:
        resource = json.loads(await request.body())
    except ValueError as error:
        raise InvalidRequest("the body is not JSON") from error
    if not isinstance(resource, dict):
        raise InvalidRequest("the body must be a JSON object")
    return resource


async def _form_body(request: Request) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl((await request.body()).decode("utf-8", "replace")))


Token = Annotated[AccessToken, Depends(_bearer)]
Body = Annotated[Resource, Depends(_json_body)]
SearchForm = Annotated[tuple[tuple[str, str], ...], Depends(_form_body)]


@dataclass(frozen=True, slots=True)
class FHIREndpoint:
    """The interactions under one base URL, which is the authorization server's issuer."""

    store: ResourceStore
    authorization: AuthorizationServer
    faults: EHRFaults
    notifier: Notifier
    ledger: Ledger = field(default_factory=NoLedger)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/fhir", route_class=FHIRRoute)
        for name in ("smart-configuration", "openid-configuration"):
            router.add_api_route(f"/.well-known/{name}", self.authorization.configuration)
        router.add_api_route("/metadata", _capability_statement)
        router.add_api_route("/{resource_type}/_search", self.search_by_form, methods=["POST"])
        router.add_api_route("/{resource_type}/{resource_id}", self.read)
        router.add_api_route("/{resource_type}/{resource_id}", self.update, methods=["PUT"])
        router.add_api_route("/Subscription/{subscription_id}", self.unsubscribe, methods=["DELETE"])
        router.add_api_route("/Subscription/{subscription_id}/$status", self.subscription_status)
        router.add_api_route("/Subscription/{subscription_id}/$events", self.subscription_events)
        router.add_api_route("/{resource_type}/{resource_id}/_history", self.history)
        router.add_api_route("/{resource_type}/{resource_id}/_history/{version}", self.vread)
        router.add_api_route("/{resource_type}", self.search)
        router.add_api_route("/{resource_type}", self.create, methods=["POST"])
        for path in ("", "/"):
            router.add_api_route(path, self.transaction, methods=["POST"])
        return router

    def read(self, resource_type: str, resource_id: str, token: Token) -> Response:
        _require(token, resource_type, "r")
        resource = self.store.read(resource_type, resource_id)
        if not visible_to(token.patient_id)(resource):
            raise NotFound("no resource has this id")
        return _fhir_response(as_seen(resource, self.faults), headers={"ETag": etag_of(resource)})

    def history(self, resource_type: str, resource_id: str, token: Token) -> Response:
        """Spec: FHIR R4 http.html#history."""
        versions = self._versions(resource_type, resource_id, token)
        entries = [
            {
                "fullUrl": f"{self.authorization.issuer}/{resource_type}/{resource_id}",
                "resource": version,
                "request": {
                    "method": "POST" if version["meta"]["versionId"] == "1" else "PUT",
                    "url": f"{resource_type}/{resource_id}",
                },
                "response": {"status": "200", "etag": etag_of(version)},
            }
            for version in reversed(versions)
        ]
        return _fhir_response(
            {"resourceType": "Bundle", "type": "history", "total": len(entries), "entry": entries}
        )

    def vread(self, resource_type: str, resource_id: str, version: str, token: Token) -> Response:
        """Spec: FHIR R4 http.html#vread."""
        for one in self._versions(resource_type, resource_id, token):
            if one["meta"]["versionId"] == version:
                return _fhir_response(one, headers={"ETag": etag_of(one)})
        raise NotFound("no version has this id")

    def _versions(self, resource_type: str, resource_id: str, token: AccessToken) -> list[Resource]:
        _require(token, resource_type, "r")
        versions = self.store.history(resource_type, resource_id)
        if not all(map(visible_to(token.patient_id), versions)):
            raise NotFound("no resource has this id")
        return versions

    def search(self, resource_type: str, request: Request, token: Token) -> Response:
        return self._search(SearchQuery(resource_type, tuple(request.query_params.multi_items())), token)

    def search_by_form(
        self, resource_type: str, request: Request, form: SearchForm, token: Token
    ) -> Response:
        """Spec: FHIR R4 http.html#search, POST _search."""
        return self._search(SearchQuery(resource_type, (*request.query_params.multi_items(), *form)), token)

    def _search(self, query: SearchQuery, token: AccessToken) -> Response:
        _require(token, query.resource_type, "s")
        bundle = search_bundle(
            self.store,
            query,
            base_url=self.authorization.issuer,
            patient_id=token.patient_id,
            faults=self.faults,
        )
        return _fhir_response(bundle)

    def create(
        self,
        resource_type: str,
        resource: Body,
        token: Token,
        if_none_exist: Annotated[str | None, Header()] = None,
        x_request_id: Annotated[str, Header()] = "",
    ) -> Response:
        if resource.get("resourceType") != resource_type:
            raise InvalidRequest("resourceType differs from the URL", expression="resourceType")
        _require_writable(resource, token)
        created = self.store.create(resource, if_none_exist=if_none_exist)
        self._note(created, x_request_id, is_conditional=if_none_exist is not None)
        headers = {"Location": f"{self.authorization.issuer}/{created.reference}/_history/1"}
        return _fhir_response(created.resource, 201 if created.created else 200, headers)

    def update(
        self,
        resource_type: str,
        resource_id: str,
        resource: Body,
        token: Token,
        if_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        if (resource.get("resourceType"), resource.get("id")) != (resource_type, resource_id):
            raise InvalidRequest("resourceType and id differ from the URL", expression="id")
        self._require_changeable(resource, token)
        updated = self.store.update(resource, if_match=if_match)
        return _fhir_response(updated.resource, headers={"ETag": etag_of(updated.resource)})

    def _require_changeable(self, resource: Resource, token: AccessToken) -> None:
        """Both what is there and what comes in its place must be of the token's patient."""
        _require_writable(resource, token, "u")
        current = self.store.read(str(resource.get("resourceType")), str(resource.get("id")))
        if not visible_to(token.patient_id)(current):
            raise NotFound("no resource has this id")

    def unsubscribe(self, subscription_id: str, token: Token) -> Response:
        _require(token, "Subscription", "d")
        self.store.delete("Subscription", subscription_id)
        return Response(status_code=204)

    def subscription_status(self, subscription_id: str, token: Token) -> Response:
        _require(token, "Subscription", "r")
        return _fhir_response(self.notifier.status(subscription_id))

    def subscription_events(
        self,
        subscription_id: str,
        token: Token,
        since: Annotated[int, Query(alias="eventsSinceNumber", ge=1)] = 1,
        until: Annotated[int, Query(alias="eventsUntilNumber", ge=1)] = 1_000_000,
    ) -> Response:
        _require(token, "Subscription", "r")
        return _fhir_response(self.notifier.events(subscription_id, since, until))

    def transaction(
        self, bundle: Body, token: Token, x_request_id: Annotated[str, Header()] = ""
    ) -> Response:
        if bundle.get("resourceType") != "Bundle" or bundle.get("type") != "transaction":
            raise InvalidRequest("a Bundle of type transaction is expected", expression="Bundle.type")
        for entry in bundle.get("entry", []):
            if entry.get("request", {}).get("method") == "PUT":
                self._require_changeable(entry.get("resource", {}), token)
            else:
                _require_writable(entry.get("resource", {}), token)
        written = self.store.transaction(bundle)
        for entry, one in zip(bundle["entry"], written, strict=True):
            if entry["request"]["method"] == "POST":
                self._note(one, x_request_id, is_conditional="ifNoneExist" in entry["request"])
        return _fhir_response(_transaction_response(written))

    def _note(self, created: Created, request_id: str, *, is_conditional: bool) -> None:
        resource = created.resource
        names = [one["value"] for one in resource.get("identifier", []) if "value" in one]
        tags = [one["code"] for one in resource.get("meta", {}).get("tag", []) if "code" in one]
        self.ledger.note(
            Act.WRITTEN,
            Outcome.CREATED if created.created else Outcome.EXISTING,
            str(resource["resourceType"]),
            request_id=request_id,
            identifier=next(iter([*names, *tags]), ""),
            subject=str(resource.get("subject", {}).get("reference", "")),
            conditional=is_conditional,
        )


def _require(token: AccessToken, resource_type: str, interaction: str) -> None:
    if not ScopeSet.parse(token.scope).permits(token.context, resource_type, interaction):
        raise Forbidden(f"the token's scope does not allow {interaction} on {resource_type[:40]}")


def _require_writable(resource: Resource, token: AccessToken, interaction: str = "c") -> None:
    _require(token, str(resource.get("resourceType")), interaction)
    if not visible_to(token.patient_id)(resource):
        raise Forbidden("the resource is about another patient than the token")


def _transaction_response(created: Iterable[Created]) -> Resource:
    return {
        "resourceType": "Bundle",
        "type": "transaction-response",
        "entry": [
            {
                "response": {
                    "status": "201 Created" if one.created else "200 OK",
                    "location": f"{one.reference}/_history/{one.resource['meta']['versionId']}",
                    "etag": etag_of(one.resource),
                    "lastModified": one.resource["meta"]["lastUpdated"],
                }
            }
            for one in created
        ],
    }


def _capability_statement() -> Response:
    """Spec: FHIR R4 CapabilityStatement."""
    return _fhir_response(
        {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-11-01",
            "kind": "instance",
            "implementation": {"description": "Rayhook's demo EHR: phantoms and test files, no patients"},
            "fhirVersion": "4.0.1",
            "format": ["json"],
            "rest": [
                {
                    "mode": "server",
                    "interaction": [{"code": "transaction"}],
                    "resource": [
                        {
                            "type": resource_type,
                            "versioning": "versioned-update",
                            "updateCreate": False,
                            "interaction": [
                                {"code": code}
                                for code in ("history-instance", "read", "search-type", "vread")
                            ],
                            "searchParam": [
                                {"name": name, "type": _parameter_type(name)} for name in parameters
                            ],
                        }
                        for resource_type, parameters in SEARCHABLE.items()
                    ],
                }
            ],
        }
    )


def _parameter_type(name: str) -> str:
    if name in _REFERENCES:
        return "reference"
    return {"_lastUpdated": "date", "url": "uri"}.get(name, "token")


def _fhir_response(resource: Resource, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(
        resource,
        status_code=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type=MEDIA_TYPE,
    )
