"""EHR and standalone launch: to the EHR's authorization server, back with a code, into a session.

Spec: SMART App Launch 2.2.0, "Launch App: EHR Launch", "Launch App: Standalone Launch"; RFC 9207; RFC 9700 section 4.7
"""

import re
from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from rayhook.audit.context import request_source
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
    create_session,
    new_browser_binding,
    take_launch,
)
from rayhook.auth.smart import (
    AuthorizationRequest,
    IDToken,
    SMARTConfiguration,
    TokenResponse,
    discover,
    exchange_code,
    new_authorization_request,
    public_jwks,
    verify_id_token,
)
from rayhook.fhir.errors import Forbidden, InvalidRequest, RateLimited, RayhookError, Unauthenticated
from rayhook.fhir.transport import origin_of
from rayhook.smart_app.access import Cookies
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import prefer
from rayhook.smart_app.landing import landing
from rayhook.smart_app.live_sessions import LiveSessions, session_entry
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.practitioner_roles import read_practitioner_roles
from rayhook.smart_app.window import marked

_BINDING = re.compile(r"[A-Za-z0-9_-]{43}")
_ERROR = re.compile(r"[a-z_]{1,64}")
_JWKS_LIFE_S = 3600

log = structlog.get_logger(__name__)


class Launcher:
    """The two halves of a launch and its end, each told to the audit."""

    def __init__(self, deps: SMARTDependencies) -> None:
        self._deps = deps

    def begin(
        self, iss: str, launch: str | None, *, browser: str
    ) -> tuple[EHR, SMARTConfiguration, AuthorizationRequest]:
        """Return what to send the browser away with; nothing is asked of an `iss` that is not registered.

        Without `launch` it is a standalone launch. Raises RateLimited for one too many of the browser's address.
        """
        ehr = self._deps.registry.by_fhir_base(iss)
        if ehr is None or ehr.smart is None:
            raise self.refused(Forbidden("iss: is not an EHR registered here", expression="iss"), None)
        try:
            self._deps.launch_limit.admit(request_source.get().client_address)
        except RateLimited as error:
            if error.is_first:
                self.refused(error, ehr)
            raise
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
            self._deps.audit.record(session, _started_entry(ehr, configuration, standalone=launch is None))
            session.commit()
        return ehr, configuration, request

    def take(self, state: str, browser: str | None, *, iss: str | None) -> tuple[PendingLaunch, EHR]:
        """Use up the state of a launch that this browser began; `iss` says who answers, where it is said.

        Spec: RFC 9207 section 2.4
        """
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
        if iss is not None and (ehr.smart is None or iss != ehr.smart.issuer):
            raise self.refused(InvalidRequest("iss: is not the EHR's that was asked", expression="iss"), ehr)
        return pending, ehr

    def complete(
        self, pending: PendingLaunch, ehr: EHR, code: str, *, iss: str | None
    ) -> tuple[str, SMARTSession, TokenResponse]:
        """Return the new session with its id, after the code was exchanged and the id_token verified."""
        deps = self._deps
        try:
            configuration = discover(deps.transport, ehr, fhir_base_url=pending.fhir_base_url)
            if iss is None and configuration.names_issuer:
                raise InvalidRequest("iss: is missing, and this EHR always sends it", expression="iss")
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
            missing = " ".join(new.abilities.missing)
            deps.audit.record(
                session, session_entry(AuditKind.SMART_APP_SESSION_CREATED, new, missing=missing)
            )
            session.commit()
        return session_id, new, tokens

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
            roles=self._roles(ehr, pending, tokens, identity),
            need_patient_banner=tokens.need_patient_banner,
            refresh_token=tokens.refresh_token,
            context=tokens.context,
        )

    def _roles(
        self, ehr: EHR, pending: PendingLaunch, tokens: TokenResponse, identity: IDToken
    ) -> frozenset[Role]:
        codes = read_practitioner_roles(
            self._deps.transport,
            ehr,
            fhir_base_url=pending.fhir_base_url,
            access_token=tokens.access_token,
            scopes=tokens.scopes,
            fhir_user=identity.fhir_user,
        )
        person = EHRPerson(fhir_user=identity.fhir_user, claims=identity.claims, practitioner_roles=codes)
        roles = ehr.roles_of(person)
        if not roles and not (ehr.break_glass and person.is_practitioner):
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
        self._deps.tell_refusal(entry)
        return error


def _started_entry(ehr: EHR, configuration: SMARTConfiguration, *, standalone: bool) -> AuditEntry:
    return AuditEntry(
        kind=AuditKind.SMART_APP_LAUNCH_STARTED,
        ehr_id=ehr.id,
        detail={
            "launch": "standalone" if standalone else "ehr",
            "capabilities": " ".join(sorted(configuration.capabilities)),
            "missing": " ".join(configuration.missing_capabilities(standalone=standalone)),
        },
    )


def build_launch_router(deps: SMARTDependencies, pages: Pages) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    launcher = Launcher(deps)
    live = LiveSessions(deps)
    cookies = Cookies(deps.secure)

    def leave(request: Request, iss: str, launch: str | None) -> Response:
        """Send the browser to the EHR, by POST where it takes one: some of its proxies cut long addresses."""
        browser = _binding(request.cookies.get(cookies.launch))
        ehr, configuration, asked = launcher.begin(iss, launch, browser=browser)
        if configuration.takes_post:
            prefer(ehr.language)
            response = pages.form_to(
                origin_of(asked.endpoint),
                "authorize.html",
                ehr=ehr,
                endpoint=asked.endpoint,
                parameters=(("response_type", "code"), *asked.parameters),
            )
        else:
            response = _redirect(asked.url)
        cookies.put(response, cookies.launch, browser, max_age_s=int(LAUNCH_LIFE_S))
        return response

    @router.get("/smart/launch")
    def launch(
        request: Request,
        iss: Annotated[str, Query(max_length=2048)],
        launch: Annotated[str, Query(max_length=4096)],
    ) -> Response:
        return leave(request, iss, launch)

    @router.get("/smart/standalone")
    def standalone(request: Request, iss: Annotated[str | None, Query(max_length=2048)] = None) -> Response:
        if iss is not None:
            return leave(request, iss, None)
        ehrs = [(ehr.name, ehr.fhir_base_urls[0]) for ehr in deps.registry if ehr.smart is not None]
        return pages.render("standalone.html", ehr=None, ehrs=ehrs)

    @router.get("/smart/callback")
    def callback(
        request: Request,
        state: Annotated[str, Query(max_length=256)],
        code: Annotated[str | None, Query(max_length=4096)] = None,
        iss: Annotated[str | None, Query(max_length=2048)] = None,
        error: Annotated[str | None, Query(max_length=256)] = None,
    ) -> Response:
        pending, ehr = launcher.take(state, request.cookies.get(cookies.launch), iss=iss)
        prefer(ehr.language)
        if error is not None or code is None:
            raise launcher.refused(_not_permitted(error), ehr)
        session_id, session, tokens = launcher.complete(pending, ehr, code, iss=iss)
        former = request.cookies.get(cookies.session)
        if former is not None:
            live.replace(former)
        response = _redirect(marked(landing(deps, session, tokens.app_context), session.window_mark))
        cookies.put(response, cookies.session, session_id, max_age_s=int(SESSION_LIFE_S))
        return response

    @router.get("/.well-known/jwks.json")
    def jwks() -> Response:
        """Spec: SMART App Launch 2.2.0, "Client Authentication: Asymmetric", registration by JWKS URL."""
        return JSONResponse(
            public_jwks(deps.keyring, clock=deps.clock),
            headers={"Cache-Control": f"public, max-age={_JWKS_LIFE_S}"},
        )

    return router


def _binding(cookie: str | None) -> str:
    """Return the cookie's value where it has the form of ours: a cookie's text may hold anything, even line ends."""
    return cookie if cookie is not None and _BINDING.fullmatch(cookie) else new_browser_binding()


def _not_permitted(error: str | None) -> Forbidden:
    """The EHR's own code goes to the audit; its description is free text of another, and goes nowhere.

    Spec: RFC 6749 section 4.1.2.1
    """
    known = error if error is not None and _ERROR.fullmatch(error) else "refused"
    return Forbidden("your EHR did not permit the launch", code=f"oauth_{known}")


def _redirect(url: str) -> Response:
    return RedirectResponse(
        url, status_code=303, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    )
