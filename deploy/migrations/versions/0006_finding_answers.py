"""What people answered to findings, and who signed."""

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Return without a change."""


def downgrade() -> None:
    """Return without a change."""
