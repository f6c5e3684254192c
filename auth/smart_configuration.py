"""What an EHR's SMART server offers, and whether we can work with it.

Spec: SMART App Launch 2.2.0, "Conformance" (.well-known/smart-configuration).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from rayhook.auth.keys import SigningAlgorithm
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import InvalidRequest, UpstreamError
from rayhook.fhir.transport import Transport, origin_of

_DEADLINE_S: Final = 5.0
_MAX_BYTES: Final = 256 * 1024
_HTTP_OK: Final = 200
_ASSERTION_ALGORITHMS: Final[tuple[SigningAlgorithm, ...]] = ("ES384", "RS384")

_EVERY_LAUNCH: Final = frozenset({"client-confidential-asymmetric", "permission-v2", "sso-openid-connect"})
_EMBEDDED: Final = frozenset({"context-ehr-patient", "launch-ehr"})
_STANDALONE: Final = frozenset({"context-standalone-patient", "launch-standalone"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SMARTConfiguration:
    """Endpoints are absolute, and of origins that the EHR was registered with.

    `scopes` are those that it names, which need not be all that it grants.
    `names_issuer` says that every answer to an authorization request has `iss` (RFC 9207).
    """

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    assertion_algorithm: SigningAlgorithm
    capabilities: frozenset[str]
    scopes: frozenset[str] = frozenset()
    names_issuer: bool = False
    jwks_uri: str | None = None
    introspection_endpoint: str | None = None
    revocation_endpoint: str | None = None

    @property
    def knows_version_1_only(self) -> bool:
        return "permission-v1" in self.capabilities and "permission-v2" not in self.capabilities

    def missing_capabilities(self, *, standalone: bool) -> tuple[str, ...]:
        """Return what a launch needs and the EHR does not say it has; many have it all the same.

        Spec: SMART App Launch 2.2.0, "Capability Sets"
        """
        kind = _STANDALONE if standalone else _EMBEDDED
        return tuple(sorted((_EVERY_LAUNCH | kind) - self.capabilities))

    @property
    def takes_post(self) -> bool:
        """Spec: SMART App Launch 2.2.0, capability `authorize-post`."""
        return "authorize-post" in self.capabilities


def discover(transport: Transport, ehr: EHR, *, fhir_base_url: str | None = None) -> SMARTConfiguration:
    """Fetch and check the discovery document of one of the EHR's FHIR bases, the first by default.

    Raises UpstreamError that names the member at fault.
    """
    if ehr.smart is None:
        raise InvalidRequest("this EHR has no SMART client registered", code="smart_not_registered")
    base = (fhir_base_url or ehr.fhir_base_urls[0]).removesuffix("/")
    if base not in ehr.fhir_base_urls:
        raise InvalidRequest("fhir_base_url is not the EHR's", code="smart_not_registered")
    return _document(transport, ehr, base).read(
        issuer=ehr.smart.issuer, pkce_advertised=ehr.smart.pkce_advertised
    )


def discover_token_endpoint(transport: Transport, ehr: EHR) -> tuple[str, SigningAlgorithm]:
    """Return where a system asks for its tokens, and what it signs with: many servers offer no more than that.

    Spec: SMART App Launch 2.2.0, "Backend Services", "Discovery Requirements"
    """
    document = _document(transport, ehr, ehr.fhir_base_urls[0])
    return document.token_endpoint()


def _document(transport: Transport, ehr: EHR, base: str) -> "_Document":
    response = transport.request(
        "GET",
        f"{base}/.well-known/smart-configuration",
        allowed_origins=ehr.fhir_origins,
        deadline_s=_DEADLINE_S,
        headers={"Accept": "application/json"},
        max_bytes=_MAX_BYTES,
    )
    if response.status != _HTTP_OK:
        raise UpstreamError(
            "smart-configuration: the EHR did not answer 200", code="smart_configuration_unavailable"
        )
    return _Document(ehr, base, json_document(response.body, "smart-configuration"))


@dataclass(frozen=True, slots=True)
class _Document:
    ehr: EHR
    base: str
    members: Mapping[str, Any]

    def read(self, *, issuer: str, pkce_advertised: bool) -> SMARTConfiguration:
        # The member is required only of servers that do single sign-on.
        if self.members.get("issuer", issuer) != issuer:
            raise _unusable("issuer", "is not the registered one")
        self._check_pkce(required=pkce_advertised)
        if "authorization_code" not in self._names("grant_types_supported", default=("authorization_code",)):
            raise _unusable("grant_types_supported", "must hold authorization_code")
        return SMARTConfiguration(
            issuer=issuer,
            authorization_endpoint=self._endpoint("authorization_endpoint"),
            token_endpoint=self._endpoint("token_endpoint"),
            assertion_algorithm=self._assertion_algorithm(),
            capabilities=self._names("capabilities"),
            scopes=self._names("scopes_supported", default=()),
            names_issuer=self.members.get("authorization_response_iss_parameter_supported") is True,
            jwks_uri=self._optional_endpoint("jwks_uri"),
            introspection_endpoint=self._optional_endpoint("introspection_endpoint"),
            revocation_endpoint=self._optional_endpoint("revocation_endpoint"),
        )

    def token_endpoint(self) -> tuple[str, SigningAlgorithm]:
        if "client_credentials" not in self._names("grant_types_supported", default=("client_credentials",)):
            raise _unusable("grant_types_supported", "must hold client_credentials")
        return self._endpoint("token_endpoint"), self._assertion_algorithm()

    def _check_pkce(self, *, required: bool) -> None:
        methods = self._names("code_challenge_methods_supported", default=None if required else ("S256",))
        if "S256" not in methods or "plain" in methods:
            raise _unusable("code_challenge_methods_supported", "must hold S256 and not plain")

    def _assertion_algorithm(self) -> SigningAlgorithm:
        name = "token_endpoint_auth_signing_alg_values_supported"
        offered = self._names(name, default=_ASSERTION_ALGORITHMS)
        for algorithm in _ASSERTION_ALGORITHMS:
            if algorithm in offered:
                return algorithm
        raise _unusable(name, "must hold ES384 or RS384")

    def _names(self, name: str, *, default: tuple[str, ...] | None = None) -> frozenset[str]:
        value = self.members.get(name, default)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise _unusable(name, "must be a list of strings")
        return frozenset(value)

    def _optional_endpoint(self, name: str) -> str | None:
        return None if self.members.get(name) is None else self._endpoint(name)

    def _endpoint(self, name: str) -> str:
        """Resolve against the FHIR base; an origin that nobody registered is refused before any use."""
        value = self.members.get(name)
        if not isinstance(value, str):
            raise _unusable(name, "must be a URL")
        url = urljoin(f"{self.base}/", value)
        if not _is_of(url, self.ehr.authorization_origins):
            raise _unusable(name, "must be of an origin registered for this EHR")
        return url


def _is_of(url: str, origins: frozenset[str]) -> bool:
    try:
        return origin_of(url) in origins and not urlsplit(url).fragment
    except (InvalidRequest, ValueError):
        return False


def json_document(body: bytes, name: str) -> Mapping[str, Any]:
    """Return the members of a discovery document; `name` is its own, as in its well-known path.

    Raises UpstreamError, with a code of that name, where it is not a JSON object.
    """
    try:
        members = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UpstreamError(f"{name}: not JSON", code=f"{name.replace('-', '_')}_invalid") from error
    if not isinstance(members, dict):
        raise UpstreamError(f"{name}: not a JSON object", code=f"{name.replace('-', '_')}_invalid")
    return members


def _unusable(name: str, rule: str) -> UpstreamError:
    return UpstreamError(
        f"smart-configuration: {name} {rule}", code="smart_configuration_invalid", expression=name
    )
