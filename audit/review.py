"""Reading the audit back, opened, for those who may."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Select, func, or_, select, true, tuple_
from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.models import AUDIT_ENTITY, AUDIT_EVENT
from rayhook.audit.record import audit_index
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import ready_keys, unseal
from rayhook.fhir.errors import Erased, InvalidRequest, NotFound, RayhookError

# What is told in the place of an erased event's detail, wherever it is shown or exported.
ERASED: Final = MappingProxyType({"erased": "yes"})

_SEALED = ("patient_sealed", "entities_sealed", "detail_sealed", "context_sealed")
_BATCH = 500
_EVENT = AUDIT_EVENT.c
_NEWEST = (_EVENT.recorded_at.desc(), _EVENT.seq.desc())


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One event as a person reads it; `context` is what BALP asks for beside it, by the names of AuditEntry.

    `is_erased`: the key of the patient whom it was about is destroyed; what it said of the patient is gone.
    """

    seq: int
    recorded_at: datetime
    kind: AuditKind
    outcome: Outcome
    ehr_id: str | None
    request_id: str
    agent: str | None
    patient_id: str | None
    entities: tuple[str, ...]
    detail: Mapping[str, str]
    client_id: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    hash: str = ""
    is_erased: bool = False


@dataclass(frozen=True, slots=True)
class AuditSearch:
    """What to look for; all that is given has to fit. `since` is included, `until` is not.

    `patient_id`, `agent` and `entity` are found by their blind index, which is of one EHR: they need `ehr_id`,
    except for agents and entities that are no EHR's, such as accounts of the staff.
    """

    ehr_id: str | None = None
    patient_id: str | None = None
    agent: str | None = None
    entity: str | None = None
    client_id: str | None = None
    request_id: str | None = None
    kinds: tuple[AuditKind, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self, keyring: Keyring) -> list[ColumnElement[bool]]:
        """Return what is asked for, as conditions that have to hold together."""
        return list(self._plan(keyring).conditions)

    def _plan(self, keyring: Keyring) -> "_Plan":
        """Raise InvalidRequest for a patient without the EHR that it belongs to."""
        if self.patient_id is not None and self.ehr_id is None:
            raise InvalidRequest("a patient is searched for within one EHR", expression="ehr_id")
        found: list[ColumnElement[bool]] = []
        values: tuple[ColumnElement[bool], ...] = ()
        for column, wanted in self._narrowing(keyring):
            if not found and not values and self.entity is None:
                values = tuple(column == value for value in wanted)
            else:
                found.append(_unindexed(column).in_(wanted))
        if self.entity is not None:
            index = self._index(keyring, "entity", self.entity)
            found.append(
                _EVENT.seq.in_(select(AUDIT_ENTITY.c.seq).where(AUDIT_ENTITY.c.entity_index == index))
            )
        if self.ehr_id is not None:
            found.append(_EVENT.ehr_id == self.ehr_id)
        if self.since is not None:
            found.append(_EVENT.recorded_at >= timestamp(self.since))
        if self.until is not None:
            found.append(_EVENT.recorded_at < timestamp(self.until))
        return _Plan(values, tuple(found))

    def _narrowing(self, keyring: Keyring) -> Iterator[tuple[ColumnElement[Any], list[Any]]]:
        """Yield the columns asked for, those that fewest events fit first: the database knows no such order."""
        if self.patient_id is not None:
            yield _EVENT.patient_index, [self._index(keyring, "patient", self.patient_id)]
        if self.request_id is not None:
            yield _EVENT.request_id, [self.request_id]
        if self.agent is not None:
            yield _EVENT.agent_index, [self._index(keyring, "agent", self.agent)]
        if self.outcomes and Outcome.SUCCESS not in self.outcomes:
            yield _EVENT.outcome, [outcome.value for outcome in self.outcomes]
        if self.kinds:
            yield _EVENT.kind, [kind.value for kind in self.kinds]
        if self.client_id is not None:
            yield _EVENT.client_id, [self.client_id]
        if self.outcomes and Outcome.SUCCESS in self.outcomes:
            yield _EVENT.outcome, [outcome.value for outcome in self.outcomes]

    def _index(self, keyring: Keyring, purpose: str, value: str) -> str:
        return audit_index(keyring, value, purpose=purpose, ehr_id=self.ehr_id)


@dataclass(frozen=True, slots=True)
class _Plan:
    """`branches` are looked up by an index, one at a time; `rest` has to hold for each."""

    branches: tuple[ColumnElement[bool], ...]
    rest: tuple[ColumnElement[bool], ...]

    @property
    def conditions(self) -> tuple[ColumnElement[bool], ...]:
        return (or_(*self.branches), *self.rest) if self.branches else self.rest


@dataclass(frozen=True, slots=True)
class Page:
    """Records, the newest first; `before` asks for those that come next, None where these were the last.

    `unreadable` are the numbers of events that no version of this service can have written.
    """

    records: tuple[AuditRecord, ...]
    before: int | None
    unreadable: tuple[int, ...] = ()


def search(
    session: Session,
    keyring: Keyring,
    wanted: AuditSearch,
    *,
    limit: int,
    before: int | None = None,
    is_lenient: bool = False,
) -> Page:
    """Return one page of the newest events that fit; `before` is what the page before this one said.

    Where `is_lenient`, a tampered log is shown as far as it can be read.
    """
    plan = wanted._plan(keyring)  # noqa: SLF001 - the plan is of this module
    rest = [*plan.rest, *_before(session, before)]
    found: list[RowMapping] = []
    for branch in plan.branches or (true(),):
        query = select(AUDIT_EVENT).where(branch, *rest).order_by(*_NEWEST).limit(limit + 1)
        found += session.execute(query).mappings().all()
    found.sort(key=lambda row: (row["recorded_at"], row["seq"]), reverse=True)
    shown = found[:limit]
    unreadable = tuple(row["seq"] for row in shown if is_lenient and not is_readable(row))
    ready_keys(session, keyring, sealed_values(shown))
    records = tuple(
        opened(session, keyring, row, is_lenient=is_lenient) for row in shown if row["seq"] not in unreadable
    )
    return Page(records, shown[-1]["seq"] if len(found) > limit else None, unreadable)


def find_event(session: Session, keyring: Keyring, seq: int) -> AuditRecord:
    """Return one event, as far as it can be read. Raises NotFound."""
    row = session.execute(select(AUDIT_EVENT).where(_EVENT.seq == seq)).mappings().first()
    if row is None or not is_readable(row):
        raise NotFound("there is no event of this number", code="event_not_found")
    return opened(session, keyring, row, is_lenient=True)


def is_readable(row: RowMapping) -> bool:
    try:
        datetime.fromisoformat(row["recorded_at"])
        return bool(AuditKind(row["kind"]) and Outcome(row["outcome"]) in Outcome)
    except (TypeError, ValueError):
        return False


def _before(session: Session, before: int | None) -> list[ColumnElement[bool]]:
    if before is None:
        return []
    recorded_at = session.execute(select(_EVENT.recorded_at).where(_EVENT.seq == before)).scalar()
    if recorded_at is None:
        return [_EVENT.seq < before]
    return [tuple_(_EVENT.recorded_at, _EVENT.seq) < tuple_(recorded_at, before)]


def _unindexed(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the column so that the database does not look it up by its index, where a better one is there."""
    return func.coalesce(column, column)


def walk(
    session: Session, keyring: Keyring, wanted: AuditSearch, *, after: int = 0, limit: int | None = None
) -> Iterator[AuditRecord]:
    """Yield the events that fit, the oldest first, from the one after number `after`."""
    query = _query(keyring, wanted).where(_EVENT.seq > after).order_by(_EVENT.seq)
    if limit is not None:
        query = query.limit(limit)
    rows = session.execute(query, execution_options={"yield_per": _BATCH}).mappings()
    for batch in rows.partitions():
        ready_keys(session, keyring, sealed_values(batch))
        for row in batch:
            yield opened(session, keyring, row)


def recent(
    session: Session,
    keyring: Keyring,
    *,
    limit: int,
    ehr_id: str | None = None,
    patient_id: str | None = None,
    kind: AuditKind | None = None,
) -> list[AuditRecord]:
    """Return the newest events, the newest first.

    Raises InvalidRequest for a `patient_id` without the `ehr_id` that it belongs to.
    """
    wanted = AuditSearch(ehr_id=ehr_id, patient_id=patient_id, kinds=() if kind is None else (kind,))
    return list(search(session, keyring, wanted, limit=limit).records)


def timestamp(moment: datetime) -> str:
    """Return the moment as the log writes it. Raises InvalidRequest for one without a time zone."""
    if moment.tzinfo is None:
        raise InvalidRequest("a moment needs its time zone", expression="date")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _query(keyring: Keyring, wanted: AuditSearch) -> Select[Any]:
    return select(AUDIT_EVENT).where(*wanted.conditions(keyring))


def sealed_values(rows: Iterable[RowMapping]) -> Iterator[bytes | None]:
    """Yield a value for each key that the rows need: one event has one key, and another for who acted."""
    for row in rows:
        yield row["agent_sealed"]
        yield next((row[column] for column in _SEALED if row[column] is not None), None)


def opened(session: Session, keyring: Keyring, row: RowMapping, *, is_lenient: bool = False) -> AuditRecord:
    """Return the event opened, empty where it was erased.

    What cannot be opened for another reason is empty where `is_lenient`, and raises otherwise.
    """
    erased: list[str] = []

    def read(column: str) -> str | None:
        try:
            return _open(session, keyring, row, column)
        except Erased:
            erased.append(column)
            return None
        except RayhookError:
            if is_lenient:
                return None
            raise

    patient_id, entities = read("patient_sealed"), json.loads(read("entities_sealed") or "[]")
    detail, context = (json.loads(read(column) or "{}") for column in ("detail_sealed", "context_sealed"))
    if erased:
        detail = ERASED
    return AuditRecord(
        seq=row["seq"],
        recorded_at=datetime.fromisoformat(row["recorded_at"]),
        kind=AuditKind(row["kind"]),
        outcome=Outcome(row["outcome"]),
        ehr_id=row["ehr_id"],
        request_id=row["request_id"],
        agent=read("agent_sealed"),
        patient_id=patient_id,
        entities=tuple(entities),
        detail=detail,
        client_id=row["client_id"],
        context=context,
        hash=row["hash"],
        is_erased=bool(erased),
    )


def _open(session: Session, keyring: Keyring, row: RowMapping, column: str) -> str | None:
    ciphertext: bytes | None = row[column]
    if ciphertext is None:
        return None
    place = {"table": AUDIT_EVENT.name, "column": column, "row": str(row["seq"])}
    return unseal(session, keyring, ciphertext, **place).decode()
