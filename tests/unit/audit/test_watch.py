"""Seeded days of a hospital: every scenario is found, and ten thousand ordinary events raise at most one alert."""

import random
from datetime import UTC, datetime, timedelta
from itertools import count
from zoneinfo import ZoneInfo

import pytest

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.review import AuditRecord
from rayhook.audit.watch import Rule, Thresholds, Watch

MORNING = datetime(2026, 3, 2, 7, tzinfo=UTC)
NUMBERS = count(1)
LIMITS = Thresholds(vips=frozenset({("north", "vip")}), people={("north", "Practitioner/7"): "patient-seven"})


def event(moment, kind=AuditKind.SMART_APP_RESULT_VIEWED, agent="Practitioner/1", patient_id="p", **changes):
    parts = {
        "outcome": Outcome.SUCCESS,
        "ehr_id": "north",
        "request_id": "request",
        "entities": (),
        "detail": {},
        **changes,
    }
    return AuditRecord(
        seq=next(NUMBERS), recorded_at=moment, kind=kind, agent=agent, patient_id=patient_id, **parts
    )


def ordinary_day(seed, size=10_000):
    """Forty people, each with a list of patients for the day; a few mistyped addresses; exports at noon."""
    chance = random.Random(seed)
    lists = {
        f"Practitioner/{number}": [f"p{number}-{one}" for one in range(30)] for number in range(100, 140)
    }
    moments = sorted(MORNING + timedelta(seconds=chance.random() * 36_000) for _ in range(size))
    for moment in moments:
        agent, patients = chance.choice(list(lists.items()))
        draw = chance.random()
        if draw < 0.004:
            yield event(
                moment, AuditKind.SMART_APP_ACCESS_DENIED, agent, None, outcome=Outcome.SERIOUS_FAILURE
            )
        elif draw < 0.2:
            yield event(moment, AuditKind.FHIR_RESOURCE_READ, "rayhook", f"p{chance.randrange(5000)}")
        else:
            yield event(moment, agent=agent, patient_id=chance.choice(patients))


def many_patients(start):
    return [event(start + timedelta(seconds=10 * one), patient_id=f"x{one}") for one in range(51)]


def own_record(start):
    return [event(start, agent="Practitioner/7", patient_id="patient-seven")]


def vip(start):
    return [event(start, patient_id="vip", kind=AuditKind.SMART_APP_IMAGE_VIEWED)]


def night_export(start):
    night = start.replace(hour=23)
    return [event(night, AuditKind.AUDIT_LOG_EXPORTED, "urn:rayhook:staff:eve", None, ehr_id=None)]


def denials(start):
    return [
        event(
            start + timedelta(seconds=9 * one),
            AuditKind.SMART_APP_ACCESS_DENIED,
            patient_id=None,
            outcome=Outcome.SERIOUS_FAILURE,
        )
        for one in range(5)
    ]


def break_glass(start):
    return [event(start, context={"purpose": "BTG"})]


SCENARIOS = {
    Rule.MANY_PATIENTS: many_patients,
    Rule.OWN_RECORD: own_record,
    Rule.VIP: vip,
    Rule.NIGHT_EXPORT: night_export,
    Rule.REPEATED_DENIALS: denials,
    Rule.BREAK_GLASS: break_glass,
}


def found(events, limits=LIMITS):
    return [alert.rule for alert in Watch(limits).alerts(sorted(events, key=lambda one: one.recorded_at))]


def test_every_rule_has_its_scenario():
    assert set(SCENARIOS) == set(Rule)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", Rule)
def test_scenario_is_found_once_within_an_ordinary_day(rule, seed):
    start = MORNING + timedelta(hours=random.Random(seed).randrange(1, 9))
    events = [*ordinary_day(seed, 2000), *SCENARIOS[rule](start)]
    assert found(events) == [rule]


@pytest.mark.parametrize("seed", range(10))
def test_ordinary_day_raises_at_most_one_alert(seed):
    assert len(found(ordinary_day(seed))) <= 1


def test_fifty_patients_are_not_too_many():
    assert found(many_patients(MORNING)[:50]) == []


def test_slow_work_is_not_suspicious():
    events = [event(MORNING + timedelta(minutes=one), patient_id=f"x{one}") for one in range(200)]
    assert found(events) == []


def test_machine_that_works_through_a_list_is_not_a_person():
    events = [event(MORNING, agent="rayhook", patient_id=f"x{one}") for one in range(200)]
    assert found(events) == []


def test_alert_names_the_events_it_counts():
    events = denials(MORNING)
    [alert] = Watch(LIMITS).alerts(events)
    assert alert.events == tuple(one.seq for one in events)
    assert alert.seq == events[-1].seq


def test_denials_of_nobody_are_counted_by_where_they_come_from():
    events = [
        event(
            MORNING + timedelta(seconds=one),
            AuditKind.SMART_APP_ACCESS_DENIED,
            None,
            None,
            context={"client_address": "192.0.2.9"},
        )
        for one in range(5)
    ]
    assert found(events) == [Rule.REPEATED_DENIALS]


def test_night_is_the_hospitals_own():
    events = [event(datetime(2026, 3, 2, 4, tzinfo=UTC), AuditKind.AUDIT_LOG_EXPORTED)]
    assert found(events) == [Rule.NIGHT_EXPORT]
    assert found(events, Thresholds(zone=ZoneInfo("Asia/Tokyo"))) == []


def test_same_thing_is_told_again_after_an_hour():
    events = [*vip(MORNING), *vip(MORNING + timedelta(minutes=30)), *vip(MORNING + timedelta(minutes=61))]
    assert found(events) == [Rule.VIP, Rule.VIP]


def test_patient_who_reads_their_own_data_is_nobodys_business():
    assert found([event(MORNING, agent="Patient/p9", patient_id="p9")]) == []
