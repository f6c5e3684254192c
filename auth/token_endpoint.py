"""The EHR's token endpoint: form posts, each with an assertion of its own, and the answers read with care.

Spec: SMART App Launch 2.2.0, "Client Authentication: Asymmetric"; RFC 6749 sections 5.1, 5.2; RFC 7523
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

from joserfc import jwt

from rayhook.auth.keys import Keyring, SigningAlgorithm
from rayhook.auth.launch_context import LaunchContext, read_context
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable
from rayhook.fhir.references import is_fhir_id
from rayhook.fhir.transport import Response, Transport

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
class TokenResponse:
    """What the EHR granted, which may be less than was asked for. `expires_at` is seconds since the epoch."""

    access_token: str = field(repr=False)
    expires_at: float
    scopes: ScopeSet
    patient_id: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    id_token: str | None = field(default=None, repr=False)
    app_context: str | None = field(default=None, repr=False)
    context: LaunchContext = field(default_factory=LaunchContext)
    need_patient_banner: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How we show an authorization server who we are. `jku` is the URL of our JWK Set where it wants to see it.

    A public client only says its name: its codes are bound to it by PKCE. Spec: RFC 6749 section 2.1
    """

    client_id: str
    token_endpoint: str
    algorithm: SigningAlgorithm
    jku: str | None = None
    is_public: bool = False


def client_assertion(
    keyring: Keyring,
    *,
    client_id: str,
    token_endpoint: str,
    algorithm: SigningAlgorithm = "ES384",
    jku: str | None = None,
    clock: Clock = time.time,
) -> str:
    """Return a JWT that proves who we are, once, for four minutes.

    Spec: SMART App Launch 2.2.0, "Authenticating to the Token endpoint"; RFC 7523.
    """
    key = keyring.assertion_key(algorithm)
    now = int(clock())
    header = {"alg": algorithm, "kid": key.kid, "typ": "JWT", **({} if jku is None else {"jku": jku})}
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": token_endpoint,
        "iat": now,
        "exp": now + int(_ASSERTION_LIFE_S),
        "jti": secrets.token_urlsafe(32),
    }
    return jwt.encode(header, claims, key, algorithms=[algorithm])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEndpoint:
    """Posts to one authorization server, at the origins registered for it and nowhere else."""

    transport: Transport
    keyring: Keyring
    credentials: Credentials
    allowed_origins: frozenset[str]
    clock: Clock = time.time

    def request_token(self, form: Mapping[str, str]) -> TokenResponse:
        """Spec: RFC 6749 section 5.1."""
        return _token_response(self.post(self.credentials.token_endpoint, form), self.clock(), form)

    def post(self, url: str, form: Mapping[str, str]) -> Mapping[str, Any]:
        """Return the JSON object of the answer.

        Raises UpstreamRefused with code `oauth_…`, UpstreamUnavailable, UpstreamError.
        """
        return _json_object(self.send(url, form).body)

    def send(self, url: str, form: Mapping[str, str]) -> Response:
        signed = {**form, **self._who_asks()}
        response = self.transport.request(
            "POST",
            url,
            allowed_origins=self.allowed_origins,
            deadline_s=_DEADLINE_S,
            headers={"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
            content=urlencode(signed).encode("ascii"),
            max_bytes=_MAX_BYTES,
        )
        if response.status != _HTTP_OK:
            raise _oauth_error(response)
        return response

    def _who_asks(self) -> Mapping[str, str]:
        credentials = self.credentials
        if credentials.is_public:
            return {"client_id": credentials.client_id}
        assertion = client_assertion(
            self.keyring,
            client_id=credentials.client_id,
            token_endpoint=credentials.token_endpoint,
            algorithm=credentials.algorithm,
            jku=credentials.jku,
            clock=self.clock,
        )
        return {"client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion}


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


def _token_response(answer: Mapping[str, Any], now: float, form: Mapping[str, str]) -> TokenResponse:
    if text_of(answer, "token_type").lower() != "bearer":
        raise _unusable("token_type", "must be Bearer")
    return TokenResponse(
        access_token=text_of(answer, "access_token"),
        expires_at=now + _life_s(answer),
        scopes=_scopes(answer, form),
        patient_id=patient_of(answer),
        refresh_token=optional_text_of(answer, "refresh_token"),
        id_token=optional_text_of(answer, "id_token"),
        app_context=optional_text_of(answer, "appContext"),
        context=read_context(answer),
        need_patient_banner=answer.get("need_patient_banner") is not False,
    )


def _scopes(answer: Mapping[str, Any], form: Mapping[str, str]) -> ScopeSet:
    """SMART requires the member; where a refresh or a request for scopes lacks it, OAuth's rule holds: unchanged.

    Spec: RFC 6749 sections 5.1, 6
    """
    if "scope" not in answer and form["grant_type"] in {"client_credentials", "refresh_token"}:
        return ScopeSet.parse(form.get("scope", ""))
    return ScopeSet.parse(text_of(answer, "scope"))


def _life_s(answer: Mapping[str, Any]) -> float:
    """A life that is missing or makes no sense becomes the short default.

    Spec: SMART App Launch 2.2.0, "Response" (`expires_in`, recommended).
    """
    value = answer.get("expires_in")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_TOKEN_LIFE_S:
        return _DEFAULT_TOKEN_LIFE_S
    return float(value)


def patient_of(answer: Mapping[str, Any]) -> str | None:
    patient = optional_text_of(answer, "patient")
    if patient is not None and not is_fhir_id(patient):
        raise _unusable("patient", "must be a FHIR id")
    return patient


def text_of(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise _unusable(name, "must be a string")
    return value


def optional_text_of(answer: Mapping[str, Any], name: str) -> str | None:
    return None if answer.get(name) is None else text_of(answer, name)


def number_of(answer: Mapping[str, Any], name: str) -> float:
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
