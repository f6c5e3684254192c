"""Erasures that were asked for, and what became of them."""

from enum import StrEnum
from typing import Final

from sqlalchemy import Column, LargeBinary
from sqlmodel import Field, SQLModel


class ErasureState(StrEnum):
    """`asked`: a second person is to confirm it."""

    ASKED = "asked"
    DONE = "done"
    WITHDRAWN = "withdrawn"


class PatientErasureRow(SQLModel, table=True):
    """One erasure. Who it is about is sealed under the patient's own audit key until that is destroyed."""

    __tablename__ = "patient_erasure"

    id: str = Field(primary_key=True, max_length=32)
    ehr_id: str = Field(max_length=128)
    state: str = Field(max_length=16)
    takes_audit: bool
    subject_sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    reason_sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    asked_by_sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    asked_at: float
    decided_by_sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    decided_at: float | None = None


PATIENT_ERASURE: Final = SQLModel.metadata.tables[PatientErasureRow.__tablename__]
