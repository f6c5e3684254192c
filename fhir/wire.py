"""HTTP messages as the transport reads and writes them: URL, header fields, content codings, Retry-After."""

import ipaddress
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from rayhook.fhir.errors import InvalidRequest, UpstreamError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][^\x00-\x20\x7f\\#]*)?(?:#[^\x00-\x20\x7f\\]*)?",
    re.IGNORECASE | re.ASCII,
)
_TARGET_SAFE = "%/:?[]@!$&'()*+,;=~-._"
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_FIELD_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")
_LENGTH = re.compile(r"[0-9]{1,20}")
_PIECE_BYTES = 64 * 1024
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True)
class URL:
    """An http(s) URL in its parts: the parts checked are the parts connected to, never a second parse."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)

    @property
    def origin(self) -> str:
        """Spec: RFC 6454 section 6.2."""
        suffix = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{suffix}"


def parse_url(text: str) -> URL:
    """Read a plain http(s) URL, or raise InvalidRequest, which does not repeat it."""
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidRequest("a URL has to be http(s)://host[:port]/path without user information")
    scheme = match["scheme"].lower()
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 2**16:
        raise InvalidRequest("a URL's port has to be 1 to 65535")
    target = match["target"] or "/"
    target = target if target.startswith("/") else f"/{target}"
    return URL(scheme, _host(match["host"].lower()), port, quote(target, safe=_TARGET_SAFE))


def _host(host: str) -> str:
    if not host.startswith("["):
        return host
    try:
        return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
    except ValueError as error:
        raise InvalidRequest("a URL's IPv6 address is malformed") from error


class Headers(Mapping[str, str]):
    """Header fields by name in any case; repeated ones are joined by a comma.

    Spec: RFC 9110 section 5.2
    """

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self._fields: dict[str, str] = {}
        for raw_name, raw_value in fields:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            self._fields[name] = f"{self._fields[name]}, {value}" if name in self._fields else value

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Check before h11 does: its error would repeat the value, and the value may be a token."""
    for name, value in headers.items():
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise InvalidRequest("a header field has characters that HTTP does not allow")
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to be left alone, None where it does not say.

    Spec: RFC 9110 section 10.2.3
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def decoded(chunks: Iterable[bytes], headers: Mapping[str, str], *, max_bytes: int) -> Iterator[bytes]:
    """Undo the content coding, and end with UpstreamError as soon as more than `max_bytes` have come out."""
    length = headers.get("content-length", "")
    if _LENGTH.fullmatch(length) and int(length) > max_bytes:
        raise _too_large()
    size = 0
    for piece in _uncoded(chunks, headers.get("content-encoding", "identity").strip().lower()):
        size += len(piece)
        if size > max_bytes:
            raise _too_large()
        yield piece


def _uncoded(chunks: Iterable[bytes], coding: str) -> Iterable[bytes]:
    if coding in {"", "identity"}:
        return chunks
    if coding in {"gzip", "x-gzip", "deflate"}:
        return _inflated(chunks)
    raise UpstreamError("the answer has a content coding that was not asked for", code="upstream_malformed")


def _inflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield small pieces, so that a bomb is met before it has gone off."""
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    for chunk in chunks:
        rest = chunk
        while rest:
            yield _inflate(inflater, rest)
            if inflater.unused_data:
                raise _undecodable()
            rest = inflater.unconsumed_tail
    if not inflater.eof:
        raise _undecodable()


def _inflate(inflater: "zlib._Decompress", data: bytes) -> bytes:
    try:
        return inflater.decompress(data, _PIECE_BYTES)
    except zlib.error as error:
        raise _undecodable() from error


def _undecodable() -> UpstreamError:
    return UpstreamError("the answer's content coding is damaged", code="upstream_malformed")


def _too_large() -> UpstreamError:
    return UpstreamError("the answer is larger than allowed", code="upstream_too_large")
