"""Which JWTs have been used: each may be used once, by whichever process it reaches first.

Spec: CDS Hooks 2.0.1, "Trusting CDS Clients" (`jti`).
"""

from sqlalchemy import delete, insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlmodel import Field, SQLModel

from rayhook.auth.database_types import Sessions
from rayhook.fhir.errors import ServiceUnavailable, Unauthenticated

# A clock that is set back must not bring a used token to life again.
_KEPT_AFTER_EXPIRY_S = 300.0
# In one second of so many the calls also erase what is past: each call doing so would be a cost without a use.
_SWEPT_EVERY_S = 10


class UsedJTI(SQLModel, table=True):
    __tablename__ = "used_jti"

    issuer: str = Field(primary_key=True, max_length=2048)
    jti: str = Field(primary_key=True, max_length=255)
    expires_at: float = Field(index=True)


_USED = SQLModel.metadata.tables["used_jti"]


class ReplayMemory:
    """The database decides who was first: its unique key holds across threads, processes and restarts."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def use(self, issuer: str, jti: str, *, expires_at: float, now: float) -> None:
        """Commit the use on its own: work that fails later does not make the token good again.

        Raises Unauthenticated if it was used before; ServiceUnavailable if that cannot be known.
        """
        try:
            with self._sessions() as session:
                session.execute(insert(_USED).values(issuer=issuer, jti=jti, expires_at=expires_at))
                if int(now) % _SWEPT_EVERY_S == 0:
                    session.execute(delete(_USED).where(_USED.c.expires_at < now - _KEPT_AFTER_EXPIRY_S))
                session.commit()
        except IntegrityError as error:
            raise Unauthenticated("jti was used before", code="jti_replayed") from error
        except SQLAlchemyError as error:
            raise ServiceUnavailable(
                "the replay memory does not answer", code="replay_memory_down"
            ) from error
