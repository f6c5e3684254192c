from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from rayhook.fhir.errors import (
    EgressDenied,
    IdentityConflict,
    InvalidRequest,
    NotFound,
    RayhookError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from rayhook.fhir.transport import Transport
from rayhook.inference.dicomweb import RetrievalLimits, retrieve_study
from rayhook.inference.study import StudyReference
from tests.doubles.dicom_files import STUDY, dataset, encode, picture
from tests.doubles.raw_server import Handler, RawServer, always, answer, dripping, in_turn

BOUNDARY = "b0undary"
TYPE = f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}\r\n'
FILES = [encode(dataset(picture(seed=n), SOPInstanceUID=f"{STUDY}.1.{n}")) for n in (1, 2, 3)]


def multipart(files: list[bytes], *, kind: str = "application/dicom", end: str = "--") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{BOUNDARY}{end}\r\n".encode()


@dataclass
class Retrieval:
    """Retrieves from a server that answers as the test says."""

    transport: Transport
    servers: list[RawServer]
    token: str | None = "secret-token"
    limits: RetrievalLimits = RetrievalLimits(deadline_s=5)  # noqa: RUF009 (frozen)
    reference: StudyReference = StudyReference(  # noqa: RUF009 (frozen)
        ehr_id="ehr",
        fhir_base_url="http://127.0.0.1:1/fhir",
        patient_id="p",
        imaging_study_id="i",
        study_instance_uid=STUDY,
        dicomweb_url="",
        token_required=True,
    )

    def serve(self, handle: Handler) -> RawServer:
        self.servers.append(RawServer(handle))
        return self.servers[-1]

    def start(self, handle: Handler, *, allowed: frozenset[str] | None = None) -> Iterator[bytes]:
        server = self.serve(handle)
        return retrieve_study(
            self.transport,
            replace(self.reference, dicomweb_url=f"{server.origin}/dicom-web"),
            allowed_origins=frozenset((server.origin,)) if allowed is None else allowed,
            access_token=self.token,
            limits=self.limits,
        )

    def run(self, handle: Handler) -> list[bytes]:
        return list(self.start(handle))


@pytest.fixture
def retrieval() -> Iterator[Retrieval]:
    made = Retrieval(Transport(allow_loopback_http=True), [])
    yield made
    for server in made.servers:
        server.stop()
    made.transport.close()


def test_every_file_comes_as_it_was_sent(retrieval: Retrieval) -> None:
    assert retrieval.run(always(answer(multipart(FILES), headers=TYPE))) == FILES


def test_the_boundary_may_be_quoted(retrieval: Retrieval) -> None:
    quoted = TYPE.replace(BOUNDARY, f'"{BOUNDARY}"')
    assert retrieval.run(always(answer(multipart(FILES), headers=quoted))) == FILES


def test_a_single_file_may_come_without_multipart(retrieval: Retrieval) -> None:
    assert retrieval.run(always(answer(FILES[0], headers="Content-Type: application/dicom\r\n"))) == FILES[:1]


def test_files_come_before_the_answer_has_ended(retrieval: Retrieval) -> None:
    body = multipart(FILES)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + 100}\r\n{TYPE}\r\n".encode()
    retrieval.limits = replace(retrieval.limits, deadline_s=1)
    files = retrieval.start(dripping(head + body[: -len(BOUNDARY)], b"", pause_s=0.2))
    assert next(files) == FILES[0]
    files.close()  # type: ignore[attr-defined]


def test_the_request_asks_for_any_syntax_and_shows_the_token(retrieval: Retrieval) -> None:
    retrieval.run(always(answer(multipart(FILES), headers=TYPE)))
    request = retrieval.servers[0].requests[0].lower()
    assert request.startswith(f"get /dicom-web/studies/{STUDY} ".encode())
    assert b'accept: multipart/related; type="application/dicom"; transfer-syntax=*' in request
    assert b"accept-encoding: identity" in request
    assert b"authorization: bearer secret-token" in request


def test_no_token_is_sent_where_there_is_none(retrieval: Retrieval) -> None:
    retrieval.token = None
    retrieval.run(always(answer(multipart(FILES), headers=TYPE)))
    assert b"authorization" not in retrieval.servers[0].requests[0].lower()


def test_a_server_that_does_not_know_the_wildcard_is_asked_again(retrieval: Retrieval) -> None:
    handle = in_turn(
        answer(b"", status="406 Not Acceptable"),
        answer(b"", status="406 Not Acceptable"),
        answer(multipart(FILES), headers=TYPE),
    )
    assert retrieval.run(handle) == FILES
    accepts = [
        request.lower().partition(b"accept: ")[2].split(b"\r\n")[0]
        for request in retrieval.servers[0].requests
    ]
    assert accepts[-1] == b'multipart/related; type="application/dicom"'


def test_a_busy_server_is_asked_again(retrieval: Retrieval) -> None:
    busy = answer(b"", status="503 Busy", headers="Retry-After: 0\r\n")
    assert retrieval.run(in_turn(busy, answer(multipart(FILES), headers=TYPE))) == FILES


@pytest.mark.parametrize(
    ("handle", "error", "code"),
    [
        (lambda: always(answer(b"", status="406 No")), UpstreamError, "upstream_error"),
        (lambda: always(answer(b"", status="404 No")), NotFound, "study_not_found"),
        (lambda: always(b"HTTP/1.1 204 No Content\r\n\r\n"), NotFound, "study_not_found"),
        (lambda: always(answer(b"", status="401 No")), UpstreamRefused, "upstream_refused"),
        (lambda: always(answer(b"", status="403 No")), UpstreamRefused, "upstream_refused"),
        (lambda: always(answer(b"", status="500 No")), UpstreamUnavailable, "upstream_unavailable"),
        (lambda: always(answer(b"", status="302 Go", headers="Location: http://127.0.0.1:9/\r\n")), UpstreamError, "upstream_error"),
        (lambda: always(answer(b"<html>", headers="Content-Type: text/html\r\n")), UpstreamError, "not_dicom_multipart"),
        (lambda: always(answer(b"x", headers="Content-Type: multipart/related\r\n")), UpstreamError, "not_dicom_multipart"),
        (lambda: always(answer(b"garbage", headers=TYPE)), UpstreamError, "not_dicom_multipart"),
        (lambda: always(answer(multipart([b"<html>"], kind="text/html"), headers=TYPE)), UpstreamError, "not_dicom_multipart"),
        (lambda: always(answer(multipart(FILES)[:-8], headers=TYPE)), UpstreamUnavailable, "truncated_response"),
        (lambda: always(answer(multipart(FILES)[: len(FILES[0]) // 2], headers=TYPE)), UpstreamUnavailable, "truncated_response"),
        (lambda: always(answer(f"--{BOUNDARY}--\r\n".encode(), headers=TYPE)), NotFound, "study_not_found"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_study_is_told(
    retrieval: Retrieval, handle: Callable[[], Handler], error: type[RayhookError], code: str
) -> None:
    with pytest.raises(error) as caught:
        retrieval.run(handle())
    assert caught.value.code == code


def test_a_connection_that_breaks_off_is_told(retrieval: Retrieval) -> None:
    body = multipart(FILES)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{TYPE}\r\n".encode()

    def handle(connection, _):
        connection.sendall(head + body[: len(body) // 2])
        connection.close()

    with pytest.raises(UpstreamUnavailable):
        retrieval.run(handle)


def test_a_dripping_server_is_left_at_the_deadline(retrieval: Retrieval) -> None:
    retrieval.limits = replace(retrieval.limits, deadline_s=0.5)
    with pytest.raises(UpstreamTimeout):
        retrieval.run(dripping(f"HTTP/1.1 200 OK\r\n{TYPE}\r\n--{BOUNDARY}\r\n\r\n".encode(), b"x"))


def test_an_image_of_another_study_is_an_identity_conflict(retrieval: Retrieval) -> None:
    other = encode(dataset(picture(), StudyInstanceUID=f"{STUDY}.9"))
    with pytest.raises(IdentityConflict) as caught:
        retrieval.run(always(answer(multipart([FILES[0], other]), headers=TYPE)))
    assert caught.value.expression == "StudyInstanceUID"


def test_what_is_no_dicom_is_left_to_the_decoder(retrieval: Retrieval) -> None:
    assert retrieval.run(always(answer(multipart([b"no image"]), headers=TYPE))) == [b"no image"]


@pytest.mark.parametrize("limits", [{"max_instances": 2}, {"max_bytes": 2 * len(FILES[0])}])
def test_a_study_beyond_the_limits_is_refused(retrieval: Retrieval, limits: dict[str, int]) -> None:
    retrieval.limits = replace(retrieval.limits, **limits)  # type: ignore[arg-type]
    with pytest.raises(UpstreamError) as caught:
        retrieval.run(always(answer(multipart(FILES), headers=TYPE)))
    assert caught.value.code == "study_too_large"


def test_a_part_without_an_end_is_refused_at_the_limit(retrieval: Retrieval) -> None:
    retrieval.limits = replace(retrieval.limits, max_bytes=1 << 20)
    head = f"HTTP/1.1 200 OK\r\n{TYPE}\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    with pytest.raises(UpstreamError):
        retrieval.run(dripping(head, b"x" * (1 << 19), pause_s=0))


def test_an_origin_that_nobody_registered_is_not_asked(retrieval: Retrieval) -> None:
    with pytest.raises(EgressDenied):
        list(retrieval.start(always(b""), allowed=frozenset(("http://127.0.0.1:9",))))
    assert retrieval.servers[0].connections == 0


@pytest.mark.parametrize("uid", ["", "../../etc", "1.2.3/../4", "1.2.3?x=y", "1." + "2" * 70])
def test_a_uid_that_is_none_never_reaches_a_url(retrieval: Retrieval, uid: str) -> None:
    retrieval.reference = replace(retrieval.reference, study_instance_uid=uid)
    with pytest.raises(InvalidRequest):
        retrieval.run(always(b""))
    assert retrieval.servers[0].connections == 0
