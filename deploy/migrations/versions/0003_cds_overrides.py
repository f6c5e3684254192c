"""What users set aside, and the suggestions that a card carried."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("cds_card_issued", sa.Column("override_index", sa.String(64)))
    op.add_column("cds_card_issued", sa.Column("suggestions", sa.String(512)))
    op.create_table(
        "cds_card_override",
        sa.Column("override_index", sa.String(64), primary_key=True),
        sa.Column("overridden_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("cds_card_override")
    op.drop_column("cds_card_issued", "suggestions")
    op.drop_column("cds_card_issued", "override_index")
