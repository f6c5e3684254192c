"""What the rules for unusual access found; emergency access of a session."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_review_item",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("raised_at", sa.String(27), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("subject_sealed", sa.LargeBinary, nullable=False),
        sa.Column("note_sealed", sa.LargeBinary),
        sa.Column("changed_at", sa.String(27)),
        sa.Column("changed_by_sealed", sa.LargeBinary),
        sa.UniqueConstraint("rule", "seq", name="uq_audit_review_item_rule_seq"),
    )
    op.create_table(
        "audit_watch",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "smart_emergency",
        sa.Column("session_key", sa.String(64), primary_key=True),
        sa.Column("ends_at", sa.Float, nullable=False),
    )
    op.create_index("ix_smart_emergency_ends_at", "smart_emergency", ["ends_at"])
