"""What a SMART session keeps: refresh token, context of the launch, roles."""

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Return without a change."""


def downgrade() -> None:
    """Return without a change."""
