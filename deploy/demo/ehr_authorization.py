"""The demo EHR's SMART authorization server: launches, codes, tokens, introspection.

It has no sign-in: whoever reaches the demo is its one practitioner, and every launch is approved.
Spec: SMART App Launch 2.2; RFC 6749, 7523, 7636, 7662, 9207
"""

import base64
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from rayhook.auth.scopes import ScopeSet
from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID, PRACTITIONER_NAME
from rayhook.fhir.errors import InvalidRequest, NotFound

CLIENT_ID = "rayhook"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
READ_SCOPES = (
    "patient/Patient.r",
    "patient/ImagingStudy.rs",
    "patient/Endpoint.rs",
    "patient/ServiceRequest.rs",
    "patient/DiagnosticReport.rs",
    "patient/Observation.rs",
    "patient/Device.rs",
    "patient/Provenance.rs",
)
WRITE_SCOPES = (
    "patient/DiagnosticReport.c",
    "patient/Observation.c",
    "patient/Device.c",
    "patient/Provenance.c",
)
LOGIN_SCOPES = ("openid", "fhirUser", "launch")

_LAUNCH_LIFE_S = 300.0
_CODE_LIFE_S = 60.0
_TOKEN_LIFE_S = 300
_ASSERTION_LIFE_S = 300
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


class OAuthError(Exception):
    """Spec: RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = 401 if error == "invalid_client" else 400


@dataclass(frozen=True, slots=True)
class LaunchContext:
    patient_id: str
    app_context: str | None
    expires_at: float


@dataclass(frozen=True, slots=True)
class AccessToken:
    """`patient_id` binds every read and write; `client_id` and `user` are told by introspection."""

    patient_id: str
    scope: str
    expires_at: float
    client_id: str = CLIENT_ID
    user: str = f"Practitioner/{PRACTITIONER_ID}"


@dataclass(frozen=True, slots=True)
class _Grant:
    """An authorization code's; `token` is set when the code has been used, so that reuse can revoke it."""

    launch: LaunchContext
    scope: str
    challenge: str
    nonce: str | None
    expires_at: float
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """The query of GET /authorize, as it came."""

    response_type: str
    client_id: str
    redirect_uri: str
    scope: str
    state: str
    aud: str
    launch: str
    code_challenge: str
    code_challenge_method: str
    nonce: str | None = None


@dataclass(slots=True, kw_only=True)
class AuthorizationServer:
    """`client_keys` reads the registered client's JWK Set; `key` signs id_tokens."""

    issuer: str
    redirect_uri: str
    key: ECKey
    client_keys: Callable[[], KeySet]
    clock: Callable[[], float] = time.time
    _launches: dict[str, LaunchContext] = field(default_factory=dict)
    _grants: dict[str, _Grant] = field(default_factory=dict)
    _tokens: dict[str, AccessToken] = field(default_factory=dict)
    _used_jti: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def token_endpoint(self) -> str:
        return f"{self._origin}/auth/token"

    @property
    def introspection_endpoint(self) -> str:
        return f"{self._origin}/auth/introspect"

    @property
    def revocation_endpoint(self) -> str:
        return f"{self._origin}/auth/revoke"

    @property
    def _origin(self) -> str:
        return self.issuer.removesuffix("/fhir")

    def configuration(self) -> dict[str, Any]:
        """Spec: SMART App Launch 2.2, .well-known/smart-configuration."""
        return {
            "issuer": self.issuer,
            "jwks_uri": f"{self._origin}/auth/jwks.json",
            "authorization_endpoint": f"{self._origin}/auth/authorize",
            "token_endpoint": self.token_endpoint,
            "introspection_endpoint": self.introspection_endpoint,
            "revocation_endpoint": self.revocation_endpoint,
            "token_endpoint_auth_methods_supported": ["private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": ["ES384", "RS384"],
            "introspection_endpoint_auth_methods_supported": ["private_key_jwt"],
            "id_token_signing_alg_values_supported": ["ES384"],
            "grant_types_supported": ["authorization_code"],
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "scopes_supported": [*LOGIN_SCOPES, *READ_SCOPES, *WRITE_SCOPES],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "capabilities": [
                "launch-ehr",
                "client-confidential-asymmetric",
                "sso-openid-connect",
                "context-ehr-patient",
                "permission-patient",
                "permission-v2",
            ],
        }

    def public_jwks(self) -> dict[str, Any]:
        return {"keys": [self.key.as_dict(private=False)]}

    def new_launch(self, patient_id: str, app_context: str | None) -> str:
        """Return a `launch` handle for the app to echo."""
        handle = secrets.token_urlsafe(24)
        with self._lock:
            self._launches[handle] = LaunchContext(patient_id, app_context, self.clock() + _LAUNCH_LIFE_S)
        return handle

    def authorize(self, request: AuthorizationRequest) -> str:
        """Return the URL to send the browser back to, with a code or an error.

        Raises InvalidRequest where the client or its redirect URI is not the registered one:
        such a request must not be redirected (RFC 6749 section 4.1.2.1).
        """
        if request.client_id != CLIENT_ID or request.redirect_uri != self.redirect_uri:
            raise InvalidRequest("client_id and redirect_uri must be the registered ones")
        try:
            code = self._grant(request)
        except OAuthError as error:
            answer = {"error": error.error, "error_description": error.description}
        else:
            answer = {"code": code}
        return f"{self.redirect_uri}?{urlencode({**answer, 'state': request.state, 'iss': self.issuer})}"

    def _grant(self, request: AuthorizationRequest) -> str:
        if request.response_type != "code":
            raise OAuthError("unsupported_response_type", "response_type must be code")
        if request.code_challenge_method != "S256" or not _CHALLENGE.fullmatch(request.code_challenge):
            raise OAuthError("invalid_request", "a PKCE code_challenge with S256 is required")
        if request.aud != self.issuer:
            raise OAuthError("invalid_request", "aud must be this FHIR server")
        with self._lock:
            launch = self._launches.pop(request.launch, None)
        if launch is None or launch.expires_at < self.clock():
            raise OAuthError("invalid_request", "launch is unknown, used or expired")
        offered = {*LOGIN_SCOPES, *READ_SCOPES}
        granted = " ".join(scope for scope in request.scope.split() if scope in offered)
        code = secrets.token_urlsafe(32)
        with self._lock:
            self._grants[code] = _Grant(
                launch, granted, request.code_challenge, request.nonce, self.clock() + _CODE_LIFE_S
            )
        return code

    def exchange(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Return the token response for an authorization code.

        Spec: SMART App Launch 2.2, "Obtain access token"; a code used twice revokes its token (RFC 9700).
        """
        self.authenticate_client(form, audience=self.token_endpoint)
        if form.get("grant_type") != "authorization_code":
            raise OAuthError("unsupported_grant_type", "grant_type must be authorization_code")
        grant = self._redeem(form.get("code", ""))
        _verify_pkce(form.get("code_verifier", ""), grant.challenge)
        if form.get("redirect_uri") != self.redirect_uri:
            raise OAuthError("invalid_grant", "redirect_uri differs from the authorization request's")
        token = self.issue(grant.launch.patient_id, grant.scope)
        with self._lock:
            self._grants[form["code"]] = _Grant(
                grant.launch, grant.scope, grant.challenge, grant.nonce, grant.expires_at, token
            )
        return self._token_response(token, grant)

    def _redeem(self, code: str) -> _Grant:
        with self._lock:
            grant = self._grants.pop(code, None)
            if grant is not None and grant.token is not None:
                self._tokens.pop(grant.token, None)
        if grant is None or grant.token is not None or grant.expires_at < self.clock():
            raise OAuthError("invalid_grant", "code is unknown, used or expired")
        return grant

    def _token_response(self, token: str, grant: _Grant) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": _TOKEN_LIFE_S,
            "scope": grant.scope,
            "patient": grant.launch.patient_id,
            "need_patient_banner": True,
        }
        if grant.launch.app_context is not None:
            answer["appContext"] = grant.launch.app_context
        if "openid" in grant.scope.split():
            answer["id_token"] = self._id_token(grant.nonce)
        return answer

    def _id_token(self, nonce: str | None) -> str:
        now = int(self.clock())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": PRACTITIONER_ID,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + _TOKEN_LIFE_S,
            "fhirUser": f"{self.issuer}/Practitioner/{PRACTITIONER_ID}",
            "name": PRACTITIONER_NAME,
        }
        if nonce is not None:
            claims["nonce"] = nonce
        header = {"alg": "ES384", "kid": self.key.kid, "typ": "JWT"}
        return jwt.encode(header, claims, self.key, algorithms=["ES384"])

    def issue(self, patient_id: str, scope: str) -> str:
        """Return a new access token bound to `patient_id`."""
        ScopeSet.parse(scope)
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._tokens[token] = AccessToken(patient_id, scope, self.clock() + _TOKEN_LIFE_S)
        return token

    def find(self, token: str) -> AccessToken:
        """Return what `token` grants; raises NotFound where it is unknown or has expired."""
        with self._lock:
            found = self._tokens.get(token)
        if found is None or found.expires_at < self.clock():
            raise NotFound("access token is unknown or has expired")
        return found

    def is_active(self, token: str) -> bool:
        try:
            self.find(token)
        except NotFound:
            return False
        return True

    def introspect(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Spec: RFC 7662; SMART App Launch 2.2, "Token Introspection"."""
        self.authenticate_client(form, audience=self.introspection_endpoint)
        try:
            found = self.find(form.get("token", ""))
        except NotFound:
            return {"active": False}
        return {
            "active": True,
            "scope": found.scope,
            "client_id": found.client_id,
            "exp": int(found.expires_at),
            "iss": self.issuer,
            "sub": found.user.removeprefix("Practitioner/"),
            "fhirUser": f"{self.issuer}/{found.user}",
            "patient": found.patient_id,
        }

    def revoke(self, form: Mapping[str, str]) -> None:
        """Spec: RFC 7009; a token that is unknown is as good as revoked."""
        self.authenticate_client(form, audience=self.revocation_endpoint)
        with self._lock:
            self._tokens.pop(form.get("token", ""), None)

    def authenticate_client(self, form: Mapping[str, str], *, audience: str) -> None:
        """Raise OAuthError unless the form carries a fresh assertion signed by the registered client.

        Spec: SMART App Launch 2.2, "Client Authentication: Asymmetric"; RFC 7523
        """
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise OAuthError("invalid_client", "client_assertion_type must be jwt-bearer")
        claims = self._assertion_claims(form.get("client_assertion", ""))
        now = self.clock()
        expires = claims.get("exp")
        if claims.get("iss") != CLIENT_ID or claims.get("sub") != CLIENT_ID:
            raise OAuthError("invalid_client", "iss and sub must be the client_id")
        if claims.get("aud") not in (audience, [audience], self.token_endpoint, [self.token_endpoint]):
            raise OAuthError("invalid_client", "aud must be the endpoint's URL")
        if not isinstance(expires, (int, float)) or not now < expires <= now + _ASSERTION_LIFE_S + 5:
            raise OAuthError("invalid_client", "exp must lie at most five minutes ahead")
        self._use_jti(claims.get("jti"), float(expires))

    def _assertion_claims(self, assertion: str) -> dict[str, Any]:
        try:
            return dict(jwt.decode(assertion, self.client_keys(), algorithms=["ES384", "RS384"]).claims)
        except (JoseError, ValueError) as error:
            raise OAuthError("invalid_client", "client_assertion could not be verified") from error

    def _use_jti(self, jti: object, expires_at: float) -> None:
        if not isinstance(jti, str) or not jti:
            raise OAuthError("invalid_client", "jti is required")
        with self._lock:
            now = self.clock()
            self._used_jti = {known: until for known, until in self._used_jti.items() if until > now}
            if jti in self._used_jti:
                raise OAuthError("invalid_client", "jti was used before")
            self._used_jti[jti] = expires_at


def _verify_pkce(verifier: str, challenge: str) -> None:
    """Spec: RFC 7636 section 4.6."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    if not _VERIFIER.fullmatch(verifier) or not hmac.compare_digest(digest, challenge):
        raise OAuthError("invalid_grant", "code_verifier does not match the code_challenge")
