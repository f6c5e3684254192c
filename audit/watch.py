"""Rules for access that somebody should look at: pure functions over events, in the order of their numbers.

A rule that is tuned by its threshold finds what it is meant for and leaves a hospital's ordinary day alone; the
tests hold both, with seeded days.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.review import AuditRecord

# What tells that a person saw a patient's data; machines work through lists by their nature.
SEEN: Final = frozenset(
    {
        AuditKind.SMART_APP_FHIR_READ,
        AuditKind.SMART_APP_FHIR_SEARCHED,
        AuditKind.SMART_APP_IMAGE_VIEWED,
        AuditKind.SMART_APP_RESULT_VIEWED,
        AuditKind.SMART_APP_SERIES_OPENED,
        AuditKind.SMART_APP_STUDY_OPENED,
    }
)
_EXPORTS: Final = frozenset({AuditKind.AUDIT_LOG_EXPORTED, AuditKind.AUDIT_DISCLOSURE_READ})
_PEOPLE: Final = (
    "Patient/",
    "Practitioner/",
    "PractitionerRole/",
    "RelatedPerson/",
    "Person/",
    "urn:rayhook:staff:",
)


class Rule(StrEnum):
    BREAK_GLASS = "break_glass"
    MANY_PATIENTS = "many_patients"
    NIGHT_EXPORT = "night_export"
    OWN_RECORD = "own_record"
    REPEATED_DENIALS = "repeated_denials"
    VIP = "vip"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`people` maps who acts to their own patient id; `vips` are patients, each with its EHR.

    The night is from `night_from` to `night_to` in the hospital's own `zone`. After an alert of one rule about one
    person (and patient) it is silent for `quiet`.
    """

    patients: int = 50
    patients_within: timedelta = timedelta(minutes=10)
    denials: int = 5
    denials_within: timedelta = timedelta(minutes=1)
    night_from: time = time(22)
    night_to: time = time(6)
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    quiet: timedelta = timedelta(hours=1)
    vips: frozenset[tuple[str, str]] = frozenset()
    people: Mapping[tuple[str | None, str], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """`seq` is the event at which the rule was met; `events` are those that it counts."""

    rule: Rule
    seq: int
    raised_at: datetime
    ehr_id: str | None
    agent: str | None
    patient_id: str | None
    events: tuple[int, ...]


class Watch:
    """Goes on from event to event; what it remembers is no longer than its longest window."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._limits = thresholds
        self._seen: dict[tuple[str | None, str], deque[AuditRecord]] = defaultdict(deque)
        self._denied: dict[tuple[str | None, str], deque[AuditRecord]] = defaultdict(deque)
        self._told: dict[tuple[Rule, str | None, str | None, str | None], datetime] = {}

    def alerts(self, records: Iterable[AuditRecord]) -> Iterator[Alert]:
        for record in records:
            yield from self.look(record)

    def look(self, record: AuditRecord) -> Iterator[Alert]:
        """Yield what this event, with those before it, gives rise to."""
        yield from self._break_glass(record)
        yield from self._night_export(record)
        yield from self._denials(record)
        if record.kind in SEEN and record.outcome is Outcome.SUCCESS and is_person(record.agent):
            yield from self._patient(record)
            yield from self._many_patients(record)

    def _patient(self, record: AuditRecord) -> Iterator[Alert]:
        if record.patient_id is None or record.agent is None:
            return
        own = self._limits.people.get((record.ehr_id, record.agent))
        if own == record.patient_id:
            yield from self._raised(Rule.OWN_RECORD, record, (record.seq,), patient_id=record.patient_id)
        if (record.ehr_id, record.patient_id) in self._limits.vips:
            yield from self._raised(Rule.VIP, record, (record.seq,), patient_id=record.patient_id)

    def _many_patients(self, record: AuditRecord) -> Iterator[Alert]:
        if record.patient_id is None or record.agent is None:
            return
        window = _kept(self._seen[record.ehr_id, record.agent], record, self._limits.patients_within)
        first_of: dict[str | None, int] = {}
        for one in window:
            first_of.setdefault(one.patient_id, one.seq)
        if len(first_of) > self._limits.patients:
            yield from self._raised(Rule.MANY_PATIENTS, record, tuple(first_of.values()))

    def _denials(self, record: AuditRecord) -> Iterator[Alert]:
        if record.kind is not AuditKind.SMART_APP_ACCESS_DENIED:
            return
        who = record.agent or record.context.get("client_address")
        if who is None:
            return
        window = _kept(self._denied[record.ehr_id, who], record, self._limits.denials_within)
        if len(window) >= self._limits.denials:
            yield from self._raised(Rule.REPEATED_DENIALS, record, tuple(one.seq for one in window))

    def _night_export(self, record: AuditRecord) -> Iterator[Alert]:
        if (
            record.kind in _EXPORTS
            and record.outcome is Outcome.SUCCESS
            and self._is_night(record.recorded_at)
        ):
            yield from self._raised(Rule.NIGHT_EXPORT, record, (record.seq,))

    def _break_glass(self, record: AuditRecord) -> Iterator[Alert]:
        if record.context.get("purpose") == "BTG":
            yield from self._raised(Rule.BREAK_GLASS, record, (record.seq,), patient_id=record.patient_id)

    def _is_night(self, moment: datetime) -> bool:
        local = moment.astimezone(self._limits.zone).time()
        begin, end = self._limits.night_from, self._limits.night_to
        return begin <= local < end if begin < end else local >= begin or local < end

    def _raised(
        self, rule: Rule, record: AuditRecord, events: tuple[int, ...], *, patient_id: str | None = None
    ) -> Iterator[Alert]:
        who = record.agent or record.context.get("client_address")
        subject = (rule, record.ehr_id, who, patient_id)
        told = self._told.get(subject)
        if told is not None and record.recorded_at - told < self._limits.quiet:
            return
        self._told[subject] = record.recorded_at
        yield Alert(rule, record.seq, record.recorded_at, record.ehr_id, record.agent, patient_id, events)


def is_person(agent: str | None) -> bool:
    return agent is not None and any(kind in agent for kind in _PEOPLE)


def _kept(window: deque[AuditRecord], record: AuditRecord, within: timedelta) -> deque[AuditRecord]:
    """Add the event, and drop what is older than the window reaches back."""
    window.append(record)
    while window and record.recorded_at - window[0].recorded_at > within:
        window.popleft()
    return window
