"""The experiments of the audit: what an owner of the database may do to it, and what the verifier says.

Each case begins with the same log on a real database: 260 events in several checkpoints, the anchor file and the
public key elsewhere. The attacker may do all that the database lets its owner do, and knows the code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import insert as sql_insert
from sqlalchemy import text

from rayhook.audit.chain import verify
from rayhook.audit.checkpoint import Checkpoint, checkpoint_line, latest_tree
from rayhook.audit.delivery import Delivery
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.leaf import GENESIS, event_hash
from rayhook.audit.models import AUDIT_EVENT
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.report import ChainReport
from rayhook.audit.s3_anchor import S3Anchor
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import Database
from tests.doubles.object_store import Bucket

EVENTS = 260
TABLES = ("audit_event", "audit_checkpoint", "audit_entity", "audit_key", "audit_tombstone", "audit_purge")
Row = dict[str, Any]


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        AuditKind.FHIR_RESOURCE_READ if number % 2 else AuditKind.SMART_APP_RESULT_VIEWED,
        ehr_id="north",
        agent="Practitioner/ada",
        patient_id=f"patient-{number % 7}",
        entities=(f"ImagingStudy/{number % 11}",),
        detail={"number": str(number)},
        request_id=f"request-{number:08d}",
        client_id="viewer",
        jti=f"token-{number}",
    )


@dataclass
class Bench:
    """One log and the attacker's hands on it."""

    database: Database
    keyring: Keyring
    folder: Path
    clock: float = 1_700_000_000.0
    held: list[Checkpoint] = field(default_factory=list)
    bucket: Bucket | None = None
    locked: S3Anchor | None = None

    @property
    def anchor(self) -> Path:
        return self.folder / "anchor.jsonl"

    def audit(self, keyring: Keyring | None = None) -> AuditLog:
        return AuditLog(keyring or self.keyring, anchor=self.anchor, clock=self.tick)

    def tick(self) -> float:
        self.clock += 1.0
        return self.clock

    def fill(self, count: int, *, start: int = 0, keyring: Keyring | None = None) -> None:
        audit = self.audit(keyring)
        with self.database.sessions() as session:
            for number in range(start, start + count):
                audit.record(session, entry(number))
            audit.checkpoint(session)
            session.commit()

    def report(self, *, with_keyring: bool = True) -> ChainReport:
        with self.database.reading() as session:
            return verify(
                session,
                self.keyring.audit_public_key,
                self.locked or self.anchor,
                keyring=self.keyring if with_keyring else None,
                held=self.held,
            )

    def send(self) -> None:
        """Bring S3 what it has not got yet, as the service's thread does."""
        assert self.locked is not None
        delivery = Delivery(self.database.sessions, self.database.reading, self.keyring, self.audit())
        while not (step := delivery.send_checkpoints(self.locked)).is_done:
            if step.failures:
                return

    def latest(self) -> Checkpoint:
        with self.database.reading() as session:
            tree = latest_tree(session)
        assert tree is not None
        return tree.checkpoint

    def disarm(self) -> None:
        """Take the triggers away, as the database's owner can."""
        with self.database.sessions() as session:
            if self.database.engine.dialect.name == "postgresql":
                for table in TABLES:
                    session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            else:
                names = session.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
                for name in list(names.scalars()):
                    session.execute(text(f"DROP TRIGGER {name}"))
            session.commit()

    def run(self, *statements: str, **values: object) -> None:
        self.disarm()
        with self.database.sessions() as session:
            for statement in statements:
                named = {name: value for name, value in values.items() if f":{name}" in statement}
                session.execute(text(statement), named)
            session.commit()

    def rows(self) -> list[Row]:
        with self.database.reading() as session:
            found = session.execute(AUDIT_EVENT.select().order_by(AUDIT_EVENT.c.seq)).mappings()
            return [dict(row) for row in found]

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run("DELETE FROM audit_event")
        with self.database.sessions() as session:
            session.execute(sql_insert(AUDIT_EVENT), list(rows))
            session.commit()

    def snapshot(self) -> dict[str, list[Row]]:
        with self.database.reading() as session:
            return {
                table: [dict(row) for row in session.execute(text(f"SELECT * FROM {table}")).mappings()]
                for table in TABLES
            }

    def restore(self, snapshot: Mapping[str, Sequence[Row]]) -> None:
        self.disarm()
        with self.database.sessions() as session:
            for table, rows in snapshot.items():
                session.execute(text(f"DELETE FROM {table}"))
                for row in rows:
                    marks = ", ".join(f":{name}" for name in row)
                    session.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"), row)
            session.commit()


def rehashed(rows: Sequence[Row], keyring: Keyring | None = None) -> list[Row]:
    """Number, link and hash the rows again, as a careful forger would; the keyed mac is out of reach."""
    done: list[Row] = []
    for row in rows:
        previous = done[-1]["hash"] if done else GENESIS
        new = {**row, "seq": len(done) + 1, "previous_hash": previous}
        done.append({**new, "hash": event_hash(new)})
    return done


def with_forged_checkpoints(bench: Bench, rows: Sequence[Row], key: Keyring) -> None:
    """Rewrite the log and sign it all anew with a key of the attacker's."""
    bench.put(rows)
    bench.run("DELETE FROM audit_checkpoint")
    audit = AuditLog(key)
    with bench.database.sessions() as session:
        audit.checkpoint(session)
        session.commit()


@dataclass(frozen=True)
class Experiment:
    """`found`: the numbers that the report has to name, by what befell them; None: any problem at all."""

    name: str
    act: Callable[[Bench], None]
    verdict: str | None = None
    numbers: tuple[int, ...] = ()


def edited(column: str, value: object, seq: int = 120) -> Callable[[Bench], None]:
    return lambda bench: bench.run(
        f"UPDATE audit_event SET {column} = :value WHERE seq = :seq", value=value, seq=seq
    )


def edited_and_rehashed(bench: Bench) -> None:
    rows = bench.rows()
    rows[119]["outcome"] = Outcome.MAJOR_FAILURE.value
    rows[119]["hash"] = event_hash(rows[119])
    bench.put(rows)


def edited_and_all_rehashed(bench: Bench) -> None:
    rows = bench.rows()
    rows[119]["outcome"] = Outcome.MAJOR_FAILURE.value
    bench.put(rehashed(rows))


def other_key(bench: Bench) -> Keyring:
    return Keyring.load_or_create(bench.folder / "attacker.json")


def resigned(bench: Bench) -> None:
    rows = bench.rows()
    rows[119]["outcome"] = Outcome.MAJOR_FAILURE.value
    with_forged_checkpoints(bench, rehashed(rows), other_key(bench))


def replaced_key(bench: Bench) -> None:
    """Hand over to a key of the attacker's, signed by that key alone, and go on with it."""
    forger = other_key(bench)
    audit = AuditLog(forger)
    bench.run("UPDATE patient_key SET retired_at = 0 WHERE retired_at IS NULL")
    with bench.database.sessions() as session:
        audit.hand_over(session, forger.audit_signing_key, agent="attacker")
        session.commit()
    bench.run(
        "UPDATE audit_key SET old_key = :old", old=bench.keyring.audit_public_key.public_bytes_raw().hex()
    )


def deleted_middle(bench: Bench) -> None:
    bench.run("DELETE FROM audit_event WHERE seq BETWEEN 100 AND 104")


def deleted_and_renumbered(bench: Bench) -> None:
    rows = bench.rows()
    bench.put(rehashed(rows[:99] + rows[104:]))


def deleted_tail(bench: Bench) -> None:
    bench.run("DELETE FROM audit_event WHERE seq > 250")


def deleted_tail_and_checkpoints(bench: Bench) -> None:
    bench.run("DELETE FROM audit_event WHERE seq > 200", "DELETE FROM audit_checkpoint WHERE size > 200")


def truncated_and_regrown(bench: Bench) -> None:
    """The service itself goes on after the cut, and signs what it finds."""
    deleted_tail_and_checkpoints(bench)
    bench.fill(80, start=1000)


def emptied(bench: Bench) -> None:
    bench.run("DELETE FROM audit_event", "DELETE FROM audit_checkpoint", "DELETE FROM audit_entity")


def emptied_and_regrown(bench: Bench) -> None:
    emptied(bench)
    bench.fill(EVENTS, start=1000)


def inserted(bench: Bench) -> None:
    rows = bench.rows()
    forged = {**rows[119], "recorded_at": rows[119]["recorded_at"].replace("Z", "1Z")[-27:]}
    bench.put(rehashed([*rows[:120], forged, *rows[120:]]))


def appended(bench: Bench) -> None:
    rows = bench.rows()
    bench.put(rehashed([*rows, rows[5]]))


def duplicated(bench: Bench) -> None:
    rows = bench.rows()
    bench.put([*rows, {**rows[119], "seq": len(rows) + 1}])


def duplicated_in_place(bench: Bench) -> None:
    rows = bench.rows()
    bench.put([*rows[:130], {**rows[119], "seq": 131}, *rows[131:]])


def swapped(bench: Bench) -> None:
    rows = bench.rows()
    rows[99], rows[149] = {**rows[149], "seq": 100}, {**rows[99], "seq": 150}
    bench.put(rows)


def swapped_and_rehashed(bench: Bench) -> None:
    rows = bench.rows()
    rows[99], rows[149] = rows[149], rows[99]
    bench.put(rehashed(rows))


def old_backup(bench: Bench) -> None:
    """Put back the state of an hour ago, whole and untouched in itself."""
    snapshot = bench.snapshot()
    bench.fill(50, start=2000)
    bench.restore(snapshot)


def old_backup_and_anchor(bench: Bench) -> None:
    """The anchor file beside it is put back as well: only a statement kept elsewhere knows better."""
    snapshot, anchor = bench.snapshot(), bench.anchor.read_bytes()
    bench.fill(50, start=2000)
    bench.held = [bench.latest()]
    bench.restore(snapshot)
    bench.anchor.write_bytes(anchor)


def diverged(bench: Bench) -> None:
    """Two copies go on from the same backup: each is whole, and the other's last statement does not fit."""
    snapshot, anchor = bench.snapshot(), bench.anchor.read_bytes()
    bench.fill(40, start=2000)
    other = bench.latest()
    bench.restore(snapshot)
    bench.anchor.write_bytes(anchor)
    bench.fill(60, start=3000)
    assert bench.report().intact
    bench.held = [other]


def witnessed_old_backup(bench: Bench) -> None:
    """Database and anchor file are put back together; what S3 has cannot be."""
    snapshot, anchor = bench.snapshot(), bench.anchor.read_bytes()
    bench.fill(50, start=2000)
    bench.send()
    bench.restore(snapshot)
    bench.anchor.write_bytes(anchor)


def witnessed_regrown(bench: Bench) -> None:
    """Cut off, grown again by the service to the same length and beyond, the anchor file made to fit."""
    bench.send()
    deleted_tail_and_checkpoints(bench)
    bench.anchor.unlink()
    bench.fill(60, start=1000)
    bench.fill(40, start=1100)
    bench.send()


def overwritten_witness(bench: Bench) -> None:
    """A newer version, and a delete marker, over what is locked; then the tail is cut off."""
    assert bench.bucket is not None
    bench.send()
    for key in bench.bucket.names():
        bench.bucket.client.put_object(Bucket=bench.bucket.name, Key=key, Body=b"{}")
        bench.bucket.client.delete_object(Bucket=bench.bucket.name, Key=key)
    deleted_tail_and_checkpoints(bench)
    bench.anchor.unlink()


def forged_witness(bench: Bench) -> None:
    """A statement signed with another key, where the true ones are."""
    assert bench.bucket is not None
    assert bench.locked is not None
    bench.send()
    key = other_key(bench).audit_signing_key
    tree_head = bench.latest().tree_head
    line = checkpoint_line(Checkpoint(tree_head, key.sign(tree_head.statement()).hex()))
    bench.bucket.client.put_object(Bucket=bench.bucket.name, Key=bench.locked.key(7), Body=line)


def lost_witness(bench: Bench) -> None:
    """Nothing was ever written there, and the log has checkpoints."""


def false_tombstone(bench: Bench) -> None:
    """Delete an event under a tombstone that nobody signed: the triggers let it pass, the verifier does not."""
    [hash_] = [row["hash"] for row in bench.rows() if row["seq"] == 120]
    with bench.database.sessions() as session:
        session.execute(text("INSERT INTO audit_tombstone VALUES (120, :hash, 1)"), {"hash": hash_})
        session.execute(text("DELETE FROM audit_event WHERE seq = 120"))
        session.commit()


def moved_value(bench: Bench) -> None:
    """Give one event the sealed patient of another."""
    bench.run(
        "UPDATE audit_event SET patient_sealed = (SELECT patient_sealed FROM audit_event WHERE seq = 11), "
        "patient_index = (SELECT patient_index FROM audit_event WHERE seq = 11) WHERE seq = 120"
    )


def edited_checkpoint(bench: Bench) -> None:
    bench.run("UPDATE audit_checkpoint SET root = head")


def deleted_checkpoints(bench: Bench) -> None:
    bench.run("DELETE FROM audit_checkpoint")


def lost_anchor(bench: Bench) -> None:
    bench.anchor.unlink()


def edited_anchor(bench: Bench) -> None:
    bench.anchor.write_text(bench.anchor.read_text().replace('"size": 2', '"size": 3'))


def hidden_from_search(bench: Bench) -> None:
    bench.run("DELETE FROM audit_entity WHERE seq = 120")


TAMPERING = (
    Experiment("field edited: outcome", edited("outcome", 4), "changed", (120,)),
    Experiment("field edited: kind", edited("kind", "audit:log:read"), "changed", (120,)),
    Experiment("field edited: time", edited("recorded_at", "2020-01-01T00:00:00.000000Z"), "changed", (120,)),
    Experiment("field edited: agent", edited("agent_sealed", b"x"), "changed", (120,)),
    Experiment("field edited: patient", edited("patient_index", "0" * 64), "changed", (120,)),
    Experiment("field edited: detail", edited("detail_sealed", None), "changed", (120,)),
    Experiment("field edited: context", edited("context_sealed", None), "changed", (120,)),
    Experiment("field edited: client", edited("client_id", "other"), "changed", (120,)),
    Experiment("field edited: first event", edited("outcome", 4, 1), "changed", (1,)),
    Experiment("field edited: last event", edited("outcome", 4, EVENTS), "changed", (EVENTS,)),
    Experiment("value moved from another event", moved_value, "changed", (120,)),
    Experiment("edited, its hash recomputed", edited_and_rehashed, "changed", (120,)),
    Experiment("edited, all hashes recomputed", edited_and_all_rehashed, "inserted", tuple(range(120, 261))),
    Experiment("edited, recomputed, signed with another key", resigned),
    Experiment("key replaced by a forged hand-over", replaced_key),
    Experiment("deleted in the middle", deleted_middle, "missing", (100, 101, 102, 103, 104)),
    Experiment("deleted in the middle, renumbered and rehashed", deleted_and_renumbered),
    Experiment("deleted under a false tombstone", false_tombstone, "missing", (120,)),
    Experiment("tail deleted", deleted_tail, "missing", tuple(range(251, 261))),
    Experiment(
        "tail deleted with its checkpoints", deleted_tail_and_checkpoints, "missing", tuple(range(201, 261))
    ),
    Experiment("truncated and regrown by the service", truncated_and_regrown, "rewritten", (260,)),
    Experiment("emptied", emptied, "missing", tuple(range(1, 261))),
    Experiment("emptied and regrown by the service", emptied_and_regrown, "rewritten", (100,)),
    Experiment("event inserted, all rehashed", inserted, "inserted", (121,)),
    Experiment("event appended after the last checkpoint", appended, "inserted", (261,)),
    Experiment("event duplicated at the end", duplicated, "inserted", (261,)),
    Experiment("event duplicated over another", duplicated_in_place, "inserted", (131,)),
    Experiment("two events swapped", swapped, "reordered", (100, 150)),
    Experiment("two events swapped, all rehashed", swapped_and_rehashed, "inserted", (100, 150)),
    Experiment("old backup put back", old_backup, "missing", tuple(range(261, 311))),
    Experiment(
        "old backup and old anchor put back", old_backup_and_anchor, "missing", tuple(range(261, 311))
    ),
    Experiment("two copies that went apart", diverged, "rewritten", (300,)),
    Experiment("checkpoint edited", edited_checkpoint),
    Experiment("checkpoints deleted", deleted_checkpoints),
    Experiment("anchor file lost", lost_anchor),
    Experiment("anchor file edited", edited_anchor),
    Experiment("event hidden from searches", hidden_from_search),
)

# With the anchor under S3's object lock as the witness.
S3_TAMPERING = (
    Experiment(
        "S3 anchor disagrees: old backup and old anchor file put back",
        witnessed_old_backup,
        "missing",
        tuple(range(261, 311)),
    ),
    Experiment(
        "S3 anchor disagrees: truncated and regrown by the service", witnessed_regrown, "rewritten", (260,)
    ),
    Experiment(
        "S3 anchor overwritten and marked as deleted, tail cut off",
        overwritten_witness,
        "missing",
        tuple(range(201, 261)),
    ),
    Experiment("S3 anchor with a forged statement", forged_witness),
    Experiment("S3 anchor empty", lost_witness),
)
