"""The checks of the registry's single values; `key` names the place in every refusal."""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rayhook.auth.jose import KeySet, read_key_set
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.transport import origin_of

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


@dataclass(frozen=True, slots=True)
class Values:
    """Reads URLs; `development` allows http to loopback, and nothing else."""

    development: bool

    def origins(self, key: str, values: Iterable[str]) -> tuple[str, ...]:
        return each(self.origin, key, values)

    def urls(self, key: str, values: Iterable[str]) -> tuple[str, ...]:
        return each(self.url, key, values)

    def origin(self, key: str, value: str) -> str:
        if self._split(key, value).path:
            raise refusal(key, "must be an origin: scheme://host[:port]")
        return value

    def url(self, key: str, value: str) -> str:
        path = self._split(key, value).path
        if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
            raise refusal(key, "must have a canonical path: no trailing slash, no escapes, no dot segments")
        return value

    def issuer(self, key: str, value: str) -> str:
        """Issuers are compared, never fetched: some end with a slash, and that slash counts."""
        self.url(key, value.removesuffix("/"))
        return value

    def _split(self, key: str, value: str) -> SplitResult:
        parts = _canonical(key, value)
        loopback = _is_loopback(key, parts.hostname or "")
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback and self.development):
            raise refusal(key, "must be an https URL (http only to loopback, in development)")
        return parts


def each(read: Callable[[str, str], str], key: str, values: Iterable[str]) -> tuple[str, ...]:
    found = tuple(read(f"{key}[{n}]", value) for n, value in enumerate(values))
    if len(set(found)) != len(found):
        raise refusal(key, "names one value twice")
    return found


def identifier(key: str, value: str) -> str:
    if not _ID.fullmatch(value):
        raise refusal(key, "must be lower-case letters, digits and hyphens, at most 63")
    return value


def language_tag(key: str, value: str) -> str:
    if not _LANGUAGE.fullmatch(value):
        raise refusal(key, "must be a language tag, as en, es or fr-CA")
    return value


def scope_token(key: str, value: str) -> str:
    if not _SCOPE_TOKEN.fullmatch(value):
        raise refusal(key, "must be one scope")
    return value


def not_blank(key: str, value: str) -> str:
    if not value.strip():
        raise refusal(key, "must not be blank")
    return value


def inline_keys(key: str, document: dict[str, Any]) -> KeySet:
    keys = read_key_set(document)
    if len(keys.keys) != len(document["keys"]) or not keys.keys:
        raise refusal(key, "every key must be a public signature key, EC or RSA of 2048 bits or more")
    if any(not found.kid for found in keys.keys):
        raise refusal(key, "every key needs a kid")
    return keys


def refuse_repeated(key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise refusal(key, f"{value} is registered twice")
        seen.add(value)


def refusal(key: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"EHR registry: {key} {rule}", code="registry_invalid", expression=key)


def _canonical(key: str, value: str) -> SplitResult:
    try:
        origin = origin_of(value)
    except InvalidRequest as error:
        raise refusal(key, "must be an https URL without user information") from error
    parts = urlsplit(value)
    if value != f"{origin}{parts.path}":
        raise refusal(key, "must be canonical: lower case, no default port, no query, no fragment")
    return parts


def _is_loopback(key: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # "0x7f.1", "2130706433" and the like are host names to us and addresses to a resolver.
        if not _HOST_NAME.fullmatch(host) or host.rsplit(".", 1)[-1][0].isdigit():
            raise refusal(key, "must name a host or an IP address in its usual form") from None
    return host == "localhost"
