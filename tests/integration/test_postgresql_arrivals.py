"""Arrivals on a real PostgreSQL, where transactions truly run side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlmodel import select

from rayhook.audit.record import AuditLog
from rayhook.auth.arrival_sources import ArrivalSources, SecretFile, SubscriptionSource
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.references import Reference
from rayhook.fhir.subscription import Notification, NotificationType
from rayhook.inference.arrival import Arrival, ArrivalRow, ArrivalState, ArrivalWay, Inbox, announce
from rayhook.inference.arrival_source import ArrivalSourceRow, Source, SourceKind, Sources, opened_source
from rayhook.inference.notification import NotificationDesk
from rayhook.inference.received import InstanceName, ReceivedImages, ReceivedInstance, Reception
from rayhook.inference.sealed_spool import SealedSpool

pytestmark = pytest.mark.postgresql

AT_ONCE = 8
TOPIC = "https://ehr.example/topics/imaging"
SUBSCRIPTION = Reference("Subscription", "s1")


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def database(server, request):
    name = f"arrivals_{abs(hash(request.node.name)) % 10**9}"
    server.psql(f"CREATE DATABASE {name};")
    url = server.get_uri(name)
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture
def ehr(tmp_path):
    return EHR(
        id="a",
        name="A",
        fhir_base_urls=("https://ehr.example/fhir",),
        cds_client=CDSClient(issuer="https://ehr.example", jwks_url="https://ehr.example/jwks"),
        arrivals=ArrivalSources(subscription=SubscriptionSource(SecretFile(tmp_path / "secret"), TOPIC)),
    )


def at_once(step, count=AT_ONCE):
    """Do the step in several threads, all beginning together, and return what each came to."""
    gate = threading.Barrier(count)

    def begin(number):
        gate.wait()
        return step(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def rows(database, table):
    with database.reading() as session:
        return list(session.exec(select(table)))


def arrival(**changes):
    values = {"ehr_id": "a", "way": ArrivalWay.STOW, "study_instance_uid": "1.2.3"}
    return Arrival(**{**values, **changes})


def tell(database, keyring, one=None):
    with database.sessions() as session:
        announce(session, keyring, one or arrival(), settle_s=0)
        session.commit()


def test_a_study_told_of_by_many_at_once_is_one_arrival(database, keyring):
    at_once(lambda _: tell(database, keyring))
    (row,) = rows(database, ArrivalRow)
    assert row.told == AT_ONCE


def test_an_arrival_is_taken_by_one(database, keyring):
    tell(database, keyring)
    inbox = Inbox(database.sessions, database.reading, keyring)
    (due,) = inbox.due()
    taken = at_once(lambda _: inbox.claim(due))
    assert sum(one is not None for one in taken) == 1


def test_who_lost_the_lease_ends_nothing(database, keyring):
    tell(database, keyring)
    inbox = Inbox(database.sessions, database.reading, keyring)
    (due,) = inbox.due()
    first = inbox.claim(due)
    with database.sessions() as session:
        session.execute(text("UPDATE arrival SET lease_until = 0"))
        session.commit()
    assert inbox.claim(due) is not None
    with database.sessions() as session:
        assert not inbox.end(session, first, ArrivalState.ENQUEUED)


def test_a_source_is_looked_after_by_one(database, keyring):
    source = Source("a", SourceKind.POLL, "pacs")
    with database.sessions() as session:
        opened_source(session, source).next_attempt_at = 1.0
        session.commit()
    sources = Sources(database.sessions, database.reading, keyring)
    taken = at_once(lambda _: sources.claim(source, lease_s=60))
    assert sum(one is not None for one in taken) == 1


def test_studies_told_of_in_another_order_do_not_wait_for_each_other(database, keyring, ehr):
    desk = NotificationDesk(keyring=keyring, audit=AuditLog(keyring))
    studies = [Reference("ImagingStudy", f"s{number}", ehr.fhir_base_urls[0]) for number in range(30)]

    def take(number):
        for _ in range(5):
            with database.sessions() as session:
                desk.announce(session, ehr, studies if number % 2 else reversed(studies))
                session.commit()

    at_once(take)
    assert {row.told for row in rows(database, ArrivalRow)} == {5 * AT_ONCE}


def event(number):
    return Notification(
        type=NotificationType.EVENT_NOTIFICATION,
        subscription=SUBSCRIPTION,
        status="active",
        topic=TOPIC,
        last_event=number,
        events=(number,),
        focuses=(Reference("ImagingStudy", f"s{number}"),),
    )


def test_notifications_that_come_together_are_all_counted(database, keyring, ehr):
    desk = NotificationDesk(keyring=keyring, audit=AuditLog(keyring))

    def take(number):
        with database.sessions() as session:
            desk.take_in(session, ehr, event(number + 1))
            session.commit()

    with database.sessions() as session:
        opened_source(session, Source("a", SourceKind.SUBSCRIPTION, "s1")).complete = 0
        session.commit()
    at_once(take)
    (row,) = rows(database, ArrivalSourceRow)
    assert (row.complete, row.ahead, row.is_lost) == (AT_ONCE, "[]", False)
    assert len(rows(database, ArrivalRow)) == AT_ONCE


def test_the_first_notifications_of_a_subscription_may_come_together(database, keyring, ehr):
    desk = NotificationDesk(keyring=keyring, audit=AuditLog(keyring))

    def take(_):
        with database.sessions() as session:
            desk.take_in(session, ehr, event(1))
            session.commit()

    at_once(take)
    assert (len(rows(database, ArrivalSourceRow)), len(rows(database, ArrivalRow))) == (1, 1)


def test_an_instance_stored_by_many_at_once_is_kept_once(database, keyring, tmp_path):
    spool = SealedSpool(tmp_path / "received", keyring, 1 << 20)
    received = ReceivedImages(spool, database.sessions, keyring)
    name = InstanceName("1.2.3", "1.2.840.10008.5.1.4.1.1.4", "1.2.3.1")

    def store(_):
        file = received.put(name, b"an image", is_image=True)
        with database.sessions() as session:
            reception = received.admit(session, "a", file)
            session.commit()
        if reception is not Reception.STORED:
            received.discard([file])
        return reception

    receptions = at_once(store)
    assert sorted(one.value for one in receptions) == ["known"] * (AT_ONCE - 1) + ["stored"]
    assert (len(rows(database, ReceivedInstance)), len(spool.names())) == (1, 1)
