"""The demo EHR: FHIR R4, a SMART authorization server, and a CDS client with a page.

It is the demo's EHR and the tests' double, one and the same. It has no sign-in and holds phantoms and test
files only: never put a patient's data into it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from joserfc.jwk import KeySet
from starlette.responses import JSONResponse, RedirectResponse, Response

from rayhook.deploy.demo.catalogue import Catalogue
from rayhook.deploy.demo.ehr_authorization import (
    CLIENT_ID,
    LOGIN_SCOPES,
    READ_SCOPES,
    AuthorizationRequest,
    AuthorizationServer,
    OAuthError,
)
from rayhook.deploy.demo.ehr_cds_client import CDSClient
from rayhook.deploy.demo.ehr_faults import EHRFaults
from rayhook.deploy.demo.ehr_fhir import FHIREndpoint
from rayhook.deploy.demo.ehr_keys import load_or_create_key
from rayhook.deploy.demo.ehr_page import ChartPages, Pages
from rayhook.deploy.demo.ehr_seed import seed_resources
from rayhook.deploy.demo.ehr_store import ResourceStore
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.transport import Transport, origin_of

EHR_ID = "demo-ehr"
_JWKS_DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoEHR:
    """The parts of a running demo EHR, for whoever drives it without a browser; at `app.state.demo`."""

    store: ResourceStore
    authorization: AuthorizationServer
    client: CDSClient
    faults: EHRFaults = field(default_factory=EHRFaults)


def create_ehr(
    catalogue: Catalogue,
    *,
    base_url: str,
    cds_base_url: str,
    pacs_base_url: str,
    keys_dir: Path,
    faults: EHRFaults | None = None,
) -> FastAPI:
    """Return the app; `app.state.demo` is the DemoEHR, `app.state.accepts_token` the PACS's introspection.

    URLs come without a trailing slash; the PACS's DICOMweb is at /dicom-web.
    """
    transport = Transport(allow_loopback_http=True)
    switches = faults or EHRFaults()
    store = ResourceStore()
    store.seed(seed_resources(catalogue, dicomweb_url=f"{pacs_base_url}/dicom-web"))
    authorization = AuthorizationServer(
        issuer=f"{base_url}/fhir",
        redirect_uri=f"{cds_base_url}/smart/callback",
        key=load_or_create_key(keys_dir / "authorization.jwk"),
        client_keys=_registered_keys(transport, f"{cds_base_url}/.well-known/jwks.json"),
    )
    client = CDSClient(
        issuer=base_url,
        jwks_url=_cds_jwks_url(base_url),
        cds_base_url=cds_base_url,
        key=load_or_create_key(keys_dir / "cds-client.jwk"),
        transport=transport,
        store=store,
        authorization=authorization,
        faults=switches,
    )
    demo = DemoEHR(store=store, authorization=authorization, client=client, faults=switches)
    return _assemble(demo, Pages(origin_of(cds_base_url)))


def demo_registry_toml(*, ehr_base_url: str, pacs_base_url: str) -> str:
    """Return the registry file that registers the demo EHR and its PACS with Rayhook."""
    return f"""\
[[ehr]]
id = {json.dumps(EHR_ID)}
name = "Demo EHR (phantoms and test files)"
fhir_base_urls = [{json.dumps(f"{ehr_base_url}/fhir")}]
dicomweb_origins = [{json.dumps(origin_of(pacs_base_url))}]
frame_ancestors = [{json.dumps(origin_of(ehr_base_url))}]

[ehr.cds_client]
issuer = {json.dumps(ehr_base_url)}
jwks_url = {json.dumps(_cds_jwks_url(ehr_base_url))}

[ehr.smart]
client_id = {json.dumps(CLIENT_ID)}
scopes = {json.dumps([*LOGIN_SCOPES, *READ_SCOPES])}
introspection = true
"""


def _cds_jwks_url(base_url: str) -> str:
    return f"{base_url}/cds-client/jwks.json"


def _registered_keys(transport: Transport, jwks_url: str) -> Callable[[], KeySet]:
    """Return the reader of the registered client's JWK Set, as an EHR's registration page would hold it."""

    def read() -> KeySet:
        response = transport.request(
            "GET", jwks_url, allowed_origins=frozenset({origin_of(jwks_url)}), deadline_s=_JWKS_DEADLINE_S
        )
        return KeySet.import_key_set(json.loads(response.body))

    return read


def _assemble(demo: DemoEHR, pages: Pages) -> FastAPI:
    app = FastAPI(title="Rayhook demo EHR", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.demo = demo
    app.state.accepts_token = demo.authorization.is_active
    app.include_router(_authorization_router(demo))
    app.include_router(FHIREndpoint(demo.store, demo.authorization, demo.faults).router())
    app.include_router(ChartPages(demo.store, demo.client, demo.authorization, pages).router())

    @app.exception_handler(RayhookError)
    def show_error(_: Request, error: RayhookError) -> Response:
        return pages.render("error.html", status=error.status, error=error)

    @app.exception_handler(OAuthError)
    def oauth_error(_: Request, error: OAuthError) -> Response:
        """Spec: RFC 6749 section 5.2."""
        body = {"error": error.error, "error_description": error.description}
        return JSONResponse(body, status_code=error.status, headers=_NO_STORE)

    return app


_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def _authorization_router(demo: DemoEHR) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    server = demo.authorization

    @router.get("/cds-client/jwks.json")
    def cds_client_jwks() -> dict[str, Any]:
        return {"keys": [demo.client.key.as_dict(private=False)]}

    @router.get("/auth/jwks.json")
    def authorization_jwks() -> dict[str, Any]:
        return server.public_jwks()

    @router.get("/auth/authorize")
    def authorize(request: Request) -> Response:
        fields = {name: request.query_params.get(name, "") for name in _AUTHORIZE_PARAMETERS}
        asked = AuthorizationRequest(**fields, nonce=request.query_params.get("nonce"))
        return RedirectResponse(server.authorize(asked), status_code=303)

    @router.post("/auth/token")
    def token(form: Annotated[dict[str, str], Depends(_form_fields)]) -> Response:
        return JSONResponse(server.exchange(form), headers=_NO_STORE)

    @router.post("/auth/introspect")
    def introspect(form: Annotated[dict[str, str], Depends(_form_fields)]) -> Response:
        return JSONResponse(server.introspect(form), headers=_NO_STORE)

    @router.post("/auth/revoke")
    def revoke(form: Annotated[dict[str, str], Depends(_form_fields)]) -> Response:
        server.revoke(form)
        return Response(headers=_NO_STORE)

    return router


_AUTHORIZE_PARAMETERS = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "aud",
    "launch",
    "code_challenge",
    "code_challenge_method",
)


async def _form_fields(request: Request) -> dict[str, str]:
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
