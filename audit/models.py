"""The tables of the audit: rows are added, never changed; events go only where a signed tombstone stays."""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel


class AuditEventRow(SQLModel, table=True):
    """One event as stored; `hash` covers every other column but `mac`.

    `recorded_at` is RFC 3339 UTC with microseconds, as text: what was hashed is what is stored.
    The sealed columns hold PHI; the `_index` columns are keyed blind indexes of the same values
    (`entity_index`: space-separated, in the order of the entities). `mac` is keyed over `hash`, so that who
    has the database alone cannot add an event between two checkpoints.
    """

    __tablename__ = "audit_event"
    __table_args__ = (
        Index("ix_audit_event_agent_time", "agent_index", "recorded_at", "seq"),
        Index("ix_audit_event_client_time", "client_id", "recorded_at", "seq"),
        Index("ix_audit_event_kind_time", "kind", "recorded_at", "seq"),
        Index("ix_audit_event_outcome_time", "outcome", "recorded_at", "seq"),
        Index("ix_audit_event_hash", "hash"),
        Index("ix_audit_event_time", "recorded_at", "seq"),
        Index("ix_audit_event_patient_time", "patient_index", "recorded_at", "seq"),
    )

    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    recorded_at: str = Field(max_length=27)
    kind: str = Field(max_length=64)
    outcome: int
    ehr_id: str | None = Field(default=None, max_length=128)
    request_id: str = Field(max_length=64, index=True)
    client_id: str | None = Field(default=None, max_length=255)
    agent_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    agent_index: str | None = Field(default=None, max_length=64)
    patient_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    patient_index: str | None = Field(default=None, max_length=64)
    entities_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    entity_index: str | None = Field(default=None, sa_column=Column(Text))
    detail_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    context_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    previous_hash: str = Field(max_length=64)
    hash: str = Field(max_length=64)
    mac: str = Field(max_length=64)


class AuditEntityRow(SQLModel, table=True):
    """Where an entity is spoken of: what `entity_index` says, the other way round."""

    __tablename__ = "audit_entity"

    entity_index: str = Field(primary_key=True, max_length=64)
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))


class AuditCheckpointRow(SQLModel, table=True):
    """A signed statement: at `signed_at` the log had `size` events under `root`.

    `frontier` holds the roots of the tree's right-edge perfect subtrees, largest first, from which `root`
    follows: the next checkpoint reads only the events since this one.
    """

    __tablename__ = "audit_checkpoint"

    id: int | None = Field(default=None, primary_key=True)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    root: str = Field(max_length=64)
    head: str = Field(max_length=64)
    frontier: str = Field(sa_column=Column(Text, nullable=False))
    signed_at: str = Field(max_length=27)
    signature: str = Field(max_length=128)


class AuditKeyRow(SQLModel, table=True):
    """A hand-over of the signing key, signed by the old key and by the new one; the keys in hexadecimal."""

    __tablename__ = "audit_key"

    id: int | None = Field(default=None, primary_key=True)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    old_key: str = Field(max_length=64)
    new_key: str = Field(max_length=64)
    signed_at: str = Field(max_length=27)
    old_signature: str = Field(max_length=128)
    new_signature: str = Field(max_length=128)


class AuditTombstoneRow(SQLModel, table=True):
    """What stays of a purged event: its leaf of the tree, and the purge that took it."""

    __tablename__ = "audit_tombstone"

    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    hash: str = Field(max_length=64)
    purge_id: int = Field(index=True)


class AuditPurgeRow(SQLModel, table=True):
    """A signed statement of what one purge took: `count` events, their numbers and leaves under `root`."""

    __tablename__ = "audit_purge"

    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    log_size: int = Field(sa_column=Column(BigInteger, nullable=False))
    count: int = Field(sa_column=Column(BigInteger, nullable=False))
    first_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    root: str = Field(max_length=64)
    policy: str = Field(sa_column=Column(Text, nullable=False))
    signed_at: str = Field(max_length=27)
    signature: str = Field(max_length=128)


class AuditHoldRow(SQLModel, table=True):
    """A legal hold: what it names is not purged while `released_at` is empty."""

    __tablename__ = "audit_hold"

    id: str = Field(primary_key=True, max_length=32)
    ehr_id: str | None = Field(default=None, max_length=128)
    patient_index: str | None = Field(default=None, max_length=64)
    agent_index: str | None = Field(default=None, max_length=64)
    first_seq: int | None = Field(default=None, sa_column=Column(BigInteger))
    last_seq: int | None = Field(default=None, sa_column=Column(BigInteger))
    subject_sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    reason_sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    placed_at: str = Field(max_length=27)
    released_at: str | None = Field(default=None, max_length=27)


class AuditDeliveryRow(SQLModel, table=True):
    """How far the log has been handed to one receiver outside."""

    __tablename__ = "audit_delivery"

    target: str = Field(primary_key=True, max_length=64)
    position: int = Field(sa_column=Column(BigInteger, nullable=False))
    failures: int
    error: str | None = Field(default=None, max_length=64)
    changed_at: str = Field(max_length=27)


class AuditReviewItemRow(SQLModel, table=True):
    """Something that a rule for unusual access found, and what became of it."""

    __tablename__ = "audit_review_item"
    __table_args__ = (UniqueConstraint("rule", "seq", name="uq_audit_review_item_rule_seq"),)

    id: str = Field(primary_key=True, max_length=32)
    rule: str = Field(max_length=32)
    seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    raised_at: str = Field(max_length=27)
    state: str = Field(max_length=16)
    subject_sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    note_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    changed_at: str | None = Field(default=None, max_length=27)
    changed_by_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    patient_index: str | None = Field(default=None, max_length=64)


class AuditWatchRow(SQLModel, table=True):
    """How far the rules have looked; one row."""

    __tablename__ = "audit_watch"

    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    position: int = Field(sa_column=Column(BigInteger, nullable=False))


AUDIT_EVENT = SQLModel.metadata.tables[AuditEventRow.__tablename__]
AUDIT_ENTITY = SQLModel.metadata.tables[AuditEntityRow.__tablename__]
AUDIT_CHECKPOINT = SQLModel.metadata.tables[AuditCheckpointRow.__tablename__]
AUDIT_KEY = SQLModel.metadata.tables[AuditKeyRow.__tablename__]
AUDIT_TOMBSTONE = SQLModel.metadata.tables[AuditTombstoneRow.__tablename__]
AUDIT_PURGE = SQLModel.metadata.tables[AuditPurgeRow.__tablename__]
AUDIT_HOLD = SQLModel.metadata.tables[AuditHoldRow.__tablename__]
AUDIT_DELIVERY = SQLModel.metadata.tables[AuditDeliveryRow.__tablename__]
AUDIT_REVIEW_ITEM = SQLModel.metadata.tables[AuditReviewItemRow.__tablename__]
AUDIT_WATCH = SQLModel.metadata.tables[AuditWatchRow.__tablename__]
