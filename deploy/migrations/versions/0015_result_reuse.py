"""The same images under the same models: one result."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "study_turn",
        sa.Column("study_key", sa.String(64), primary_key=True),
        sa.Column("job_id", sa.String(32), nullable=False),
    )
    op.create_table(
        "result_content",
        sa.Column("content_key", sa.String(64), primary_key=True),
        sa.Column("result_id", sa.String(32), sa.ForeignKey("analysis_result.id"), nullable=False),
    )
    op.create_index("ix_result_content_result_id", "result_content", ["result_id"])


def downgrade() -> None:
    op.drop_table("result_content")
    op.drop_table("study_turn")
