"""Images that were stored here go once their study is analysed."""

import os
import time
from dataclasses import replace

import pytest
from sqlalchemy import text

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.inference import jobs
from rayhook.inference.arrival import Arrival, ArrivalWay, announce
from rayhook.inference.received import InstanceName, ReceivedImages
from rayhook.inference.report import build_resources
from rayhook.inference.sealed_spool import SealedSpool
from tests.unit.inference.samples import analysed, manifest, reference

ABOUT = replace(reference(), number_of_instances=1)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def database(both):
    database = create_database(both.url)
    yield database
    database.close()


@pytest.fixture
def received(database, keyring, tmp_path):
    return ReceivedImages(SealedSpool(tmp_path / "received", keyring, 1 << 24), database.sessions, keyring)


@pytest.fixture
def job(database, keyring):
    """Queue the analysis, and bring it to an end if told so."""

    def made(*, key="k", end=True):
        with database.sessions() as session:
            row, _ = jobs.enqueue(session, keyring, ABOUT, None, key=key, request_id="r")
            if end:
                claimed = jobs.claim(session, keyring, row.id, lease_s=60)
                resources = build_resources(ABOUT, analysed(), manifest(), organization="Site")
                jobs.complete(session, keyring, claimed, analysed(), resources)
            session.commit()

    return made


def receive(received, number=1, *, is_image=True):
    uid = ABOUT.study_instance_uid
    file = received.put(InstanceName(uid, "1.2", f"{uid}.{number}"), b"DICM", is_image=is_image)
    with received.sessions() as session:
        received.admit(session, ABOUT.ehr_id, file)
        session.commit()


def test_they_go_when_the_analysis_has_ended(received, job):
    receive(received)
    job()
    assert (received.forget_analysed(0.0), received.spool.names(), received.has_all(ABOUT)) == (1, [], False)


def test_they_stay_while_it_waits(received, job):
    receive(received)
    job(end=False)
    assert (received.forget_analysed(0.0), received.has_all(ABOUT)) == (0, True)


def test_they_stay_while_another_of_the_same_study_waits(received, job):
    receive(received)
    job()
    job(key="other models", end=False)
    assert (received.forget_analysed(0.0), received.has_all(ABOUT)) == (0, True)


def test_what_came_since_stays(received, job):
    job()
    receive(received)
    assert (received.forget_analysed(0.0), received.has_all(ABOUT)) == (0, True)


def test_all_stay_while_more_of_the_study_has_come_that_nobody_was_asked_about(
    received, job, database, keyring
):
    """The analysis that ended had begun without it: the next one needs the whole study."""
    receive(received)
    with database.sessions() as session:
        more = Arrival(ehr_id=ABOUT.ehr_id, way=ArrivalWay.STOW, study_instance_uid=ABOUT.study_instance_uid)
        announce(session, keyring, more, settle_s=2.0)
        session.commit()
    job()
    assert (received.forget_analysed(0.0), received.has_all(ABOUT)) == (0, True)


def test_ends_of_long_ago_are_not_looked_at(received, job):
    receive(received)
    job()
    assert (received.forget_analysed(time.time() + 60), received.has_all(ABOUT)) == (0, True)


def test_a_file_that_never_counted_goes(received, tmp_path):
    received.put(InstanceName("1.2", "1.2", "1.2.3"), b"DICM", is_image=True)
    [path] = (tmp_path / "received").iterdir()
    past = time.time() - 700
    os.utime(path, (past, past))
    assert (received.forget_analysed(0.0), received.spool.names()) == (1, [])


def test_a_result_of_ours_that_came_back_stands_for_no_image(received):
    receive(received, 1)
    receive(received, 2, is_image=False)
    of_two = replace(ABOUT, number_of_instances=2)
    assert (received.has_all(of_two), received.has_all(ABOUT)) == (False, True)


def test_a_job_that_cannot_be_read_keeps_no_images_of_others(received, job, database):
    receive(received)
    job()
    spoiled = "UPDATE analysis_job SET reference = :bytes"
    with database.sessions() as session:
        session.execute(text(spoiled), {"bytes": b"not sealed by anybody"})
        session.commit()
    job(key="other models")
    assert received.forget_analysed(0.0) == 1
