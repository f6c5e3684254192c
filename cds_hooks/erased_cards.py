"""What stays of a patient's cards once the patient was erased: that they were given, to whom, and what came of them."""

from collections.abc import Sequence

from sqlalchemy import or_, select, update
from sqlmodel import Session, SQLModel

from rayhook.cds_hooks.feedback import CardFeedback
from rayhook.cds_hooks.issued import CardIssued
from rayhook.inference.erased_rows import ErasedPatient, overwrite

_ISSUED = SQLModel.metadata.tables[CardIssued.__tablename__]
_FEEDBACK = SQLModel.metadata.tables[CardFeedback.__tablename__]


def erase_cards(session: Session, erased: ErasedPatient, results: Sequence[str]) -> None:
    """Overwrite what was said of the patient's cards, which may name the patient; the count of it stays."""
    # Cards of older releases say only which result they were about.
    is_mine = or_(_ISSUED.c.patient_index == erased.patient_index, _ISSUED.c.result_id.in_(results))
    cards = select(_ISSUED.c.card).where(is_mine)
    said = session.execute(select(_FEEDBACK.c.id).where(_FEEDBACK.c.card.in_(cards))).scalars().all()
    overwrite(session, erased, _FEEDBACK, ("item_sealed",), said)
    mine = update(_ISSUED).where(is_mine)
    session.execute(mine.values(patient_index=erased.mark, override_index=None))
