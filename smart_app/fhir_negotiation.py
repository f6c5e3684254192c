"""What a caller of our FHIR endpoint asks of the form of the answer.

Spec: FHIR R4 http.html#mime-type, http.html#version-parameter, http.html#cread; RFC 9110 section 12.5.1
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.responses import Response

from rayhook.fhir.errors import InvalidRequest, NotAcceptable, PayloadTooLarge, UnsupportedMediaType
from rayhook.fhir.r4 import encode_json

MEDIA_TYPE: Final = "application/fhir+json"
FORM: Final = "application/x-www-form-urlencoded"

_JSON: Final = frozenset({MEDIA_TYPE, "application/json", "text/json", "json"})
_ANY: Final = frozenset({"*/*", "application/*"})
_VERSIONS: Final = frozenset({"4.0", "4.0.1"})
_MAX_FORM: Final = 64 * 1024
_HANDLING: Final = re.compile(r"\bhandling\s*=\s*\"?lenient\"?\s*(?:[;,]|$)", re.IGNORECASE)


def require_json(request: Request) -> None:
    """Raise NotAcceptable where the caller takes no FHIR R4 as JSON. `_format` overrides Accept."""
    given = request.query_params.get("_format")
    if given is not None:
        # A plus sign in a query is a space to whoever decodes it.
        wanted = [(given.replace("application/fhir json", MEDIA_TYPE), 1.0)]
    else:
        wanted = list(_accepted(request.headers.get("Accept") or "*/*"))
    if not any(quality > 0 and _is_ours(media_type) for media_type, quality in wanted):
        raise NotAcceptable("answers are application/fhir+json, FHIR version 4.0")


def _accepted(header: str) -> Iterator[tuple[str, float]]:
    for part in header.split(","):
        media_type, _, quality = re.sub(r"\s+", "", part).partition(";q=")
        try:
            yield media_type, float(quality.partition(";")[0] or 1)
        except ValueError:
            yield media_type, 1.0


def _is_ours(text: str) -> bool:
    media_type, _, parameters = text.lower().replace(" ", "").partition(";")
    versions = {
        value.strip('"')
        for name, _, value in (p.partition("=") for p in parameters.split(";"))
        if name == "fhirversion"
    }
    return media_type in _JSON | _ANY and versions <= _VERSIONS


def is_lenient(request: Request) -> bool:
    """Spec: FHIR R4 search.html#errors."""
    return _HANDLING.search(request.headers.get("Prefer", "")) is not None


async def read_form(request: Request) -> list[tuple[str, str]]:
    """Return the parameters of a search by POST: those of the URL, and those of the body.

    Spec: FHIR R4 http.html#search
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != FORM:
        raise UnsupportedMediaType(f"a search by POST is {FORM}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM:
            raise PayloadTooLarge(f"a search must not be longer than {_MAX_FORM} bytes")
    try:
        fields = parse_qsl(bytes(body).decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise InvalidRequest("the search is not a form in UTF-8") from error
    return [*request.query_params.multi_items(), *fields]


def fhir_response(
    resource: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        encode_json(resource),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "Vary": "Accept, Authorization, Cookie", **(headers or {})},
    )


def is_known(request: Request, etag: str) -> bool:
    """Spec: RFC 9110 section 13.1.2; FHIR R4 http.html#cread."""
    header = request.headers.get("If-None-Match", "")
    return header.strip() == "*" or etag in (part.strip() for part in header.split(","))
