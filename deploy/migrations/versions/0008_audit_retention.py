"""What the audit's retention, holds and delivery need."""

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Return without a change."""


def downgrade() -> None:
    """Return without a change."""
