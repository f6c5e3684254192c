"""Whose token a step of a job goes with: the hook's while it lives and suffices, else our own.

Spec: CDS Hooks 2.0.1, "Passing the Access Token to the CDS Service"; SMART App Launch 2.2.0, "Backend Services"
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from rayhook.auth.backend import BackendTokens
from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import RayhookError, UpstreamRefused, UpstreamUnauthorized
from rayhook.fhir.transport import Transport
from rayhook.inference.job_table import Authorization

Answer = TypeVar("Answer")
Permits = Callable[[ScopeSet], bool]

_READ_DEADLINE_S: Final = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Authority:
    """Without `backend` there is only the hook's token."""

    backend: BackendTokens | None = None
    clock: Callable[[], float] = time.time

    def choose(self, ehr: EHR, hook: Authorization | None, permits: Permits) -> Authorization | None:
        """Return the token to go with; where neither permits the step, the hook's, so that it can be told."""
        living = hook if hook is not None and hook.expires_at > self.clock() else None
        if living is not None and permits(ScopeSet.parse(living.scope)):
            return living
        return self._own(ehr, permits) or living

    def has_own(self, ehr: EHR) -> bool:
        """Return whether a token of our own may be had there, now or later."""
        return self.backend is not None and ehr.backend is not None

    def trouble(self, ehr: EHR) -> str | None:
        """Return the code of what keeps us from a token of our own that we may have, where it will pass."""
        if self.backend is None or not self.has_own(ehr):
            return None
        try:
            self.backend.token(ehr)
        except UpstreamRefused:
            return None
        except RayhookError as error:
            return error.code
        return None

    def permits(self, ehr: EHR, hook: Authorization | None, permits: Permits) -> bool:
        chosen = self.choose(ehr, hook, permits)
        return chosen is not None and permits(ScopeSet.parse(chosen.scope))

    def call(
        self,
        ehr: EHR,
        hook: Authorization | None,
        permits: Permits,
        step: Callable[[Authorization | None], Answer],
    ) -> Answer:
        """Do the step, and once more with a new token of our own where the EHR says 401 to the first."""
        chosen = self.choose(ehr, hook, permits)
        try:
            return step(chosen)
        except UpstreamUnauthorized:
            other = self._own(ehr, permits, rejected=None if chosen is None else chosen.access_token)
            if other is None:
                raise
            return step(other)

    def _own(self, ehr: EHR, permits: Permits, *, rejected: str | None = None) -> Authorization | None:
        """An authorization server that is down is no reason to fail: the hook's token may still do."""
        if self.backend is None or not self.has_own(ehr):
            return None
        try:
            token = self.backend.token(ehr, rejected=rejected)
        except RayhookError as error:
            log.warning("backend_token_unavailable", ehr=ehr.id, code=error.code)
            return None
        if not permits(token.scopes):
            return None
        return Authorization(token.access_token, str(token.scopes), token.expires_at)


@dataclass(frozen=True, slots=True)
class AuthorizedReader:
    """Reads single resources at one FHIR base."""

    transport: Transport
    ehr: EHR
    fhir_base_url: str
    authority: Authority

    def read(self, resource_type: str, resource_id: str, *, hook: Authorization | None) -> dict[str, Any]:
        def read(chosen: Authorization | None) -> dict[str, Any]:
            client = FHIRClient(
                self.transport,
                self.fhir_base_url,
                allowed_origins=self.ehr.fhir_origins,
                access_token=None if chosen is None else chosen.access_token,
            )
            return client.read(resource_type, resource_id, deadline_s=_READ_DEADLINE_S)

        return self.authority.call(self.ehr, hook, reading(resource_type), read)


def reading(resource_type: str) -> Permits:
    return lambda scopes: scopes.permits(None, resource_type, "r")
