"""The EHRs that Rayhook serves: one TOML file says who may call, and where we may call.

Spec: CDS Hooks 2.0.1, "Trusting CDS Clients"; SMART App Launch 2.2.0, "Best Practices".
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from rayhook.auth.arrival_sources import (
    ArrivalSources,
    DICOMSender,
    DICOMSenderTable,
    PolledPACSTable,
    SubscriptionTable,
    read_arrival_sources,
)
from rayhook.auth.client_keys import SigningAlgorithm
from rayhook.auth.jose import KeySet
from rayhook.auth.registry_values import (
    Values,
    each,
    identifier,
    inline_keys,
    language_tag,
    not_blank,
    refusal,
    refuse_repeated,
    scope_token,
)
from rayhook.auth.role_rules import EHRPerson, RoleRule, derive_roles
from rayhook.auth.role_rules_file import EHRRoleTable, read_ehr_role, read_practitioner_roles
from rayhook.auth.roles import Role
from rayhook.auth.staff_provider import StaffProvider, StaffProviderTable, read_staff_provider
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.transport import origin_of

ANALYSES_PER_MINUTE: Final = 6_000
CALLS_PER_MINUTE: Final = 12_000

DICOMResultKind = Literal["sr", "parametric_map", "secondary_capture", "rejection_note"]


@dataclass(frozen=True, slots=True)
class CDSClient:
    """Who signs CDS Hooks calls: keys from `jwks_url`, or from `keys` given inline, never both.

    No `tenants` means that the EHR has none to tell apart. `calls_per_minute` is the most that it may call,
    `analyses_per_minute` the most studies that its calls may begin to have analysed.
    """

    issuer: str
    jwks_url: str | None = None
    keys: KeySet | None = None
    tenants: frozenset[str] = frozenset()
    calls_per_minute: int = CALLS_PER_MINUTE
    analyses_per_minute: int = ANALYSES_PER_MINUTE


@dataclass(frozen=True, slots=True)
class SMARTClient:
    """Our registration at the EHR's authorization server.

    `issuer` is what id_tokens and the discovery document must name.
    `origins` are those of the authorization server, where they are not those of the FHIR base.
    `pkce_advertised` False tolerates a discovery document without S256; S256 is sent all the same.
    `assertion_algorithm` is the one to sign with, where the discovery document should not decide.
    `jwt_access_tokens` True reads its access tokens of type at+jwt by its keys, and does not introspect them.
    `jku` is the URL of our JWK Set as registered there, for servers that want it named in each assertion.
    """

    client_id: str
    issuer: str
    scopes: tuple[str, ...]
    introspection: bool = False
    jwt_access_tokens: bool = False
    origins: tuple[str, ...] = ()
    pkce_advertised: bool = True
    assertion_algorithm: SigningAlgorithm | None = None
    jku: str | None = None


@dataclass(frozen=True, slots=True)
class BackendClient:
    """What we may do there on our own account, with no user; what is not named is as for the SMART app.

    Spec: SMART App Launch 2.2.0, "Backend Services"
    """

    client_id: str
    scopes: tuple[str, ...]
    origins: tuple[str, ...] = ()
    assertion_algorithm: SigningAlgorithm | None = None
    jku: str | None = None


@dataclass(frozen=True, slots=True)
class EHR:
    """One registered EHR. Base URLs end without a slash, origins are `scheme://host[:port]`.

    `private_network` says that its origins are inside the hospital: they may resolve to private addresses.
    `language` is that of its pages where the reader chose none, as "fr".
    `practitioner_roles` are those of every practitioner, `role_rules` give more.
    `break_glass` lets its practitioners without a role read in an emergency, for half an hour and a reason.
    `dicom_results` are the objects that results are also written as, to `stow_url` or else where the study is.
    `arrivals` are the ways by which its new studies announce themselves.
    """

    id: str
    name: str
    fhir_base_urls: tuple[str, ...]
    cds_client: CDSClient
    dicomweb_origins: tuple[str, ...] = ()
    smart: SMARTClient | None = None
    backend: BackendClient | None = None
    frame_ancestors: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    private_network: bool = False
    language: str | None = None
    practitioner_roles: frozenset[Role] = frozenset({Role.CLINICIAN})
    role_rules: tuple[RoleRule, ...] = ()
    dicom_results: tuple[DICOMResultKind, ...] = ()
    stow_url: str | None = None
    break_glass: bool = False
    arrivals: ArrivalSources = field(default_factory=ArrivalSources)

    @property
    def fhir_origins(self) -> frozenset[str]:
        return frozenset(map(origin_of, self.fhir_base_urls))

    @property
    def image_origins(self) -> frozenset[str]:
        """Where images may be fetched from: some FHIR servers are their own DICOMweb server."""
        return self.fhir_origins | frozenset(self.dicomweb_origins) | self.arrivals.origins

    @property
    def stow_origins(self) -> frozenset[str]:
        """Where DICOM objects may be stored."""
        return self.image_origins | (frozenset() if self.stow_url is None else {origin_of(self.stow_url)})

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
        registered = (client.origins for client in (self.smart, self.backend) if client is not None)
        return self.fhir_origins.union(*registered)

    @property
    def allowed_origins(self) -> frozenset[str]:
        return self.authorization_origins | self.stow_origins | self.jwks_origins

    def roles_of(self, person: EHRPerson) -> frozenset[Role]:
        return derive_roles(self.role_rules, person, practitioner_roles=self.practitioner_roles)


@dataclass(frozen=True, slots=True)
class EHRRegistry:
    ehrs: tuple[EHR, ...] = ()
    staff_providers: tuple[StaffProvider, ...] = ()

    def by_id(self, ehr_id: str) -> EHR | None:
        return next((ehr for ehr in self.ehrs if ehr.id == ehr_id), None)

    def by_issuer(self, issuer: str) -> EHR | None:
        return next((ehr for ehr in self.ehrs if ehr.cds_client.issuer == issuer), None)

    def by_fhir_base(self, url: str) -> EHR | None:
        """Find by the exact base URL; one trailing slash is forgiven, a prefix never is."""
        base = url.removesuffix("/")
        return next((ehr for ehr in self.ehrs if base in ehr.fhir_base_urls), None)

    def dicom_sender(self, sender_id: str) -> tuple[EHR, DICOMSender] | None:
        found = ((ehr, ehr.arrivals.sender(sender_id)) for ehr in self.ehrs)
        return next(((ehr, sender) for ehr, sender in found if sender is not None), None)

    @property
    def private_origins(self) -> frozenset[str]:
        """The origins that the transport may find at private addresses."""
        registered: tuple[EHR | StaffProvider, ...] = (*self.ehrs, *self.staff_providers)
        return frozenset().union(*(peer.allowed_origins for peer in registered if peer.private_network))

    def staff_provider(self, provider_id: str) -> StaffProvider | None:
        return next((one for one in self.staff_providers if one.id == provider_id), None)

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
    analyses_per_minute: Annotated[int, msgspec.Meta(ge=1)] = ANALYSES_PER_MINUTE


class _SMARTTable(msgspec.Struct, forbid_unknown_fields=True):
    client_id: str
    scopes: list[str]
    issuer: str | None = None
    introspection: bool = False
    jwt_access_tokens: bool = False
    origins: list[str] = []
    pkce_advertised: bool = True
    assertion_algorithm: SigningAlgorithm | None = None
    jku: str | None = None


class _BackendTable(msgspec.Struct, forbid_unknown_fields=True):
    scopes: list[str]
    client_id: str | None = None
    origins: list[str] = []
    assertion_algorithm: SigningAlgorithm | None = None
    jku: str | None = None


class _EHRTable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    fhir_base_urls: list[str]
    cds_client: _CDSClientTable
    dicomweb_origins: list[str] = []
    smart: _SMARTTable | None = None
    backend: _BackendTable | None = None
    frame_ancestors: list[str] = []
    cors_origins: list[str] = []
    private_network: bool = False
    language: str | None = None
    practitioner_roles: tuple[Role, ...] = (Role.CLINICIAN,)
    role: list[EHRRoleTable] = []
    dicom_results: tuple[DICOMResultKind, ...] = ()
    stow_url: str | None = None
    break_glass: bool = False
    subscription: SubscriptionTable | None = None
    dicom_sender: list[DICOMSenderTable] = []
    pacs_poll: list[PolledPACSTable] = []


class _File(msgspec.Struct, forbid_unknown_fields=True):
    ehr: list[_EHRTable] = []
    staff_oidc: list[StaffProviderTable] = []


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
    reader = _Reader(Values(development))
    registry = EHRRegistry(
        tuple(reader.ehr(f"ehr[{n}]", table) for n, table in enumerate(document.ehr)),
        tuple(
            read_staff_provider(reader.values, f"staff_oidc[{n}]", table)
            for n, table in enumerate(document.staff_oidc)
        ),
    )
    _refuse_duplicates(registry)
    return registry


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns checked TOML tables into the domain's types; `key` names the place in every refusal."""

    values: Values

    def ehr(self, key: str, table: _EHRTable) -> EHR:
        values = self.values
        if not table.fhir_base_urls:
            raise refusal(f"{key}.fhir_base_urls", "must not be empty")
        bases = values.urls(f"{key}.fhir_base_urls", table.fhir_base_urls)
        smart = None if table.smart is None else self._smart(f"{key}.smart", table.smart, bases[0])
        return EHR(
            id=identifier(f"{key}.id", table.id),
            name=not_blank(f"{key}.name", table.name),
            fhir_base_urls=bases,
            cds_client=self._cds_client(f"{key}.cds_client", table.cds_client),
            dicomweb_origins=values.origins(f"{key}.dicomweb_origins", table.dicomweb_origins),
            smart=smart,
            backend=None if table.backend is None else self._backend(f"{key}.backend", table.backend, smart),
            frame_ancestors=values.origins(f"{key}.frame_ancestors", table.frame_ancestors),
            cors_origins=values.origins(f"{key}.cors_origins", table.cors_origins),
            private_network=table.private_network,
            language=None if table.language is None else language_tag(f"{key}.language", table.language),
            practitioner_roles=read_practitioner_roles(f"{key}.practitioner_roles", table.practitioner_roles),
            role_rules=tuple(
                read_ehr_role(f"{key}.role[{n}]", rule, bases) for n, rule in enumerate(table.role)
            ),
            dicom_results=tuple(dict.fromkeys(table.dicom_results)),
            stow_url=None if table.stow_url is None else values.url(f"{key}.stow_url", table.stow_url),
            break_glass=table.break_glass,
            arrivals=read_arrival_sources(
                values,
                key,
                subscription=table.subscription,
                senders=table.dicom_sender,
                polled=table.pacs_poll,
            ),
        )

    def _cds_client(self, key: str, table: _CDSClientTable) -> CDSClient:
        if (table.jwks_url is None) == (table.jwks is None):
            raise refusal(key, "needs either jwks_url or jwks")
        return CDSClient(
            issuer=self.values.issuer(f"{key}.issuer", table.issuer),
            jwks_url=None if table.jwks_url is None else self.values.url(f"{key}.jwks_url", table.jwks_url),
            keys=None if table.jwks is None else inline_keys(f"{key}.jwks", table.jwks),
            tenants=frozenset(each(not_blank, f"{key}.tenants", table.tenants)),
            calls_per_minute=table.calls_per_minute,
            analyses_per_minute=table.analyses_per_minute,
        )

    def _smart(self, key: str, table: _SMARTTable, fhir_base_url: str) -> SMARTClient:
        issuer = fhir_base_url if table.issuer is None else self.values.issuer(f"{key}.issuer", table.issuer)
        return SMARTClient(
            client_id=not_blank(f"{key}.client_id", table.client_id),
            issuer=issuer,
            scopes=each(scope_token, f"{key}.scopes", table.scopes),
            introspection=table.introspection,
            jwt_access_tokens=table.jwt_access_tokens,
            origins=self.values.origins(f"{key}.origins", table.origins),
            pkce_advertised=table.pkce_advertised,
            assertion_algorithm=table.assertion_algorithm,
            jku=None if table.jku is None else self.values.url(f"{key}.jku", table.jku),
        )

    def _backend(self, key: str, table: _BackendTable, smart: SMARTClient | None) -> BackendClient:
        client_id = table.client_id or (smart.client_id if smart is not None else "")
        scopes = each(scope_token, f"{key}.scopes", table.scopes)
        if not scopes or not all(scope.startswith("system/") for scope in scopes):
            raise refusal(f"{key}.scopes", "must be system scopes, at least one")
        jku = None if table.jku is None else self.values.url(f"{key}.jku", table.jku)
        return BackendClient(
            client_id=not_blank(f"{key}.client_id", client_id),
            scopes=scopes,
            origins=self.values.origins(f"{key}.origins", table.origins),
            assertion_algorithm=table.assertion_algorithm or (smart.assertion_algorithm if smart else None),
            jku=jku or (smart.jku if smart else None),
        )


def _refuse_duplicates(registry: EHRRegistry) -> None:
    refuse_repeated("ehr.id", (ehr.id for ehr in registry))
    refuse_repeated("ehr.cds_client.issuer", (ehr.cds_client.issuer for ehr in registry))
    refuse_repeated("ehr.fhir_base_urls", (base for ehr in registry for base in ehr.fhir_base_urls))
    refuse_repeated("ehr.dicom_sender.id", (sender.id for ehr in registry for sender in ehr.arrivals.senders))
    refuse_repeated("staff_oidc.id", (provider.id for provider in registry.staff_providers))
