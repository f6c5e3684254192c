"""The demo EHR: FHIR R4, a SMART authorization server, and a CDS client with a page.

It is the demo's EHR and the tests' double, one and the same. It has no sign-in and holds phantoms and test
files only: never put a patient's data into it.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, Request
from joserfc.jwk import KeySet
from starlette.responses import JSONResponse, RedirectResponse, Response

from rayhook.deploy.demo.catalogue import Catalogue
from rayhook.deploy.demo.ehr_authorization import AuthorizationRequest, AuthorizationServer
from rayhook.deploy.demo.ehr_cds_client import CDSClient
from rayhook.deploy.demo.ehr_chart import patient_rows
from rayhook.deploy.demo.ehr_faults import EHRFaults
from rayhook.deploy.demo.ehr_fhir import FHIREndpoint
from rayhook.deploy.demo.ehr_keys import load_or_create_key
from rayhook.deploy.demo.ehr_page import ChartPages, Pages, current_user
from rayhook.deploy.demo.ehr_scopes import LOGIN_SCOPES, READ_SCOPES, SYSTEM_SCOPES
from rayhook.deploy.demo.ehr_seed import RADIOLOGIST_ID, seed_resources
from rayhook.deploy.demo.ehr_store import ResourceStore
from rayhook.deploy.demo.ehr_subscriptions import TOPIC, Notifier
from rayhook.deploy.demo.ehr_tokens import CLIENT_ID, OAuthError
from rayhook.deploy.demo.ledger import Ledger, NoLedger
from rayhook.fhir.errors import RayhookError
from rayhook.fhir.transport import Transport, origin_of

EHR_ID = "demo-ehr"
SUBSCRIPTION_SECRET = "subscription.secret"  # noqa: S105 - a file's name
SENDER_SECRET = "sender.secret"  # noqa: S105 - a file's name
_JWKS_DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoEHR:
    """The parts of a running demo EHR, for whoever drives it without a browser; at `app.state.demo`."""

    store: ResourceStore
    authorization: AuthorizationServer
    client: CDSClient
    notifier: Notifier
    transport: Transport
    faults: EHRFaults = field(default_factory=EHRFaults)
    ledger: Ledger = field(default_factory=NoLedger)

    def close(self) -> None:
        self.notifier.close()
        self.transport.close()


def create_ehr(
    catalogue: Catalogue,
    *,
    base_url: str,
    cds_base_url: str,
    pacs_base_url: str,
    keys_dir: Path,
    faults: EHRFaults | None = None,
    ledger: Ledger | None = None,
    offers_new_study: bool = False,
) -> FastAPI:
    """Return the app; `app.state.demo` is the DemoEHR, `app.state.accepts_token` the PACS's introspection.

    URLs come without a trailing slash; the PACS's DICOMweb is at /dicom-web.
    offers_new_study: whether its page has a button for one, which is served beside it.
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
    notifier = Notifier(store, base_url=f"{base_url}/fhir", transport=transport, faults=switches)
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
    demo = DemoEHR(
        store=store,
        authorization=authorization,
        client=client,
        notifier=notifier,
        transport=transport,
        faults=switches,
        ledger=ledger or NoLedger(),
    )
    return _assemble(demo, Pages(origin_of(cds_base_url)), offers_new_study=offers_new_study)


def demo_registry_toml(*, ehr_base_url: str, pacs_base_url: str, secrets_dir: Path | None = None) -> str:
    """Return the registry file that registers the demo EHR and its PACS with Rayhook.

    secrets_dir: has the secrets of its notifications and of its PACS; without it, studies do not announce themselves.
    """
    return f"""\
[[ehr]]
id = {json.dumps(EHR_ID)}
name = "Demo EHR (phantoms and test files)"
fhir_base_urls = [{json.dumps(f"{ehr_base_url}/fhir")}]
dicomweb_origins = [{json.dumps(origin_of(pacs_base_url))}]
frame_ancestors = [{json.dumps(origin_of(ehr_base_url))}]
dicom_results = ["sr", "parametric_map", "secondary_capture", "rejection_note"]

[ehr.cds_client]
issuer = {json.dumps(ehr_base_url)}
jwks_url = {json.dumps(_cds_jwks_url(ehr_base_url))}

[ehr.smart]
client_id = {json.dumps(CLIENT_ID)}
scopes = {json.dumps([*LOGIN_SCOPES, *READ_SCOPES])}
introspection = true

[[ehr.role]]
role = "radiologist"
fhir_user = "Practitioner/{RADIOLOGIST_ID}"

[ehr.backend]
scopes = {json.dumps(SYSTEM_SCOPES)}
{"" if secrets_dir is None else _announcements_toml(secrets_dir)}"""


def _announcements_toml(secrets_dir: Path) -> str:
    return f"""
[ehr.subscription]
topic = {json.dumps(TOPIC)}
secret_file = {json.dumps(str(secrets_dir.resolve() / SUBSCRIPTION_SECRET))}

[[ehr.dicom_sender]]
id = "demo-pacs"
secret_file = {json.dumps(str(secrets_dir.resolve() / SENDER_SECRET))}
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


def _assemble(demo: DemoEHR, pages: Pages, *, offers_new_study: bool) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        demo.close()

    app = FastAPI(
        title="Rayhook demo EHR", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.demo = demo
    app.state.accepts_token = demo.authorization.is_active
    app.include_router(_authorization_router(demo, pages))
    app.include_router(_endpoint(demo).router())
    chart = ChartPages(demo.store, demo.client, demo.authorization, pages, offers_new_study)
    app.include_router(chart.router())

    @app.exception_handler(RayhookError)
    def show_error(_: Request, error: RayhookError) -> Response:
        return pages.render("error.html", status=error.status, error=error)

    @app.exception_handler(OAuthError)
    def oauth_error(_: Request, error: OAuthError) -> Response:
        """Spec: RFC 6749 section 5.2."""
        body = {"error": error.error, "error_description": error.description}
        return JSONResponse(body, status_code=error.status, headers=_NO_STORE)

    return app


def _endpoint(demo: DemoEHR) -> FHIREndpoint:
    return FHIREndpoint(
        store=demo.store,
        authorization=demo.authorization,
        faults=demo.faults,
        notifier=demo.notifier,
        ledger=demo.ledger,
    )


_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def _authorization_router(demo: DemoEHR, pages: Pages) -> APIRouter:
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
        return _authorized(demo, pages, request.query_params, current_user(request))

    @router.post("/auth/authorize")
    def authorize_by_form(
        request: Request, form: Annotated[dict[str, str], Depends(_form_fields)]
    ) -> Response:
        """Spec: SMART App Launch 2.2, capability authorize-post."""
        return _authorized(demo, pages, form, current_user(request))

    @router.get("/auth/style.json")
    def style() -> dict[str, str]:
        """Spec: SMART App Launch 2.2, smart_style_url."""
        return dict(_STYLE)

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


def _authorized(demo: DemoEHR, pages: Pages, parameters: Mapping[str, str], user_id: str) -> Response:
    """Send the browser back to the app, after a patient was chosen where the launch brought none."""
    asked = AuthorizationRequest(
        **{name: parameters.get(name, "") for name in _AUTHORIZE_PARAMETERS},
        nonce=parameters.get("nonce"),
        chosen_patient=parameters.get("chosen_patient"),
        chosen_study=parameters.get("chosen_study"),
        user_id=user_id,
    )
    if asked.needs_choice:
        demo.authorization.require_registered(asked)
        return pages.render("choose.html", choices=_choices(demo, asked, parameters))
    return RedirectResponse(demo.authorization.authorize(asked), status_code=303)


def _choices(
    demo: DemoEHR, asked: AuthorizationRequest, parameters: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return what can be chosen in a standalone launch, each with the address that goes on with it."""
    choices = []
    for row in patient_rows(demo.store):
        chosen = {**parameters, "chosen_patient": row.id}
        choices.append((row.name, f"/auth/authorize?{urlencode(chosen)}"))
        studies = demo.store.search("ImagingStudy", [("patient", row.id)]) if asked.asks_for_study else ()
        for study in studies:
            address = f"/auth/authorize?{urlencode({**chosen, 'chosen_study': study['id']})}"
            choices.append((f"{row.name}: {study.get('description', 'imaging study')}", address))
    return choices


_STYLE = {
    "color_background": "#ffffff",
    "color_error": "#9e2d2d",
    "color_highlight": "#0f6d8c",
    "color_modal_backdrop": "#00000080",
    "color_success": "#2d6a4f",
    "color_text": "#1b2733",
    "dim_border_radius": "6px",
    "dim_font_size": "16px",
    "dim_spacing_size": "16px",
    "font_family_body": "system-ui, sans-serif",
    "font_family_heading": "system-ui, sans-serif",
}
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
