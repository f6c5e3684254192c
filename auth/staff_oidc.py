"""Sign-in of the staff at the hospital's own OpenID provider: code flow with PKCE, and roles from claims.

Spec: OpenID Connect Core 1.0 section 3.1; OpenID Connect Discovery 1.0; RFC 7636, 9207, 9700
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from rayhook.auth.id_token import IDTokenIssuer, seconds_of, verified_claims
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.keys import Keyring, SigningAlgorithm
from rayhook.auth.roles import Role
from rayhook.auth.smart_configuration import json_document
from rayhook.auth.staff_provider import ClientAuthentication, StaffProvider
from rayhook.auth.token_endpoint import Credentials, TokenEndpoint, text_of
from rayhook.fhir.errors import Forbidden, InvalidRequest, Unauthenticated, UpstreamError
from rayhook.fhir.transport import Transport, origin_of

Clock = Callable[[], float]

# How long ago the provider may have asked for password and second factor.
MAX_AGE_S: Final = 600
_SKEW_S: Final = 30.0
_DEADLINE_S: Final = 5.0
_MAX_BYTES: Final = 256 * 1024
_HTTP_OK: Final = 200
_ALGORITHMS: Final[tuple[SigningAlgorithm, ...]] = ("ES384", "RS384")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfiguration:
    """Endpoints are of origins that the provider was registered with; `names_itself` is RFC 9207's `iss`."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    algorithm: SigningAlgorithm = "ES384"
    names_itself: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInRequest:
    """Where to send the browser. `state`, `nonce` and `code_verifier` are 256 random bits each."""

    url: str = field(repr=False)
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffIdentity:
    """Who signed in there; `authenticated_at` is when the provider asked, in seconds since the epoch."""

    agent: str
    name: str
    roles: frozenset[Role]
    authenticated_at: float


def discover_provider(transport: Transport, provider: StaffProvider) -> ProviderConfiguration:
    """Fetch and check the discovery document.

    Raises UpstreamError that names the member at fault.
    Spec: OpenID Connect Discovery 1.0 section 4
    """
    response = transport.request(
        "GET",
        f"{provider.issuer.removesuffix('/')}/.well-known/openid-configuration",
        allowed_origins=provider.allowed_origins,
        deadline_s=_DEADLINE_S,
        headers={"Accept": "application/json"},
        max_bytes=_MAX_BYTES,
    )
    if response.status != _HTTP_OK:
        raise UpstreamError("openid-configuration: not found", code="openid_configuration_unavailable")
    members = json_document(response.body, "openid-configuration")
    if members.get("issuer") != provider.issuer:
        raise _unusable("issuer", "is not the registered one")
    if "S256" not in _names(members, "code_challenge_methods_supported", default=("S256",)):
        raise _unusable("code_challenge_methods_supported", "must hold S256")
    return ProviderConfiguration(
        authorization_endpoint=_endpoint(provider, members, "authorization_endpoint"),
        token_endpoint=_endpoint(provider, members, "token_endpoint"),
        jwks_uri=_endpoint(provider, members, "jwks_uri"),
        algorithm=_algorithm(provider, members),
        names_itself=members.get("authorization_response_iss_parameter_supported") is True,
    )


def new_sign_in_request(
    provider: StaffProvider, configuration: ProviderConfiguration, *, redirect_uri: str
) -> SignInRequest:
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    parameters = {
        "client_id": provider.client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(provider.scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": create_s256_code_challenge(verifier),
        "code_challenge_method": "S256",
        "max_age": str(MAX_AGE_S),
        **({"acr_values": " ".join(provider.acr_values)} if provider.acr_values else {}),
    }
    url = prepare_grant_uri(configuration.authorization_endpoint, response_type="code", **parameters)
    return SignInRequest(url=str(url), state=state, nonce=nonce, code_verifier=verifier)


def require_issuer(provider: StaffProvider, configuration: ProviderConfiguration, iss: str | None) -> None:
    """Raise InvalidRequest where the answer is another provider's, or does not say whose it is and should.

    Spec: RFC 9207 section 2.4
    """
    if iss != provider.issuer and (iss is not None or configuration.names_itself):
        raise InvalidRequest(
            "iss: is not the provider that was asked", code="issuer_unknown", expression="iss"
        )


@dataclass(frozen=True, slots=True)
class StaffSignIn:
    """The second half of a sign-in, once the browser has come back with a code."""

    transport: Transport
    keyring: Keyring
    jwks: JWKSCache
    clock: Clock = time.time

    def complete(
        self,
        provider: StaffProvider,
        configuration: ProviderConfiguration,
        *,
        code: str,
        redirect_uri: str,
        code_verifier: str,
        nonce: str,
    ) -> StaffIdentity:
        """Trade the code, verify the id_token, and return who it is.

        Raises Unauthenticated where a check fails, Forbidden without a role, UpstreamError where the provider
        refuses or cannot be understood.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": code_verifier,
        }
        endpoint = self._endpoint(provider, configuration)
        answer = endpoint.post(configuration.token_endpoint, form)
        issuer = IDTokenIssuer(
            issuer=provider.issuer,
            jwks_uri=configuration.jwks_uri,
            allowed_origins=provider.allowed_origins,
            client_id=provider.client_id,
        )
        claims = verified_claims(
            text_of(answer, "id_token"), issuer, nonce=nonce, jwks=self.jwks, clock=self.clock
        )
        return _identity(provider, claims, self.clock())

    def _endpoint(self, provider: StaffProvider, configuration: ProviderConfiguration) -> TokenEndpoint:
        credentials = Credentials(
            client_id=provider.client_id,
            token_endpoint=configuration.token_endpoint,
            algorithm=configuration.algorithm,
            is_public=provider.client_authentication is ClientAuthentication.NONE,
        )
        return TokenEndpoint(
            transport=self.transport,
            keyring=self.keyring,
            credentials=credentials,
            allowed_origins=provider.allowed_origins,
            clock=self.clock,
        )


def _identity(provider: StaffProvider, claims: Mapping[str, Any], now: float) -> StaffIdentity:
    authenticated_at = seconds_of(claims, "auth_time")
    if not now - MAX_AGE_S - _SKEW_S <= authenticated_at <= now + _SKEW_S:
        raise Unauthenticated("id_token auth_time is too long ago", code="auth_time_stale")
    _require_strength(provider, claims)
    roles = provider.roles_of(claims)
    if not roles:
        raise Forbidden("no rule gives this person a role", code="role_missing")
    name = claims.get(provider.name_claim)
    return StaffIdentity(
        agent=f"{provider.issuer}#{claims['sub']}",
        name=name if isinstance(name, str) and name else str(claims["sub"]),
        roles=roles,
        authenticated_at=min(authenticated_at, now),
    )


def _require_strength(provider: StaffProvider, claims: Mapping[str, Any]) -> None:
    """Spec: OpenID Connect Core 1.0 section 2, `acr`, `amr`; RFC 8176."""
    methods = claims.get("amr")
    told = {claims.get("acr"), *(methods if isinstance(methods, list) else ())}
    if provider.acr_values and not told & set(provider.acr_values):
        raise Unauthenticated("id_token acr is not one that is asked for", code="second_factor_missing")


def _algorithm(provider: StaffProvider, members: Mapping[str, Any]) -> SigningAlgorithm:
    if provider.client_authentication is ClientAuthentication.NONE:
        return _ALGORITHMS[0]
    name = "token_endpoint_auth_signing_alg_values_supported"
    offered = _names(members, name, default=_ALGORITHMS)
    for algorithm in _ALGORITHMS:
        if algorithm in offered:
            return algorithm
    raise _unusable(name, "must hold ES384 or RS384")


def _names(members: Mapping[str, Any], name: str, *, default: tuple[str, ...]) -> frozenset[str]:
    value = members.get(name, default)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise _unusable(name, "must be a list of strings")
    return frozenset(value)


def _endpoint(provider: StaffProvider, members: Mapping[str, Any], name: str) -> str:
    """An origin that nobody registered is refused before any use."""
    value = members.get(name)
    try:
        known = isinstance(value, str) and origin_of(value) in provider.allowed_origins
    except InvalidRequest:
        known = False
    if not known:
        raise _unusable(name, "must be a URL of an origin registered for this provider")
    return str(value)


def _unusable(name: str, rule: str) -> UpstreamError:
    return UpstreamError(
        f"openid-configuration: {name} {rule}", code="openid_configuration_invalid", expression=name
    )
