"""Storing DICOM objects at a PACS, each object's own outcome told.

Spec: DICOM PS3.18 10.5 (Store Transaction), I.2 (Store Instances Response Module), PS3.3 C.14.1.1 (Failure Reason)
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from rayhook.fhir.errors import InvalidRequest, RayhookError, UpstreamError
from rayhook.fhir.references import is_uid
from rayhook.fhir.transport import Response, Transport
from rayhook.fhir.wire import retry_after_s
from rayhook.inference.dicom_table import StoreState

log = structlog.get_logger()

_MIB = 1 << 20
_BOUNDARY = "rayhook-dicom-objects"
_REFERENCED_SOP_SEQUENCE = "00081199"
_FAILED_SOP_SEQUENCE = "00081198"
_OTHER_FAILURES_SEQUENCE = "0008119A"
_SOP_INSTANCE_UID = "00081155"
_FAILURE_REASON = "00081197"
_OK, _ACCEPTED, _CONFLICT = 200, 202, 409
_BUSY = (429, 503)
_TOO_LARGE = 413
_MAX_ATTEMPTS = 3
_PAUSE_S = 0.5
_DUPLICATE = 0x0111
# That another try may help: processing failure, out of resources, unable to perform, resource limitation.
_PASSING = frozenset({0x0110, 0x0213})
_OUT_OF_RESOURCES = 0xA700


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds on one transaction. `max_bytes` is of all its objects together."""

    max_bytes: int = 64 * _MIB
    max_response_bytes: int = 1 * _MIB
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Storable:
    """One object as a file. data: DICOM PS3.10."""

    sop_instance_uid: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """What became of one object. failure: a stable code, with the PACS's FailureReason where it gave one."""

    state: StoreState
    failure: str | None = None


def store_instances(
    transport: Transport,
    dicomweb_url: str,
    study_instance_uid: str,
    objects: Sequence[Storable],
    *,
    allowed_origins: frozenset[str],
    access_token: str | None,
    limits: StoreLimits = StoreLimits(),
) -> dict[str, StoreOutcome]:
    """Store objects into their study and return each one's outcome by its SOP Instance UID.

    What the PACS or the way there does is told, never raised; InvalidRequest is, for a malformed study UID.
    A UID that the PACS has already counts as stored, so it is
    harmless to send an object twice.
    """
    if not is_uid(study_instance_uid):
        raise InvalidRequest("the study's UID is malformed", code="invalid_uid")
    outcomes: dict[str, StoreOutcome] = {}
    batch: list[Storable] = []
    for one in objects:
        if len(one.data) > limits.max_bytes:
            outcomes[one.sop_instance_uid] = StoreOutcome(StoreState.REFUSED, "object_too_large")
        else:
            batch.append(one)
    for some in _batches(batch, limits.max_bytes):
        try:
            answer = _post(
                transport,
                f"{dicomweb_url.rstrip('/')}/studies/{study_instance_uid}",
                some,
                allowed_origins=allowed_origins,
                access_token=access_token,
                limits=limits,
            )
            outcomes |= _read(answer, some)
        except RayhookError as error:
            outcomes |= {one.sop_instance_uid: StoreOutcome(StoreState.FAILED, error.code) for one in some}
    return outcomes


def _batches(objects: Sequence[Storable], max_bytes: int) -> Iterator[list[Storable]]:
    batch: list[Storable] = []
    size = 0
    for one in objects:
        if batch and size + len(one.data) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += len(one.data)
    if batch:
        yield batch


def _post(
    transport: Transport,
    url: str,
    objects: Sequence[Storable],
    *,
    allowed_origins: frozenset[str],
    access_token: str | None,
    limits: StoreLimits,
) -> Response:
    """Send the objects, again where the PACS asks to wait and the deadline has room for it."""
    headers = {
        "Accept": "application/dicom+json",
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}',
    }
    if access_token is not None:
        headers["Authorization"] = f"Bearer {access_token}"
    body = _multipart(objects)
    deadline = time.monotonic() + limits.deadline_s
    attempt = 0
    while True:
        attempt += 1
        answer = transport.request(
            "POST",
            url,
            allowed_origins=allowed_origins,
            deadline_s=max(0.001, deadline - time.monotonic()),
            headers=headers,
            content=body,
            max_bytes=limits.max_response_bytes,
        )
        if answer.status not in _BUSY or attempt >= _MAX_ATTEMPTS:
            return answer
        asked_s = retry_after_s(answer.headers)
        pause_s = _PAUSE_S * 2 ** (attempt - 1) if asked_s is None else asked_s
        if pause_s >= deadline - time.monotonic():
            return answer
        log.info("dicom_store_repeated", attempt=attempt)
        time.sleep(pause_s)


def _multipart(objects: Sequence[Storable]) -> bytes:
    """Spec: RFC 2387; the boundary occurs in no object, as no data set of ours holds it."""
    pieces = []
    for one in objects:
        if _BOUNDARY.encode() in one.data:
            raise InvalidRequest("an object holds the multipart's boundary", code="boundary_in_object")
        pieces += [f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode(), one.data, b"\r\n"]
    return b"".join((*pieces, f"--{_BOUNDARY}--\r\n".encode()))


def _read(answer: Response, objects: Sequence[Storable]) -> dict[str, StoreOutcome]:
    """Tell each object's outcome: by the answer's own lists, else by its status alone."""
    if answer.status not in (_OK, _ACCEPTED, _CONFLICT):
        return {one.sop_instance_uid: _by_status(answer.status) for one in objects}
    try:
        told = _dataset(answer.body)
    except UpstreamError:
        told = {}
    stored = set(_uids(told, _REFERENCED_SOP_SEQUENCE))
    failed = dict(_failures(told))
    silent = StoreOutcome(StoreState.FAILED, "not_told")
    if answer.status == _OK and not told:
        # Some servers answer 200 with no list, or one in XML: by 10.5.3 all was stored.
        silent = StoreOutcome(StoreState.STORED)
    outcomes = {}
    for one in objects:
        uid = one.sop_instance_uid
        if uid in failed:
            outcomes[uid] = _by_reason(failed[uid])
        else:
            outcomes[uid] = StoreOutcome(StoreState.STORED) if uid in stored else silent
    return outcomes


def _by_status(status: int) -> StoreOutcome:
    # A passing state, or a token that another try will bring.
    passing = status in (401, 408, *_BUSY) or status >= 500  # noqa: PLR2004 (RFC 9110)
    code = "object_too_large" if status == _TOO_LARGE else f"http_{status}"
    return StoreOutcome(StoreState.FAILED if passing else StoreState.REFUSED, code)


def _by_reason(reason: int | None) -> StoreOutcome:
    if reason is None:
        return StoreOutcome(StoreState.FAILED, "no_reason_given")
    if reason == _DUPLICATE:
        return StoreOutcome(StoreState.STORED)
    passing = reason in _PASSING or reason & 0xFF00 == _OUT_OF_RESOURCES
    return StoreOutcome(StoreState.FAILED if passing else StoreState.REFUSED, f"reason_{reason:04x}")


def _dataset(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UpstreamError("the PACS did not answer in DICOM JSON", code="not_dicom_json") from error
    if isinstance(told, list) and len(told) == 1:  # some servers wrap the data set
        told = told[0]
    if not isinstance(told, dict):
        raise UpstreamError("the PACS did not answer in DICOM JSON", code="not_dicom_json")
    return told


def _items(told: Mapping[str, Any], tag: str) -> Iterator[Mapping[str, Any]]:
    element = told.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    yield from (item for item in values if isinstance(item, dict)) if isinstance(values, list) else ()


def _first(item: Mapping[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _uids(told: Mapping[str, Any], tag: str) -> Iterator[str]:
    yield from (uid for item in _items(told, tag) if isinstance(uid := _first(item, _SOP_INSTANCE_UID), str))


def _failures(told: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    for item in _items(told, _FAILED_SOP_SEQUENCE):
        uid, reason = _first(item, _SOP_INSTANCE_UID), _first(item, _FAILURE_REASON)
        if isinstance(uid, str):
            yield uid, reason if isinstance(reason, int) else None
