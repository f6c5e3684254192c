"""The watch over a real log: what it finds, once, across restarts and processes, and what becomes of it."""

from datetime import UTC, datetime, timedelta

import pytest

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditSearch, search
from rayhook.audit.unusual import ReviewState, Watching, change_item, count_items, review_items
from rayhook.audit.watch import Rule, Thresholds
from rayhook.fhir.errors import InvalidRequest, NotFound

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
LIMITS = Thresholds(
    patients=5, vips=frozenset({("north", "vip")}), people={("north", "Practitioner/7"): "seven"}
)


def seen(patient_id, agent="Practitioner/1", **changes):
    return AuditEntry(
        **{
            "kind": AuditKind.SMART_APP_RESULT_VIEWED,
            "ehr_id": "north",
            "agent": agent,
            "patient_id": patient_id,
            **changes,
        }
    )


def export():
    return AuditEntry(AuditKind.AUDIT_LOG_EXPORTED, agent="urn:rayhook:staff:eve")


def denied():
    return seen("p", kind=AuditKind.SMART_APP_ACCESS_DENIED, outcome=Outcome.SERIOUS_FAILURE)


# Minutes and seconds after noon, and what happens then: every rule's scenario, in one day.
DAY = (
    *((timedelta(minutes=1, seconds=n), seen(f"ordinary-{n % 4}")) for n in range(40)),
    *((timedelta(minutes=10, seconds=n), seen(f"many-{n}", "Practitioner/2")) for n in range(6)),
    (timedelta(minutes=20), seen("seven", "Practitioner/7")),
    (timedelta(minutes=30), seen("vip", "Practitioner/3")),
    *((timedelta(minutes=40, seconds=n), denied()) for n in range(5)),
    (timedelta(minutes=50), seen("p", "Practitioner/4", purpose="BTG")),
    (timedelta(hours=11), export()),
)


@pytest.fixture
def write(database, keyring):
    def write(day):
        with database.sessions() as session:
            for after, entry in day:
                AuditLog(keyring, clock=(NOON + after).timestamp).record(session, entry)
                session.commit()

    return write


@pytest.fixture
def watching(database, keyring, audit):
    return lambda: Watching(database.sessions, database.reading, keyring, audit, LIMITS)


def items(database, keyring):
    with database.reading() as session:
        return review_items(session, keyring)


def raised(database, keyring):
    wanted = AuditSearch(kinds=(AuditKind.AUDIT_REVIEW_RAISED,))
    with database.reading() as session:
        return search(session, keyring, wanted, limit=50).records


def test_every_scenario_of_a_day_is_found_once_and_nothing_else(database, keyring, write, watching):
    write(DAY)
    assert watching().step() == len(Rule)
    assert sorted(item.rule for item in items(database, keyring)) == sorted(Rule)


def test_item_names_who_whose_and_the_events(database, keyring, write, watching):
    write(DAY)
    watching().step()
    [item] = [one for one in items(database, keyring) if one.rule is Rule.MANY_PATIENTS]
    assert (item.ehr_id, item.agent, len(item.events)) == ("north", "Practitioner/2", 6)
    [vip] = [one for one in items(database, keyring) if one.rule is Rule.VIP]
    assert vip.patient_id == "vip"


def test_item_is_told_to_the_log(database, keyring, write, watching):
    write([(timedelta(0), seen("vip"))])
    watching().step()
    [record] = raised(database, keyring)
    assert (record.detail["rule"], record.detail["event"], record.patient_id) == ("vip", "1", "vip")


def test_nothing_is_raised_twice_by_another_process_or_after_a_restart(database, keyring, write, watching):
    write(DAY)
    first, second = watching(), watching()
    first.step()
    assert (second.step(), first.step(), watching().step()) == (0, 0, 0)
    assert len(raised(database, keyring)) == len(Rule)


def test_what_was_counted_before_a_restart_still_counts(database, keyring, write, watching):
    write([(timedelta(seconds=n), seen(f"p{n}")) for n in range(3)])
    watching().step()
    write([(timedelta(seconds=n), seen(f"p{n}")) for n in range(3, 6)])
    assert watching().step() == 1


def test_review_goes_from_open_to_closed_with_a_note(database, keyring, audit, write, watching):
    write([(timedelta(0), seen("vip"))])
    watching().step()
    [item] = items(database, keyring)
    assert item.state is ReviewState.OPEN
    with database.sessions() as session:
        change_item(
            session,
            keyring,
            audit,
            id_=item.id,
            state=ReviewState.CLOSED,
            note=" on the ward ",
            agent="urn:rayhook:staff:olga",
            now=NOON,
        )
        session.commit()
    [item] = items(database, keyring)
    assert (item.state, item.note, item.changed_by) == (
        ReviewState.CLOSED,
        "on the ward",
        "urn:rayhook:staff:olga",
    )
    with database.reading() as session:
        wanted = AuditSearch(kinds=(AuditKind.AUDIT_REVIEW_CHANGED,))
        [record] = search(session, keyring, wanted, limit=5).records
    assert (record.detail["from"], record.detail["to"]) == ("open", "closed")


@pytest.mark.parametrize(("id_", "error"), [("0" * 32, NotFound), (None, InvalidRequest)])
def test_nothing_is_closed_without_a_note_or_that_is_not_there(  # noqa: PLR0917 - fixtures
    database, keyring, audit, write, watching, id_, error
):
    write([(timedelta(0), seen("vip"))])
    watching().step()
    [item] = items(database, keyring)
    with database.sessions() as session, pytest.raises(error):
        change_item(
            session,
            keyring,
            audit,
            id_=id_ or item.id,
            state=ReviewState.CLOSED,
            note=" ",
            agent="x",
            now=NOON,
        )


def test_counts_are_by_rule_and_state(database, keyring, write, watching):
    write(DAY)
    watching().step()
    with database.reading() as session:
        assert count_items(session) == {(rule, ReviewState.OPEN): 1 for rule in Rule}


def test_item_and_note_are_sealed(database, keyring, write, watching):
    write([(timedelta(0), seen("vip", "Practitioner/canary"))])
    watching().step()
    with database.reading() as session:
        [row] = session.connection().exec_driver_sql("SELECT * FROM audit_review_item").all()
    assert not any(b"canary" in value for value in row if isinstance(value, bytes))
