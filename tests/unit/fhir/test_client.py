import json
import time
import traceback

import pytest

from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import (
    EgressDenied,
    InvalidRequest,
    NotFound,
    UpstreamConflict,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnauthorized,
    UpstreamUnavailable,
)
from tests.doubles.raw_server import always, answer, dripping, in_turn

PATIENT = {"resourceType": "Patient", "id": "p1"}
STUDY = {"resourceType": "ImagingStudy", "id": "s1"}
ENDPOINT = {"resourceType": "Endpoint", "id": "e1"}
TOKEN = "secret-token-0123456789"


def fhir(body, *, status="200 OK", headers=""):
    return answer(json.dumps(body).encode(), status=status, headers=headers)


def searchset(*resources, following=None):
    bundle = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": r} for r in resources]}
    return bundle if following is None else bundle | {"link": [{"relation": "next", "url": following}]}


def outcome(code, *, severity="error"):
    issue = {"severity": severity, "code": code, "diagnostics": "Patient Jane Doe is unknown"}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


@pytest.fixture
def at(serve, transport):
    """Start a server with the given behaviour; return it and a client of its base `/fhir`."""

    def start(handle, *, token=None, base="/fhir"):
        server = serve(handle)
        return server, FHIRClient(transport, server.origin + base, frozenset({server.origin}), token)

    return start


def request_line(server, index=-1):
    return server.requests[index].split(b"\r\n")[0].decode()


def test_read_returns_the_resource(at):
    server, client = at(always(fhir(PATIENT)))
    assert client.read("Patient", "p1", deadline_s=5) == PATIENT
    assert request_line(server) == "GET /fhir/Patient/p1 HTTP/1.1"


def test_trailing_slash_of_the_base_is_forgiven(at):
    server, client = at(always(fhir(PATIENT)), base="/fhir/")
    client.read("Patient", "p1", deadline_s=5)
    assert request_line(server) == "GET /fhir/Patient/p1 HTTP/1.1"


def test_token_and_media_type_are_sent(at):
    server, client = at(always(fhir(PATIENT)), token=TOKEN)
    client.read("Patient", "p1", deadline_s=5)
    assert f"\r\nauthorization: Bearer {TOKEN}\r\n".encode() in server.requests[0]
    assert b"\r\naccept: application/fhir+json\r\n" in server.requests[0]


def test_no_token_no_header(at):
    server, client = at(always(fhir(PATIENT)))
    client.read("Patient", "p1", deadline_s=5)
    assert b"authorization" not in server.requests[0]


@pytest.mark.parametrize("other", [PATIENT | {"id": "p2"}, STUDY | {"id": "p1"}, {"resourceType": "Patient"}])
def test_read_of_another_resource_is_refused(at, other):
    _, client = at(always(fhir(other)))
    with pytest.raises(UpstreamError, match="another resource"):
        client.read("Patient", "p1", deadline_s=5)


@pytest.mark.parametrize("id_", ["", "..", "a/b", "p1?x=y", "p1#"])
def test_read_by_no_id_is_refused_before_anything_is_sent(at, id_):
    server, client = at(always(fhir(PATIENT)))
    with pytest.raises(InvalidRequest):
        client.read("Patient", id_, deadline_s=5)
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("400 Bad Request", UpstreamError),
        ("401 Unauthorized", UpstreamUnauthorized),
        ("403 Forbidden", UpstreamRefused),
        ("404 Not Found", NotFound),
        ("410 Gone", NotFound),
        ("409 Conflict", UpstreamConflict),
        ("412 Precondition Failed", UpstreamConflict),
        ("422 Unprocessable", UpstreamError),
        ("500 Broken", UpstreamUnavailable),
        ("302 Found", UpstreamError),
        ("204 No Content", UpstreamError),
    ],
)
def test_status_becomes_an_error(at, status, error):
    _, client = at(always(fhir(outcome("exception"), status=status)))
    with pytest.raises(error) as caught:
        client.read("Patient", "p1", deadline_s=5)
    assert type(caught.value) is error


def test_error_names_the_issue_but_not_the_patient(at):
    _, client = at(always(fhir(outcome("not-found"), status="404 Not Found")), token=TOKEN)
    with pytest.raises(NotFound) as caught:
        client.read("Patient", "p1", deadline_s=5)
    said = "".join(traceback.format_exception(caught.value))
    assert "(not-found)" in said
    assert not any(secret in said for secret in ("Jane", TOKEN, "Patient/p1"))


def test_issue_code_of_no_value_set_is_not_repeated(at):
    _, client = at(always(fhir(outcome("Jane Doe"), status="404 Not Found")))
    with pytest.raises(NotFound) as caught:
        client.read("Patient", "p1", deadline_s=5)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Jane Doe</html>",
        b"[]",
        b"null",
        b'{"resourceType":',
        b'{"a":1}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_answer_that_is_no_resource_is_refused(at, body):
    _, client = at(always(answer(body)))
    with pytest.raises(UpstreamError) as caught:
        client.read("Patient", "p1", deadline_s=5)
    assert caught.value.code == "upstream_malformed"
    assert "Jane" not in "".join(traceback.format_exception(caught.value))


def test_token_is_not_in_the_representation(transport):
    assert TOKEN not in repr(FHIRClient(transport, "https://ehr.example", frozenset(), TOKEN))


def test_base_at_an_origin_not_allowed_is_denied(transport):
    client = FHIRClient(transport, "https://ehr.example.evil/fhir", frozenset({"https://ehr.example"}), TOKEN)
    with pytest.raises(EgressDenied):
        client.read("Patient", "p1", deadline_s=5)


def test_search_returns_matches_and_includes(at):
    server, client = at(always(fhir(searchset(STUDY, ENDPOINT))))
    found = client.search(
        "ImagingStudy", [("patient", "p1"), ("_include", "ImagingStudy:endpoint")], deadline_s=5
    )
    assert found == [STUDY, ENDPOINT]
    assert request_line(server) == (
        "GET /fhir/ImagingStudy?patient=p1&_include=ImagingStudy%3Aendpoint HTTP/1.1"
    )


def test_empty_searchset_is_no_error(at):
    _, client = at(always(fhir({"resourceType": "Bundle", "type": "searchset", "total": 0})))
    assert client.search("ImagingStudy", [], deadline_s=5) == []


@pytest.mark.parametrize(
    "following", ["{origin}/fhir?page=2", "{origin}/fhir/ImagingStudy?page=2", "ImagingStudy?page=2"]
)
def test_pages_are_followed(at, following):
    server, client = at(None)
    url = following.format(origin=server.origin)
    server.handle = in_turn(fhir(searchset(STUDY, following=url)), fhir(searchset(ENDPOINT)))
    assert client.search("ImagingStudy", [("patient", "p1")], deadline_s=5) == [STUDY, ENDPOINT]
    assert "page=2" in request_line(server)


def test_search_that_failed_in_part_is_no_answer(at):
    _, client = at(always(fhir(searchset(STUDY, outcome("timeout")))))
    with pytest.raises(UpstreamError) as caught:
        client.search("ImagingStudy", [], deadline_s=5)
    assert caught.value.code == "upstream_search_incomplete"


def test_warning_beside_the_matches_is_left_out(at):
    _, client = at(always(fhir(searchset(STUDY, outcome("informational", severity="warning")))))
    assert client.search("ImagingStudy", [], deadline_s=5) == [STUDY]


@pytest.mark.parametrize(
    "following",
    [
        "https://evil.example/fhir?page=2",
        "{origin}.evil.example/fhir?page=2",
        "{origin}/fhir-other/ImagingStudy?page=2",
        "{origin}/other?page=2",
        "{origin}/fhir/../other?page=2",
        "{origin}/fhir/%2e%2e/other?page=2",
        "//evil.example/fhir?page=2",
        "/other?page=2",
        "../other?page=2",
        "{origin}@evil.example/fhir",
        "javascript:alert(1)",
        "https://[x",
    ],
)
def test_page_elsewhere_is_refused_and_not_fetched(at, following):
    server, client = at(None, token=TOKEN)
    server.handle = always(fhir(searchset(STUDY, following=following.format(origin=server.origin))))
    with pytest.raises(UpstreamError) as caught:
        client.search("ImagingStudy", [("patient", "p1")], deadline_s=5)
    assert caught.value.code == "upstream_foreign_page"
    assert len(server.requests) == 1


def test_pages_end_at_the_limit(at):
    server, client = at(None)
    server.handle = always(fhir(searchset(STUDY, following=f"{server.origin}/fhir?page=next")))
    assert len(client.search("ImagingStudy", [], deadline_s=5, max_pages=3)) == 3
    assert len(server.requests) == 3


def test_deadline_is_for_all_pages(at):
    server, client = at(None)
    page = fhir(searchset(STUDY, following=f"{server.origin}/fhir?page=next"))
    server.handle = lambda connection, _: (time.sleep(0.2), connection.sendall(page))
    started = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        client.search("ImagingStudy", [], deadline_s=0.5, max_pages=100)
    assert time.monotonic() - started < 0.9


def test_deadline_holds_against_a_dripping_server(at):
    _, client = at(dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b" "))
    with pytest.raises(UpstreamTimeout):
        client.read("Patient", "p1", deadline_s=0.3)


@pytest.mark.parametrize(
    "page", [PATIENT, {"resourceType": "Bundle", "type": "collection"}, outcome("processing")]
)
def test_search_answer_that_is_no_searchset_is_refused(at, page):
    _, client = at(always(fhir(page)))
    with pytest.raises(UpstreamError):
        client.search("Patient", [], deadline_s=5)


@pytest.mark.parametrize(
    "name", ["identifier", "name:exact", "patient.identifier", "subject:identifier", "birthdate"]
)
def test_identifying_search_is_not_in_a_url(at, name):
    server, client = at(always(fhir(searchset(PATIENT))))
    client.search("Patient", [(name, "MRN 1")], deadline_s=5)
    assert request_line(server) == "POST /fhir/Patient/_search HTTP/1.1"
    assert b"MRN" in server.requests[0].partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("query", "target"),
    [
        ("Patient/p1", "/fhir/Patient/p1"),
        ("ImagingStudy?patient=p1&_sort=-started", "/fhir/ImagingStudy?patient=p1&_sort=-started"),
        ("Observation?code=http://loinc.org|4548-4", "/fhir/Observation?code=http://loinc.org%7C4548-4"),
        ("ImagingStudy?x=a%20b c", "/fhir/ImagingStudy?x=a%20b%20c"),
        ("?_getpages=1", "/fhir?_getpages=1"),
    ],
)
def test_query_is_taken_under_the_base(at, query, target):
    server, client = at(always(fhir(PATIENT)))
    client.query(query, deadline_s=5)
    assert request_line(server) == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize(
    "query",
    ["/Patient/p1", "//evil.example/", "https://evil.example/", "../admin", "a/../../b", "%2e%2E/admin"],
)
def test_query_elsewhere_is_refused(at, query):
    server, client = at(always(fhir(PATIENT)))
    with pytest.raises(InvalidRequest):
        client.query(query, deadline_s=5)
    assert server.requests == []


def test_create_is_conditional(at):
    server, client = at(always(fhir({"resourceType": "Device", "id": "d7"}, status="201 Created")))
    created = client.create({"resourceType": "Device"}, if_none_exist="identifier=a|b", deadline_s=5)
    assert created["id"] == "d7"
    assert request_line(server) == "POST /fhir/Device HTTP/1.1"
    assert b"\r\nif-none-exist: identifier=a|b\r\n" in server.requests[0]
    assert b"\r\ncontent-type: application/fhir+json\r\n" in server.requests[0]


def test_id_of_a_creation_without_body_is_in_location(at):
    server, client = at(None)
    location = f"Location: {server.origin}/fhir/Device/d7/_history/1\r\n"
    server.handle = always(answer(b"", status="201 Created", headers=location))
    device = {"resourceType": "Device", "status": "active"}
    assert client.create(device, if_none_exist=None, deadline_s=5) == device | {"id": "d7"}


def test_creation_without_body_and_location_is_refused(at):
    _, client = at(always(answer(b"", status="201 Created")))
    with pytest.raises(UpstreamError):
        client.create({"resourceType": "Device"}, if_none_exist=None, deadline_s=5)


def transaction(entries):
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def response(*statuses):
    entries = [{"response": {"status": status}} for status in statuses]
    return {"resourceType": "Bundle", "type": "transaction-response", "entry": entries}


def test_transaction_goes_to_the_base(at):
    server, client = at(always(fhir(response("201 Created", "200 OK"))))
    answered = client.transaction(transaction([{}, {}]), deadline_s=5)
    assert len(answered["entry"]) == 2
    assert request_line(server) == "POST /fhir HTTP/1.1"


@pytest.mark.parametrize(
    "answered",
    [
        response("201 Created"),
        response("201 Created", "400 Bad Request"),
        response("201", "201", "201"),
        {"resourceType": "Bundle", "type": "batch-response", "entry": response("201", "201")["entry"]},
        {"resourceType": "Bundle", "type": "transaction-response", "entry": [{}, {}]},
        response("201", "201") | {"entry": ["x", "y"]},
        response("201", "201") | {"entry": 2},
        PATIENT,
    ],
)
def test_incomplete_transaction_is_refused(at, answered):
    _, client = at(always(fhir(answered)))
    with pytest.raises(UpstreamError):
        client.transaction(transaction([{}, {}]), deadline_s=5)


def test_writes_are_sent_once(at):
    server, client = at(always(fhir(outcome("transient"), status="503 Busy")))
    with pytest.raises(UpstreamUnavailable):
        client.transaction(transaction([{}]), deadline_s=5)
    assert len(server.requests) == 1
