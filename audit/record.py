"""Writing to the audit: in the caller's transaction, so that no act is without its event, and none is alone."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import SessionTransaction
from sqlmodel import Session

from rayhook.audit.chain import CHECKPOINT_EVERY
from rayhook.audit.checkpoint import Anchor, Checkpoint, SealedTree, TreeHead, latest_tree
from rayhook.audit.context import request_purpose, request_source
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.handover import HandOver, key_name, stored_hand_overs, trusted_keys
from rayhook.audit.leaf import GENESIS, event_hash, event_mac, stored_leaf
from rayhook.audit.merkle import Frontier
from rayhook.audit.models import AUDIT_ENTITY, AUDIT_EVENT, AUDIT_TOMBSTONE
from rayhook.auth.data_key import DataKey
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import audited, sealing_keys
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import AuditUnavailable, RayhookError

_log = structlog.get_logger()
_WRITER_LOCK = 0x7261_7968_6F6F_6B  # "rayhook": one number per database for pg_advisory_xact_lock


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What happened, who did it, and to whose data.

    `agent` is who acted (fhirUser, CDS client issuer, "rayhook"); `entities` are what was touched, each
    "Type/id" or "urn:oid:<study uid>". `detail` says more in words and codes, never a token, name or result.
    `request_id`, the network addresses and `purpose` are those of the request at hand unless given.
    `client_id` is the software that asked (OAuth client, CDS client issuer); `jti` its token's id, never the
    token; `query` a search as it was asked, path and parameters; `purpose` a code of v3-ActReason;
    `peer` the other server where we are the client, its origin or name.
    `names_patient`: False for what is found under the patient, but must not say who that is: the erasure itself.
    """

    kind: AuditKind
    outcome: Outcome = Outcome.SUCCESS
    ehr_id: str | None = None
    agent: str | None = None
    patient_id: str | None = None
    entities: tuple[str, ...] = ()
    detail: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    request_id: str | None = None
    client_id: str | None = None
    jti: str | None = None
    query: str | None = None
    purpose: str | None = None
    peer: str | None = None
    client_address: str | None = None
    server_address: str | None = None
    names_patient: bool = True

    def context(self) -> dict[str, str]:
        """Return what is kept beside the detail, without what is not known."""
        named = {name: getattr(self, name) for name in CONTEXT}
        return {name: value for name, value in named.items() if value}


CONTEXT = ("jti", "query", "purpose", "peer", "client_address", "server_address")


@dataclass(slots=True)
class _Staged:
    """What one session's transaction will add to the log when it commits."""

    entries: list[AuditEntry] = field(default_factory=list)
    wants_checkpoint: bool = False
    anchor: Anchor | None = None
    to_anchor: Checkpoint | None = None
    next_key: Ed25519PrivateKey | None = None

    def clear(self) -> None:
        self.entries.clear()
        self.wants_checkpoint, self.anchor, self.to_anchor = False, None, None
        self.next_key = None


class AuditLog:
    """The one writer of the log.

    Entries are chained at the commit of the caller's transaction, after everything else in it: the lock on the
    log's end is then held for the shortest time, and never while waiting for another lock.
    With `anchor`, every checkpoint is also appended to that file once it is committed.
    """

    def __init__(
        self, keyring: Keyring, *, anchor: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._keyring = keyring
        self._anchor = None if anchor is None else Anchor(anchor)
        self._clock = clock

    @property
    def anchor(self) -> Path | None:
        return None if self._anchor is None else self._anchor.path

    def record(self, session: Session, entry: AuditEntry) -> None:
        """Add `entry` to the log when `session` commits; without that commit it never happened.

        The commit raises AuditUnavailable, and nothing of the transaction stays, where the log cannot be written.
        """
        source, purpose = request_source.get(), request_purpose.get()
        staged = self._staged(session)
        staged.entries.append(
            replace(
                entry,
                request_id=entry.request_id or request_id.get(),
                client_address=entry.client_address or source.client_address,
                server_address=entry.server_address or source.server_address,
                purpose=entry.purpose or (None if purpose is None else purpose.code or None),
            )
        )

    def checkpoint(self, session: Session, anchor: Path | None = None) -> None:
        """Sign the log as it is when `session` commits, and append the statement to the anchor file.

        Where nothing is new, the last checkpoint is only looked for in the anchor file, and added if it is not there.
        """
        staged = self._staged(session)
        staged.wants_checkpoint = True
        staged.anchor = self._anchor if anchor is None else Anchor(anchor)

    def hand_over(self, session: Session, next_key: Ed25519PrivateKey, *, agent: str) -> None:
        """Sign the log once more with the old key, then let `next_key` follow it, when `session` commits.

        Nothing is done where that hand-over is on record already.
        """
        hand_overs = stored_hand_overs(session)
        if hand_overs and hand_overs[-1].new_key == key_name(next_key.public_key()):
            return
        detail = {"key": key_name(next_key.public_key())}
        self.record(session, AuditEntry(AuditKind.AUDIT_KEY_ROTATED, agent=agent, detail=detail))
        self.checkpoint(session)
        self._staged(session).next_key = next_key

    def _staged(self, session: Session) -> _Staged:
        if not session.in_transaction():
            # What is staged lives and dies with a transaction: without one a rollback would leave it.
            session.begin()
        staged = session.info.get(self)
        if staged is None:
            staged = session.info[self] = _Staged(anchor=self._anchor)
            event.listen(session, "before_commit", self._before_commit)
            event.listen(session, "after_commit", self._after_commit)
            event.listen(session, "after_transaction_end", self._after_transaction_end)
        return staged

    def _before_commit(self, session: Session) -> None:
        staged: _Staged = session.info[self]
        if session.in_nested_transaction() or not (staged.entries or staged.wants_checkpoint):
            return
        session.flush()
        try:
            self._write(session, staged)
        except (RayhookError, SQLAlchemyError) as error:
            raise AuditUnavailable("the audit log cannot be written") from error

    def _after_commit(self, session: Session) -> None:
        staged: _Staged = session.info[self]
        if staged.to_anchor is None or staged.anchor is None:
            return
        try:
            staged.anchor.append(staged.to_anchor)
        except OSError:
            # The act is committed and told in the log: only the outside witness is late, until the next checkpoint.
            _log.exception("audit_anchor_unwritable", size=staged.to_anchor.tree_head.size)

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            staged: _Staged = session.info[self]
            staged.clear()
            staged.anchor = self._anchor

    def _write(self, session: Session, staged: _Staged) -> None:
        # Before the lock: who makes a patient's key may have to wait for another that is making it.
        keys = self._keys(session, staged.entries)
        _lock(session)
        seq, last_hash = _head(session)
        rows = []
        for entry, columns in zip(staged.entries, keys, strict=True):
            seq += 1
            rows.append(self._row(seq, last_hash, entry, columns))
            last_hash = rows[-1]["hash"]
        if rows:
            session.execute(insert(AUDIT_EVENT), rows)
            self._index_entities(session, rows)
        if staged.wants_checkpoint or any(row["seq"] % CHECKPOINT_EVERY == 0 for row in rows):
            staged.to_anchor = self._seal_tree(session, seq, last_hash)
        if staged.next_key is not None:
            signing_key = self._keyring.audit_signing_key
            HandOver.signed(signing_key, staged.next_key, size=seq, signed_at=self._now()).store(session)

    def _keys(self, session: Session, entries: Sequence[AuditEntry]) -> list["_EntryKeys"]:
        """Return by which keys each entry is sealed."""
        if not entries:
            return []
        indexes = [self._index(entry.patient_id, "patient", entry.ehr_id) for entry in entries]
        subjects = [
            audited(index if entry.names_patient else None)
            for entry, index in zip(entries, indexes, strict=True)
        ]
        own, *keys = sealing_keys(session, self._keyring, [audited(None), *subjects])
        return [
            _EntryKeys(index, key, key if _is_by_patient(entry) else own)
            for entry, index, key in zip(entries, indexes, keys, strict=True)
        ]

    @staticmethod
    def _index_entities(session: Session, rows: list[dict[str, Any]]) -> None:
        named = [
            {"entity_index": index, "seq": row["seq"]}
            for row in rows
            for index in dict.fromkeys((row["entity_index"] or "").split())
        ]
        if named:
            # What a tampered log has left there must not stop the service from going on recording.
            is_postgresql = session.get_bind().dialect.name == "postgresql"
            statement = (postgresql.insert if is_postgresql else sqlite.insert)(AUDIT_ENTITY)
            session.execute(statement.on_conflict_do_nothing(), named)

    def _row(self, seq: int, previous_hash: str, entry: AuditEntry, keys: "_EntryKeys") -> dict[str, Any]:
        patient_id = entry.patient_id if entry.names_patient else None
        row: dict[str, Any] = {
            "seq": seq,
            "recorded_at": self._now(),
            "kind": entry.kind.value,
            "outcome": entry.outcome.value,
            "ehr_id": entry.ehr_id,
            "request_id": entry.request_id or "",
            "client_id": entry.client_id,
            "agent_sealed": _sealed(keys.of_agent, entry.agent, "agent_sealed", seq),
            "agent_index": self._index(entry.agent, "agent", entry.ehr_id),
            "patient_sealed": _sealed(keys.of_content, patient_id, "patient_sealed", seq),
            "patient_index": keys.patient_index,
            "entities_sealed": _sealed(keys.of_content, _json(entry.entities), "entities_sealed", seq),
            "entity_index": self._entity_index(entry),
            "detail_sealed": _sealed(keys.of_content, _json(entry.detail), "detail_sealed", seq),
            "context_sealed": _sealed(keys.of_content, _json(entry.context()), "context_sealed", seq),
            "previous_hash": previous_hash,
        }
        row["hash"] = event_hash(row)
        row["mac"] = event_mac(self._keyring, row["hash"])
        return row

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _index(self, value: str | None, purpose: str, ehr_id: str | None) -> str | None:
        return None if value is None else audit_index(self._keyring, value, purpose=purpose, ehr_id=ehr_id)

    def _entity_index(self, entry: AuditEntry) -> str | None:
        indexes = (
            audit_index(self._keyring, entity, purpose="entity", ehr_id=entry.ehr_id)
            for entity in entry.entities
        )
        return " ".join(indexes) or None

    def _seal_tree(self, session: Session, size: int, head: str) -> Checkpoint | None:
        """Sign the tree of all events, grown from the last checkpoint where that one holds."""
        hand_overs = stored_hand_overs(session)
        signing_key = self._signing_key(hand_overs)
        if signing_key is None:
            _log.error("audit_key_superseded", size=size)
            return None
        base = self._sound_base(session, hand_overs)
        if base is not None and base.checkpoint.tree_head.size == size:
            return base.checkpoint
        frontier = Frontier() if base is None else base.frontier
        frontier = frontier.grown(map(stored_leaf, _hashes_after(session, frontier.size)))
        tree_head = TreeHead(size=size, root=frontier.root().hex(), head=head, signed_at=self._now())
        signature = signing_key.sign(tree_head.statement()).hex()
        tree = SealedTree(Checkpoint(tree_head, signature), frontier)
        tree.store(session)
        return tree.checkpoint

    def _signing_key(self, hand_overs: list[HandOver]) -> Ed25519PrivateKey | None:
        """Return the key that the log was handed to last; None where this process cannot have it.

        A key that has handed over signs nothing more. The caller holds the lock on the log's end, so that no
        hand-over comes between this and the signature.
        """
        own = self._keyring.audit_signing_key
        current = key_name(trusted_keys(own.public_key(), hand_overs).current)
        if current == key_name(own.public_key()):
            return own
        following = self._keyring.next_audit_signing_key()
        return following if key_name(following.public_key()) == current else None

    def _sound_base(self, session: Session, hand_overs: list[HandOver]) -> SealedTree | None:
        """Return the last checkpoint; None where there is none, or where it does not fit the log.

        One that does not fit is evidence, and stays: a new statement over the whole log is made beside it, and
        `verify` tells of both.
        """
        tree = latest_tree(session)
        if tree is None:
            return None
        tree_head = tree.checkpoint.tree_head
        query = select(AUDIT_EVENT.c.hash).where(AUDIT_EVENT.c.seq == tree_head.size)
        is_head = tree_head.size == 0 or session.execute(query).scalar() == tree_head.head
        keys = trusted_keys(self._keyring.audit_public_key, hand_overs)
        if is_head and keys.verifies(tree_head.size, tree.is_sound):
            return tree
        _log.error("audit_checkpoint_inconsistent", size=tree_head.size)
        return None


@dataclass(frozen=True, slots=True)
class _EntryKeys:
    """`of_agent` is the installation's, so that the log still says who did what when a patient's key is destroyed."""

    patient_index: str | None
    of_content: DataKey
    of_agent: DataKey


def _is_by_patient(entry: AuditEntry) -> bool:
    """Return whether it is the patient who acts: then the agent is as much the patient's as the rest."""
    patient = f"/Patient/{entry.patient_id}"
    return entry.patient_id is not None and f"/{entry.agent}".endswith(patient)


def _sealed(key: DataKey, value: str | None, column: str, seq: int) -> bytes | None:
    if value is None:
        return None
    return key.seal(value.encode(), table=AUDIT_EVENT.name, column=column, row=str(seq))


def audit_index(keyring: Keyring, value: str, *, purpose: str, ehr_id: str | None) -> str:
    """Return the blind index of one EHR's `value`: equal ids of two EHRs are not the same patient."""
    return keyring.blind_index(json.dumps([ehr_id, value]), purpose=f"audit_event.{purpose}")


def _json(value: tuple[str, ...] | Mapping[str, str]) -> str | None:
    if not value:
        return None
    return json.dumps(dict(value) if isinstance(value, Mapping) else value, sort_keys=True)


def _lock(session: Session) -> None:
    """Let one transaction at a time extend the chain; on SQLite BEGIN IMMEDIATE has seen to that."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_WRITER_LOCK)))


def _head(session: Session) -> tuple[int, str]:
    query = select(AUDIT_EVENT.c.seq, AUDIT_EVENT.c.hash).order_by(AUDIT_EVENT.c.seq.desc()).limit(1)
    row = session.execute(query).first()
    return (0, GENESIS) if row is None else (row.seq, row.hash)


def _hashes_after(session: Session, size: int) -> Iterable[str]:
    """Return the leaves after the first `size`, those of purged events among them."""
    events = select(AUDIT_EVENT.c.seq, AUDIT_EVENT.c.hash).where(AUDIT_EVENT.c.seq > size)
    tombstones = select(AUDIT_TOMBSTONE.c.seq, AUDIT_TOMBSTONE.c.hash).where(AUDIT_TOMBSTONE.c.seq > size)
    return (hash_ for _, hash_ in session.execute(events.union(tombstones).order_by("seq")))
