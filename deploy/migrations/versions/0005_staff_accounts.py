"""Who signs in here: local accounts, sessions, and sign-ins at an OpenID provider under way."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "staff_account",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name_index", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.LargeBinary, nullable=False),
        sa.Column("roles", sa.String(255), nullable=False),
        sa.Column("password_hash", sa.LargeBinary),
        sa.Column("totp_secret", sa.LargeBinary),
        sa.Column("totp_step", sa.Integer, nullable=False),
        sa.Column("recovery_hashes", sa.String(1024), nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("failed_attempts", sa.Integer, nullable=False),
        sa.Column("blocked_until", sa.Float, nullable=False),
        sa.Column("enrolment_hash", sa.String(64)),
        sa.Column("enrolment_expires_at", sa.Float),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("signed_in_at", sa.Float),
    )
    op.create_index("ix_staff_account_enrolment_hash", "staff_account", ["enrolment_hash"])
    op.create_table(
        "staff_session",
        sa.Column("id_hash", sa.String(64), primary_key=True),
        sa.Column("account_id", sa.String(32)),
        sa.Column("provider", sa.String(63)),
        sa.Column("name", sa.LargeBinary),
        sa.Column("agent", sa.LargeBinary),
        sa.Column("roles", sa.String(255), nullable=False),
        sa.Column("proved_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("last_used_at", sa.Float, nullable=False),
    )
    for column in ("account_id", "expires_at", "last_used_at"):
        op.create_index(f"ix_staff_session_{column}", "staff_session", [column])
    op.create_table(
        "staff_oidc_request",
        sa.Column("state_hash", sa.String(64), primary_key=True),
        sa.Column("browser_hash", sa.String(64), nullable=False),
        sa.Column("provider", sa.String(63), nullable=False),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("code_verifier", sa.LargeBinary, nullable=False),
        sa.Column("landing", sa.String(255), nullable=False),
        sa.Column("previous", sa.String(64)),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("ix_staff_oidc_request_expires_at", "staff_oidc_request", ["expires_at"])


def downgrade() -> None:
    op.drop_table("staff_oidc_request")
    op.drop_table("staff_session")
    op.drop_table("staff_account")
