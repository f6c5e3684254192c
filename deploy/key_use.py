"""How often each key has sealed: no key may go on for ever.

Spec: NIST SP 800-38D 8.3 (at most 2^32 invocations with random nonces)
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session

from rayhook.auth.encryption import MAX_USES
from rayhook.auth.key_tables import KEY_USE
from rayhook.auth.keys import Keyring

WARN_AT: Final = MAX_USES // 2


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


def told_uses(session: Session) -> Mapping[int, int]:
    return {row.key_id: row.uses for row in session.execute(select(KEY_USE.c.key_id, KEY_USE.c.uses))}
