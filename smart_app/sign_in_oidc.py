"""The staff's sign-in at the hospital's OpenID provider: there, and back into a session here.

Spec: OpenID Connect Core 1.0 section 3.1; RFC 9700 section 4.7
"""

import re
import secrets
from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.staff_oidc import (
    StaffIdentity,
    StaffSignIn,
    discover_provider,
    new_sign_in_request,
    require_issuer,
)
from rayhook.auth.staff_oidc_requests import REQUEST_LIFE_S, PendingSignIn, begin_sign_in, take_sign_in
from rayhook.auth.staff_provider import StaffProvider
from rayhook.auth.staff_sessions import close_session_by_key, open_provider_session
from rayhook.fhir.errors import Forbidden, InvalidRequest, NotFound, RayhookError
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.sign_in import Landing, sign_in_page
from rayhook.smart_app.sign_in_steps import Caller, SignInSteps, caller_of
from rayhook.smart_app.staff_access import StaffGate, staff_path
from rayhook.smart_app.staff_pages import StaffPages, staff_router

CALLBACK: Final = "/sign-in/oidc/callback"
_BINDING: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class ProviderSignIns:
    """The two halves of a sign-in elsewhere, each told to the audit where it leads nowhere."""

    def __init__(self, deps: SMARTDependencies, steps: SignInSteps) -> None:
        self._deps = deps
        self._steps = steps
        self._sign_in = StaffSignIn(deps.transport, deps.keyring, deps.jwks, deps.clock)
        self.redirect_uri = f"{deps.public_base_url}{CALLBACK}"

    def begin(self, provider_id: str, landing: str, *, browser: str, caller: Caller) -> str:
        """Return the URL at the provider to send the browser to."""
        provider = self._deps.registry.staff_provider(provider_id)
        if provider is None:
            raise NotFound("there is no such provider")
        self._steps.admit(caller)
        try:
            configuration = discover_provider(self._deps.transport, provider)
        except RayhookError as error:
            self._steps.refused(error, caller, provider=provider.id)
            raise
        request = new_sign_in_request(provider, configuration, redirect_uri=self.redirect_uri)
        previous = None if caller.member is None else caller.member.session_key
        pending = PendingSignIn(provider.id, landing, request.nonce, request.code_verifier, previous)
        with self._deps.sessions() as session:
            begin_sign_in(
                session,
                self._deps.keyring,
                pending,
                state=request.state,
                browser=browser,
                clock=self._deps.clock,
            )
            session.commit()
        return request.url

    def complete(
        self, state: str, code: str | None, iss: str | None, *, browser: str, caller: Caller
    ) -> tuple[str, str]:
        """Return the id of a new session, and where to go on to."""
        provider_id = "unknown"
        try:
            pending, provider = self._take(state, browser)
            provider_id = provider.id
            identity = self._identity(provider, pending, code, iss)
        except RayhookError as error:
            self._steps.refused(error, caller, provider=provider_id)
            raise
        return self._open(pending, provider, identity, caller), pending.landing

    def _take(self, state: str, browser: str) -> tuple[PendingSignIn, StaffProvider]:
        deps = self._deps
        with deps.sessions() as session:
            pending = take_sign_in(session, deps.keyring, state=state, browser=browser, clock=deps.clock)
            session.commit()
        provider = None if pending is None else deps.registry.staff_provider(pending.provider)
        if pending is None or provider is None:
            raise InvalidRequest(
                "state: is unknown, used, expired or another browser's",
                code="state_unknown",
                expression="state",
            )
        return pending, provider

    def _identity(
        self, provider: StaffProvider, pending: PendingSignIn, code: str | None, iss: str | None
    ) -> StaffIdentity:
        configuration = discover_provider(self._deps.transport, provider)
        require_issuer(provider, configuration, iss)
        if code is None:
            raise Forbidden("the provider did not permit the sign-in", code="provider_refused")
        return self._sign_in.complete(
            provider,
            configuration,
            code=code,
            redirect_uri=self.redirect_uri,
            code_verifier=pending.code_verifier,
            nonce=pending.nonce,
        )

    def _open(
        self, pending: PendingSignIn, provider: StaffProvider, identity: StaffIdentity, caller: Caller
    ) -> str:
        """The browser does not send its session along from the provider's site: the request kept which it was."""
        deps = self._deps
        with deps.sessions() as session:
            if pending.previous is not None:
                close_session_by_key(session, pending.previous)
            session_id = open_provider_session(
                session,
                deps.keyring,
                provider=provider.id,
                agent=identity.agent,
                name=identity.name,
                roles=identity.roles,
                proved_at=identity.authenticated_at,
                clock=deps.clock,
            )
            entry = AuditEntry(kind=AuditKind.AUTH_SIGN_IN_ACCEPTED, agent=identity.agent)
            detail = {"provider": provider.id, "address": caller.address}
            deps.audit.record(session, replace(entry, detail=detail))
            session.commit()
        return session_id


def build_oidc_router(
    deps: SMARTDependencies, pages: StaffPages, gate: StaffGate, steps: SignInSteps
) -> APIRouter:
    router = staff_router(pages)
    sign_ins = ProviderSignIns(deps, steps)

    @router.get(CALLBACK)
    def callback(
        request: Request,
        state: Annotated[str, Query(max_length=256)],
        code: Annotated[str | None, Query(max_length=4096)] = None,
        iss: Annotated[str | None, Query(max_length=2048)] = None,
    ) -> Response:
        browser = request.cookies.get(gate.cookies.sign_in, "")
        try:
            session_id, landing = sign_ins.complete(
                state, code, iss, browser=browser, caller=caller_of(request)
            )
        except RayhookError as error:
            return sign_in_page(deps, pages, request, None, problem="provider", status=error.status)
        # A page, not a redirect: the session's cookie is sent only from a page of ours.
        response = pages.render("sign_in_continue.html", request, None, landing=landing)
        gate.cookies.put_session(response, session_id)
        return response

    @router.get("/sign-in/oidc/{provider_id}")
    def begin(request: Request, provider_id: str, landing: Landing = None) -> Response:
        browser = _binding(request.cookies.get(gate.cookies.sign_in))
        caller = caller_of(request, gate.member(request))
        try:
            url = sign_ins.begin(provider_id, staff_path(landing), browser=browser, caller=caller)
        except NotFound:
            raise
        except RayhookError as error:
            return sign_in_page(deps, pages, request, landing, problem="provider", status=error.status)
        response = RedirectResponse(url, status_code=303, headers=_QUIET)
        gate.cookies.put_sign_in(response, browser, max_age_s=int(REQUEST_LIFE_S))
        return response

    return router


_QUIET: Final = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


def _binding(cookie: str | None) -> str:
    """A cookie's text may hold anything, even line ends."""
    return cookie if cookie is not None and _BINDING.fullmatch(cookie) else secrets.token_urlsafe(32)
