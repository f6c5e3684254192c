"""Emergency access: a session's leave to read what its person's roles do not allow, for half an hour.

Spec: 45 CFR 164.312(a)(2)(ii) (emergency access procedure); HL7 v3 ActReason BTG
"""

import hashlib
from typing import Final

from sqlmodel import Field, Session, SQLModel, col, delete, select

EMERGENCY_LIFE_S: Final = 30 * 60.0


class SMARTEmergencyRow(SQLModel, table=True):
    """Of a live session, by the hash of its id; gone, or past `ends_at`, it allows nothing."""

    __tablename__ = "smart_emergency"

    session_key: str = Field(primary_key=True, max_length=64)
    ends_at: float = Field(index=True)


def start_emergency(session: Session, session_id: str, *, now: float) -> float:
    """Return when it ends. Those that have ended are erased."""
    key = _hash(session_id)
    row = SMARTEmergencyRow
    session.exec(delete(row).where((col(row.ends_at) <= now) | (col(row.session_key) == key)))
    session.add(SMARTEmergencyRow(session_key=key, ends_at=now + EMERGENCY_LIFE_S))
    session.flush()
    return now + EMERGENCY_LIFE_S


def emergency_end(session: Session, session_id: str, *, now: float) -> float | None:
    """Return when the session's emergency access ends; None where there is none, or it has ended."""
    row = SMARTEmergencyRow
    found = session.exec(select(row.ends_at).where(col(row.session_key) == _hash(session_id))).first()
    return found if found is not None and found > now else None


def _hash(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()
