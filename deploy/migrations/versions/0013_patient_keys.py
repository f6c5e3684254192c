"""A key of each patient's own, to be destroyed alone."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_LIVE = sa.text("retired_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "patient_key",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("subject_index", sa.String(64), nullable=False),
        sa.Column("wrapped", sa.LargeBinary),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("retired_at", sa.Float),
        sa.Column("due_at", sa.Float),
        sa.Column("destroyed_at", sa.Float),
        sa.Column("erasure_id", sa.String(32)),
        sa.CheckConstraint("(wrapped IS NULL) = (destroyed_at IS NOT NULL)", name="ck_patient_key_destroyed"),
    )
    op.create_index("ix_patient_key_subject_index", "patient_key", ["subject_index"])
    op.create_index("ix_patient_key_due_at", "patient_key", ["due_at"])
    op.create_index("ix_patient_key_destroyed_at", "patient_key", ["destroyed_at"])
    op.create_index(
        "uq_patient_key_live",
        "patient_key",
        ["scope", "subject_index"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_table(
        "patient_erasure",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("takes_audit", sa.Boolean, nullable=False),
        sa.Column("subject_sealed", sa.LargeBinary, nullable=False),
        sa.Column("reason_sealed", sa.LargeBinary, nullable=False),
        sa.Column("asked_by_sealed", sa.LargeBinary, nullable=False),
        sa.Column("asked_at", sa.Float, nullable=False),
        sa.Column("decided_by_sealed", sa.LargeBinary),
        sa.Column("decided_at", sa.Float),
    )
    op.add_column("smart_session", sa.Column("patient_index", sa.String(64)))
    op.create_index("ix_smart_session_patient_index", "smart_session", ["patient_index"])
    op.add_column("cds_card_issued", sa.Column("patient_index", sa.String(64)))
    op.add_column("audit_review_item", sa.Column("patient_index", sa.String(64)))


def downgrade() -> None:
    op.drop_column("audit_review_item", "patient_index")
    op.drop_column("cds_card_issued", "patient_index")
    op.drop_index("ix_smart_session_patient_index", "smart_session")
    op.drop_column("smart_session", "patient_index")
    op.drop_table("patient_erasure")
    op.drop_table("patient_key")
