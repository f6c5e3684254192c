"""Studies that were told of before anybody asked."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "arrival",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("way", sa.String(16), nullable=False),
        sa.Column("subject_index", sa.String(64), nullable=False, unique=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("told", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", sa.Float),
        sa.Column("lease_until", sa.Float),
        sa.Column("error_code", sa.String(64)),
        sa.Column("first_told_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_index("ix_arrival_state", "arrival", ["state"])
    op.create_index("ix_arrival_next_attempt_at", "arrival", ["next_attempt_at"])
    op.create_table(
        "arrival_source",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("fhir_base_url", sa.String(2048)),
        sa.Column("complete", sa.BigInteger),
        sa.Column("told", sa.BigInteger, nullable=False),
        sa.Column("ahead", sa.String(16_384), nullable=False),
        sa.Column("is_lost", sa.Boolean, nullable=False),
        sa.Column("seen", sa.LargeBinary),
        sa.Column("caught_up_at", sa.Float),
        sa.Column("heard_at", sa.Float),
        sa.Column("ends_at", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", sa.Float),
        sa.Column("lease_until", sa.Float),
        sa.Column("error_code", sa.String(64)),
    )
    op.create_index("ix_arrival_source_next_attempt_at", "arrival_source", ["next_attempt_at"])
    op.create_table(
        "received_instance",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("ehr_id", sa.String(128), nullable=False),
        sa.Column("study_index", sa.String(64), nullable=False),
        sa.Column("instance_index", sa.String(64), nullable=False, unique=True),
        sa.Column("digest_index", sa.String(64), nullable=False),
        sa.Column("is_image", sa.Boolean, nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
    )
    op.create_index("ix_received_instance_study_index", "received_instance", ["study_index"])
    op.create_index("ix_received_instance_received_at", "received_instance", ["received_at"])


def downgrade() -> None:
    op.drop_table("received_instance")
    op.drop_table("arrival_source")
    op.drop_table("arrival")
