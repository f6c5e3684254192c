from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditSearch, recent, search, walk
from rayhook.fhir.errors import InvalidRequest, RayhookError

ENTRIES = (
    AuditEntry(AuditKind.APPLICATION_STARTED),
    AuditEntry(AuditKind.FHIR_RESOURCE_READ, ehr_id="north", patient_id="1"),
    AuditEntry(AuditKind.FHIR_RESOURCE_READ, ehr_id="south", patient_id="1"),
    AuditEntry(AuditKind.SMART_APP_RESULT_VIEWED, ehr_id="north", patient_id="1"),
    AuditEntry(AuditKind.FHIR_RESOURCE_READ, ehr_id="north", patient_id="2"),
)


@pytest.fixture
def filled(database, audit):
    with database.sessions() as session:
        for entry in ENTRIES:
            audit.record(session, entry)
        session.commit()
    return database


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        ({}, [5, 4, 3, 2, 1]),
        ({"limit": 2}, [5, 4]),
        ({"kind": AuditKind.FHIR_RESOURCE_READ}, [5, 3, 2]),
        ({"ehr_id": "north"}, [5, 4, 2]),
        ({"ehr_id": "north", "patient_id": "1"}, [4, 2]),
        ({"ehr_id": "south", "patient_id": "1"}, [3]),
        ({"ehr_id": "south", "patient_id": "2"}, []),
    ],
)
def test_newest_events_that_meet_the_criteria(filled, keyring, criteria, found):
    with filled.reading() as session:
        events = recent(session, keyring, **{"limit": 100, **criteria})
    assert [event.seq for event in events] == found


def test_patient_without_ehr_is_refused(filled, keyring):
    with pytest.raises(InvalidRequest), filled.reading() as session:
        recent(session, keyring, limit=1, patient_id="1")


def test_event_without_details_has_none(filled, keyring):
    with filled.reading() as session:
        event = recent(session, keyring, limit=100)[-1]
    assert (event.agent, event.patient_id, event.entities, event.detail) == (None, None, (), {})


def test_sealed_column_moved_to_another_event_does_not_open(filled, keyring):
    with filled.sessions() as session:
        session.execute(text("DROP TRIGGER audit_event_no_update"))
        session.execute(
            text(
                "UPDATE audit_event SET patient_sealed = "
                "(SELECT patient_sealed FROM audit_event WHERE seq = 2) WHERE seq = 5"
            )
        )
        session.commit()
    with pytest.raises(RayhookError) as refusal, filled.reading() as session:
        recent(session, keyring, limit=1)
    assert refusal.value.code == "decryption_failed"


def written(database, keyring, *moments_and_entries):
    for moment, entry in moments_and_entries:
        audit = AuditLog(keyring, clock=lambda: moment)  # noqa: B023 - called at once
        with database.sessions() as session:
            audit.record(session, entry)
            session.commit()


@pytest.fixture
def hospital(database, keyring):
    """Ten events, a second apart, of two patients, two people, three studies."""
    entries = [
        AuditEntry(
            AuditKind.SMART_APP_ACCESS_DENIED if number % 5 == 0 else AuditKind.SMART_APP_RESULT_VIEWED,
            Outcome.SERIOUS_FAILURE if number % 5 == 0 else Outcome.SUCCESS,
            ehr_id="north",
            agent=f"Practitioner/{number % 2}",
            patient_id=f"patient-{number % 2}",
            entities=(f"urn:oid:1.2.{number % 3}", "urn:oid:1.9"),
            request_id=f"request-{number}",
            client_id="viewer" if number < 5 else "other",
        )
        for number in range(10)
    ]
    written(database, keyring, *((1000.0 + number, entry) for number, entry in enumerate(entries)))
    return database


def seqs(database, keyring, limit=50, before=None, **wanted) -> list[int]:
    with database.reading() as session:
        found = search(session, keyring, AuditSearch(**wanted), limit=limit, before=before)
    return [record.seq for record in found.records]


def moment(second: float) -> datetime:
    return datetime.fromtimestamp(1000.0 + second, UTC)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"ehr_id": "south"}, []),
        ({"ehr_id": "north", "patient_id": "patient-1"}, [10, 8, 6, 4, 2]),
        ({"ehr_id": "north", "agent": "Practitioner/0"}, [9, 7, 5, 3, 1]),
        ({"ehr_id": "north", "entity": "urn:oid:1.2.0"}, [10, 7, 4, 1]),
        ({"request_id": "request-4"}, [5]),
        ({"client_id": "viewer"}, [5, 4, 3, 2, 1]),
        ({"kinds": (AuditKind.SMART_APP_ACCESS_DENIED,)}, [6, 1]),
        (
            {"kinds": (AuditKind.SMART_APP_ACCESS_DENIED, AuditKind.SMART_APP_RESULT_VIEWED)},
            list(range(10, 0, -1)),
        ),
        ({"outcomes": (Outcome.SERIOUS_FAILURE, Outcome.MAJOR_FAILURE)}, [6, 1]),
        ({"outcomes": (Outcome.SUCCESS,), "client_id": "other"}, [10, 9, 8, 7]),
        ({"since": moment(3), "until": moment(6)}, [6, 5, 4]),
        (
            {"since": moment(3), "ehr_id": "north", "patient_id": "patient-1", "entity": "urn:oid:1.2.0"},
            [10, 4],
        ),
        ({"ehr_id": "north", "agent": "Practitioner/0", "kinds": (AuditKind.SMART_APP_ACCESS_DENIED,)}, [1]),
    ],
)
def test_search_finds_what_fits_the_newest_first(hospital, keyring, wanted, expected):
    assert seqs(hospital, keyring, **wanted) == expected


@pytest.mark.parametrize(
    "wanted", [{}, {"kinds": tuple(AuditKind)}, {"ehr_id": "north", "entity": "urn:oid:1.9"}]
)
def test_pages_join_without_gap_or_repetition(hospital, keyring, wanted):
    found, before = [], None
    while True:
        with hospital.reading() as session:
            page = search(session, keyring, AuditSearch(**wanted), limit=3, before=before)
        found += [record.seq for record in page.records]
        if page.before is None:
            break
        before = page.before
    assert found == list(range(10, 0, -1))


def test_patient_is_not_searched_without_the_ehr(hospital, keyring):
    with pytest.raises(InvalidRequest):
        seqs(hospital, keyring, patient_id="patient-1")


def test_context_reads_back(database, audit, keyring):
    entry = AuditEntry(
        AuditKind.SMART_APP_FHIR_SEARCHED,
        jti="t",
        query="GET /x",
        purpose="PATRQT",
        peer="p",
        client_address="::1",
    )
    with database.sessions() as session:
        audit.record(session, entry)
        session.commit()
    with database.reading() as session:
        [found] = recent(session, keyring, limit=1)
    assert found.context == {
        "jti": "t",
        "query": "GET /x",
        "purpose": "PATRQT",
        "peer": "p",
        "client_address": "::1",
    }


def test_walk_goes_from_the_oldest(hospital, keyring):
    with hospital.reading() as session:
        found = [record.seq for record in walk(session, keyring, AuditSearch(client_id="viewer"), after=2)]
    assert found == [3, 4, 5]
