"""What a user has set aside is not shown to them again, as long as it is the same that would be said.

An override counts for the user who made it, at the EHR that told us of it: it must not hide a finding from a
colleague. A newer result, and a newer study, is something else, and is shown.
"""

import json
from collections.abc import Collection, Iterable

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel

from rayhook.auth.keys import Keyring
from rayhook.auth.principal import CDSClientPrincipal
from rayhook.cds_hooks.contexts import Context

_PURPOSE = "cds_card_override"


class CardOverride(SQLModel, table=True):
    """That somebody set something aside: `override_index` is blind, and found only by who asks for the same again."""

    __tablename__ = _PURPOSE

    override_index: str = Field(primary_key=True, max_length=64)
    overridden_at: float


_OVERRIDES = SQLModel.metadata.tables[_PURPOSE]


def override_index(
    keyring: Keyring, principal: CDSClientPrincipal, context: Context, subject: Iterable[str]
) -> str:
    """Return the blind index of `subject`, said to this user about this patient."""
    said = [principal.ehr.id, principal.tenant, context.user_id, context.patient_id, *subject]
    return keyring.blind_index(json.dumps(said), purpose=_PURPOSE)


def overridden(session: Session, indexes: Collection[str]) -> frozenset[str]:
    """Return those of `indexes` that were set aside."""
    found = session.execute(
        select(_OVERRIDES.c.override_index).where(_OVERRIDES.c.override_index.in_(indexes))
    )
    return frozenset(found.scalars())


def set_aside(session: Session, index: str, *, now: float) -> None:
    """Remember an override; one that is known stays as it is."""
    if overridden(session, [index]):
        return
    try:
        with session.begin_nested():
            session.execute(insert(_OVERRIDES).values(override_index=index, overridden_at=now))
    except IntegrityError:
        # PostgreSQL: the same was set aside since the look-up above.
        return
