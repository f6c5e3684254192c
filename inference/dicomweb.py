"""Fetching a study's DICOM files over DICOMweb, one at a time, without holding the study in memory.

Spec: DICOM PS3.18 10.4 (Retrieve Transaction), RFC 2387 (multipart/related)
"""

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import structlog

from rayhook.fhir.errors import (
    IdentityConflict,
    ImageRefused,
    InvalidRequest,
    NotFound,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnauthorized,
    UpstreamUnavailable,
)
from rayhook.fhir.references import is_uid
from rayhook.fhir.transport import StreamedResponse, Transport
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.dicom_header import read_header
from rayhook.inference.multipart import PartCollector, media_type
from rayhook.inference.study import StudyReference

log = structlog.get_logger()

_MIB = 1 << 20
_DICOM = "application/dicom"
_MULTIPART = f'multipart/related; type="{_DICOM}"'
# Some servers refuse the wildcard, some the parameter.
_ACCEPT = (
    f"{_MULTIPART}; transfer-syntax=*",
    f"{_MULTIPART}; transfer-syntax=1.2.840.10008.1.2.1",
    _MULTIPART,
)
_NOT_ACCEPTABLE = 406
_STUDY_INSTANCE_UID = 0x0020000D
_HEADER_BYTES = 1 * _MIB


@dataclass(frozen=True, slots=True)
class RetrievalLimits:
    """Bounds on one study. `max_bytes` is of all its files together."""

    max_instances: int = 2_000
    max_bytes: int = 1024 * _MIB
    deadline_s: float = 120.0


def retrieve_study(
    transport: Transport,
    reference: StudyReference,
    *,
    allowed_origins: frozenset[str],
    access_token: str | None,
    limits: RetrievalLimits,
) -> Generator[bytes]:
    """Yield each DICOM file of the study as it comes in.

    Raises NotFound, UpstreamRefused, UpstreamUnavailable, UpstreamTimeout and EgressDenied; UpstreamError for
    an answer that is no multipart of DICOM files, is cut off, or is larger than the limits; IdentityConflict
    if an instance is of another study than was asked for.
    """
    yield from _retrieve(
        transport,
        reference,
        "",
        allowed_origins=allowed_origins,
        access_token=access_token,
        limits=limits,
    )


def begun(files: Generator[bytes]) -> Generator[bytes]:
    """Wait for the first file, and return them all: whether the PACS took the token is known then."""
    first = next(files)
    return _rest(first, files)


def _rest(first: bytes, files: Generator[bytes]) -> Generator[bytes]:
    with closing(files):
        yield first
        yield from files


def retrieve_instance(
    transport: Transport,
    reference: StudyReference,
    *,
    series_instance_uid: str,
    sop_instance_uid: str,
    allowed_origins: frozenset[str],
    access_token: str | None,
    limits: RetrievalLimits,
) -> bytes:
    """Return the DICOM file of one instance. Raises as retrieve_study does.

    Spec: DICOM PS3.18 10.4.1.1.3 (Instance Resources)
    """
    check_uids(series_instance_uid, sop_instance_uid)
    files = _retrieve(
        transport,
        reference,
        f"/series/{series_instance_uid}/instances/{sop_instance_uid}",
        allowed_origins=allowed_origins,
        access_token=access_token,
        limits=limits,
    )
    return next(files)


def check_uids(*uids: str) -> None:
    """Raise InvalidRequest for what would not be a UID in an address."""
    if not all(is_uid(uid) for uid in uids):
        raise InvalidRequest("the study's UID is malformed", code="invalid_uid")


def _retrieve(
    transport: Transport,
    reference: StudyReference,
    path: str,
    *,
    allowed_origins: frozenset[str],
    access_token: str | None,
    limits: RetrievalLimits,
) -> Iterator[bytes]:
    check_uids(reference.study_instance_uid)
    deadline = time.monotonic() + limits.deadline_s
    for number, accept in enumerate(_ACCEPT, start=1):
        with transport.stream(
            "GET",
            f"{study_url(reference)}{path}",
            allowed_origins=allowed_origins,
            deadline_s=max(0.001, deadline - time.monotonic()),
            headers=dicomweb_headers(accept, access_token),
            max_bytes=limits.max_bytes + _HEADER_BYTES,
        ) as response:
            if response.status == _NOT_ACCEPTABLE and number < len(_ACCEPT):
                continue
            yield from _instances(response, reference.study_instance_uid, limits)
            return


def study_url(reference: StudyReference) -> str:
    return f"{reference.dicomweb_url.rstrip('/')}/studies/{reference.study_instance_uid}"


def dicomweb_headers(accept: str, access_token: str | None) -> dict[str, str]:
    """Accept-Encoding: compressing pixels again costs a server ten times what sending them does."""
    headers = {"Accept": accept, "Accept-Encoding": "identity"}
    if access_token is not None:
        headers["Authorization"] = f"Bearer {access_token}"
    return headers


def _instances(response: StreamedResponse, study_uid: str, limits: RetrievalLimits) -> Iterator[bytes]:
    check_status(response.status)
    count = size = 0
    for instance in _parts(response):
        count, size = count + 1, size + len(instance)
        if count > limits.max_instances or size > limits.max_bytes:
            raise UpstreamError("the study is larger than the limits", code="study_too_large")
        _check_study(instance, study_uid)
        yield instance
    if count == 0:
        raise NotFound("the PACS has no images of the study", code="study_not_found")
    log.info("study_retrieved", instances=count, bytes=size)


def check_status(status: int) -> None:
    if status == 200:  # noqa: PLR2004 (RFC 9110)
        return
    if status in (204, 404, 410):
        raise NotFound("the PACS has no such study", code="study_not_found")
    if status == 401:  # noqa: PLR2004 (RFC 9110)
        raise UpstreamUnauthorized("the PACS answered 401 to the token")
    if status == 403:  # noqa: PLR2004 (RFC 9110)
        raise UpstreamRefused("the PACS answered 403 to the token")
    if status in (408, 429) or status >= 500:  # noqa: PLR2004 (RFC 9110)
        raise UpstreamUnavailable(f"the PACS answered {status}")
    raise UpstreamError(f"the PACS answered {status}")


def _check_study(instance: bytes, study_uid: str) -> None:
    """Raise IdentityConflict if the file says that it is of another study; the decoder judges the rest."""
    try:
        header = read_header(instance, DecodeLimits())
    except ImageRefused:
        return
    element = header.walk.elements.get(_STUDY_INSTANCE_UID)
    if element is None or element.length == 0:
        return
    if element.value(header.body).rstrip(b"\0 ") != study_uid.encode("ascii"):
        raise IdentityConflict(
            "the PACS sent an image of another study", code="identity_conflict", expression="StudyInstanceUID"
        )


def _parts(response: StreamedResponse) -> Iterator[bytes]:
    """Yield the parts of a multipart/related answer, or the one file of a plain answer."""
    kind, parameters = media_type(response.headers.get("content-type", ""))
    if kind == _DICOM:
        yield b"".join(response.iter_bytes())
        return
    boundary = parameters.get("boundary", "")
    if kind != "multipart/related" or not boundary:
        raise UpstreamError("the PACS did not answer with DICOM files", code="not_dicom_multipart")
    try:
        yield from _collected(response, boundary)
    except InvalidRequest as error:
        raise UpstreamError("the PACS's multipart is malformed", code="not_dicom_multipart") from error


def _collected(response: StreamedResponse, boundary: str) -> Iterator[bytes]:
    collector = PartCollector(boundary, max_part_bytes=sys.maxsize)  # the transport bounds the whole
    for chunk in response.iter_bytes():
        for part in collector.write(chunk):
            if part.media_type not in (None, _DICOM):
                raise UpstreamError("a part of the PACS's answer is not DICOM", code="not_dicom_multipart")
            yield part.data
    if not collector.ended:
        raise UpstreamUnavailable("the PACS's answer is cut off", code="truncated_response")
