"""What an EHR still lacks of a result, to be tried again by itself."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_LACKING = """
    INSERT INTO result_outbox (result_id, errand, attempts, next_attempt_at)
    SELECT id, 'report', 0, created_at + 60 FROM analysis_result
    WHERE delivery IN ('pending', 'failed')
    OR (delivery = 'not_permitted' AND delivery_detail IN ('no_authorization', 'scope_not_granted'))
"""


def upgrade() -> None:
    op.create_table(
        "result_outbox",
        sa.Column("result_id", sa.String(32), sa.ForeignKey("analysis_result.id"), primary_key=True),
        sa.Column("errand", sa.String(16), primary_key=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", sa.Float),
        sa.Column("lease_until", sa.Float),
    )
    op.create_index("ix_result_outbox_next_attempt_at", "result_outbox", ["next_attempt_at"])
    op.add_column("dicom_result", sa.Column("linked_at", sa.Float))
    # Which of these the EHR was told of is not known; none is told twice.
    op.execute("UPDATE dicom_result SET linked_at = updated_at WHERE state = 'stored'")
    op.execute(_LACKING)


def downgrade() -> None:
    op.drop_column("dicom_result", "linked_at")
    op.drop_table("result_outbox")
