import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from rayhook.deploy.demo.run import serving
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.transport import Transport
from rayhook.inference.dicom_table import StoreState
from rayhook.inference.dicomweb_store import Storable, StoreLimits, StoreOutcome, store_instances
from tests.ports import free_url

STUDY = "1.2.3"
OBJECTS = (Storable("1.2.3.1", b"first"), Storable("1.2.3.2", b"second"))
STORED = StoreOutcome(StoreState.STORED)


class PACS:
    """Answers stores as it is told, and keeps what came."""

    def __init__(self) -> None:
        self.url = free_url()
        self.answers: list[Response] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.app = FastAPI()
        self.app.add_api_route("/{path:path}", self._answer, methods=["POST"], response_model=None)

    async def _answer(self, request: Request) -> Response:
        self.requests.append((request.url.path, dict(request.headers), await request.body()))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def running() -> Iterator[PACS]:
    pacs = PACS()
    with serving(pacs.app, pacs.url):
        yield pacs


@pytest.fixture(scope="module")
def server():
    with running() as pacs:
        yield pacs


@pytest.fixture
def pacs(server):
    server.answers.clear()
    server.requests.clear()
    return server


@pytest.fixture(scope="module")
def transport():
    transport = Transport(allow_loopback_http=True)
    yield transport
    transport.close()


def told(*, stored=(), failed=(), status=200, **headers) -> Response:
    body = {
        "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored]},
        "00081198": {
            "vr": "SQ",
            "Value": [
                {
                    "00081155": {"vr": "UI", "Value": [uid]},
                    "00081197": {"vr": "US", "Value": [reason]},
                }
                for uid, reason in failed
            ],
        },
    }
    return Response(json.dumps(body), status, headers=headers, media_type="application/dicom+json")


def store(pacs, transport, *, objects=OBJECTS, token="token", **limits):
    return store_instances(
        transport,
        f"{pacs.url}/dicom-web",
        STUDY,
        objects,
        allowed_origins=frozenset({pacs.url}),
        access_token=token,
        limits=StoreLimits(**{"deadline_s": 5.0, **limits}),
    )


def test_what_the_pacs_lists_is_stored(pacs, transport):
    pacs.answers.append(told(stored=["1.2.3.1", "1.2.3.2"]))
    assert store(pacs, transport) == {"1.2.3.1": STORED, "1.2.3.2": STORED}


def test_objects_go_to_their_study_as_multipart(pacs, transport):
    pacs.answers.append(told(stored=["1.2.3.1", "1.2.3.2"]))
    store(pacs, transport)
    ((path, headers, body),) = pacs.requests
    assert path == "/dicom-web/studies/1.2.3"
    assert headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert headers["authorization"] == "Bearer token"
    boundary = headers["content-type"].partition("boundary=")[2].encode()
    assert body.count(b"--" + boundary + b"\r\n") == 2
    assert body.endswith(b"\r\nsecond\r\n--" + boundary + b"--\r\n")


def test_without_a_token_none_is_sent(pacs, transport):
    pacs.answers.append(told(stored=["1.2.3.1", "1.2.3.2"]))
    store(pacs, transport, token=None)
    assert "authorization" not in pacs.requests[0][1]


def test_a_part_that_fails_is_told_by_itself(pacs, transport):
    pacs.answers.append(told(stored=["1.2.3.1"], failed=[("1.2.3.2", 0x0122)], status=202))
    outcomes = store(pacs, transport)
    assert outcomes == {"1.2.3.1": STORED, "1.2.3.2": StoreOutcome(StoreState.REFUSED, "reason_0122")}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (0x0111, STORED),
        (0x0110, StoreOutcome(StoreState.FAILED, "reason_0110")),
        (0xA702, StoreOutcome(StoreState.FAILED, "reason_a702")),
        (0xA900, StoreOutcome(StoreState.REFUSED, "reason_a900")),
        (0xC000, StoreOutcome(StoreState.REFUSED, "reason_c000")),
    ],
)
def test_a_reason_says_whether_another_try_may_help(pacs, transport, reason, outcome):
    pacs.answers.append(told(failed=[("1.2.3.1", reason), ("1.2.3.2", reason)], status=409))
    assert store(pacs, transport)["1.2.3.1"] == outcome


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (401, StoreOutcome(StoreState.FAILED, "http_401")),
        (403, StoreOutcome(StoreState.REFUSED, "http_403")),
        (413, StoreOutcome(StoreState.REFUSED, "object_too_large")),
        (415, StoreOutcome(StoreState.REFUSED, "http_415")),
        (500, StoreOutcome(StoreState.FAILED, "http_500")),
        (302, StoreOutcome(StoreState.REFUSED, "http_302")),
    ],
)
def test_a_status_is_told_of_every_object(pacs, transport, status, outcome):
    pacs.answers.append(Response(status_code=status))
    assert set(store(pacs, transport).values()) == {outcome}


def test_a_200_without_a_list_is_all_stored(pacs, transport):
    pacs.answers.append(Response("<xml/>", media_type="application/dicom+xml"))
    assert set(store(pacs, transport).values()) == {STORED}


@pytest.mark.parametrize("status", [202, 409])
def test_a_partial_answer_without_a_list_stores_nothing_for_sure(pacs, transport, status):
    pacs.answers.append(Response("<xml/>", status))
    assert set(store(pacs, transport).values()) == {StoreOutcome(StoreState.FAILED, "not_told")}


def test_an_object_that_the_list_leaves_out_is_not_stored(pacs, transport):
    pacs.answers.append(told(stored=["1.2.3.1"]))
    assert store(pacs, transport)["1.2.3.2"] == StoreOutcome(StoreState.FAILED, "not_told")


def test_a_busy_pacs_is_asked_again_when_it_said(pacs, transport):
    pacs.answers += [
        Response(status_code=503, headers={"Retry-After": "1"}),
        told(stored=["1.2.3.1", "1.2.3.2"]),
    ]
    begun = time.monotonic()
    assert store(pacs, transport)["1.2.3.1"] == STORED
    assert time.monotonic() - begun >= 1.0


def test_a_pacs_that_asks_for_longer_than_there_is_time_is_left_alone(pacs, transport):
    pacs.answers.append(Response(status_code=503, headers={"Retry-After": "600"}))
    assert store(pacs, transport)["1.2.3.1"] == StoreOutcome(StoreState.FAILED, "http_503")
    assert len(pacs.requests) == 1


def test_an_object_that_is_too_large_is_not_sent(pacs, transport):
    pacs.answers.append(told(stored=["1.2.3.1"]))
    outcomes = store(pacs, transport, max_bytes=5)
    assert outcomes == {"1.2.3.1": STORED, "1.2.3.2": StoreOutcome(StoreState.REFUSED, "object_too_large")}


def test_objects_that_are_too_large_together_go_one_by_one(pacs, transport):
    pacs.answers.append(told(stored=["1.2.3.1", "1.2.3.2"]))
    assert set(store(pacs, transport, max_bytes=8).values()) == {STORED}
    assert len(pacs.requests) == 2


def test_an_answer_without_end_is_cut_off(pacs, transport):
    pacs.answers.append(Response(b" " * 5000))
    outcomes = store(pacs, transport, max_response_bytes=1000)
    assert {one.state for one in outcomes.values()} == {StoreState.FAILED}


def test_a_pacs_that_is_away_is_told(transport):
    with running() as gone:
        pass
    assert {one.state for one in store(gone, transport).values()} == {StoreState.FAILED}


def test_another_origin_is_never_asked(pacs, transport):
    outcomes = store_instances(
        transport,
        f"{pacs.url}/dicom-web",
        STUDY,
        OBJECTS,
        allowed_origins=frozenset({"https://pacs.example"}),
        access_token="token",
    )
    assert set(outcomes.values()) == {StoreOutcome(StoreState.FAILED, "egress_denied")}
    assert pacs.requests == []


def test_a_study_uid_that_is_none_is_refused(pacs, transport):
    with pytest.raises(InvalidRequest):
        store_instances(
            transport, pacs.url, "../1", OBJECTS, allowed_origins=frozenset({pacs.url}), access_token=None
        )


def test_an_answer_that_nests_without_end_is_told(pacs, transport):
    pacs.answers.append(Response("[" * 100_000, 202, media_type="application/dicom+json"))
    assert set(store(pacs, transport).values()) == {StoreOutcome(StoreState.FAILED, "not_told")}
