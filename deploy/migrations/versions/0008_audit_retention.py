"""What the audit's retention, holds, key hand-overs and delivery need; searches that stay quick over millions."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_APPEND_ONLY = ("audit_key", "audit_tombstone", "audit_purge")
_SEARCHED = {
    "agent": "agent_index",
    "client": "client_id",
    "kind": "kind",
    "outcome": "outcome",
    "patient": "patient_index",
}
_INDEXED_ALONE = ("recorded_at", "kind", "agent_index", "patient_index")
_BATCH = 1000


def upgrade() -> None:
    _widen_event()
    _create_entity()
    _create_retention()
    _create_key()
    _create_delivery()
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()


def _widen_event() -> None:
    """Columns of before 0008 hash as they did: what an event does not have is not in its canonical JSON."""
    op.add_column("audit_event", sa.Column("client_id", sa.String(255)))
    op.add_column("audit_event", sa.Column("context_sealed", sa.LargeBinary))
    for column in _INDEXED_ALONE:
        op.drop_index(f"ix_audit_event_{column}", "audit_event")
    for name, column in _SEARCHED.items():
        op.create_index(f"ix_audit_event_{name}_time", "audit_event", [column, "recorded_at", "seq"])
    op.create_index("ix_audit_event_hash", "audit_event", ["hash"])
    op.create_index("ix_audit_event_time", "audit_event", ["recorded_at", "seq"])


def _create_entity() -> None:
    table = op.create_table(
        "audit_entity",
        sa.Column("entity_index", sa.String(64), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    )
    seq = 0
    while True:
        query = sa.text(
            "SELECT seq, entity_index FROM audit_event "
            "WHERE seq > :seq AND entity_index IS NOT NULL ORDER BY seq LIMIT :batch"
        )
        rows = op.get_bind().execute(query, {"seq": seq, "batch": _BATCH}).all()
        if not rows:
            return
        named = {(index, row.seq) for row in rows for index in row.entity_index.split()}
        op.bulk_insert(table, [{"entity_index": index, "seq": number} for index, number in sorted(named)])
        seq = rows[-1].seq


def _create_retention() -> None:
    op.create_table(
        "audit_tombstone",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("purge_id", sa.Integer, nullable=False),
    )
    op.create_index("ix_audit_tombstone_purge_id", "audit_tombstone", ["purge_id"])
    op.create_table(
        "audit_purge",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("log_size", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("signed_at", sa.String(27), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
    )
    op.create_table(
        "audit_hold",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("ehr_id", sa.String(128)),
        sa.Column("patient_index", sa.String(64)),
        sa.Column("agent_index", sa.String(64)),
        sa.Column("first_seq", sa.BigInteger),
        sa.Column("last_seq", sa.BigInteger),
        sa.Column("subject_sealed", sa.LargeBinary, nullable=False),
        sa.Column("reason_sealed", sa.LargeBinary, nullable=False),
        sa.Column("placed_at", sa.String(27), nullable=False),
        sa.Column("released_at", sa.String(27)),
    )


def _create_key() -> None:
    op.create_table(
        "audit_key",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("old_key", sa.String(64), nullable=False),
        sa.Column("new_key", sa.String(64), nullable=False),
        sa.Column("signed_at", sa.String(27), nullable=False),
        sa.Column("old_signature", sa.String(128), nullable=False),
        sa.Column("new_signature", sa.String(128), nullable=False),
    )


def _create_delivery() -> None:
    op.create_table(
        "audit_delivery",
        sa.Column("target", sa.String(64), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("error", sa.String(64)),
        sa.Column("changed_at", sa.String(27), nullable=False),
    )


def _guard_sqlite() -> None:
    for table in _APPEND_ONLY:
        for act in ("UPDATE", "DELETE"):
            _refuse_on_sqlite(table, act)
    _refuse_on_sqlite("audit_entity", "UPDATE")
    op.execute("DROP TRIGGER audit_event_no_delete")
    _refuse_on_sqlite(
        "audit_event",
        "DELETE",
        "NOT EXISTS (SELECT 1 FROM audit_tombstone WHERE seq = OLD.seq AND hash = OLD.hash)",
    )
    _refuse_on_sqlite(
        "audit_entity", "DELETE", "NOT EXISTS (SELECT 1 FROM audit_tombstone WHERE seq = OLD.seq)"
    )
    _refuse_on_sqlite("audit_hold", "DELETE")
    _refuse_on_sqlite("audit_hold", "UPDATE", "OLD.released_at IS NOT NULL OR NEW.released_at IS NULL")


def _refuse_on_sqlite(table: str, act: str, condition: str = "1") -> None:
    op.execute(
        f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
    )


def _guard_postgresql() -> None:
    for table in _APPEND_ONLY:
        _refuse_on_postgresql(table, "UPDATE OR DELETE")
    op.execute(
        "CREATE FUNCTION keep_audit_without_tombstone() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF TG_TABLE_NAME = 'audit_entity' THEN "
        "IF EXISTS (SELECT 1 FROM audit_tombstone WHERE seq = OLD.seq) THEN RETURN OLD; END IF; "
        "ELSIF EXISTS (SELECT 1 FROM audit_tombstone t WHERE t.seq = OLD.seq AND t.hash = (to_jsonb(OLD)->>'hash')) "
        "THEN RETURN OLD; END IF; "
        "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    op.execute(
        "CREATE FUNCTION keep_audit_hold() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF OLD.released_at IS NULL AND NEW.released_at IS NOT NULL THEN RETURN NEW; END IF; "
        "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    op.execute("DROP TRIGGER audit_event_append_only ON audit_event")
    _refuse_on_postgresql("audit_event", "UPDATE")
    _refuse_on_postgresql("audit_entity", "UPDATE")
    for table in ("audit_event", "audit_entity"):
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION keep_audit_without_tombstone()"
        )
    _refuse_on_postgresql("audit_hold", "DELETE")
    op.execute(
        "CREATE TRIGGER audit_hold_no_update BEFORE UPDATE ON audit_hold "
        "FOR EACH ROW EXECUTE FUNCTION keep_audit_hold()"
    )
    for table in (*_APPEND_ONLY, "audit_entity", "audit_hold"):
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
        )


def _refuse_on_postgresql(table: str, acts: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE {acts} ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()"
    )


def downgrade() -> None:
    """An audit log is not thrown away by a command."""
    raise NotImplementedError("0008 cannot be taken back")
