"""Who may tell us of new studies of an EHR, and which archives are asked: the registry's tables for it."""

import hmac
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from rayhook.auth.registry_values import Values, identifier, refusal, refuse_repeated
from rayhook.fhir.errors import ServiceUnavailable
from rayhook.fhir.transport import origin_of

MIN_SECRET: Final = 32

_CANONICAL = re.compile(r"[a-z][a-z0-9+.-]*:[\x21-\x7e]+")
_FILTER = re.compile(r"ImagingStudy\?[\x21-\x7e]+")
_SECRET = re.compile(rf"[A-Za-z0-9._~+/=-]{{{MIN_SECRET},512}}")
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class SecretFile:
    """Shared secrets, one a line, all of them good: a new one is added before the old one goes."""

    path: Path

    def admits(self, shown: str) -> bool:
        """Return whether `shown` is one of them, in a time that tells nothing of them."""
        given = shown.encode("utf-8", "surrogateescape")
        return sum(hmac.compare_digest(given, secret.encode()) for secret in self._secrets()) > 0

    def newest(self) -> str:
        """Return the one to hand out: the last line's."""
        return self._secrets()[-1]

    def _secrets(self) -> list[str]:
        """Raise ServiceUnavailable where there is none that may be used: then nobody is let in."""
        try:
            lines = [line.strip() for line in self.path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceUnavailable("a secret's file cannot be read", code="secret_unreadable") from error
        secrets = [line for line in lines if line and not line.startswith("#")]
        if not secrets or not all(map(_SECRET.fullmatch, secrets)):
            raise ServiceUnavailable(
                f"a secret's file has to hold secrets of {MIN_SECRET} or more letters, digits and -._~+/=",
                code="secret_unfit",
            )
        return secrets


@dataclass(frozen=True, slots=True)
class SubscriptionSource:
    """The EHR's notifications of new studies. `topic` is one that it defines; `filter_by` limits the topic, as "ImagingStudy?status=available".

    Twice `heartbeat_s` without a word, and we ask. `lifetime_s` is how far ahead a Subscription ends.
    """

    secret: SecretFile
    topic: str
    filter_by: str | None = None
    heartbeat_s: int = 300
    lifetime_s: int = 30 * _DAY_S


@dataclass(frozen=True, slots=True)
class DICOMSender:
    """A modality, router or PACS that stores images here, which are of this EHR's patients."""

    id: str
    secret: SecretFile


@dataclass(frozen=True, slots=True)
class PolledPACS:
    """An archive to be asked for new studies. `token_required`: it wants the EHR's token, our own one.

    `days` is how far back, by study date, it is looked at.
    """

    id: str
    dicomweb_url: str
    every_s: float = 60.0
    days: int = 2
    token_required: bool = False


@dataclass(frozen=True, slots=True)
class ArrivalSources:
    """All ways by which one EHR's studies may announce themselves."""

    subscription: SubscriptionSource | None = None
    senders: tuple[DICOMSender, ...] = ()
    polled: tuple[PolledPACS, ...] = ()

    @property
    def origins(self) -> frozenset[str]:
        return frozenset(origin_of(pacs.dicomweb_url) for pacs in self.polled)

    def sender(self, sender_id: str) -> DICOMSender | None:
        return next((one for one in self.senders if one.id == sender_id), None)


class SubscriptionTable(msgspec.Struct, forbid_unknown_fields=True):
    secret_file: str
    topic: str
    filter: str | None = None
    heartbeat_s: Annotated[int, msgspec.Meta(ge=1, le=_DAY_S)] = 300
    lifetime_days: Annotated[int, msgspec.Meta(ge=1, le=366)] = 30


class DICOMSenderTable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    secret_file: str


class PolledPACSTable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    dicomweb_url: str
    every_s: Annotated[float, msgspec.Meta(ge=1, le=_DAY_S)] = 60.0
    days: Annotated[int, msgspec.Meta(ge=1, le=31)] = 2
    token: bool = False


def read_arrival_sources(
    values: Values,
    key: str,
    *,
    subscription: SubscriptionTable | None,
    senders: Iterable[DICOMSenderTable],
    polled: Iterable[PolledPACSTable],
) -> ArrivalSources:
    """Return the checked tables; `key` names their EHR in every refusal."""
    found = ArrivalSources(
        None if subscription is None else _subscription(values, f"{key}.subscription", subscription),
        tuple(_sender(values, f"{key}.dicom_sender[{n}]", table) for n, table in enumerate(senders)),
        tuple(_polled(values, f"{key}.pacs_poll[{n}]", table) for n, table in enumerate(polled)),
    )
    refuse_repeated(f"{key}.pacs_poll.id", (one.id for one in found.polled))
    return found


def _subscription(values: Values, key: str, table: SubscriptionTable) -> SubscriptionSource:
    if not _CANONICAL.fullmatch(table.topic):
        raise refusal(f"{key}.topic", "must be the canonical URL of a SubscriptionTopic")
    if table.filter is not None and not _FILTER.fullmatch(table.filter):
        raise refusal(f"{key}.filter", "must be a search of ImagingStudy, as ImagingStudy?status=available")
    return SubscriptionSource(
        secret=_secret_file(values, f"{key}.secret_file", table.secret_file),
        topic=table.topic,
        filter_by=table.filter,
        heartbeat_s=table.heartbeat_s,
        lifetime_s=table.lifetime_days * _DAY_S,
    )


def _sender(values: Values, key: str, table: DICOMSenderTable) -> DICOMSender:
    return DICOMSender(
        identifier(f"{key}.id", table.id), _secret_file(values, f"{key}.secret_file", table.secret_file)
    )


def _polled(values: Values, key: str, table: PolledPACSTable) -> PolledPACS:
    return PolledPACS(
        id=identifier(f"{key}.id", table.id),
        dicomweb_url=values.url(f"{key}.dicomweb_url", table.dicomweb_url),
        every_s=table.every_s,
        days=table.days,
        token_required=table.token,
    )


def _secret_file(values: Values, key: str, value: str) -> SecretFile:
    """One that is not there is no error yet: nobody is let in by it."""
    path = Path(value)
    if not path.is_absolute():
        raise refusal(key, "must be an absolute path")
    if not values.development and _is_open(path):
        raise refusal(key, "names a file that others than its owner and group may read")
    return SecretFile(path)


def _is_open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IRWXO)
    except OSError:
        return False
