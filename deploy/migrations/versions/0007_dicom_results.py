"""What became of the DICOM objects of a result."""

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Return without a change."""


def downgrade() -> None:
    """Return without a change."""
