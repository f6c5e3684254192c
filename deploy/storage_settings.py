"""Where an installation keeps its state, as its commands and its service have to know it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from rayhook.audit.events import AuditKind
from rayhook.audit.retention import RetentionPolicy
from rayhook.deploy.postgresql import USUAL, ConnectionSettings

PREFIX = "RAYHOOK_"
KEY_URI = r"^aws-kms://arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]{1,64}$"
S3_ADDRESS = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]{0,512})?$"


class StorageSettings(BaseSettings):
    """Where an installation keeps its state: all that the commands beside the service need to know."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, populate_by_name=True)

    data_dir: Path = Field(Path("var"), description="Folder of the keyring and the embedded database.")
    database_url: str | None = Field(
        None,
        validation_alias="DATABASE_URL",
        description="SQLAlchemy URL; SQLite in `data_dir` where it is not set.",
    )
    database_password_file: Path | None = Field(
        None,
        description="File that holds the password to PostgreSQL where the URL has none; read at every connect.",
    )
    database_pool_size: Annotated[int, Field(ge=1, le=1000)] = Field(
        USUAL.pool_size, description="Connections to PostgreSQL that each process keeps open."
    )
    database_pool_overflow: Annotated[int, Field(ge=0, le=1000)] = Field(
        USUAL.pool_overflow, description="Connections to PostgreSQL beyond these, closed after their use."
    )
    database_pool_timeout_s: Annotated[float, Field(gt=0, le=60)] = Field(
        USUAL.pool_timeout_s,
        description="Longest wait for a free connection to PostgreSQL, in seconds; the answer then is 503.",
    )
    database_connect_timeout_s: Annotated[float, Field(ge=2, le=60)] = Field(
        USUAL.connect_timeout_s,
        description="Longest time to connect to PostgreSQL, in seconds, of each address.",
    )
    database_statement_timeout_s: Annotated[float, Field(ge=1)] = Field(
        USUAL.statement_timeout_s, description="Longest time of one statement on PostgreSQL, in seconds."
    )
    database_lock_timeout_s: Annotated[float, Field(ge=1)] = Field(
        USUAL.lock_timeout_s, description="Longest wait for a lock on PostgreSQL, in seconds."
    )
    database_idle_in_transaction_timeout_s: Annotated[float, Field(ge=1)] = Field(
        USUAL.idle_in_transaction_timeout_s,
        description="Time after which PostgreSQL ends a transaction that does nothing, in seconds.",
    )
    kms_key: str | None = Field(
        None,
        pattern=KEY_URI,
        description="`aws-kms://` and the ARN of the AWS KMS key that wraps the keyring; a plain file, readable by its "
        "owner only, where it is not set. The `AWS_*` variables name the credentials.",
    )
    installation: str = Field(
        "rayhook",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="Name of this installation in the KMS's encryption context: what is wrapped for one opens for no other.",
    )
    audit_anchor: Path | None = Field(
        None,
        description="Anchor file of the audit checkpoints; `audit-anchor.jsonl` in `data_dir` by default.",
    )
    erasure_list: Path | None = Field(
        None,
        description="List of the patients' keys that were destroyed, which a restored backup must not bring back; "
        "`erased-keys.jsonl` in `data_dir` by default.",
    )
    audit_s3_anchor: str | None = Field(
        None,
        pattern=S3_ADDRESS,
        description="`s3://bucket/prefix` that gets every checkpoint as its own object under object lock; the "
        "`AWS_*` variables name region and credentials.",
    )

    audit_retention_days: Annotated[int, Field(ge=1)] = Field(
        2192,
        description="Days that audit events are kept; six years by default, as 45 CFR 164.316(b)(2)(i) asks.",
    )
    audit_retention_by_kind: dict[AuditKind, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="Other days for some kinds of event, as a JSON object of kind and days.",
    )

    @property
    def retention_policy(self) -> RetentionPolicy:
        return RetentionPolicy(self.audit_retention_days, self.audit_retention_by_kind)

    @property
    def longest_retention_days(self) -> int:
        return max((self.audit_retention_days, *self.audit_retention_by_kind.values()))

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{(self.data_dir / 'rayhook.sqlite3').resolve()}"

    @property
    def connection_settings(self) -> ConnectionSettings:
        return ConnectionSettings(
            pool_size=self.database_pool_size,
            pool_overflow=self.database_pool_overflow,
            pool_timeout_s=self.database_pool_timeout_s,
            connect_timeout_s=self.database_connect_timeout_s,
            statement_timeout_s=self.database_statement_timeout_s,
            lock_timeout_s=self.database_lock_timeout_s,
            idle_in_transaction_timeout_s=self.database_idle_in_transaction_timeout_s,
            password_file=self.database_password_file,
        )

    @property
    def anchor_path(self) -> Path:
        return self.audit_anchor or self.data_dir / "audit-anchor.jsonl"

    @property
    def erasure_list_path(self) -> Path:
        return self.erasure_list or self.data_dir / "erased-keys.jsonl"

    @property
    def keyring_path(self) -> Path:
        return self.data_dir / "keyring.json"


class OwnerSettings(BaseSettings):
    """For `rayhook database` alone: the service is not to know how the owner of its tables connects."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    database_owner_url: str | None = Field(
        None, description="SQLAlchemy URL of the database as the role that owns the tables."
    )
