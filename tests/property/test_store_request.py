"""Whatever is sent to be stored: what is no image is refused alone, what is malformed as a whole, and nothing else happens."""

import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select

from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import InvalidRequest
from rayhook.inference.arrival import ArrivalRow
from rayhook.inference.multipart import Part, PartCollector
from rayhook.inference.received import ReceivedImages, ReceivedInstance
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.inference.store_request import Sender, StoreRequest
from tests.unit.inference.images import dicom_slice

BOUNDARY = "rayhook-property"
DICOM = "application/dicom"
UID = "1.2.826.0.1.3680043.8.498.4711"
EHR_A = EHR(
    id="a",
    name="A",
    fhir_base_urls=("https://a.example/fhir",),
    cds_client=CDSClient(issuer="https://a.example", jwks_url="https://a.example/jwks"),
)


def images(uid):
    return [dicom_slice(n, StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.{n}") for n in range(1, 4)]


IMAGES, OTHERS = images(UID), images(f"{UID}.7")


def body_of(parts, boundary=BOUNDARY):
    pieces = [b"--%s\r\nContent-Type: %s\r\n\r\n%s\r\n" % (boundary.encode(), *part) for part in parts]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def collected(body, cuts=(), *, max_part_bytes=1 << 20):
    """Feed a body in pieces, and return its parts and whether it came to its end."""
    collector = PartCollector(BOUNDARY, max_part_bytes=max_part_bytes)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    parts = [part for first, last in pairwise(places) for part in collector.write(body[first:last])]
    return parts, collector.ended


DATA = st.binary(max_size=2000).filter(lambda data: BOUNDARY.encode() not in data)
CUTS = st.lists(st.integers(0, 1 << 20), max_size=30)


@given(st.lists(DATA, min_size=1, max_size=8), CUTS)
def test_parts_come_as_they_were_sent_however_the_body_is_cut(files, cuts):
    parts, ended = collected(body_of([(DICOM.encode(), data) for data in files]), cuts)
    assert ([part.data for part in parts], ended) == (files, True)


@given(st.binary(max_size=4000), CUTS)
def test_any_bytes_are_parts_or_refused(body, cuts):
    try:
        parts, _ = collected(body, cuts)
    except InvalidRequest:
        return
    assert all(len(part.data) <= len(body) for part in parts)


@given(st.lists(DATA, min_size=1, max_size=4), st.integers(1, 200))
def test_a_body_that_is_cut_off_does_not_end(files, missing):
    body = body_of([(DICOM.encode(), data) for data in files]).removesuffix(b"--\r\n")
    try:
        _, ended = collected(body[: max(0, len(body) - missing)])
    except InvalidRequest:
        return
    assert not ended


@given(st.binary(min_size=101, max_size=5000).filter(lambda data: BOUNDARY.encode() not in data), CUTS)
def test_of_a_part_that_is_too_long_nothing_is_kept(data, cuts):
    parts, _ = collected(body_of([(DICOM.encode(), data)]), cuts, max_part_bytes=100)
    assert [(part.is_too_long, part.data) for part in parts] == [(True, b"")]


@pytest.mark.parametrize("head", [b"X-Long: " + b"a" * 9000, b"b" * 9000 + b": 1"])
def test_a_head_without_end_is_refused(head):
    body = b"--%s\r\n%s\r\n\r\ndata\r\n--%s--" % (BOUNDARY.encode(), head, BOUNDARY.encode())
    with pytest.raises(InvalidRequest):
        collected(body)


@pytest.mark.parametrize("boundary", ["", "a" * 201, "ends with a space ", "line\r\nbreak", "ünïcode"])
def test_a_boundary_of_another_form_is_refused(boundary):
    with pytest.raises(InvalidRequest):
        PartCollector(boundary, max_part_bytes=1)


@dataclass
class Desk:
    received: ReceivedImages
    audit: AuditLog

    def request(self, parts, study=None):
        work = StoreRequest(
            received=self.received,
            audit=self.audit,
            sender=Sender(EHR_A, "router"),
            study_instance_uid=study,
            settle_s=10.0,
        )
        for part in parts:
            work.take(part)
        return work.finish()

    def counts(self):
        with self.received.sessions() as session:
            return len(session.exec(select(ReceivedInstance)).all()), len(
                session.exec(select(ArrivalRow)).all()
            )


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("desk")
    url = f"sqlite:///{folder / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    keyring = Keyring.load_or_create(folder / "keyring.json")
    spool = SealedSpool(folder / "received", keyring, 1 << 30)
    yield Desk(ReceivedImages(spool, database.sessions, keyring), AuditLog(keyring))
    database.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(), changes=st.integers(1, 30))
def test_a_damaged_image_is_stored_as_it_is_or_refused_and_never_more(desk, seed, changes):
    """Bytes are changed in the header: what can be told of it is stored, the rest has no name."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(IMAGES))
    for _ in range(changes):
        data[chance.randrange(min(len(data), 1500))] = chance.randrange(256)
    status, answer = desk.request([Part(DICOM, bytes(data))])
    stored = len(answer.get("00081199", {}).get("Value", []))
    refused = len(answer.get("00081198", {}).get("Value", [])) + len(
        answer.get("0008119A", {}).get("Value", [])
    )
    assert (status, stored + refused) == (200 if stored else 409, 1)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=3000))
def test_bytes_that_are_no_image_are_refused(desk, data):
    before = desk.counts()
    status, answer = desk.request([Part(DICOM, data)])
    assert (status, len(answer["0008119A"]["Value"]), desk.counts()) == (409, 1, before)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)))
def test_good_images_are_stored_among_whatever_comes_with_them(desk, order):
    bad = [Part(DICOM, b"x" * 500), Part("text/html", IMAGES[0]), Part(DICOM, b"", is_too_long=True)]
    parts = [*bad, *(Part(DICOM, image) for image in OTHERS)]
    status, answer = desk.request([parts[place] for place in order])
    assert (status, len(answer["00081199"]["Value"]), len(answer["0008119A"]["Value"])) == (202, 3, 3)


def test_one_image_twice_in_a_request_is_stored_once(desk):
    uid = f"{UID}.9"
    image = dicom_slice(9, StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.1")
    before, _ = desk.counts()
    status, answer = desk.request([Part(DICOM, image), Part(DICOM, image)])
    after, _ = desk.counts()
    assert (status, len(answer["00081199"]["Value"]), after - before) == (200, 2, 1)
    assert len(desk.received.spool.names()) == after
