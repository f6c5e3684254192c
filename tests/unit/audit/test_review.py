import pytest
from sqlalchemy import text

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.audit.review import recent
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
