"""Who holds an access token of an EHR that is shown to us: its issuer is asked, or its signature says it.

Spec: SMART App Launch 2.2.0, "Token Introspection"; RFC 6750, 7662, 9068
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rayhook.auth.jose import UnverifiedToken, take_apart, verify
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.keys import Keyring
from rayhook.auth.principal import SMARTUser
from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.smart import SMARTConfiguration, discover, introspect, roles_in
from rayhook.auth.smart_identity import own_reference
from rayhook.auth.token_endpoint import number_of, optional_text_of, patient_of, text_of
from rayhook.fhir.errors import Unauthenticated, UpstreamError
from rayhook.fhir.transport import Transport

MAX_AGE_S: Final = 30.0

_ALGORITHMS: Final = ("ES256", "ES384", "RS256", "RS384")
_CONFIGURATION_AGE_S: Final = 300.0
_KEY_WAIT_S: Final = 3.0
_MAX_HOLDERS: Final = 4096
_MAX_TOKEN: Final = 16 * 1024
_SKEW_S: Final = 30.0
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
_JWT_DOTS: Final = 2


@dataclass(slots=True)
class _Flight:
    """The callers that wait for one token's holder: the first asks, the others hear."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


class BearerTokens:
    """Knows the holders of tokens for half a minute at most, in memory, by the tokens' hashes.

    audience: our FHIR base, which a token that is not introspected must name.
    """

    def __init__(
        self,
        *,
        registry: EHRRegistry,
        transport: Transport,
        keyring: Keyring,
        jwks: JWKSCache,
        audience: str,
        clock: Callable[[], float] = time.time,
        max_holders: int = _MAX_HOLDERS,
    ) -> None:
        self._registry = registry
        self._transport = transport
        self._keyring = keyring
        self._jwks = jwks
        self._audience = audience
        self._clock = clock
        self._max_holders = max_holders
        self._holders: OrderedDict[bytes, tuple[SMARTUser, float]] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}
        self._configurations: dict[str, tuple[SMARTConfiguration, float]] = {}
        self._lock = threading.Lock()

    def holder(self, authorization: str) -> SMARTUser:
        """Return who holds the token of an Authorization header.

        Raises Unauthenticated where that is nobody, UpstreamError where the issuer cannot tell: any doubt is a no.
        """
        token = _bearer(authorization)
        key = hashlib.sha256(token.encode()).digest()
        known = self._known(key)
        if known is not None:
            return known
        with self._lock:
            flight = self._flights.setdefault(key, _Flight())
            flight.waiting += 1
        try:
            with flight.lock:
                return self._known(key) or self._ask(key, token)
        finally:
            with self._lock:
                flight.waiting -= 1
                if not flight.waiting:
                    self._flights.pop(key, None)

    def _known(self, key: bytes) -> SMARTUser | None:
        with self._lock:
            found = self._holders.get(key)
            if found is None:
                return None
            user, until = found
            if self._clock() >= until:
                del self._holders[key]
                return None
            self._holders.move_to_end(key)
            return user

    def _ask(self, key: bytes, token: str) -> SMARTUser:
        user = self._holder(token)
        now = self._clock()
        until = now + MAX_AGE_S if user.expires_at is None else min(user.expires_at, now + MAX_AGE_S)
        with self._lock:
            self._holders[key] = (user, until)
            while len(self._holders) > self._max_holders:
                self._holders.popitem(last=False)
        return user

    def _holder(self, token: str) -> SMARTUser:
        unverified = _taken_apart(token)
        ehr = self._issuer_of(unverified)
        configuration = self._configuration(ehr)
        assert ehr.smart is not None
        if unverified is not None and ehr.smart.jwt_access_tokens and _is_access_token(unverified):
            return self._read(ehr, configuration, unverified)
        return introspect(
            self._transport,
            self._keyring,
            ehr,
            configuration,
            token=token,
            audience=self._audience,
            clock=self._clock,
        )

    def _issuer_of(self, token: UnverifiedToken | None) -> EHR:
        """Return the one EHR to show the token to: no EHR ever sees another's.

        An opaque token says nothing of its issuer, so it is accepted only where there is no choice.
        """
        if token is None:
            found = [ehr for ehr in self._registry if ehr.smart is not None and ehr.smart.introspection]
        else:
            issuer = token.claims.get("iss")
            found = [
                ehr
                for ehr in self._registry
                if ehr.smart is not None
                and ehr.smart.issuer == issuer
                and (ehr.smart.introspection or ehr.smart.jwt_access_tokens)
            ]
        if len(found) != 1:
            raise Unauthenticated("the token's issuer is not known", code="issuer_unknown")
        return found[0]

    def _configuration(self, ehr: EHR) -> SMARTConfiguration:
        now = self._clock()
        found = self._configurations.get(ehr.id)
        if found is not None and now < found[1]:
            return found[0]
        configuration = discover(self._transport, ehr)
        self._configurations[ehr.id] = (configuration, now + _CONFIGURATION_AGE_S)
        return configuration

    def _read(self, ehr: EHR, configuration: SMARTConfiguration, token: UnverifiedToken) -> SMARTUser:
        """Spec: RFC 9068, section 4."""
        if configuration.jwks_uri is None:
            raise Unauthenticated("the issuer names no keys", code="key_unknown")
        key = self._jwks.find(
            configuration.issuer,
            configuration.jwks_uri,
            allowed_origins=ehr.authorization_origins,
            kid=token.kid,
            algorithm=token.algorithm,
            wait_s=_KEY_WAIT_S,
        )
        if key is None:
            raise Unauthenticated("the issuer's key is not known", code="key_unknown")
        verify(token, key)
        try:
            return self._claimed(ehr, token.claims)
        except UpstreamError as error:
            raise Unauthenticated("a claim is missing or malformed", code="claim_invalid") from error

    def _claimed(self, ehr: EHR, claims: Mapping[str, Any]) -> SMARTUser:
        now = self._clock()
        expires_at = number_of(claims, "exp")
        if expires_at <= now:
            raise Unauthenticated("token has expired", code="token_expired")
        if max(_moment(claims, "nbf"), _moment(claims, "iat")) > now + _SKEW_S:
            raise Unauthenticated("token is not valid yet", code="token_early")
        if self._audience not in _audiences(claims):
            raise Unauthenticated("aud is not this service", code="audience_wrong")
        fhir_user = optional_text_of(claims, "fhirUser")
        fhir_user = None if fhir_user is None else own_reference(ehr, fhir_user)
        scopes = ScopeSet.parse(text_of(claims, "scope"))
        return SMARTUser(
            ehr=ehr,
            fhir_user=fhir_user,
            patient_id=patient_of(claims),
            scopes=scopes,
            client_id=text_of(claims, "client_id"),
            roles=roles_in(ehr, fhir_user, claims, scopes),
            expires_at=expires_at,
        )


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("Authorization is not Bearer", code="token_missing")
    if len(token) > _MAX_TOKEN or not token.isascii():
        raise Unauthenticated("token is malformed", code="token_malformed")
    return token


def _taken_apart(token: str) -> UnverifiedToken | None:
    """Return a JWT's parts, None for an opaque token."""
    return take_apart(token, algorithms=_ALGORITHMS) if token.count(".") == _JWT_DOTS else None


def _is_access_token(token: UnverifiedToken) -> bool:
    """Say whether the token says to be one: an id_token has the same issuer and keys."""
    return str(token.header.get("typ")).lower() in _TYPES


def _audiences(claims: Mapping[str, Any]) -> tuple[object, ...]:
    value = claims.get("aud")
    return tuple(value) if isinstance(value, list) else (value,)


def _moment(claims: Mapping[str, Any], name: str) -> float:
    return 0.0 if claims.get(name) is None else number_of(claims, name)
