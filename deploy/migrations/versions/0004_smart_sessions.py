"""What a SMART session keeps: refresh token, context of the launch, roles."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("smart_session", sa.Column("roles", sa.String(255), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("smart_session", "roles")
