"""Who asks our FHIR endpoint, for which patient, and which of that patient's resources the scopes cover.

Spec: SMART App Launch 2.2.0, "Scopes for requesting FHIR Resources"; RFC 6750
"""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from fastapi import Request

from rayhook.auth.bearer import BearerTokens
from rayhook.auth.principal import SMARTUser
from rayhook.auth.roles import Permission
from rayhook.auth.scopes import ResourceScope
from rayhook.fhir.errors import Forbidden, InvalidRequest, RateLimited, RayhookError
from rayhook.smart_app.access import Gate
from rayhook.smart_app.fhir_limit import FHIRLimit
from rayhook.smart_app.fhir_parameters import OF_THE_PATIENT, PARAMETERS, Filter, matches, read_filter

Resource = dict[str, Any]

_IN_A_PATIENT: Final = ("patient", "user")
_ON_ITS_OWN: Final = ("system",)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever was let in, and the one patient whose resources this request is about."""

    user: SMARTUser
    patient_id: str

    @property
    def holder(self) -> str:
        """What a page's cursor is bound to: the same person or client, at the same EHR."""
        user = self.user
        return json.dumps([user.ehr.id, user.client_id, user.fhir_user, user.patient_id])


@dataclass(frozen=True, slots=True)
class Grant:
    """The scopes that let a caller read or search one type; a resource is shown if one of them covers it."""

    scopes: tuple[ResourceScope, ...] = field(default=())

    def allows(self, resource: Resource) -> bool:
        return any(_covers(scope, resource) for scope in self.scopes)


class FHIRAccess:
    """The dependency of every route that serves a patient's resources; the access matrix reads its permission."""

    permission = Permission.SMART_APP_FHIR_READ

    def __init__(self, gate: Gate, tokens: BearerTokens, limit: FHIRLimit) -> None:
        self._gate = gate
        self._tokens = tokens
        self._limit = limit

    def user(self, request: Request) -> SMARTUser:
        """Return the holder of the bearer token, or without one, of the session cookie.

        Raises Unauthenticated or Forbidden, told to the audit; RateLimited; UpstreamError where the issuer cannot
        tell.
        """
        authorization = request.headers.get("Authorization")
        if authorization is None:
            user = self._gate.viewer(request).user
        else:
            try:
                user = self._tokens.holder(authorization)
            except RayhookError as error:
                raise self._gate.refused(error, None) from error
        if not user.can(self.permission):
            refusal = Forbidden("your role does not allow this", code="role_insufficient")
            raise self._gate.refused(refusal, user, permission=self.permission)
        self._admit(user)
        return user

    def _admit(self, user: SMARTUser) -> None:
        try:
            self._limit.admit(user)
        except RateLimited as error:
            if error.is_first:
                self._gate.refused(error, user, permission=self.permission)
            raise

    def caller(self, user: SMARTUser, named: str | None) -> Caller:
        """Return the caller with the patient that the token is bound to, or that a system names.

        A token with a patient sees that one only. One without sees the patient whom it names, and only by
        `system` scopes: whether a person may see a patient, we cannot know. Raises Forbidden, told to the audit.
        """
        if user.patient_id is not None:
            if named is not None and named != user.patient_id:
                error = Forbidden("patient: is not the one this access is bound to", expression="patient")
                raise self._gate.refused(error, user)
            return Caller(user, user.patient_id)
        if (
            not any(scope.context == "system" for scope in user.scopes.resources)
            or user.fhir_user is not None
        ):
            raise self._gate.refused(Forbidden("the token names no patient", code="patient_missing"), user)
        if named is None:
            raise InvalidRequest("patient: has to be named by who has no patient", expression="patient")
        return Caller(user, named)

    def grant(self, caller: Caller, resource_type: str, interaction: str) -> Grant:
        """Raise Forbidden, told to the audit, where no scope allows the interaction on the type."""
        scopes = self._granting(caller, resource_type, interaction)
        if not scopes:
            error = Forbidden(
                f"the granted scope does not allow {interaction} on {resource_type}",
                code="scope_insufficient",
            )
            raise self._gate.refused(error, caller.user)
        return Grant(scopes)

    def included(self, caller: Caller, resource: Resource) -> bool:
        """Say whether a resource may come along with those that were searched for."""
        return Grant(self._granting(caller, resource["resourceType"], "r")).allows(resource)

    @staticmethod
    def _granting(caller: Caller, resource_type: str, interaction: str) -> tuple[ResourceScope, ...]:
        contexts = _ON_ITS_OWN if caller.user.patient_id is None else _IN_A_PATIENT + _ON_ITS_OWN
        granting = caller.user.scopes.granting(resource_type, interaction, contexts=contexts)
        return tuple(scope for scope in granting if limits_of(resource_type, scope.query) is not None)


def _covers(scope: ResourceScope, resource: Resource) -> bool:
    limits = limits_of(resource["resourceType"], scope.query)
    return limits is not None and all(matches(resource, limit) for limit in limits)


@lru_cache(maxsize=1024)
def limits_of(resource_type: str, query: str | None) -> tuple[Filter, ...] | None:
    """Return what limits a scope, None where we cannot evaluate all of it: such a scope grants nothing."""
    if query is None:
        return ()
    if resource_type not in PARAMETERS:
        return None
    limits = []
    try:
        for name, value in parse_qsl(unquote(query), keep_blank_values=True, strict_parsing=True):
            found = read_filter(resource_type, name, value)
            if found is None or found.name in OF_THE_PATIENT:
                return None
            limits.append(found)
    except (InvalidRequest, ValueError):
        return None
    return tuple(limits) or None
