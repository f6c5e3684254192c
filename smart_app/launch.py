"""EHR launch: to the EHR's authorization server, back with a code, into a session.

Spec: SMART App Launch 2.2.0, "Launch App: EHR Launch"; RFC 9207; RFC 9700 section 4.7
"""

import json
import re
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.registry import EHR
from rayhook.auth.role_rules import EHRPerson
from rayhook.auth.roles import Role
from rayhook.auth.sessions import (
    LAUNCH_LIFE_S,
    SESSION_LIFE_S,
    PendingLaunch,
    SMARTSession,
    begin_launch,
    close_session,
    create_session,
    find_session,
    new_browser_binding,
    take_launch,
)
from rayhook.auth.smart import (
    IDToken,
    SMARTConfiguration,
    TokenResponse,
    discover,
    exchange_code,
    new_authorization_request,
    public_jwks,
    revoke,
    verify_id_token,
)
from rayhook.fhir.errors import Forbidden, InvalidRequest, RayhookError, Unauthenticated
from rayhook.smart_app.access import Cookies
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.pages import Pages, page_route

_RESULT_ID = re.compile(r"[0-9a-f]{32}")
_BINDING = re.compile(r"[A-Za-z0-9_-]{43}")
_JWKS_LIFE_S = 3600

log = structlog.get_logger(__name__)


class Launcher:
    """The two halves of a launch and its end, each told to the audit."""

    def __init__(self, deps: SMARTDependencies) -> None:
        self._deps = deps

    def begin(self, iss: str, launch: str, *, browser: str) -> str:
        """Return the URL of the EHR's authorization server; nothing is asked of an `iss` that is not registered."""
        ehr = self._deps.registry.by_fhir_base(iss)
        if ehr is None or ehr.smart is None:
            raise self.refused(Forbidden("iss: is not an EHR registered here", expression="iss"), None)
        base = iss.removesuffix("/")
        try:
            configuration = discover(self._deps.transport, ehr, fhir_base_url=base)
        except RayhookError as error:
            raise self.refused(error, ehr) from error
        request = new_authorization_request(
            ehr, configuration, fhir_base_url=base, redirect_uri=self._deps.redirect_uri, launch=launch
        )
        pending = PendingLaunch(ehr.id, base, request.nonce, request.code_verifier)
        with self._deps.sessions() as session:
            begin_launch(
                session,
                self._deps.keyring,
                pending,
                state=request.state,
                browser=browser,
                clock=self._deps.clock,
            )
            self._deps.audit.record(
                session, AuditEntry(kind=AuditKind.SMART_APP_LAUNCH_STARTED, ehr_id=ehr.id)
            )
            session.commit()
        return request.url

    def take(self, state: str, browser: str | None) -> tuple[PendingLaunch, EHR]:
        """Use up the state of a launch that this browser began."""
        with self._deps.sessions() as session:
            pending = take_launch(
                session, self._deps.keyring, state=state, browser=browser or "", clock=self._deps.clock
            )
            session.commit()
        ehr = None if pending is None else self._deps.registry.by_id(pending.ehr_id)
        if pending is None or ehr is None:
            error = InvalidRequest(
                "state: is unknown, used, expired or another browser's", expression="state"
            )
            raise self.refused(error, None)
        return pending, ehr

    def complete(self, pending: PendingLaunch, ehr: EHR, code: str) -> tuple[str, TokenResponse]:
        """Return the new session's id, after the code was exchanged and the id_token verified."""
        deps = self._deps
        try:
            configuration = discover(deps.transport, ehr, fhir_base_url=pending.fhir_base_url)
            tokens = exchange_code(
                deps.transport,
                deps.keyring,
                ehr,
                configuration,
                code=code,
                redirect_uri=deps.redirect_uri,
                code_verifier=pending.code_verifier,
                clock=deps.clock,
            )
            new = self._session(pending, ehr, configuration, tokens)
        except RayhookError as error:
            raise self.refused(error, ehr) from error
        with deps.sessions() as session:
            session_id = create_session(session, deps.keyring, new, clock=deps.clock)
            deps.audit.record(session, _session_entry(AuditKind.SMART_APP_SESSION_CREATED, new))
            session.commit()
        return session_id, tokens

    def _session(
        self, pending: PendingLaunch, ehr: EHR, configuration: SMARTConfiguration, tokens: TokenResponse
    ) -> SMARTSession:
        assert ehr.smart is not None
        if tokens.id_token is None:
            raise Unauthenticated("the EHR did not say who signed in", code="id_token_missing")
        identity = verify_id_token(
            tokens.id_token,
            ehr=ehr,
            configuration=configuration,
            nonce=pending.nonce,
            jwks=self._deps.jwks,
            clock=self._deps.clock,
        )
        return SMARTSession(
            ehr_id=ehr.id,
            fhir_base_url=pending.fhir_base_url,
            client_id=ehr.smart.client_id,
            scopes=tokens.scopes,
            access_token=tokens.access_token,
            access_token_expires_at=tokens.expires_at,
            patient_id=tokens.patient_id,
            fhir_user=identity.fhir_user,
            name=identity.name,
            roles=self._roles(ehr, identity),
            need_patient_banner=tokens.need_patient_banner,
        )

    @staticmethod
    def _roles(ehr: EHR, identity: IDToken) -> frozenset[Role]:
        roles = ehr.roles_of(EHRPerson(fhir_user=identity.fhir_user, claims=identity.claims))
        if not roles:
            raise Forbidden(
                "Rayhook is for the clinical staff of your EHR: your account has no role here",
                code="role_missing",
            )
        return roles

    def refused(self, error: RayhookError, ehr: EHR | None) -> RayhookError:
        """Record a launch that led nowhere, and return the error to raise."""
        entry = AuditEntry(
            kind=AuditKind.SMART_APP_LAUNCH_REFUSED,
            outcome=Outcome.SERIOUS_FAILURE,
            ehr_id=None if ehr is None else ehr.id,
            detail={"code": error.code},
        )
        with self._deps.sessions() as session:
            self._deps.audit.record(session, entry)
            session.commit()
        return error

    def close(self, session_id: str) -> None:
        """End the session here, then tell the EHR that its token is done with."""
        deps = self._deps
        with deps.sessions() as session:
            found = find_session(session, deps.keyring, session_id, clock=deps.clock)
            if found is not None:
                close_session(session, session_id)
                deps.audit.record(session, _session_entry(AuditKind.SMART_APP_SESSION_CLOSED, found))
            session.commit()
        ehr = None if found is None else deps.registry.by_id(found.ehr_id)
        if found is not None and ehr is not None:
            self._revoke(ehr, found)

    def _revoke(self, ehr: EHR, ended: SMARTSession) -> None:
        deps = self._deps
        try:
            configuration = discover(deps.transport, ehr, fhir_base_url=ended.fhir_base_url)
            revoke(
                deps.transport,
                deps.keyring,
                ehr,
                configuration,
                token=ended.access_token,
                clock=deps.clock,
            )
        except RayhookError as error:
            log.info("token_not_revoked", ehr=ehr.id, code=error.code)


def _session_entry(kind: AuditKind, session: SMARTSession) -> AuditEntry:
    return AuditEntry(
        kind=kind,
        ehr_id=session.ehr_id,
        agent=session.fhir_user or session.client_id,
        patient_id=session.patient_id,
        detail={"scope": str(session.scopes)},
    )


def build_launch_router(deps: SMARTDependencies, pages: Pages) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    launcher = Launcher(deps)
    cookies = Cookies(deps.secure)

    @router.get("/smart/launch")
    def launch(
        request: Request,
        iss: Annotated[str, Query(max_length=2048)],
        launch: Annotated[str, Query(max_length=4096)],
    ) -> Response:
        browser = _binding(request.cookies.get(cookies.launch))
        response = _redirect(launcher.begin(iss, launch, browser=browser))
        cookies.put(response, cookies.launch, browser, max_age_s=int(LAUNCH_LIFE_S))
        return response

    @router.get("/smart/callback")
    def callback(
        request: Request,
        state: Annotated[str, Query(max_length=256)],
        code: Annotated[str | None, Query(max_length=4096)] = None,
        iss: Annotated[str | None, Query(max_length=2048)] = None,
        error: Annotated[str | None, Query(max_length=256)] = None,
    ) -> Response:
        pending, ehr = launcher.take(state, request.cookies.get(cookies.launch))
        assert ehr.smart is not None
        if iss is not None and iss != ehr.smart.issuer:
            raise launcher.refused(
                InvalidRequest("iss: is not the EHR's that was asked", expression="iss"), ehr
            )
        if error is not None or code is None:
            raise launcher.refused(Forbidden("your EHR did not permit the launch"), ehr)
        session_id, tokens = launcher.complete(pending, ehr, code)
        response = _redirect(landing(tokens.app_context))
        cookies.put(response, cookies.session, session_id, max_age_s=int(SESSION_LIFE_S))
        return response

    @router.post("/smart/logout")
    def logout(request: Request) -> Response:
        _require_own_page(request, deps.public_base_url)
        session_id = request.cookies.get(cookies.session)
        if session_id is not None:
            launcher.close(session_id)
        response = pages.render("closed.html", ehr=None)
        cookies.drop(response, cookies.session)
        return response

    @router.get("/smart/static/{name}")
    def static(name: str) -> Response:
        return pages.static(name)

    @router.get("/.well-known/jwks.json")
    def jwks() -> Response:
        """Spec: SMART App Launch 2.2.0, "Client Authentication: Asymmetric", registration by JWKS URL."""
        return JSONResponse(
            public_jwks(deps.keyring), headers={"Cache-Control": f"public, max-age={_JWKS_LIFE_S}"}
        )

    return router


def _binding(cookie: str | None) -> str:
    """Return the cookie's value where it has the form of ours: a cookie's text may hold anything, even line ends."""
    return cookie if cookie is not None and _BINDING.fullmatch(cookie) else new_browser_binding()


def landing(app_context: str | None) -> str:
    """Return the page a launch leads to: the result that the card's link named, else the list of studies.

    Spec: CDS Hooks 2.0.1, Link `appContext`
    """
    result_id = _result_in(app_context)
    return "/patient" if result_id is None else f"/results/{result_id}"


def _result_in(app_context: str | None) -> str | None:
    try:
        context: Any = json.loads(app_context or "null")
    except ValueError:
        return None
    result_id = context.get("result") if isinstance(context, dict) else None
    return result_id if isinstance(result_id, str) and _RESULT_ID.fullmatch(result_id) else None


def _redirect(url: str) -> Response:
    return RedirectResponse(
        url, status_code=303, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    )


def _require_own_page(request: Request, public_base_url: str) -> None:
    """The session cookie is sent from other sites too: a form of theirs must not act.

    Spec: Fetch Metadata, `Sec-Fetch-Site`; RFC 6454 `Origin`
    """
    site = request.headers.get("Sec-Fetch-Site")
    own = site == "same-origin" if site is not None else request.headers.get("Origin") == public_base_url
    if not own:
        raise Forbidden("the request did not come from a page of this service", code="cross_site_request")
