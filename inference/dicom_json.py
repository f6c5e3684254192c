"""Searching a PACS and reading its metadata: DICOM JSON, which nobody has checked before us.

Spec: DICOM PS3.18 10.4 (Retrieve Metadata), 10.6 (Search), annex F (DICOM JSON Model)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import msgspec
from pydicom.datadict import tag_for_keyword

from rayhook.fhir.errors import UpstreamError
from rayhook.fhir.transport import Transport
from rayhook.inference.dicomweb import check_status, check_uids, dicomweb_headers, study_url
from rayhook.inference.study import StudyReference

_ACCEPT = "application/dicom+json, application/json;q=0.5"
_MAX_BYTES = 64 << 20
_MAX_TEXT = 256
_NO_CONTENT = 204


_decoder = msgspec.json.Decoder(list[dict[str, Any]])


@dataclass(frozen=True, slots=True)
class JSONAttributes:
    """One data set as a PACS tells it; what is absent, empty or of another kind is None or ()."""

    elements: Mapping[str, Any] = field(repr=False)

    def texts(self, keyword: str) -> tuple[str, ...]:
        return tuple(_clean(str(v)) for v in self._values(keyword) if isinstance(v, str | int | float))

    def text(self, keyword: str) -> str | None:
        return next((text for text in self.texts(keyword) if text), None)

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Return all values, () unless each is a finite number; some servers write numbers as strings."""
        try:
            numbers = tuple(float(v) for v in self._values(keyword))
        except (TypeError, ValueError):
            return ()
        return numbers if all(map(math.isfinite, numbers)) else ()

    def number(self, keyword: str) -> float | None:
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def integer(self, keyword: str) -> int | None:
        number = self.number(keyword)
        return int(number) if number is not None and number.is_integer() else None

    def items(self, keyword: str) -> "tuple[JSONAttributes, ...]":
        return tuple(JSONAttributes(v) for v in self._values(keyword) if isinstance(v, dict))

    def first_item(self, keyword: str) -> "JSONAttributes | None":
        return next(iter(self.items(keyword)), None)

    def __contains__(self, keyword: str) -> bool:
        return bool(self._values(keyword))

    def _values(self, keyword: str) -> list[Any]:
        element = self.elements.get(f"{tag_for_keyword(keyword):08X}")
        values = element.get("Value") if isinstance(element, dict) else None
        return values if isinstance(values, list) else []


def search_studies(
    transport: Transport,
    dicomweb_url: str,
    *,
    dates: tuple[date, date],
    limit: int,
    offset: int,
    allowed_origins: frozenset[str],
    access_token: str | None,
    deadline_s: float,
) -> tuple[JSONAttributes, ...]:
    """Return one page of what the PACS tells of the studies of these days, both included (QIDO-RS).

    Spec: DICOM PS3.18 8.3.4 (query parameters), PS3.4 C.2.2.2.5 (range matching)
    """
    first, last = (one.strftime("%Y%m%d") for one in dates)
    query = (
        f"StudyDate={first}-{last}&includefield=NumberOfStudyRelatedInstances&limit={limit}&offset={offset}"
    )
    return _read_json(
        transport,
        f"{dicomweb_url}/studies?{query}",
        allowed_origins=allowed_origins,
        access_token=access_token,
        deadline_s=deadline_s,
    )


def search_series(
    transport: Transport,
    reference: StudyReference,
    *,
    allowed_origins: frozenset[str],
    access_token: str | None,
    deadline_s: float,
) -> tuple[JSONAttributes, ...]:
    """Return what the PACS tells of each series of the study (QIDO-RS)."""
    return _read(
        transport,
        reference,
        "/series?includefield=SeriesDescription&includefield=BodyPartExamined",
        allowed_origins=allowed_origins,
        access_token=access_token,
        deadline_s=deadline_s,
    )


def retrieve_metadata(
    transport: Transport,
    reference: StudyReference,
    *,
    series_instance_uid: str | None = None,
    allowed_origins: frozenset[str],
    access_token: str | None,
    deadline_s: float,
) -> tuple[JSONAttributes, ...]:
    """Return the attributes of each instance of one series, or of the whole study."""
    path = "/metadata"
    if series_instance_uid is not None:
        check_uids(series_instance_uid)
        path = f"/series/{series_instance_uid}/metadata"
    return _read(
        transport,
        reference,
        path,
        allowed_origins=allowed_origins,
        access_token=access_token,
        deadline_s=deadline_s,
    )


def _read(
    transport: Transport,
    reference: StudyReference,
    path: str,
    *,
    allowed_origins: frozenset[str],
    access_token: str | None,
    deadline_s: float,
) -> tuple[JSONAttributes, ...]:
    """Raise as retrieve_study does; UpstreamError for what is no DICOM JSON."""
    check_uids(reference.study_instance_uid)
    return _read_json(
        transport,
        f"{study_url(reference)}{path}",
        allowed_origins=allowed_origins,
        access_token=access_token,
        deadline_s=deadline_s,
    )


def _read_json(
    transport: Transport,
    url: str,
    *,
    allowed_origins: frozenset[str],
    access_token: str | None,
    deadline_s: float,
) -> tuple[JSONAttributes, ...]:
    response = transport.request(
        "GET",
        url,
        allowed_origins=allowed_origins,
        deadline_s=deadline_s,
        headers={**dicomweb_headers(_ACCEPT, access_token), "Accept-Encoding": "gzip"},
        max_bytes=_MAX_BYTES,
    )
    if response.status == _NO_CONTENT:
        return ()
    check_status(response.status)
    try:
        return tuple(JSONAttributes(one) for one in _decoder.decode(response.body))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        # Not chained: the decoder's message may quote what it found.
        raise UpstreamError("the PACS did not answer with DICOM JSON", code="not_dicom_json") from None


def _clean(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()[:_MAX_TEXT]
