"""What becomes of the files of a request that takes long, or breaks off, while others tidy the spool."""

import os
import time

import pytest
from sqlmodel import select

from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import ServiceUnavailable
from rayhook.inference.multipart import Part
from rayhook.inference.received import ReceivedImages, ReceivedInstance
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.inference.store_request import Sender, StoreRequest
from tests.unit.inference.images import dicom_slice

UID = "1.2.826.0.1.3680043.8.498.4711"
LONG_S = 3600.0
EHR_A = EHR(
    id="a",
    name="A",
    fhir_base_urls=("https://a.example/fhir",),
    cds_client=CDSClient(issuer="https://a.example", jwks_url="https://a.example/jwks"),
)


def part(number):
    return Part("application/dicom", dicom_slice(number, SOPInstanceUID=f"{UID}.{number}"))


@pytest.fixture
def received(tmp_path):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    keyring = Keyring.load_or_create(tmp_path / "keyring.json")
    spool = SealedSpool(tmp_path / "received", keyring, 1 << 30)
    yield ReceivedImages(spool, database.sessions, keyring)
    database.close()


@pytest.fixture
def work(received):
    return StoreRequest(
        received=received,
        audit=AuditLog(received.keyring),
        sender=Sender(EHR_A, "router"),
        study_instance_uid=None,
        settle_s=10.0,
    )


def age(received, tmp_path):
    past = time.time() - LONG_S
    for name in received.spool.names():
        os.utime(tmp_path / "received" / name, (past, past))


def rows(received):
    with received.sessions() as session:
        return len(session.exec(select(ReceivedInstance)).all())


def test_the_files_of_a_request_that_goes_on_are_not_tidied_away(received, work, tmp_path):
    work.take(part(1))
    age(received, tmp_path)
    work.clock = lambda: time.time() + LONG_S
    work.take(part(2))
    received.forget_analysed(0.0)
    assert (work.finish()[0], len(received.spool.names())) == (200, 2)


def test_nothing_counts_where_a_file_was_tidied_away(received, work, tmp_path):
    work.take(part(1))
    age(received, tmp_path)
    received.forget_analysed(0.0)
    with pytest.raises(ServiceUnavailable) as refused:
        work.finish()
    assert (refused.value.code, rows(received)) == ("received_image_lost", 0)


def test_what_counts_is_not_abandoned(received, work):
    work.take(part(1))
    work.finish()
    work.abandon()
    assert (rows(received), len(received.spool.names())) == (1, 1)
