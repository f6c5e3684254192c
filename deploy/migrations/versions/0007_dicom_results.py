"""What became of the DICOM objects of a result."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dicom_source",
        sa.Column("result_id", sa.String(32), sa.ForeignKey("analysis_result.id"), primary_key=True),
        sa.Column("header", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "dicom_result",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("result_id", sa.String(32), sa.ForeignKey("analysis_result.id"), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("instance_index", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("failure", sa.String(64)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.UniqueConstraint("result_id", "instance_index"),
    )
    for column in ("result_id", "instance_index"):
        op.create_index(f"ix_dicom_result_{column}", "dicom_result", [column])


def downgrade() -> None:
    op.drop_table("dicom_result")
    op.drop_table("dicom_source")
