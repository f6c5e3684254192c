"""The two tables of the audit: rows are added, never changed."""

from sqlalchemy import BigInteger, Column, LargeBinary, Text
from sqlmodel import Field, SQLModel


class AuditEventRow(SQLModel, table=True):
    """One event as stored; `hash` covers every other column but `mac`.

    `recorded_at` is RFC 3339 UTC with microseconds, as text: what was hashed is what is stored.
    The sealed columns hold PHI; the `_index` columns are keyed blind indexes of the same values
    (`entity_index`: space-separated, in the order of the entities). `mac` is keyed over `hash`, so that who
    has the database alone cannot add an event between two checkpoints.
    """

    __tablename__ = "audit_event"

    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    recorded_at: str = Field(max_length=27, index=True)
    kind: str = Field(max_length=64, index=True)
    outcome: int
    ehr_id: str | None = Field(default=None, max_length=128)
    request_id: str = Field(max_length=64, index=True)
    agent_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    agent_index: str | None = Field(default=None, max_length=64, index=True)
    patient_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    patient_index: str | None = Field(default=None, max_length=64, index=True)
    entities_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    entity_index: str | None = Field(default=None, sa_column=Column(Text))
    detail_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    previous_hash: str = Field(max_length=64)
    hash: str = Field(max_length=64)
    mac: str = Field(max_length=64)


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


AUDIT_EVENT = SQLModel.metadata.tables[AuditEventRow.__tablename__]
AUDIT_CHECKPOINT = SQLModel.metadata.tables[AuditCheckpointRow.__tablename__]
