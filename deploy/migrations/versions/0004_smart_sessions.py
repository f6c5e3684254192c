"""What a SMART session keeps: refresh token, context of the launch, roles."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("smart_session", sa.Column("roles", sa.String(255), nullable=False, server_default=""))
    op.add_column("smart_session", sa.Column("refresh_token", sa.LargeBinary))
    op.add_column("smart_session", sa.Column("refresh_until", sa.Float))
    op.add_column("smart_session", sa.Column("context", sa.LargeBinary))
    op.add_column("smart_session", sa.Column("window_mark", sa.String(32), nullable=False, server_default=""))


def downgrade() -> None:
    for name in ("window_mark", "context", "refresh_until", "refresh_token"):
        op.drop_column("smart_session", name)
    op.drop_column("smart_session", "roles")
