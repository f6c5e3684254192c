"""Sessions with a token that the EHR still honours: renewed in time, by one of all who ask, and closed when it ends.

Spec: SMART App Launch 2.2.0, "Refresh access token"; RFC 6749 section 6; RFC 7009; RFC 9700 section 4.14
"""

import time
from dataclasses import replace
from typing import Final

import structlog

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.registry import EHR
from rayhook.auth.sessions import (
    SMARTSession,
    claim_refresh,
    close_session,
    find_session,
    release_refresh,
    store_refreshed,
)
from rayhook.auth.smart import TokenResponse, discover, refresh, revoke
from rayhook.fhir.errors import Forbidden, RayhookError, UpstreamRefused, UpstreamUnavailable
from rayhook.smart_app.dependencies import SMARTDependencies

MARGIN_S: Final = 30.0

_WAIT_S: Final = 10.0
_POLL_S: Final = 0.05
# The EHR has ended the authorization, or gives tokens for somebody else: there is nothing to go on with.
_FINAL: Final = frozenset({"oauth_invalid_grant", "patient_changed"})

log = structlog.get_logger(__name__)


class LiveSessions:
    """The one way to a session for everything that shows a patient or sends the session's token."""

    def __init__(self, deps: SMARTDependencies) -> None:
        self._deps = deps

    def find(self, session_id: str, *, noted: bool = True) -> SMARTSession | None:
        """Return the session with a token good for a while yet; None where it has ended.

        A session without a refresh token ends with its access token.
        Raises UpstreamError where the token has run out and the EHR gives no answer to the request for another.
        """
        found = self._load(session_id, noted=noted)
        if found is None or self._left_s(found) > MARGIN_S:
            return found
        if found.refresh_token is not None:
            return self._fresh(session_id, found)
        if self._left_s(found) > 0:
            return found
        self._end(session_id, found, "authorization_expired")
        return None

    def close(self, session_id: str) -> None:
        """End the session here, then tell the EHR that its tokens are done with."""
        found = self._load(session_id, noted=False)
        if found is None:
            return
        self._end(session_id, found, "logout")
        ehr = self._deps.registry.by_id(found.ehr_id)
        if ehr is not None:
            self._revoke(ehr, found)

    def replace(self, session_id: str) -> None:
        """End the session because the same browser begins another.

        Its tokens are thrown away and not revoked: some servers would end the new authorization with the old one.
        """
        found = self._load(session_id, noted=False)
        if found is not None:
            self._end(session_id, found, "replaced")

    def _fresh(self, session_id: str, found: SMARTSession) -> SMARTSession | None:
        """Renew, or wait for who is renewing: a server that rotates tokens takes a second use for theft."""
        waited_until = time.monotonic() + _WAIT_S
        while not self._claimed(session_id, found):
            time.sleep(_POLL_S)
            again = self._load(session_id, noted=False)
            if again is None or again.access_token_expires_at != found.access_token_expires_at:
                return again
            if time.monotonic() > waited_until:
                return self._as_it_is(found, UpstreamUnavailable("the EHR did not renew the authorization"))
        return self._renewed(session_id, found)

    def _renewed(self, session_id: str, found: SMARTSession) -> SMARTSession | None:
        try:
            tokens = self._ask(found)
        except RayhookError as error:
            if error.code in _FINAL:
                self._end(session_id, found, error.code)
                return None
            self._give_back(session_id, found, error)
            return self._as_it_is(found, error)
        return self._store(session_id, found, tokens)

    def _ask(self, found: SMARTSession) -> TokenResponse:
        deps = self._deps
        ehr = deps.registry.by_id(found.ehr_id)
        if ehr is None or found.refresh_token is None:
            raise UpstreamRefused("the EHR is not registered any more", code="oauth_invalid_grant")
        tokens = refresh(
            deps.transport,
            deps.keyring,
            ehr,
            discover(deps.transport, ehr, fhir_base_url=found.fhir_base_url),
            refresh_token=found.refresh_token,
            granted=found.scopes,
            clock=deps.clock,
        )
        if tokens.patient_id not in {None, found.patient_id}:
            raise Forbidden("the renewed token is for another patient", code="patient_changed")
        return tokens

    def _store(self, session_id: str, found: SMARTSession, tokens: TokenResponse) -> SMARTSession | None:
        renewed = replace(
            found,
            scopes=tokens.scopes,
            access_token=tokens.access_token,
            access_token_expires_at=tokens.expires_at,
            refresh_token=tokens.refresh_token or found.refresh_token,
        )
        deps = self._deps
        with deps.sessions() as session:
            stored = store_refreshed(session, deps.keyring, session_id, renewed)
            deps.audit.record(session, session_entry(AuditKind.SMART_APP_SESSION_REFRESHED, renewed))
            session.commit()
        if stored:
            return renewed
        # Somebody signed out meanwhile: what they ended must not live on in tokens that nobody has.
        ehr = deps.registry.by_id(renewed.ehr_id)
        if ehr is not None:
            self._revoke(ehr, renewed)
        return None

    def _give_back(self, session_id: str, found: SMARTSession, error: RayhookError) -> None:
        log.warning("token_not_renewed", ehr=found.ehr_id, code=error.code)
        deps = self._deps
        with deps.sessions() as session:
            release_refresh(session, session_id)
            entry = session_entry(AuditKind.SMART_APP_SESSION_REFRESHED, found, code=error.code)
            deps.audit.record(session, replace(entry, outcome=Outcome.MINOR_FAILURE))
            session.commit()

    def _as_it_is(self, found: SMARTSession, error: RayhookError) -> SMARTSession:
        """Go on with the old token as long as it lives."""
        if self._left_s(found) <= 0:
            raise error
        return found

    def _claimed(self, session_id: str, found: SMARTSession) -> bool:
        with self._deps.sessions() as session:
            claimed = claim_refresh(session, session_id, found, clock=self._deps.clock)
            session.commit()
        return claimed

    def _load(self, session_id: str, *, noted: bool) -> SMARTSession | None:
        deps = self._deps
        with deps.sessions() as session:
            found = find_session(session, deps.keyring, session_id, noted=noted, clock=deps.clock)
            session.commit()
        return found

    def _end(self, session_id: str, ended: SMARTSession, reason: str) -> None:
        deps = self._deps
        with deps.sessions() as session:
            if close_session(session, session_id):
                deps.audit.record(
                    session, session_entry(AuditKind.SMART_APP_SESSION_CLOSED, ended, reason=reason)
                )
            session.commit()

    def _revoke(self, ehr: EHR, ended: SMARTSession) -> None:
        """Spec: SMART App Launch 2.2.0, "Best Practices"; RFC 7009 section 2: the refresh token first."""
        deps = self._deps
        try:
            configuration = discover(deps.transport, ehr, fhir_base_url=ended.fhir_base_url)
            if ended.refresh_token is not None:
                revoke(
                    deps.transport,
                    deps.keyring,
                    ehr,
                    configuration,
                    token=ended.refresh_token,
                    hint="refresh_token",
                    clock=deps.clock,
                )
            revoke(
                deps.transport, deps.keyring, ehr, configuration, token=ended.access_token, clock=deps.clock
            )
        except RayhookError as error:
            log.info("token_not_revoked", ehr=ehr.id, code=error.code)

    def _left_s(self, session: SMARTSession) -> float:
        return session.access_token_expires_at - self._deps.clock()


def session_entry(kind: AuditKind, session: SMARTSession, **detail: str) -> AuditEntry:
    return AuditEntry(
        kind=kind,
        ehr_id=session.ehr_id,
        agent=session.fhir_user or session.client_id,
        client_id=session.client_id,
        patient_id=session.patient_id,
        detail={"scope": str(session.scopes), **detail},
    )
