import re
import ssl
from xml.etree.ElementTree import fromstring

import pytest
import trustme

from rayhook.audit.atna import FHIRFeed
from rayhook.audit.balp import Observer
from rayhook.audit.delivery import Delivery, DeliveryFailed, delivery_statuses
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.audit.review import recent
from rayhook.audit.syslog import SyslogAnchor, SyslogEvents, SyslogServer
from rayhook.fhir.transport import Transport
from tests.doubles.audit_receivers import FHIRRepository, SyslogReceiver

OBSERVER = Observer("Site", "https://rayhook.example", "1")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return folder


@pytest.fixture
def transport():
    transport = Transport(allow_loopback_http=True)
    yield transport
    transport.close()


@pytest.fixture
def delivery(database, keyring, audit):
    return Delivery(database.sessions, database.reading, keyring, audit)


@pytest.fixture
def repository(transport):
    repository = FHIRRepository()
    with repository.running() as url:
        repository.feed = FHIRFeed(transport, url, OBSERVER, deadline_s=5.0)
        yield repository


@pytest.fixture
def receiver(files):
    receiver = SyslogReceiver(files / "server.pem", files / "server.pem")
    with receiver.running() as port:
        receiver.server = SyslogServer("127.0.0.1", port, ca_bundle=files / "ca.pem", timeout_s=5.0)
        yield receiver


def fill(database, audit, count, start=0):
    with database.sessions() as session:
        for number in range(start, start + count):
            entry = AuditEntry(
                AuditKind.FHIR_RESOURCE_READ,
                ehr_id="north",
                agent="Practitioner/ada",
                patient_id="p1",
                entities=("ImagingStudy/1",),
                detail={"number": str(number)},
            )
            audit.record(session, entry)
        session.commit()


def numbers(repository):
    found = [
        event["entity"][0]["detail"][0]["valueString"]
        for event in repository.events
        if "R" in event["action"]
    ]
    return [int(number) for number in found]


def statuses(database):
    with database.reading() as session:
        return {status.target: status for status in delivery_statuses(session)}


def send_all(delivery, receiver):
    while not (step := delivery.send_events(receiver)).is_done:
        assert step.failures == 0


def kinds(database, keyring):
    with database.reading() as session:
        return [event.kind for event in recent(session, keyring, limit=5)]


def test_all_events_arrive_in_order(database, audit, delivery, repository):
    fill(database, audit, 250)
    send_all(delivery, repository.feed)
    assert numbers(repository) == list(range(250))
    assert statuses(database)["events:fhir"].behind == 0


def test_outage_loses_nothing_and_keeps_the_order(database, audit, delivery, repository, keyring):
    fill(database, audit, 30)
    send_all(delivery, repository.feed)
    repository.mode = "down"
    fill(database, audit, 150, start=30)
    assert [delivery.send_events(repository.feed).failures for _ in range(3)] == [1, 2, 3]
    status = statuses(database)["events:fhir"]
    assert (status.position, status.failures, status.error) == (30, 3, "status_503")
    assert status.behind >= 150
    repository.mode = "up"
    send_all(delivery, repository.feed)
    assert numbers(repository) == list(range(180))
    told = kinds(database, keyring)
    assert AuditKind.AUDIT_DELIVERY_RESUMED in told


def test_outage_is_told_once(database, audit, delivery, repository, keyring):
    repository.mode = "down"
    fill(database, audit, 1)
    for _ in range(4):
        delivery.send_events(repository.feed)
    assert kinds(database, keyring).count(AuditKind.AUDIT_DELIVERY_INTERRUPTED) == 1


def test_batch_whose_answer_was_lost_is_not_there_twice(database, audit, delivery, repository):
    fill(database, audit, 20)
    repository.mode = "lost answer"
    assert delivery.send_events(repository.feed).failures == 1
    repository.mode = "up"
    send_all(delivery, repository.feed)
    assert repository.batches == 2
    assert numbers(repository) == list(range(20))


def test_nothing_overtakes_an_event_that_was_refused(database, audit, delivery, repository):
    fill(database, audit, 20)
    repository.refuse_from = 7
    assert delivery.send_events(repository.feed).sent == 7
    assert delivery.send_events(repository.feed).failures == 1
    repository.refuse_from = None
    send_all(delivery, repository.feed)
    assert numbers(repository) == list(range(20))


def test_token_is_read_from_its_file(database, audit, delivery, repository, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    fill(database, audit, 1)
    delivery.send_events(
        FHIRFeed(repository.feed.transport, repository.feed.base_url, OBSERVER, token_file=tmp_path / "token")
    )
    assert repository.tokens == ["Bearer secret"]


def test_crypto_shredded_event_is_sent_without_what_cannot_be_read(database, audit, repository, tmp_path):
    from rayhook.auth.keys import Keyring

    fill(database, audit, 1)
    other = Delivery(database.sessions, database.reading, Keyring.load_or_create(tmp_path / "k.json"), audit)
    assert other.send_events(repository.feed).sent == 1
    assert "Patient" not in str(repository.events[0]["entity"][0])


def test_syslog_gets_dicom_messages_in_order(database, audit, delivery, receiver):
    fill(database, audit, 120)
    send_all(delivery, SyslogEvents(receiver.server, OBSERVER))
    heads = [
        re.match(rb"<85>1 \S+ \S+ rayhook - IHE\+RFC-3881 \[meta sequenceId=\"(\d+)\"\] \xef\xbb\xbf", one)
        for one in receiver.messages
    ]
    assert [int(head[1]) for head in heads] == list(range(1, 121))
    message = fromstring(receiver.messages[0][heads[0].end() :].decode())
    assert message.tag == "AuditMessage"
    assert [child.tag for child in message] == [
        "EventIdentification",
        *["ActiveParticipant"] * 3,
        "AuditSourceIdentification",
        *["ParticipantObjectIdentification"] * 2,
    ]


def test_message_is_one_line(database, audit, delivery, receiver):
    with database.sessions() as session:
        audit.record(
            session,
            AuditEntry(AuditKind.FHIR_RESOURCE_READ, agent="a\r\n<85>1 forged\x00", detail={"x": "\n"}),
        )
        session.commit()
    delivery.send_events(SyslogEvents(receiver.server, OBSERVER))
    [message] = receiver.messages
    assert b"\n" not in message
    assert b"\x00" not in message


@pytest.mark.parametrize("mode", ["down", "broken"])
def test_batch_that_was_not_read_to_its_end_is_sent_again(database, audit, delivery, receiver, mode):
    fill(database, audit, 10)
    receiver.mode = mode
    events = SyslogEvents(receiver.server, OBSERVER)
    assert delivery.send_events(events).failures == 1
    receiver.mode = "up"
    send_all(delivery, events)
    ids = [re.search(rb'sequenceId="(\d+)"', message)[1] for message in receiver.messages]
    assert sorted(map(int, set(ids))) == list(range(1, 12))


def test_checkpoints_are_anchored_in_syslog(database, audit, delivery, receiver):
    fill(database, audit, 200)
    assert delivery.send_checkpoints(SyslogAnchor(receiver.server)).sent == 1
    assert b"rayhook-audit 200 " in receiver.messages[0]


def test_receiver_that_is_not_who_it_should_be_gets_nothing(database, audit, delivery, receiver):
    fill(database, audit, 1)
    stranger = SyslogServer("127.0.0.1", receiver.server.port, timeout_s=5.0)
    with pytest.raises(DeliveryFailed, match="tls_refused"):
        SyslogEvents(stranger, OBSERVER).send([])
    assert receiver.messages == []


def test_old_protocols_are_not_spoken(files):
    context = SyslogServer("localhost", 1, ca_bundle=files / "ca.pem")._context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
