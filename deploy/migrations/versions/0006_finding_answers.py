"""What people answered to findings, and who signed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "finding_answer",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("result_id", sa.String(32), sa.ForeignKey("analysis_result.id"), nullable=False),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("patient_index", sa.String(64), nullable=False),
        sa.Column("finding", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("value", sa.String(16)),
        sa.Column("reason", sa.String(32)),
        sa.Column("model_id", sa.String(128), nullable=False),
        sa.Column("model_version", sa.String(64), nullable=False),
        sa.Column("model_positive", sa.Boolean),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("answered_at", sa.Float, nullable=False),
        sa.UniqueConstraint("result_id", "finding", "version"),
    )
    for column in ("result_id", "patient_index", "answered_at"):
        op.create_index(f"ix_finding_answer_{column}", "finding_answer", [column])
    op.create_table(
        "report_signature",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("result_id", sa.String(32), sa.ForeignKey("analysis_result.id"), nullable=False),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("patient_index", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("act", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("resources", sa.LargeBinary, nullable=False),
        sa.Column("authorization", sa.LargeBinary),
        sa.Column("written", sa.LargeBinary),
        sa.Column("delivery", sa.String(16), nullable=False),
        sa.Column("delivery_detail", sa.String(1000)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", sa.Float),
        sa.Column("signed_at", sa.Float, nullable=False),
        sa.UniqueConstraint("result_id", "version"),
    )
    for column in ("result_id", "patient_index", "next_attempt_at"):
        op.create_index(f"ix_report_signature_{column}", "report_signature", [column])


def downgrade() -> None:
    op.drop_table("report_signature")
    op.drop_table("finding_answer")
