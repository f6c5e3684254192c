import csv
import io
import time
from datetime import UTC, datetime, timedelta

import pytest

from rayhook.audit.disclosures import Disclosed, access_report, accounting, plain_words
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.fhir.errors import InvalidRequest

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PATIENT = {"ehr_id": "north", "patient_id": "p1"}


def entry(kind=AuditKind.SMART_APP_RESULT_VIEWED, **changes):
    return AuditEntry(kind, **{"agent": "Practitioner/ada", "client_id": "viewer", **PATIENT, **changes})


def write(database, keyring, *dated):
    for moment, one in dated:
        audit = AuditLog(keyring, clock=moment.timestamp)
        with database.sessions() as session:
            audit.record(session, one)
            session.commit()


@pytest.fixture
def told(database, keyring):
    def days(count):
        return NOW - timedelta(days=count)

    write(
        database,
        keyring,
        (days(3000), entry(purpose="HRESCH")),
        (days(400), entry(purpose="HRESCH", entities=("urn:oid:1.2.3",), agent="Organization/university")),
        (days(300), entry()),
        (days(200), entry(AuditKind.FHIR_RESULT_WRITTEN, agent="rayhook")),
        (days(100), entry(purpose="PUBHLTH", agent="=registry")),
        (days(50), entry(purpose="HRESCH", outcome=Outcome.SERIOUS_FAILURE)),
        (days(40), entry(purpose="HRESCH", patient_id="p2")),
        (days(30), entry(purpose="HRESCH", ehr_id="south")),
        (days(20), entry(AuditKind.INFERENCE_JOB_ENQUEUED)),
    )
    return database


def test_accounting_leaves_out_treatment_and_says_so(told, keyring):
    with told.reading() as session:
        found = accounting(session, keyring, **PATIENT, asked_at=NOW)
    assert [line.who for line in found.lines] == ["Organization/university", "=registry"]
    assert found.left_out == 2
    assert "164.528(a)(1)(i)" in found.note


def test_accounting_with_operations_lists_them(told, keyring):
    with told.reading() as session:
        found = accounting(session, keyring, **PATIENT, asked_at=NOW, with_operations=True)
    assert (len(found.lines), found.left_out) == (4, 0)


def test_accounting_is_due_in_sixty_days(told, keyring):
    with told.reading() as session:
        assert accounting(session, keyring, **PATIENT, asked_at=NOW).due_at == NOW + timedelta(days=60)


def test_accounting_goes_six_years_back_and_no_further(told, keyring):
    with told.reading() as session:
        assert accounting(session, keyring, **PATIENT, asked_at=NOW).since == NOW.replace(year=2020)
        with pytest.raises(InvalidRequest):
            accounting(session, keyring, **PATIENT, asked_at=NOW, since=NOW - timedelta(days=2500))


def test_six_years_before_the_29th_of_february(told, keyring):
    leap = datetime(2024, 2, 29, tzinfo=UTC)
    with told.reading() as session:
        found = accounting(session, keyring, **PATIENT, asked_at=leap)
    assert found.since == datetime(2018, 2, 28, tzinfo=UTC)


def test_access_report_tells_what_was_done_in_words(told, keyring):
    with told.reading() as session:
        lines = list(access_report(session, keyring, **PATIENT, since=NOW - timedelta(days=500), until=NOW))
    assert [line.done for line in lines] == [Disclosed.SEEN, Disclosed.SEEN, Disclosed.SENT, Disclosed.SEEN]
    assert next(plain_words(lines)) == (
        "27 April 2025, 00:00 UTC: urn:oid:1.2.3: seen, Organization/university, by viewer"
    )


def test_csv_has_a_line_a_disclosure_and_no_formula(told, keyring):
    with told.reading() as session:
        text = accounting(session, keyring, **PATIENT, asked_at=NOW).csv()
    head, *rows = csv.reader(io.StringIO(text))
    assert head[:2] == ["date", "recipient"]
    assert [row[1] for row in rows] == ["Organization/university", "'=registry"]


def test_ten_thousand_events_take_less_than_ten_seconds(database, keyring):
    audit = AuditLog(keyring, clock=lambda: NOW.timestamp() - 1000)
    with database.sessions() as session:
        for _ in range(10_000):
            audit.record(session, entry(purpose="HRESCH"))
        session.commit()
    started = time.process_time()
    with database.reading() as session:
        assert len(accounting(session, keyring, **PATIENT, asked_at=NOW).lines) == 10_000
    assert time.process_time() - started < 10
