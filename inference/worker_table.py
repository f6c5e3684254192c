"""The row of a worker process: what it serves, and when it was last heard of."""

from sqlmodel import Field, SQLModel


class WorkerRecord(SQLModel, table=True):
    """`queues` with commas between them. `is_stopping`: it takes nothing more."""

    __tablename__ = "worker"

    id: str = Field(primary_key=True, max_length=32)
    name: str = Field(max_length=128)
    queues: str = Field(max_length=64)
    threads: int
    device: str = Field(max_length=64)
    version: str = Field(max_length=32)
    is_stopping: bool = False
    started_at: float
    seen_at: float = Field(index=True)
