"""What is done with the keys that seal columns, from the command line: each act is itself recorded, before and after."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.accounts import StaffAccount
from rayhook.auth.encryption import key_of
from rayhook.auth.key_rotation import (
    EncryptionKeyState,
    EncryptionKeyStatus,
    add_encryption_key,
    destroy_encryption_key,
    disable_encryption_key,
    enable_encryption_key,
    encryption_key_statuses,
    promote_encryption_key,
)
from rayhook.auth.key_tables import KEY_USE, KeyDestructionRow
from rayhook.deploy.key_use import WARN_AT, told_uses
from rayhook.deploy.maintenance import Installation
from rayhook.deploy.received_images import FOLDER as RECEIVED
from rayhook.deploy.reencryption import ROWS_PER_S, ColumnNeed, Done, Reencryption, needs
from rayhook.deploy.sealed_columns import SealedColumn
from rayhook.fhir.errors import Conflict, RayhookError
from rayhook.inference.sealed_spool import sealed_keys

AGENT: Final = "rayhook command line"
APPROVAL_S: Final = 24 * 3600.0

_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class KeyReport:
    """A key, how many stored values and files need it, and how often it sealed.

    `hashed`: values of the audit, which can never be sealed anew.
    """

    status: EncryptionKeyStatus
    values: int
    hashed: int
    files: int
    uses: int
    destruction_requested_at: float | None

    @property
    def is_worn(self) -> bool:
        return self.uses >= WARN_AT


@dataclass(frozen=True, slots=True)
class EncryptionReport:
    keys: tuple[KeyReport, ...]
    data_keys: int
    unknown: int


@dataclass(frozen=True, slots=True)
class EncryptionDesk:
    installation: Installation
    agent: str = AGENT
    clock: Callable[[], float] = time.time

    def report(self) -> EncryptionReport:
        """Count, by reading the first bytes of every sealed value, which key it needs."""
        statuses = encryption_key_statuses(self.installation.keyring_file)
        found = self._needs()
        with self.installation.database.reading() as session:
            uses = told_uses(session)
            asked = {
                one.key_id: None if row is None else row.requested_at
                for one in statuses
                for row in [session.get(KeyDestructionRow, one.key_id)]
            }
        keys = []
        for status in statuses:
            values = sum(need.under(status.key_id) for need in found)
            hashed = sum(need.under(status.key_id) for need in found if need.column.is_hashed)
            used = max(values, uses.get(status.key_id, 0))
            files = self._files_under(status.key_id)
            keys.append(KeyReport(status, values, hashed, files, used, asked[status.key_id]))
        return EncryptionReport(
            tuple(keys),
            data_keys=sum(need.data_keys for need in found),
            unknown=sum(need.unknown for need in found),
        )

    def add(self, *, distribution_s: float) -> EncryptionKeyStatus:
        with self._recorded("add"):
            return add_encryption_key(
                self.installation.keyring_file, distribution_s=distribution_s, clock=self.clock
            )

    def promote(self) -> EncryptionKeyStatus:
        with self._recorded("promote"):
            return promote_encryption_key(self.installation.keyring_file, clock=self.clock)

    def reencrypt(
        self,
        *,
        rows_per_s: float = ROWS_PER_S,
        told: Callable[[SealedColumn, int], None] = lambda _column, _rows: None,
    ) -> Done:
        """Seal everything anew that an older key has sealed. Killed, it goes on where it was."""
        parts = self.installation
        work = Reencryption(
            parts.database.sessions, parts.keyring, parts.audit, self.agent, rows_per_s=rows_per_s
        )
        with self._recorded("reencrypt", key=parts.keyring.sealing_key) as detail:
            done = work.run(told)
            detail |= {"rewritten": str(done.rewritten), "refused": str(done.refused), "left": str(done.left)}
        return done

    def disable(self, key_id: int) -> EncryptionKeyStatus:
        """Raise Conflict while a stored value needs the key, or a process may still seal by it."""
        with self._recorded("disable", key=key_id):
            self._require_handed_over()
            self._require_unneeded(key_id)
            return disable_encryption_key(self.installation.keyring_file, key_id)

    def enable(self, key_id: int) -> EncryptionKeyStatus:
        with self._recorded("enable", key=key_id):
            return enable_encryption_key(self.installation.keyring_file, key_id)

    def destroy(self, key_id: int, approver: StaffAccount) -> bool:
        """Destroy a disabled key, if somebody else asked for it within a day; else note the wish, and return False.

        Raises Conflict while a stored value needs the key.
        """
        with self._recorded("destroy", key=key_id, approver=approver.agent) as detail:
            self._require_state(key_id, EncryptionKeyState.DISABLED)
            self._require_unneeded(key_id)
            if not self._is_second(key_id, approver):
                detail["phase"] = "requested"
                return False
            destroy_encryption_key(self.installation.keyring_file, key_id)
        with self.installation.database.sessions() as session:
            session.execute(delete(KeyDestructionRow).where(KeyDestructionRow.key_id == key_id))  # type: ignore[arg-type]
            session.execute(delete(KEY_USE).where(KEY_USE.c.key_id == key_id))
            session.commit()
        return True

    def _is_second(self, key_id: int, approver: StaffAccount) -> bool:
        now = self.clock()
        with self.installation.database.sessions() as session:
            row = session.get(KeyDestructionRow, key_id, with_for_update=True)
            if row is not None and now - row.requested_at <= APPROVAL_S and row.account_id != approver.id:
                return True
            if row is None:
                row = KeyDestructionRow(key_id=key_id, account_id=approver.id, requested_at=now)
            row.account_id, row.requested_at = approver.id, now
            session.add(row)
            session.commit()
        return False

    def _require_state(self, key_id: int, state: EncryptionKeyState) -> None:
        statuses = {one.key_id: one.state for one in encryption_key_statuses(self.installation.keyring_file)}
        if statuses.get(key_id) is not state:
            found = statuses.get(key_id, "not in the keyring")
            raise Conflict(f"key {key_id} is {found}; it has to be {state} first", code="key_state")

    def _require_handed_over(self) -> None:
        """For as long after a promotion as before it, a process may go on with the file as it was."""
        for one in encryption_key_statuses(self.installation.keyring_file):
            if one.state is not EncryptionKeyState.PRIMARY or one.promoted_at is None:
                continue
            until = one.promoted_at + (one.ready_at or 0.0) - (one.added_at or 0.0)
            if until > self.clock():
                raise Conflict(
                    f"a process may seal by the old key for {(until - self.clock()) / 60:.0f} more minutes",
                    code="key_not_distributed",
                )

    def _require_unneeded(self, key_id: int) -> None:
        needing = [(str(need.column), need.under(key_id)) for need in self._needs() if need.under(key_id)]
        if files := self._files_under(key_id):
            needing.append((f"files in {RECEIVED}", files))
        if needing:
            named = ", ".join(f"{column} {count}" for column, count in needing[:_MOST_NAMED])
            total = sum(count for _, count in needing)
            raise Conflict(f"{total} stored values need key {key_id}: {named}", code="key_needed")

    def _files_under(self, key_id: int) -> int:
        folder = self.installation.keyring_file.path.parent / RECEIVED
        return sum(key_of(sealed) == key_id for sealed in sealed_keys(folder))

    def _needs(self) -> list[ColumnNeed]:
        known = [one.key_id for one in encryption_key_statuses(self.installation.keyring_file)]
        with self.installation.database.reading() as session:
            return needs(session, known)

    @contextmanager
    def _recorded(
        self, act: str, key: int | None = None, approver: str | None = None
    ) -> Iterator[dict[str, str]]:
        """Say that the act begins, then how it ended: what is done to a file is in no transaction."""
        detail = {"act": act, "phase": "begun"}
        if key is not None:
            detail["key"] = str(key)
        if approver is not None:
            detail["approver"] = approver
        self._record(detail)
        detail["phase"] = "done"
        try:
            yield detail
        except RayhookError as error:
            self._record({**detail, "phase": "refused", "code": error.code}, Outcome.MINOR_FAILURE)
            raise
        self._record(detail)

    def _record(self, detail: Mapping[str, str], outcome: Outcome = Outcome.SUCCESS) -> None:
        kind = AuditKind.AUTH_ENCRYPTION_KEY_CHANGED
        entry = AuditEntry(kind, outcome, agent=self.agent, detail=dict(detail), purpose="HSYSADMIN")
        with self.installation.database.sessions() as session:
            self.installation.audit.record(session, entry)
            session.commit()
