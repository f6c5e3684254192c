"""The EHRs that Rayhook serves: one TOML file says who may call, and where we may call.

Spec: CDS Hooks 2.0.1, "Trusting CDS Clients"; SMART App Launch 2.2.0, "Best Practices".
"""

import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from rayhook.auth.client_keys import SigningAlgorithm
from rayhook.auth.jose import KeySet, read_key_set
from rayhook.auth.role_rules import EHRPerson, RoleRule, derive_roles
from rayhook.auth.roles import Role
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.transport import origin_of

CALLS_PER_MINUTE: Final = 12_000

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


@dataclass(frozen=True, slots=True)
class CDSClient:
    """Who signs CDS Hooks calls: keys from `jwks_url`, or from `keys` given inline, never both.

    No `tenants` means that the EHR has none to tell apart. `calls_per_minute` is the most that it may call.
    """

    issuer: str
    jwks_url: str | None = None
    keys: KeySet | None = None
    tenants: frozenset[str] = frozenset()
    calls_per_minute: int = CALLS_PER_MINUTE


@dataclass(frozen=True, slots=True)
class SMARTClient:
    """Our registration at the EHR's authorization server.

    `issuer` is what id_tokens and the discovery document must name.
    `origins` are those of the authorization server, where they are not those of the FHIR base.
    `pkce_advertised` False tolerates a discovery document without S256; S256 is sent all the same.
    `assertion_algorithm` is the one to sign with, where the discovery document should not decide.
    `jku` is the URL of our JWK Set as registered there, for servers that want it named in each assertion.
    """

    client_id: str
    issuer: str
    scopes: tuple[str, ...]
    introspection: bool = False
    origins: tuple[str, ...] = ()
    pkce_advertised: bool = True
    assertion_algorithm: SigningAlgorithm | None = None
    jku: str | None = None


@dataclass(frozen=True, slots=True)
class EHR:
    """One registered EHR. Base URLs end without a slash, origins are `scheme://host[:port]`.

    `private_network` says that its origins are inside the hospital: they may resolve to private addresses.
    `language` is that of its pages where the reader chose none, as "fr".
    `practitioner_roles` are those of every practitioner, `role_rules` give more.
    """

    id: str
    name: str
    fhir_base_urls: tuple[str, ...]
    cds_client: CDSClient
    dicomweb_origins: tuple[str, ...] = ()
    smart: SMARTClient | None = None
    frame_ancestors: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    private_network: bool = False
    language: str | None = None
    practitioner_roles: frozenset[Role] = frozenset({Role.CLINICIAN})
    role_rules: tuple[RoleRule, ...] = ()

    @property
    def fhir_origins(self) -> frozenset[str]:
        return frozenset(map(origin_of, self.fhir_base_urls))

    @property
    def image_origins(self) -> frozenset[str]:
        """Where images may be fetched from: some FHIR servers are their own DICOMweb server."""
        return self.fhir_origins | frozenset(self.dicomweb_origins)

    @property
    def jwks_origins(self) -> frozenset[str]:
        return (
            frozenset()
            if self.cds_client.jwks_url is None
            else frozenset([origin_of(self.cds_client.jwks_url)])
        )

    @property
    def authorization_origins(self) -> frozenset[str]:
        """Where SMART discovery, token, introspection and key requests may go."""
        return self.fhir_origins | (frozenset() if self.smart is None else frozenset(self.smart.origins))

    @property
    def allowed_origins(self) -> frozenset[str]:
        return self.authorization_origins | self.image_origins | self.jwks_origins

    def roles_of(self, person: EHRPerson) -> frozenset[Role]:
        return derive_roles(self.role_rules, person, practitioner_roles=self.practitioner_roles)


@dataclass(frozen=True, slots=True)
class EHRRegistry:
    ehrs: tuple[EHR, ...] = ()

    def by_id(self, ehr_id: str) -> EHR | None:
        return next((ehr for ehr in self.ehrs if ehr.id == ehr_id), None)

    def by_issuer(self, issuer: str) -> EHR | None:
        return next((ehr for ehr in self.ehrs if ehr.cds_client.issuer == issuer), None)

    def by_fhir_base(self, url: str) -> EHR | None:
        """Find by the exact base URL; one trailing slash is forgiven, a prefix never is."""
        base = url.removesuffix("/")
        return next((ehr for ehr in self.ehrs if base in ehr.fhir_base_urls), None)

    @property
    def private_origins(self) -> frozenset[str]:
        """The origins that the transport may find at private addresses."""
        return frozenset().union(*(ehr.allowed_origins for ehr in self.ehrs if ehr.private_network))

    def __iter__(self) -> Iterator[EHR]:
        return iter(self.ehrs)

    def __len__(self) -> int:
        return len(self.ehrs)


class _CDSClientTable(msgspec.Struct, forbid_unknown_fields=True):
    issuer: str
    jwks_url: str | None = None
    jwks: dict[str, Any] | None = None
    tenants: list[str] = []
    calls_per_minute: Annotated[int, msgspec.Meta(ge=1)] = CALLS_PER_MINUTE


class _SMARTTable(msgspec.Struct, forbid_unknown_fields=True):
    client_id: str
    scopes: list[str]
    issuer: str | None = None
    introspection: bool = False
    origins: list[str] = []
    pkce_advertised: bool = True
    assertion_algorithm: SigningAlgorithm | None = None
    jku: str | None = None


class _EHRTable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    fhir_base_urls: list[str]
    cds_client: _CDSClientTable
    dicomweb_origins: list[str] = []
    smart: _SMARTTable | None = None
    frame_ancestors: list[str] = []
    cors_origins: list[str] = []
    private_network: bool = False
    language: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    ehr: list[_EHRTable] = []


def load_registry(path: Path, *, development: bool) -> EHRRegistry:
    """Read the registry file; `development` allows http to loopback, and nothing else.

    Raises InvalidRequest that names the key at fault.
    """
    try:
        document = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File)
    except OSError as error:
        raise InvalidRequest(f"EHR registry {path}: cannot be read", code="registry_unreadable") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(f"EHR registry {path}: {error}", code="registry_invalid") from error
    reader = _Reader(development)
    registry = EHRRegistry(tuple(reader.ehr(f"ehr[{n}]", table) for n, table in enumerate(document.ehr)))
    _refuse_duplicates(registry)
    return registry


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns checked TOML tables into the domain's types; `key` names the place in every refusal."""

    development: bool

    def ehr(self, key: str, table: _EHRTable) -> EHR:
        if not _ID.fullmatch(table.id):
            raise _refusal(f"{key}.id", "must be lower-case letters, digits and hyphens, at most 63")
        _not_blank(f"{key}.name", table.name)
        if not table.fhir_base_urls:
            raise _refusal(f"{key}.fhir_base_urls", "must not be empty")
        bases = self._all(self._url, f"{key}.fhir_base_urls", table.fhir_base_urls)
        return EHR(
            id=table.id,
            name=table.name,
            fhir_base_urls=bases,
            cds_client=self._cds_client(f"{key}.cds_client", table.cds_client),
            dicomweb_origins=self._all(self._origin, f"{key}.dicomweb_origins", table.dicomweb_origins),
            smart=None if table.smart is None else self._smart(f"{key}.smart", table.smart, bases[0]),
            frame_ancestors=self._all(self._origin, f"{key}.frame_ancestors", table.frame_ancestors),
            cors_origins=self._all(self._origin, f"{key}.cors_origins", table.cors_origins),
            private_network=table.private_network,
            language=None if table.language is None else self._language(f"{key}.language", table.language),
        )

    def _cds_client(self, key: str, table: _CDSClientTable) -> CDSClient:
        if (table.jwks_url is None) == (table.jwks is None):
            raise _refusal(key, "needs either jwks_url or jwks")
        return CDSClient(
            issuer=self._issuer(f"{key}.issuer", table.issuer),
            jwks_url=None if table.jwks_url is None else self._url(f"{key}.jwks_url", table.jwks_url),
            keys=None if table.jwks is None else _inline_keys(f"{key}.jwks", table.jwks),
            tenants=frozenset(self._all(_not_blank, f"{key}.tenants", table.tenants)),
            calls_per_minute=table.calls_per_minute,
        )

    def _smart(self, key: str, table: _SMARTTable, fhir_base_url: str) -> SMARTClient:
        issuer = fhir_base_url if table.issuer is None else self._issuer(f"{key}.issuer", table.issuer)
        return SMARTClient(
            client_id=_not_blank(f"{key}.client_id", table.client_id),
            issuer=issuer,
            scopes=self._all(_scope_token, f"{key}.scopes", table.scopes),
            introspection=table.introspection,
            origins=self._all(self._origin, f"{key}.origins", table.origins),
            pkce_advertised=table.pkce_advertised,
            assertion_algorithm=table.assertion_algorithm,
            jku=None if table.jku is None else self._url(f"{key}.jku", table.jku),
        )

    @staticmethod
    def _all(read: Callable[[str, str], str], key: str, values: Iterable[str]) -> tuple[str, ...]:
        found = tuple(read(f"{key}[{n}]", value) for n, value in enumerate(values))
        if len(set(found)) != len(found):
            raise _refusal(key, "names one value twice")
        return found

    def _origin(self, key: str, value: str) -> str:
        if self._split(key, value).path:
            raise _refusal(key, "must be an origin: scheme://host[:port]")
        return value

    @staticmethod
    def _language(key: str, value: str) -> str:
        if not _LANGUAGE.fullmatch(value):
            raise _refusal(key, "must be a language tag, as en, es or fr-CA")
        return value

    def _url(self, key: str, value: str) -> str:
        path = self._split(key, value).path
        if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
            raise _refusal(key, "must have a canonical path: no trailing slash, no escapes, no dot segments")
        return value

    def _issuer(self, key: str, value: str) -> str:
        """Issuers are compared, never fetched: some end with a slash, and that slash counts."""
        self._url(key, value.removesuffix("/"))
        return value

    def _split(self, key: str, value: str) -> SplitResult:
        parts = _canonical(key, value)
        loopback = _is_loopback(key, parts.hostname or "")
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback and self.development):
            raise _refusal(key, "must be an https URL (http only to loopback, in development)")
        return parts


def _canonical(key: str, value: str) -> SplitResult:
    try:
        origin = origin_of(value)
    except InvalidRequest as error:
        raise _refusal(key, "must be an https URL without user information") from error
    parts = urlsplit(value)
    if value != f"{origin}{parts.path}":
        raise _refusal(key, "must be canonical: lower case, no default port, no query, no fragment")
    return parts


def _is_loopback(key: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # "0x7f.1", "2130706433" and the like are host names to us and addresses to a resolver.
        if not _HOST_NAME.fullmatch(host) or host.rsplit(".", 1)[-1][0].isdigit():
            raise _refusal(key, "must name a host or an IP address in its usual form") from None
    return host == "localhost"


def _inline_keys(key: str, document: dict[str, Any]) -> KeySet:
    keys = read_key_set(document)
    if len(keys.keys) != len(document["keys"]) or not keys.keys:
        raise _refusal(key, "every key must be a public signature key, EC or RSA of 2048 bits or more")
    if any(not found.kid for found in keys.keys):
        raise _refusal(key, "every key needs a kid")
    return keys


def _scope_token(key: str, value: str) -> str:
    if not _SCOPE_TOKEN.fullmatch(value):
        raise _refusal(key, "must be one scope")
    return value


def _not_blank(key: str, value: str) -> str:
    if not value.strip():
        raise _refusal(key, "must not be blank")
    return value


def _refuse_duplicates(registry: EHRRegistry) -> None:
    _refuse_repeated("id", (ehr.id for ehr in registry))
    _refuse_repeated("cds_client.issuer", (ehr.cds_client.issuer for ehr in registry))
    _refuse_repeated("fhir_base_urls", (base for ehr in registry for base in ehr.fhir_base_urls))


def _refuse_repeated(key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise _refusal(f"ehr.{key}", f"{value} is registered twice")
        seen.add(value)


def _refusal(key: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"EHR registry: {key} {rule}", code="registry_invalid", expression=key)
