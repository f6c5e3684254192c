"""The SMART App Launch client: discovery, authorization request, code exchange, introspection.

Spec: SMART App Launch 2.2.0; RFC 6749, 7523, 7636, 7662, 9207; RFC 9700 (best current practice).
"""

import json
import math
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt

from rayhook.auth.keys import Keyring, SigningAlgorithm
from rayhook.auth.principal import SMARTUser
from rayhook.auth.registry import EHR, SMARTClient
from rayhook.auth.role_rules import EHRPerson
from rayhook.auth.roles import Role
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.smart_configuration import SMARTConfiguration, discover
from rayhook.auth.smart_identity import IDToken, own_reference, verify_id_token
from rayhook.fhir.errors import (
    InvalidRequest,
    Unauthenticated,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from rayhook.fhir.references import is_fhir_id
from rayhook.fhir.transport import Response, Transport

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
    "revoke",
    "verify_id_token",
]

Clock = Callable[[], float]

_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_LIFE_S: Final = 240.0
_DEFAULT_TOKEN_LIFE_S: Final = 300.0
_MAX_TOKEN_LIFE_S: Final = 24 * 3600.0
_DEADLINE_S: Final = 5.0
_MAX_BYTES: Final = 256 * 1024
_HTTP_OK: Final = 200
_HTTP_SERVER_ERROR: Final = 500
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """One request for a code. `state`, `nonce` and `code_verifier` are 256 random bits each."""

    ehr_id: str
    fhir_base_url: str
    url: str = field(repr=False)
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResponse:
    """What the EHR granted, which may be less than was asked for. `expires_at` is seconds since the epoch.

    `fhir_context` holds the references of the launch's own context, such as "ImagingStudy/1".
    """

    access_token: str = field(repr=False)
    expires_at: float
    scopes: ScopeSet
    patient_id: str | None = field(default=None, repr=False)
    id_token: str | None = field(default=None, repr=False)
    app_context: str | None = field(default=None, repr=False)
    fhir_context: tuple[str, ...] = field(default=(), repr=False)
    need_patient_banner: bool = True


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
    launch_scope = ("launch/patient",) if launch is None else ("launch",)
    parameters = {
        "redirect_uri": redirect_uri,
        "scope": " ".join(dict.fromkeys((*client.scopes, *launch_scope))),
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
        url=prepare_grant_uri(configuration.authorization_endpoint, client.client_id, "code", **parameters),
        state=state,
        nonce=nonce,
        code_verifier=verifier,
    )


def client_assertion(
    keyring: Keyring,
    *,
    client_id: str,
    token_endpoint: str,
    algorithm: SigningAlgorithm = "ES384",
    clock: Clock = time.time,
) -> str:
    """Return a JWT that proves who we are, once, for four minutes.

    Spec: SMART App Launch 2.2.0, "Authenticating to the Token endpoint"; RFC 7523.
    """
    key = keyring.assertion_key(algorithm)
    now = int(clock())
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": token_endpoint,
        "iat": now,
        "exp": now + int(_ASSERTION_LIFE_S),
        "jti": secrets.token_urlsafe(32),
    }
    return jwt.encode({"alg": algorithm, "kid": key.kid, "typ": "JWT"}, claims, key, algorithms=[algorithm])


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
    endpoint = _Endpoint(transport, keyring, ehr, configuration, clock)
    return _token_response(endpoint.post(configuration.token_endpoint, form), clock())


def introspect(
    transport: Transport,
    keyring: Keyring,
    ehr: EHR,
    configuration: SMARTConfiguration,
    *,
    token: str,
    clock: Clock = time.time,
) -> SMARTUser:
    """Ask the issuer who holds `token`; any doubt is a no.

    Raises Unauthenticated where the token is not active, UpstreamError where the issuer cannot tell.
    Spec: RFC 7662; SMART App Launch 2.2.0, "Token Introspection".
    """
    if configuration.introspection_endpoint is None or not _client(ehr).introspection:
        raise Unauthenticated("this EHR's tokens are not accepted here", code="introspection_unavailable")
    endpoint = _Endpoint(transport, keyring, ehr, configuration, clock)
    answer = endpoint.post(configuration.introspection_endpoint, {"token": token})
    if answer.get("active") is not True:
        raise Unauthenticated("token is not active", code="token_inactive")
    if _number(answer, "exp") <= clock():
        raise Unauthenticated("token has expired", code="token_expired")
    fhir_user = _optional_text(answer, "fhirUser")
    fhir_user = None if fhir_user is None else own_reference(ehr, fhir_user)
    return SMARTUser(
        ehr=ehr,
        fhir_user=fhir_user,
        patient_id=_patient(answer),
        scopes=ScopeSet.parse(_text(answer, "scope")),
        client_id=_text(answer, "client_id"),
        roles=_roles(ehr, fhir_user, answer),
    )


def _roles(ehr: EHR, fhir_user: str | None, answer: Mapping[str, Any]) -> frozenset[Role]:
    """A token that names no person is a service's; one that names a person has that person's roles."""
    if fhir_user is None:
        return frozenset({Role.SERVICE})
    return ehr.roles_of(EHRPerson(fhir_user=fhir_user, claims=answer))


def revoke(
    transport: Transport,
    keyring: Keyring,
    ehr: EHR,
    configuration: SMARTConfiguration,
    *,
    token: str,
    clock: Clock = time.time,
) -> bool:
    """Tell the EHR that `token` is done with; False where it offers no way to.

    Spec: RFC 7009.
    """
    if configuration.revocation_endpoint is None:
        return False
    endpoint = _Endpoint(transport, keyring, ehr, configuration, clock)
    endpoint.send(configuration.revocation_endpoint, {"token": token, "token_type_hint": "access_token"})
    return True


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Form posts to the EHR's authorization server, each signed with an assertion of its own."""

    transport: Transport
    keyring: Keyring
    ehr: EHR
    configuration: SMARTConfiguration
    clock: Clock

    def post(self, url: str, form: Mapping[str, str]) -> Mapping[str, Any]:
        return _json_object(self.send(url, form).body)

    def send(self, url: str, form: Mapping[str, str]) -> Response:
        assertion = client_assertion(
            self.keyring,
            client_id=_client(self.ehr).client_id,
            token_endpoint=self.configuration.token_endpoint,
            algorithm=self.configuration.assertion_algorithm,
            clock=self.clock,
        )
        signed = {**form, "client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion}
        response = self.transport.request(
            "POST",
            url,
            allowed_origins=self.ehr.authorization_origins,
            deadline_s=_DEADLINE_S,
            headers={"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
            content=urlencode(signed).encode("ascii"),
            max_bytes=_MAX_BYTES,
        )
        if response.status != _HTTP_OK:
            raise _oauth_error(response)
        return response


def _client(ehr: EHR) -> SMARTClient:
    if ehr.smart is None:
        raise InvalidRequest("this EHR has no SMART client registered", code="smart_not_registered")
    return ehr.smart


def _oauth_error(response: Response) -> UpstreamError:
    """Only the error's code is passed on: its description is the other side's free text."""
    if response.status >= _HTTP_SERVER_ERROR:
        return UpstreamUnavailable("the authorization server failed", code="oauth_unavailable")
    try:
        error = _json_object(response.body).get("error")
    except UpstreamError:
        error = None
    known = error if isinstance(error, str) and _ERROR_CODE.fullmatch(error) else "refused"
    return UpstreamRefused(f"the authorization server refused: {known}", code=f"oauth_{known}")


def _token_response(answer: Mapping[str, Any], now: float) -> TokenResponse:
    if _text(answer, "token_type").lower() != "bearer":
        raise _unusable("token_type", "must be Bearer")
    app_context = _optional_text(answer, "appContext")
    return TokenResponse(
        access_token=_text(answer, "access_token"),
        expires_at=now + _life_s(answer),
        scopes=ScopeSet.parse(_text(answer, "scope")),
        patient_id=_patient(answer),
        id_token=_optional_text(answer, "id_token"),
        app_context=app_context,
        fhir_context=_launch_context(answer.get("fhirContext", [])),
        need_patient_banner=answer.get("need_patient_banner") is not False,
    )


def _life_s(answer: Mapping[str, Any]) -> float:
    """A life that is missing or makes no sense becomes the short default.

    Spec: SMART App Launch 2.2.0, "Response" (`expires_in`, recommended).
    """
    value = answer.get("expires_in")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_TOKEN_LIFE_S:
        return _DEFAULT_TOKEN_LIFE_S
    return float(value)


def _launch_context(value: object) -> tuple[str, ...]:
    """Return the references whose role is "launch", which an absent role means.

    Spec: SMART App Launch 2.2.0, "fhirContext".
    """
    items = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    references = (item.get("reference") for item in items if item.get("role", "launch") == "launch")
    return tuple(reference for reference in references if isinstance(reference, str))


def _patient(answer: Mapping[str, Any]) -> str | None:
    patient = _optional_text(answer, "patient")
    if patient is not None and not is_fhir_id(patient):
        raise _unusable("patient", "must be a FHIR id")
    return patient


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise _unusable(name, "must be a string")
    return value


def _optional_text(answer: Mapping[str, Any], name: str) -> str | None:
    return None if answer.get(name) is None else _text(answer, name)


def _number(answer: Mapping[str, Any], name: str) -> float:
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _unusable(name, "must be a number")
    return float(value)


def _json_object(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UpstreamError("the authorization server did not answer JSON", code="oauth_malformed") from error
    if not isinstance(answer, dict):
        raise UpstreamError("the authorization server did not answer a JSON object", code="oauth_malformed")
    return answer


def _unusable(name: str, rule: str) -> UpstreamError:
    return UpstreamError(f"the authorization server's {name} {rule}", code="oauth_malformed", expression=name)
