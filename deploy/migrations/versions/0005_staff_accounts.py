"""Who signs in here: local accounts and their sessions."""

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Return without a change."""


def downgrade() -> None:
    """Return without a change."""
