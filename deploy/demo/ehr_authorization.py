"""The demo EHR's SMART authorization server: launches, codes, tokens, refresh, systems, introspection.

It has no sign-in: whoever reaches the demo is whom they say they are, and every launch is approved. In all else it
is strict: PKCE with S256, codes and refresh tokens used once, client assertions fresh and of five minutes.
Spec: SMART App Launch 2.2; RFC 6749, 7523, 7636, 7662, 9207, 9700
"""

import base64
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from rayhook.deploy.demo.ehr_clients import ClientAuthenticator
from rayhook.deploy.demo.ehr_scopes import (
    CONTEXT_SCOPES,
    LOGIN_SCOPES,
    READ_SCOPES,
    SYSTEM_SCOPES,
    WRITE_SCOPES,
)
from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID, USERS
from rayhook.deploy.demo.ehr_tokens import CLIENT_ID, TOKEN_LIFE_S, AccessToken, Grant, OAuthError, TokenStore
from rayhook.fhir.errors import InvalidRequest, NotFound

_LAUNCH_LIFE_S = 300.0
_CODE_LIFE_S = 60.0
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """`study_id` is the ImagingStudy that the user was looking at, or chose; `user_id` is one of USERS."""

    patient_id: str
    app_context: str | None
    expires_at: float
    study_id: str | None = None
    user_id: str = PRACTITIONER_ID


@dataclass(frozen=True, slots=True)
class _Code:
    """An authorization code's; `used` is set once it was shown, so that a second time ends the grant."""

    launch: LaunchContext
    grant: Grant
    challenge: str
    nonce: str | None
    expires_at: float
    used: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """The parameters of /authorize, as they came.

    `chosen_patient` and `chosen_study` are the demo's own: what the user chose in a standalone launch, `user_id` is
    who has signed in to the EHR.
    """

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
    chosen_patient: str | None = None
    chosen_study: str | None = None
    user_id: str = PRACTITIONER_ID

    @property
    def needs_choice(self) -> bool:
        """Spec: SMART App Launch 2.2, "Launch App: Standalone Launch", scope launch/patient."""
        return not self.launch and "launch/patient" in self.scope.split() and self.chosen_patient is None

    @property
    def asks_for_study(self) -> bool:
        return "launch/imagingstudy" in self.scope.split()


@dataclass(slots=True, kw_only=True)
class AuthorizationServer:
    """`client_keys` reads the registered client's JWK Set; `key` signs id_tokens.

    `takes_post` says so in the discovery document; the endpoint takes a POST in any case. `withheld` are scopes
    that it does not grant, as some EHRs do not.
    """

    issuer: str
    redirect_uri: str
    key: ECKey
    client_keys: Callable[[], KeySet]
    clock: Callable[[], float] = time.time
    takes_post: bool = False
    withheld: frozenset[str] = frozenset()
    tokens: TokenStore = field(init=False)
    clients: ClientAuthenticator = field(default_factory=ClientAuthenticator)
    _launches: dict[str, LaunchContext] = field(default_factory=dict)
    _codes: dict[str, _Code] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.tokens = TokenStore(self.clock)

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
            "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "scopes_supported": [
                *LOGIN_SCOPES,
                *CONTEXT_SCOPES,
                *READ_SCOPES,
                *WRITE_SCOPES,
                *SYSTEM_SCOPES,
            ],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "capabilities": [
                "launch-ehr",
                "launch-standalone",
                "client-confidential-asymmetric",
                "sso-openid-connect",
                "context-banner",
                "context-ehr-patient",
                "context-standalone-patient",
                "context-style",
                "permission-online",
                "permission-patient",
                "permission-v2",
                *(("authorize-post",) if self.takes_post else ()),
            ],
        }

    def public_jwks(self) -> dict[str, Any]:
        return {"keys": [self.key.as_dict(private=False)]}

    def new_launch(
        self,
        patient_id: str,
        app_context: str | None,
        study_id: str | None = None,
        *,
        user_id: str = PRACTITIONER_ID,
    ) -> str:
        """Return a `launch` handle for the app to echo."""
        handle = secrets.token_urlsafe(24)
        context = LaunchContext(patient_id, app_context, self.clock() + _LAUNCH_LIFE_S, study_id, user_id)
        with self._lock:
            self._launches[handle] = context
        return handle

    def authorize(self, request: AuthorizationRequest) -> str:
        """Return the URL to send the browser back to, with a code or an error.

        Raises InvalidRequest where the client or its redirect URI is not the registered one:
        such a request must not be redirected (RFC 6749 section 4.1.2.1).
        """
        self.require_registered(request)
        try:
            code = self._code(request)
        except OAuthError as error:
            answer = {"error": error.error, "error_description": error.description}
        else:
            answer = {"code": code}
        return f"{self.redirect_uri}?{urlencode({**answer, 'state': request.state, 'iss': self.issuer})}"

    def require_registered(self, request: AuthorizationRequest) -> None:
        if request.client_id != CLIENT_ID or request.redirect_uri != self.redirect_uri:
            raise InvalidRequest("client_id and redirect_uri must be the registered ones")

    def _code(self, request: AuthorizationRequest) -> str:
        if request.response_type != "code":
            raise OAuthError("unsupported_response_type", "response_type must be code")
        if request.code_challenge_method != "S256" or not _CHALLENGE.fullmatch(request.code_challenge):
            raise OAuthError("invalid_request", "a PKCE code_challenge with S256 is required")
        if request.aud != self.issuer:
            raise OAuthError("invalid_request", "aud must be this FHIR server")
        launch = self._launch(request)
        offered = {*LOGIN_SCOPES, *CONTEXT_SCOPES, *READ_SCOPES} - self.withheld
        granted = " ".join(scope for scope in request.scope.split() if scope in offered)
        code = secrets.token_urlsafe(32)
        with self._lock:
            self._codes[code] = _Code(
                launch,
                Grant(launch.patient_id, granted, user=f"Practitioner/{launch.user_id}"),
                request.code_challenge,
                request.nonce,
                self.clock() + _CODE_LIFE_S,
            )
        return code

    def _launch(self, request: AuthorizationRequest) -> LaunchContext:
        if request.chosen_patient is not None and not request.launch:
            return LaunchContext(
                request.chosen_patient,
                None,
                self.clock() + _LAUNCH_LIFE_S,
                request.chosen_study,
                request.user_id,
            )
        with self._lock:
            launch = self._launches.pop(request.launch, None)
        if launch is None or launch.expires_at < self.clock():
            raise OAuthError("invalid_request", "launch is unknown, used or expired")
        return launch

    def exchange(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Return the token response for a code, a refresh token, or a system that shows its own credentials."""
        self.authenticate_client(form, audience=self.token_endpoint)
        match form.get("grant_type"):
            case "authorization_code":
                return self._exchange_code(form)
            case "refresh_token":
                return self._refresh(form)
            case "client_credentials":
                return self._system(form)
        raise OAuthError("unsupported_grant_type", "grant_type is not one that this server knows")

    def _exchange_code(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Spec: SMART App Launch 2.2, "Obtain access token"; RFC 9700: a code used twice ends its grant."""
        code = self._redeem(form.get("code", ""))
        _verify_pkce(form.get("code_verifier", ""), code.challenge)
        if form.get("redirect_uri") != self.redirect_uri:
            raise OAuthError("invalid_grant", "redirect_uri differs from the authorization request's")
        answer = self._token_response(code.grant) | self._context(code.launch)
        if "openid" in code.grant.scope.split():
            answer["id_token"] = self._id_token(code.nonce, code.launch.user_id)
        return answer

    def _redeem(self, text: str) -> _Code:
        with self._lock:
            code = self._codes.get(text)
            if code is not None:
                self._codes[text] = replace(code, used=True)
        if code is not None and code.used:
            self.tokens.end(code.grant)
        if code is None or code.used or code.expires_at < self.clock():
            raise OAuthError("invalid_grant", "code is unknown, used or expired")
        return code

    def _refresh(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Spec: SMART App Launch 2.2, "Refresh access token"; the scopes may become fewer, never more."""
        grant = self.tokens.redeem_refresh(form.get("refresh_token", ""))
        asked = form.get("scope", grant.scope).split()
        if not set(asked) <= set(grant.scope.split()):
            raise OAuthError("invalid_scope", "scope is more than was granted")
        return self._token_response(replace(grant, scope=" ".join(asked)))

    def _system(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Spec: SMART App Launch 2.2, "Backend Services"."""
        granted = [scope for scope in form.get("scope", "").split() if scope in SYSTEM_SCOPES]
        if not granted:
            raise OAuthError("invalid_scope", "scope must hold system scopes of this server")
        grant = Grant(None, " ".join(granted), user=None)
        return {
            "access_token": self.tokens.issue(grant),
            "token_type": "bearer",
            "expires_in": self.tokens.life_s,
            "scope": grant.scope,
        }

    def _token_response(self, grant: Grant) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "access_token": self.tokens.issue(grant),
            "token_type": "Bearer",
            "expires_in": self.tokens.life_s,
            "scope": grant.scope,
            "patient": grant.patient_id,
        }
        if "online_access" in grant.scope.split():
            answer["refresh_token"] = self.tokens.issue_refresh(grant)
        return answer

    def _context(self, launch: LaunchContext) -> dict[str, Any]:
        """Spec: SMART App Launch 2.2, "Launch context arrives with your access_token"."""
        context: dict[str, Any] = {
            "need_patient_banner": True,
            "smart_style_url": f"{self._origin}/auth/style.json",
            "tenant": "demo",
        }
        if launch.app_context is not None:
            context["appContext"] = launch.app_context
        if launch.study_id is not None:
            context["fhirContext"] = [{"reference": f"ImagingStudy/{launch.study_id}"}]
        return context

    def _id_token(self, nonce: str | None, user_id: str) -> str:
        now = int(self.clock())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": user_id,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + TOKEN_LIFE_S,
            "fhirUser": f"{self.issuer}/Practitioner/{user_id}",
            "name": USERS[user_id],
        }
        if nonce is not None:
            claims["nonce"] = nonce
        header = {"alg": "ES384", "kid": self.key.kid, "typ": "JWT"}
        return jwt.encode(header, claims, self.key, algorithms=["ES384"])

    def issue(self, patient_id: str, scope: str) -> str:
        """Return a new access token bound to `patient_id`, as hooks carry it."""
        return self.tokens.issue(Grant(patient_id, scope))

    def find(self, token: str) -> AccessToken:
        """Return what `token` grants; raises NotFound where it is unknown or has expired."""
        return self.tokens.find(token)

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
        grant = found.grant
        answer: dict[str, Any] = {
            "active": True,
            "scope": grant.scope,
            "client_id": grant.client_id,
            "exp": int(found.expires_at),
            "iss": self.issuer,
            "patient": grant.patient_id,
        }
        if grant.user is not None:
            answer |= {
                "sub": grant.user.removeprefix("Practitioner/"),
                "fhirUser": f"{self.issuer}/{grant.user}",
            }
        return {name: value for name, value in answer.items() if value is not None}

    def revoke(self, form: Mapping[str, str]) -> None:
        """Spec: RFC 7009; a token that is unknown is as good as revoked."""
        self.authenticate_client(form, audience=self.revocation_endpoint)
        self.tokens.revoke(form.get("token", ""))

    def authenticate_client(self, form: Mapping[str, str], *, audience: str) -> None:
        self.clients.authenticate(
            form, self.client_keys, audiences=(audience, self.token_endpoint), now=self.clock()
        )


def _verify_pkce(verifier: str, challenge: str) -> None:
    """Spec: RFC 7636 section 4.6."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    if not _VERIFIER.fullmatch(verifier) or not hmac.compare_digest(digest, challenge):
        raise OAuthError("invalid_grant", "code_verifier does not match the code_challenge")
