"""What the database knows of the keyring's keys: how far their rotation is, how much they were used. No secrets."""

from sqlalchemy import BigInteger, Column
from sqlmodel import Field, SQLModel


class KeyRotationRow(SQLModel, table=True):
    """How far one column has been sealed anew under `key_id`: all rows up to `position`, in the order of their keys."""

    __tablename__ = "key_rotation"

    table_name: str = Field(primary_key=True, max_length=64)
    column_name: str = Field(primary_key=True, max_length=64)
    key_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    position: str = Field(default="", max_length=64)
    rewritten: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    refused: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    updated_at: float
    finished_at: float | None = None


class KeyUseRow(SQLModel, table=True):
    """How often a key sealed, as the processes told now and then."""

    __tablename__ = "key_use"

    key_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    uses: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    updated_at: float


class KeyDestructionRow(SQLModel, table=True):
    """The first of the two who it takes to destroy a key."""

    __tablename__ = "key_destruction"

    key_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    account_id: str = Field(max_length=32)
    requested_at: float


KEY_ROTATION = SQLModel.metadata.tables[KeyRotationRow.__tablename__]
KEY_USE = SQLModel.metadata.tables[KeyUseRow.__tablename__]
KEY_DESTRUCTION = SQLModel.metadata.tables[KeyDestructionRow.__tablename__]
