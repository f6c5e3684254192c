import time
import uuid
from collections.abc import Callable

import pytest

from rayhook.audit.balp import Observer
from rayhook.audit.delivery import Delivery, Step, delivery_statuses
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.deploy import audit_forwarding
from rayhook.deploy.audit_forwarding import Forwarding, audit_origins, pause_s
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.settings import Environment, Settings
from rayhook.fhir.errors import ServiceUnavailable
from rayhook.fhir.transport import Transport
from tests.doubles.audit_receivers import FHIRRepository
from tests.doubles.object_store import make_bucket, object_store


def wait_for(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if is_so():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(audit_forwarding, "_IDLE_S", 0.02)
    monkeypatch.setattr(audit_forwarding, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(audit_forwarding, "_LONGEST_PAUSE_S", 0.1)


def settings(**values):
    return Settings(environment=Environment.DEVELOPMENT, **values)


def test_nothing_runs_where_no_receiver_is_named():
    assert Forwarding.of(settings(), None, None, None).steps == {}


def test_events_arrive_while_the_service_works_and_through_an_outage(tmp_path, quick):
    keyring = Keyring.load_or_create(tmp_path / "keyring.json")
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database, audit, transport = create_database(url), AuditLog(keyring), Transport(allow_loopback_http=True)
    delivery = Delivery(database.sessions, database.reading, keyring, audit)

    def act(count):
        with database.sessions() as session:
            for _ in range(count):
                audit.record(session, AuditEntry(AuditKind.FHIR_RESOURCE_READ))
            session.commit()

    def reads():
        return sum(event["action"] == "R" for event in repository.events)

    repository = FHIRRepository()
    with repository.running() as feed:
        observer = Observer("Site", "https://rayhook.example", "1")
        forwarding = Forwarding.of(settings(audit_fhir_feed=feed), delivery, transport, observer)
        with forwarding.running():
            act(5)
            assert wait_for(lambda: reads() == 5)
            repository.mode = "down"
            act(150)
            time.sleep(0.3)
            assert reads() == 5
            repository.mode = "up"
            assert wait_for(lambda: reads() == 155)
    transport.close()
    database.close()


def test_checkpoints_arrive_in_s3_through_an_outage_that_holds_nobody_up(tmp_path, quick):
    keyring = Keyring.load_or_create(tmp_path / "keyring.json")
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database, audit = create_database(url), AuditLog(keyring)
    delivery = Delivery(database.sessions, database.reading, keyring, audit)

    def act():
        with database.sessions() as session:
            audit.record(session, AuditEntry(AuditKind.FHIR_RESOURCE_READ))
            audit.checkpoint(session)
            session.commit()

    def failures():
        with database.reading() as session:
            return sum(one.failures for one in delivery_statuses(session))

    with object_store():
        bucket = f"audit-{uuid.uuid4().hex}"
        named = settings(audit_s3_anchor=f"s3://{bucket}/log")
        with Forwarding.of(named, delivery, None, None).running():
            act()
            assert wait_for(lambda: failures() > 1)  # there is no such bucket yet
            started = time.monotonic()
            act()
            assert time.monotonic() - started < 2
            made = make_bucket(bucket)
            assert wait_for(lambda: len(made.names()) >= 2)
    with database.reading() as session:
        kinds = [one.kind for one in recent(session, keyring, limit=50)]
    database.close()
    assert kinds.count(AuditKind.AUDIT_DELIVERY_INTERRUPTED) == 1
    assert kinds.count(AuditKind.AUDIT_DELIVERY_RESUMED) == 1


def test_own_database_that_does_not_answer_is_waited_for(quick):
    tries = iter(
        [ServiceUnavailable("down"), Step(0, is_done=False, failures=2), Step(3, is_done=True, failures=0)]
    )
    done = []

    def step():
        one = next(tries, Step(0, is_done=True, failures=0))
        if isinstance(one, Exception):
            raise one
        done.append(one)
        return one

    with Forwarding({"events:test": step}).running():
        assert wait_for(lambda: any(one.sent == 3 for one in done))


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (1000, 60.0)])
def test_pauses_grow_to_a_minute(failures, seconds):
    assert pause_s(failures) == seconds


def test_repository_may_be_on_the_hospitals_own_network():
    assert audit_origins(settings(audit_fhir_feed="https://atna.example/fhir")) == {"https://atna.example"}
