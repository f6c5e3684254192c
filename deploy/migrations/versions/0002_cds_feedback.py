"""Tables of CDS Hooks: cards issued, and what was said of them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cds_card_issued",
        sa.Column("card", sa.String(36), primary_key=True),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("issuer", sa.String(2048), nullable=False),
        sa.Column("tenant", sa.String),
        sa.Column("service_id", sa.String(64), nullable=False),
        sa.Column("hook_instance", sa.String(36), nullable=False),
        sa.Column("topic", sa.String(32), nullable=False),
        sa.Column("result_id", sa.String(32)),
        sa.Column("issued_at", sa.Float, nullable=False),
    )
    op.create_index("ix_cds_card_issued_result_id", "cds_card_issued", ["result_id"])
    op.create_table(
        "cds_card_feedback",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("card", sa.String(36), sa.ForeignKey("cds_card_issued.card"), nullable=False),
        sa.Column("item_index", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason_code", sa.String(255)),
        sa.Column("reason_system", sa.String(2048)),
        sa.Column("outcome_at", sa.Float, nullable=False),
        sa.Column("item_sealed", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
        sa.UniqueConstraint("card", "item_index"),
    )
    op.create_index("ix_cds_card_feedback_outcome", "cds_card_feedback", ["outcome"])


def downgrade() -> None:
    op.drop_table("cds_card_feedback")
    op.drop_table("cds_card_issued")
