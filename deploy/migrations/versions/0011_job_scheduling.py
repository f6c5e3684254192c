"""Priorities, queues, cancellation, workers, and when a job that failed for a passing reason is tried again.

`next_attempt_at` (float, nullable): a queued job is not due before. `retries` (integer, server default 0): how often
it ended for a passing reason; `attempts` counts only claims that no worker came back from.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# What a process of the previous release queues has no time at which it is due: it comes first.
_DUE = "UPDATE analysis_job SET due_at = created_at WHERE state IN ('queued', 'running')"


def upgrade() -> None:
    op.add_column(
        "analysis_job", sa.Column("priority", sa.String(8), nullable=False, server_default="routine")
    )
    op.add_column("analysis_job", sa.Column("queue", sa.String(8), nullable=False, server_default="cpu"))
    op.add_column("analysis_job", sa.Column("due_at", sa.Float, nullable=False, server_default="0"))
    op.add_column("analysis_job", sa.Column("next_attempt_at", sa.Float))
    op.add_column("analysis_job", sa.Column("retries", sa.Integer, nullable=False, server_default="0"))
    op.add_column("analysis_job", sa.Column("worker_id", sa.String(32)))
    op.execute(_DUE)
    op.create_index("ix_analysis_job_due", "analysis_job", ["state", "queue", "due_at"])
    op.create_table(
        "worker",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("queues", sa.String(64), nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("is_stopping", sa.Boolean, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
    op.create_index("ix_worker_seen_at", "worker", ["seen_at"])


def downgrade() -> None:
    op.drop_table("worker")
    op.drop_index("ix_analysis_job_due", "analysis_job")
    for name in ("worker_id", "retries", "next_attempt_at", "due_at", "queue", "priority"):
        op.drop_column("analysis_job", name)
