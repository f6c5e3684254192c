"""The SMART App Launch client: discovery, authorization request, code exchange, introspection.

Spec: SMART App Launch 2.2.0; RFC 6749, 7523, 7636, 7662, 9207; RFC 9700 (best current practice).
"""

import secrets
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from rayhook.auth.keys import Keyring
from rayhook.auth.principal import SMARTUser
from rayhook.auth.registry import EHR, SMARTClient
from rayhook.auth.role_rules import EHRPerson
from rayhook.auth.roles import Role
from rayhook.auth.scopes import ScopeSet, as_version_1
from rayhook.auth.smart_configuration import SMARTConfiguration, discover
from rayhook.auth.smart_identity import IDToken, own_reference, verify_id_token
from rayhook.auth.token_endpoint import (
    Credentials,
    TokenEndpoint,
    TokenResponse,
    client_assertion,
    number_of,
    optional_text_of,
    patient_of,
    text_of,
)
from rayhook.fhir.errors import InvalidRequest, Unauthenticated
from rayhook.fhir.transport import Transport

__all__ = [
    "AuthorizationRequest",
    "IDToken",
    "SMARTConfiguration",
    "TokenResponse",
    "client_assertion",
    "discover",
    "exchange_code",
    "introspect",
    "new_authorization_request",
    "public_jwks",
    "refresh",
    "revoke",
    "verify_id_token",
]

Clock = Callable[[], float]

_STUDY_LAUNCH: Final = "launch/imagingstudy"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """One request for a code. `state`, `nonce` and `code_verifier` are 256 random bits each.

    `url` is where a browser is sent with GET; a POST goes to `endpoint` with `parameters`.
    """

    ehr_id: str
    fhir_base_url: str
    endpoint: str
    parameters: tuple[tuple[str, str], ...] = field(repr=False)
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)

    @property
    def url(self) -> str:
        return str(prepare_grant_uri(self.endpoint, response_type="code", **dict(self.parameters)))


def public_jwks(keyring: Keyring, *, clock: Clock = time.time) -> dict[str, Any]:
    """Return our JWK Set, which EHRs fetch to verify our assertions: the keys that sign, and those that will."""
    keys = keyring.published_keys(now=clock())
    return {"keys": [{**key.as_dict(private=False), "key_ops": ["verify"]} for key in keys]}


def new_authorization_request(
    ehr: EHR,
    configuration: SMARTConfiguration,
    *,
    fhir_base_url: str,
    redirect_uri: str,
    launch: str | None,
) -> AuthorizationRequest:
    """Return where to send the browser; without `launch` it is a standalone launch that asks for a patient.

    Spec: SMART App Launch 2.2.0, "Obtain authorization code"; RFC 7636.
    """
    client = _client(ehr)
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    parameters = {
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(_launch_scopes(client, configuration, standalone=launch is None)),
        "state": state,
        "aud": fhir_base_url,
        "nonce": nonce,
        "code_challenge": create_s256_code_challenge(verifier),
        "code_challenge_method": "S256",
        **({} if launch is None else {"launch": launch}),
    }
    return AuthorizationRequest(
        ehr_id=ehr.id,
        fhir_base_url=fhir_base_url,
        endpoint=configuration.authorization_endpoint,
        parameters=tuple(parameters.items()),
        state=state,
        nonce=nonce,
        code_verifier=verifier,
    )


def _launch_scopes(
    client: SMARTClient, configuration: SMARTConfiguration, *, standalone: bool
) -> tuple[str, ...]:
    """A standalone launch has no context yet: it asks the EHR to let a patient be chosen, and a study if it can.

    Spec: SMART App Launch 2.2.0, "Requesting context with scopes"
    """
    scopes = [scope for scope in client.scopes if scope != "launch" and not scope.startswith("launch/")]
    if configuration.knows_version_1_only:
        scopes = [as_version_1(scope) for scope in scopes]
    if not standalone:
        return tuple(dict.fromkeys((*scopes, "launch")))
    study = {_STUDY_LAUNCH} & configuration.scopes
    return tuple(dict.fromkeys((*scopes, "launch/patient", *study)))


def exchange_code(
    transport: Transport,
    keyring: Keyring,
    ehr: EHR,
    configuration: SMARTConfiguration,
    *,
    code: str,
    redirect_uri: str,
    code_verifier: str,
    clock: Clock = time.time,
) -> TokenResponse:
    """Trade the code for a token.

    Raises UpstreamRefused where the EHR says no (code `oauth_invalid_grant` and the like),
    UpstreamError where its answer cannot be used.
    Spec: SMART App Launch 2.2.0, "Obtain access token".
    """
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": code_verifier,
    }
    return _endpoint(transport, keyring, ehr, configuration, clock).request_token(form)


def refresh(
    transport: Transport,
    keyring: Keyring,
    ehr: EHR,
    configuration: SMARTConfiguration,
    *,
    refresh_token: str,
    granted: ScopeSet,
    clock: Clock = time.time,
) -> TokenResponse:
    """Trade the refresh token for a new access token, whose scopes are `granted` or less.

    Raises UpstreamRefused with code `oauth_invalid_grant` where the authorization has ended.
    Spec: SMART App Launch 2.2.0, "Refresh access token"; RFC 6749 section 6
    """
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    tokens = _endpoint(transport, keyring, ehr, configuration, clock).request_token(form)
    if not tokens.scopes.resources and not tokens.scopes.others:
        return replace(tokens, scopes=granted)
    return replace(tokens, scopes=tokens.scopes.within(granted))


def introspect(
    transport: Transport,
    keyring: Keyring,
    ehr: EHR,
    configuration: SMARTConfiguration,
    *,
    token: str,
    audience: str | None = None,
    clock: Clock = time.time,
) -> SMARTUser:
    """Ask the issuer who holds `token`; any doubt is a no.

    audience: our FHIR base; a token that says whom it is for has to name that, or the EHR's own.

    Raises Unauthenticated where the token is not active, UpstreamError where the issuer cannot tell.
    Spec: RFC 7662; SMART App Launch 2.2.0, "Token Introspection".
    """
    if configuration.introspection_endpoint is None or not _client(ehr).introspection:
        raise Unauthenticated("this EHR's tokens are not accepted here", code="introspection_unavailable")
    endpoint = _endpoint(transport, keyring, ehr, configuration, clock)
    answer = endpoint.post(configuration.introspection_endpoint, {"token": token})
    if answer.get("active") is not True:
        raise Unauthenticated("token is not active", code="token_inactive")
    expires_at = number_of(answer, "exp")
    if expires_at <= clock():
        raise Unauthenticated("token has expired", code="token_expired")
    _check_audience(answer.get("aud"), {audience, *ehr.fhir_base_urls})
    fhir_user = optional_text_of(answer, "fhirUser")
    fhir_user = None if fhir_user is None else own_reference(ehr, fhir_user)
    scopes = ScopeSet.parse(text_of(answer, "scope"))
    return SMARTUser(
        ehr=ehr,
        fhir_user=fhir_user,
        patient_id=patient_of(answer),
        scopes=scopes,
        client_id=text_of(answer, "client_id"),
        roles=roles_in(ehr, fhir_user, answer, scopes),
        expires_at=expires_at,
    )


def _check_audience(named: object, ours: AbstractSet[str | None]) -> None:
    if named is None:
        return
    names = named if isinstance(named, list) else [named]
    if not any(isinstance(name, str) and name.removesuffix("/") in ours for name in names):
        raise Unauthenticated("aud is neither this service nor its EHR", code="audience_wrong")


def roles_in(ehr: EHR, fhir_user: str | None, answer: Mapping[str, Any], scopes: ScopeSet) -> frozenset[Role]:
    """A token whose scopes are all a system's is a service's; any other has the roles of its person.

    One of a patient or user context that names nobody is somebody's all the same: an app that does not ask for
    `fhirUser` must not open to a patient what `fhirUser` would have closed.
    """
    if fhir_user is None and all(scope.context == "system" for scope in scopes.resources):
        return frozenset({Role.SERVICE})
    return ehr.roles_of(EHRPerson(fhir_user=fhir_user, claims=answer))


def revoke(
    transport: Transport,
    keyring: Keyring,
    ehr: EHR,
    configuration: SMARTConfiguration,
    *,
    token: str,
    hint: Literal["access_token", "refresh_token"] = "access_token",
    clock: Clock = time.time,
) -> bool:
    """Tell the EHR that `token` is done with; False where it offers no way to.

    Spec: RFC 7009.
    """
    if configuration.revocation_endpoint is None:
        return False
    endpoint = _endpoint(transport, keyring, ehr, configuration, clock)
    endpoint.send(configuration.revocation_endpoint, {"token": token, "token_type_hint": hint})
    return True


def _endpoint(
    transport: Transport, keyring: Keyring, ehr: EHR, configuration: SMARTConfiguration, clock: Clock
) -> TokenEndpoint:
    client = _client(ehr)
    credentials = Credentials(
        client_id=client.client_id,
        token_endpoint=configuration.token_endpoint,
        algorithm=client.assertion_algorithm or configuration.assertion_algorithm,
        jku=client.jku,
    )
    return TokenEndpoint(
        transport=transport,
        keyring=keyring,
        credentials=credentials,
        allowed_origins=ehr.authorization_origins,
        clock=clock,
    )


def _client(ehr: EHR) -> SMARTClient:
    if ehr.smart is None:
        raise InvalidRequest("this EHR has no SMART client registered", code="smart_not_registered")
    return ehr.smart
