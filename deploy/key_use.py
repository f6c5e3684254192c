"""How often each key has sealed: no key may go on for ever.

Spec: NIST SP 800-38D 8.3 (at most 2^32 invocations with random nonces)
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session

from rayhook.auth.database_types import Sessions
from rayhook.auth.encryption import MAX_USES
from rayhook.auth.key_tables import KEY_USE
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import RayhookError

WARN_AT: Final = MAX_USES // 2

_EVERY_S: Final = 60.0

log = structlog.get_logger(__name__)


def note_uses(session: Session, keyring: Keyring, *, clock: Callable[[], float] = time.time) -> None:
    """Add what this process has sealed since it last told; what a killed process did not tell is not counted."""
    taken = keyring.take_uses()
    if not taken:
        return
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    now = clock()
    for key_id, uses in sorted(taken.items()):
        row = insert(KEY_USE).values(key_id=key_id, uses=uses, updated_at=now)
        more = {"uses": KEY_USE.c.uses + row.excluded.uses, "updated_at": now}
        session.execute(row.on_conflict_do_update(index_elements=[KEY_USE.c.key_id], set_=more))


def note_until(sessions: Sessions, keyring: Keyring, stopping: threading.Event) -> None:
    """Tell the uses now and then, and once more at the end."""
    while True:
        is_last = stopping.wait(_EVERY_S)
        try:
            with sessions() as session:
                note_uses(session, keyring)
                session.commit()
        except RayhookError:
            log.exception("key_uses_not_noted")
        if is_last:
            return


def told_uses(session: Session) -> Mapping[int, int]:
    return {row.key_id: row.uses for row in session.execute(select(KEY_USE.c.key_id, KEY_USE.c.uses))}
