"""Tables of auth, audit and analysis; triggers that keep the audit append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_AUDIT_TABLES = ("audit_event", "audit_checkpoint")


def upgrade() -> None:
    _create_auth()
    _create_audit()
    _create_analysis()
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()


def _create_auth() -> None:
    op.create_table(
        "used_jti",
        sa.Column("issuer", sa.String(2048), primary_key=True),
        sa.Column("jti", sa.String(255), primary_key=True),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("ix_used_jti_expires_at", "used_jti", ["expires_at"])
    op.create_table(
        "smart_launch",
        sa.Column("state_hash", sa.String(64), primary_key=True),
        sa.Column("browser_hash", sa.String(64), nullable=False),
        sa.Column("ehr_id", sa.String(63), nullable=False),
        sa.Column("fhir_base_url", sa.String(2048), nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("code_verifier", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("ix_smart_launch_expires_at", "smart_launch", ["expires_at"])
    op.create_table(
        "smart_session",
        sa.Column("id_hash", sa.String(64), primary_key=True),
        sa.Column("ehr_id", sa.String(63), nullable=False),
        sa.Column("fhir_base_url", sa.String(2048), nullable=False),
        sa.Column("client_id", sa.String(255), nullable=False),
        sa.Column("scopes", sa.String, nullable=False),
        sa.Column("access_token", sa.LargeBinary, nullable=False),
        sa.Column("access_token_expires_at", sa.Float, nullable=False),
        sa.Column("patient_id", sa.LargeBinary),
        sa.Column("fhir_user", sa.LargeBinary),
        sa.Column("name", sa.LargeBinary),
        sa.Column("need_patient_banner", sa.Boolean, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("last_used_at", sa.Float, nullable=False),
    )
    op.create_index("ix_smart_session_expires_at", "smart_session", ["expires_at"])
    op.create_index("ix_smart_session_last_used_at", "smart_session", ["last_used_at"])


def _create_audit() -> None:
    op.create_table(
        "audit_event",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("recorded_at", sa.String(27), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("outcome", sa.Integer, nullable=False),
        sa.Column("ehr_id", sa.String(128)),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("agent_sealed", sa.LargeBinary),
        sa.Column("agent_index", sa.String(64)),
        sa.Column("patient_sealed", sa.LargeBinary),
        sa.Column("patient_index", sa.String(64)),
        sa.Column("entities_sealed", sa.LargeBinary),
        sa.Column("entity_index", sa.Text),
        sa.Column("detail_sealed", sa.LargeBinary),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("mac", sa.String(64), nullable=False),
    )
    for column in ("recorded_at", "kind", "request_id", "agent_index", "patient_index"):
        op.create_index(f"ix_audit_event_{column}", "audit_event", [column])
    op.create_table(
        "audit_checkpoint",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.Column("frontier", sa.Text, nullable=False),
        sa.Column("signed_at", sa.String(27), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
    )


def _create_analysis() -> None:
    op.create_table(
        "analysis_job",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Float),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("patient_index", sa.String(64), nullable=False),
        sa.Column("study_index", sa.String(64), nullable=False),
        sa.Column("reference", sa.LargeBinary, nullable=False),
        sa.Column("authorization", sa.LargeBinary),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.String(1000)),
        sa.Column("retryable", sa.Boolean, nullable=False),
        sa.Column("result_id", sa.String(32)),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    for column in ("state", "patient_index", "study_index"):
        op.create_index(f"ix_analysis_job_{column}", "analysis_job", [column])
    op.create_table(
        "analysis_result",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("job_id", sa.String(32), sa.ForeignKey("analysis_job.id"), nullable=False, unique=True),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("patient_index", sa.String(64), nullable=False),
        sa.Column("reference", sa.LargeBinary, nullable=False),
        sa.Column("result", sa.LargeBinary, nullable=False),
        sa.Column("key_image", sa.LargeBinary),
        sa.Column("resources", sa.LargeBinary, nullable=False),
        sa.Column("delivery", sa.String(16), nullable=False),
        sa.Column("delivery_detail", sa.String(1000)),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_index("ix_analysis_result_patient_index", "analysis_result", ["patient_index"])


def _guard_sqlite() -> None:
    for table in _AUDIT_TABLES:
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in _AUDIT_TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
        )


def downgrade() -> None:
    """The first revision has nothing below it, and an audit log is not thrown away by a command."""
    raise NotImplementedError("the first revision cannot be taken back")
