"""How long events are kept, what a legal hold keeps longer, and the purge that leaves a signed tombstone.

Spec: 45 CFR 164.316(b)(2)(i): six years.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import (
    ColumnElement,
    RowMapping,
    and_,
    bindparam,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)
from sqlmodel import Session

from rayhook.audit.checkpoint import latest_tree
from rayhook.audit.events import AuditKind
from rayhook.audit.models import (
    AUDIT_DELIVERY,
    AUDIT_ENTITY,
    AUDIT_EVENT,
    AUDIT_HOLD,
    AUDIT_PURGE,
    AUDIT_TOMBSTONE,
)
from rayhook.audit.record import AuditEntry, AuditLog, audit_index
from rayhook.audit.review import timestamp
from rayhook.audit.tombstone import Purge, SignedPurge, TombstoneDigest
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import audited, seal, unseal
from rayhook.fhir.errors import Erased, InvalidRequest, NotFound

YEARS: Final = 6
_DAYS_A_YEAR: Final = 365.25
_BATCH: Final = 500
_EVENT = AUDIT_EVENT.c


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """`kept_days` of every event; `by_kind` says otherwise for some kinds."""

    kept_days: int = round(YEARS * _DAYS_A_YEAR)
    by_kind: Mapping[AuditKind, int] = field(default_factory=dict)

    def expired(self, now: datetime) -> ColumnElement[bool]:
        usual = and_(
            _EVENT.kind.not_in([kind.value for kind in self.by_kind]),
            _EVENT.recorded_at < timestamp(now - timedelta(days=self.kept_days)),
        )
        special = [
            and_(_EVENT.kind == kind.value, _EVENT.recorded_at < timestamp(now - timedelta(days=days)))
            for kind, days in self.by_kind.items()
        ]
        return or_(usual, *special)

    @property
    def longest_days(self) -> int:
        return max((self.kept_days, *self.by_kind.values()))

    def text(self) -> str:
        special = "".join(f"; {kind.value}: {days} days" for kind, days in sorted(self.by_kind.items()))
        return f"events older than {self.kept_days} days{special}"


@dataclass(frozen=True, slots=True)
class HoldSubject:
    """What a hold keeps: a patient of an EHR, what one person did, or events by number (both ends included)."""

    ehr_id: str | None = None
    patient_id: str | None = None
    agent: str | None = None
    first_seq: int | None = None
    last_seq: int | None = None

    def __post_init__(self) -> None:
        named = [self.patient_id is not None, self.agent is not None, self.first_seq is not None]
        if sum(named) != 1 or (self.first_seq is None) != (self.last_seq is None):
            raise InvalidRequest("a hold names a patient, a person, or the first and the last event")
        if self.patient_id is not None and self.ehr_id is None:
            raise InvalidRequest("a patient is held within one EHR", expression="ehr_id")

    def text(self) -> str:
        if self.patient_id is not None:
            return f"Patient/{self.patient_id} of {self.ehr_id}"
        return self.agent or f"events {self.first_seq} to {self.last_seq}"


@dataclass(frozen=True, slots=True)
class Hold:
    id: str
    subject: str
    reason: str
    placed_at: datetime
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class PurgePlan:
    """What a purge would take: `count` events from `first_seq` to `last_seq`; `held` expired ones stay."""

    count: int
    first_seq: int | None
    last_seq: int | None
    held: int
    policy: str


class Retention:
    """The one way by which events leave the log. `agent` is who asks for it."""

    def __init__(self, keyring: Keyring, audit: AuditLog, policy: RetentionPolicy, *, agent: str) -> None:
        self._keyring = keyring
        self._audit = audit
        self._policy = policy
        self._agent = agent

    def place(self, session: Session, subject: HoldSubject, *, reason: str, now: datetime) -> str:
        """Hold what `subject` names until it is released; return the hold's id."""
        if not reason.strip():
            raise InvalidRequest("a hold needs its reason", expression="reason")
        id_ = uuid.uuid4().hex
        patient = self._index(subject.patient_id, "patient", subject.ehr_id)

        def sealed(text: str, column: str) -> bytes:
            place = {"table": AUDIT_HOLD.name, "column": column, "row": id_}
            return seal(session, self._keyring, audited(patient), text.encode(), **place)

        session.execute(
            insert(AUDIT_HOLD).values(
                id=id_,
                ehr_id=subject.ehr_id,
                patient_index=patient,
                agent_index=self._index(subject.agent, "agent", subject.ehr_id),
                first_seq=subject.first_seq,
                last_seq=subject.last_seq,
                subject_sealed=sealed(subject.text(), "subject_sealed"),
                reason_sealed=sealed(reason.strip(), "reason_sealed"),
                placed_at=timestamp(now),
            )
        )
        self._record(session, AuditKind.AUDIT_HOLD_PLACED, {"hold": id_}, subject)
        return id_

    def release(self, session: Session, id_: str, *, now: datetime) -> None:
        """Raise NotFound for a hold that is not there, or is released already."""
        released = session.execute(
            update(AUDIT_HOLD)
            .where(AUDIT_HOLD.c.id == id_, AUDIT_HOLD.c.released_at.is_(None))
            .values(released_at=timestamp(now))
        )
        if released.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result has it
            raise NotFound("there is no such hold in force", code="hold_not_found")
        self._record(session, AuditKind.AUDIT_HOLD_RELEASED, {"hold": id_})

    def holds(self, session: Session) -> list[Hold]:
        query = select(AUDIT_HOLD).order_by(AUDIT_HOLD.c.placed_at)
        return [self._hold(session, row) for row in session.execute(query).mappings()]

    def plan(self, session: Session, *, now: datetime) -> PurgePlan:
        query = select(func.count(), func.min(_EVENT.seq), func.max(_EVENT.seq))
        allowed = self._allowed(session, now)
        count, first, last = session.execute(query.where(allowed, not_(_is_held()))).one()
        held = session.execute(select(func.count()).where(allowed, _is_held())).scalar_one()
        return PurgePlan(count, first, last, held, self._policy.text())

    def purge(self, session: Session, *, now: datetime) -> PurgePlan:
        """Replace what may go by tombstones, under one signed statement; all when `session` commits, or nothing."""
        plan = self.plan(session, now=now)
        if plan.count == 0:
            return plan
        id_ = 1 + (session.execute(select(func.max(AUDIT_PURGE.c.id))).scalar() or 0)
        digest = TombstoneDigest()
        for batch in self._batches(session, now):
            session.execute(
                insert(AUDIT_TOMBSTONE),
                [{"seq": row["seq"], "hash": row["hash"], "purge_id": id_} for row in batch],
            )
            for row in batch:
                digest.add(row["seq"], row["hash"])
            _delete(session, batch)
        assert plan.first_seq is not None
        assert plan.last_seq is not None
        head = session.execute(select(func.max(_EVENT.seq))).scalar_one()
        purge = Purge(
            id=id_,
            log_size=head,
            count=digest.count,
            first_seq=plan.first_seq,
            last_seq=plan.last_seq,
            root=digest.root(),
            policy=plan.policy,
            signed_at=timestamp(now),
        )
        SignedPurge.by(self._keyring.audit_signing_key, purge).store(session)
        detail = {
            "purge": str(id_),
            "events": str(digest.count),
            "held": str(plan.held),
            "policy": plan.policy,
        }
        self._record(session, AuditKind.AUDIT_LOG_PURGED, detail)
        return plan

    def _batches(self, session: Session, now: datetime) -> Iterator[Sequence[RowMapping]]:
        allowed = and_(self._allowed(session, now), not_(_is_held()))
        query = select(_EVENT.seq, _EVENT.hash, _EVENT.entity_index).where(allowed).order_by(_EVENT.seq)
        after = 0
        while batch := session.execute(query.where(_EVENT.seq > after).limit(_BATCH)).mappings().all():
            yield batch
            after = batch[-1]["seq"]

    def _allowed(self, session: Session, now: datetime) -> ColumnElement[bool]:
        """Return what is expired, sealed, not the checkpoint's own last event, and delivered to who waits for it."""
        tree = latest_tree(session)
        sealed = 0 if tree is None else tree.checkpoint.tree_head.size
        delivered = session.execute(
            select(func.min(AUDIT_DELIVERY.c.position)).where(AUDIT_DELIVERY.c.target.startswith("events:"))
        ).scalar()
        last = sealed - 1 if delivered is None else min(sealed - 1, delivered)
        return and_(self._policy.expired(now), _EVENT.seq <= last)

    def _record(
        self, session: Session, kind: AuditKind, detail: Mapping[str, str], subject: HoldSubject | None = None
    ) -> None:
        entry = AuditEntry(
            kind,
            agent=self._agent,
            ehr_id=None if subject is None else subject.ehr_id,
            patient_id=None if subject is None else subject.patient_id,
            detail=detail,
            purpose="HOPERAT",
        )
        self._audit.record(session, entry)

    def _index(self, value: str | None, purpose: str, ehr_id: str | None) -> str | None:
        return None if value is None else audit_index(self._keyring, value, purpose=purpose, ehr_id=ehr_id)

    def _opened(self, session: Session, row: RowMapping, column: str) -> str:
        """Return nothing of a hold whose patient was erased since it was released."""
        try:
            place = {"table": AUDIT_HOLD.name, "column": column, "row": row["id"]}
            return unseal(session, self._keyring, row[column], **place).decode()
        except Erased:
            return ""

    def _hold(self, session: Session, row: RowMapping) -> Hold:
        subject, reason = (
            self._opened(session, row, column) for column in ("subject_sealed", "reason_sealed")
        )
        released_at = row["released_at"]
        return Hold(
            id=row["id"],
            subject=subject,
            reason=reason,
            placed_at=datetime.fromisoformat(row["placed_at"]),
            released_at=None if released_at is None else datetime.fromisoformat(released_at),
        )


def is_patient_held(session: Session, patient_index: str) -> bool:
    """Return whether a legal hold on the patient is in force. `patient_index` is that of the log."""
    hold = AUDIT_HOLD.c
    query = select(hold.id).where(hold.patient_index == patient_index, hold.released_at.is_(None)).limit(1)
    return session.execute(query).first() is not None


def _is_held() -> ColumnElement[bool]:
    hold = AUDIT_HOLD.c
    return (
        select(hold.id)
        .where(
            hold.released_at.is_(None),
            or_(
                hold.patient_index == _EVENT.patient_index,
                hold.agent_index == _EVENT.agent_index,
                and_(hold.first_seq <= _EVENT.seq, _EVENT.seq <= hold.last_seq),
            ),
        )
        .correlate(AUDIT_EVENT)
        .exists()
    )


def _delete(session: Session, batch: Sequence[RowMapping]) -> None:
    """Delete the events and what points at them; the tables' triggers let that pass for tombstones only."""
    named = [
        {"index": index, "number": row["seq"]}
        for row in batch
        for index in set((row["entity_index"] or "").split())
    ]
    if named:
        entity = AUDIT_ENTITY.c
        by_key = delete(AUDIT_ENTITY).where(
            entity.entity_index == bindparam("index"), entity.seq == bindparam("number")
        )
        session.connection().execute(by_key, named)
    session.execute(delete(AUDIT_EVENT).where(_EVENT.seq.in_([row["seq"] for row in batch])))
