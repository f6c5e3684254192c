"""What became of a result's DICOM objects, and the image's header that they are made from: sealed rows."""

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import Column, LargeBinary, UniqueConstraint
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.keys import Keyring
from rayhook.inference.outbox import AT_ONCE, Backoff
from rayhook.inference.results import AnalysisResult, index
from rayhook.inference.sealed_row import SealedRow

MAX_ATTEMPTS = 8

NO_TOKEN = frozenset({"authorization_missing", "http_401"})

_UNDER_WAY_S = 120.0
_BACKOFF = Backoff(30.0)


class StoreState(StrEnum):
    """`failed` may be tried again; `refused`: the PACS will not have it."""

    FAILED = "failed"
    PENDING = "pending"
    REFUSED = "refused"
    STORED = "stored"


_UNSTORED: Final = (StoreState.FAILED.value, StoreState.PENDING.value)


class DICOMSource(SQLModel, table=True):
    """The header of the image that a result speaks of, sealed."""

    __tablename__ = "dicom_source"

    result_id: str = Field(primary_key=True, foreign_key="analysis_result.id", max_length=32)
    header: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class DICOMResult(SQLModel, table=True):
    """One object. Its UIDs and where it went are sealed, and found by blind index."""

    __tablename__ = "dicom_result"
    __table_args__ = (UniqueConstraint("result_id", "instance_index"),)

    id: str = Field(primary_key=True, max_length=32)
    result_id: str = Field(foreign_key="analysis_result.id", index=True, max_length=32)
    kind: str = Field(max_length=32)
    instance_index: str = Field(max_length=64, index=True)
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    state: str = Field(max_length=16)
    failure: str | None = Field(default=None, max_length=64)
    attempts: int = 0
    created_at: float
    updated_at: float
    linked_at: float | None = None


@dataclass(frozen=True, slots=True)
class ObjectNames:
    """What names one object at the PACS. `url` is the DICOMweb base that it is stored at."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    url: str

    @property
    def wado_url(self) -> str:
        """Spec: DICOM PS3.18 10.4.1.1.3 (instance)."""
        return (
            f"{self.url}/studies/{self.study_instance_uid}"
            f"/series/{self.series_instance_uid}/instances/{self.sop_instance_uid}"
        )


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A row, opened."""

    id: str
    kind: str
    names: ObjectNames
    state: StoreState
    failure: str | None
    attempts: int
    updated_at: float


def add_source(session: Session, keyring: Keyring, result_id: str, header: bytes) -> None:
    """Keep the header beside its result."""
    patient = _patient_index(session, result_id)
    sealed = SealedRow(session, keyring, DICOMSource, result_id).seal("header", header, patient_index=patient)
    session.add(DICOMSource(result_id=result_id, header=sealed))
    session.flush()


def drop_source(session: Session, result_id: str) -> None:
    """Forget the header, where no object will come of it."""
    row = session.get(DICOMSource, result_id)
    if row is not None:
        session.delete(row)
        session.flush()


def load_source(session: Session, keyring: Keyring, result_id: str) -> bytes | None:
    row = session.get(DICOMSource, result_id)
    return (
        None
        if row is None
        else SealedRow(session, keyring, DICOMSource, result_id).open("header", row.header)
    )


def begin(
    session: Session,
    keyring: Keyring,
    result_id: str,
    objects: Iterable[tuple[str, ObjectNames]],
    *,
    ehr_id: str,
    counts: bool = True,
    clock: Callable[[], float] = time.time,
) -> dict[str, str]:
    """Count one more attempt for each object that the PACS lacks; return their rows' ids by SOP Instance UID.

    objects: (kind, names).  One that another result of the same images brought there needs no storing again.
    counts: False where nothing will be sent, for want of a token.
    """
    now = clock()
    begun = {}
    for kind, names in objects:
        key = index(keyring, "dicom_instance", ehr_id, f"{names.url} {names.sop_instance_uid}")
        rows = session.exec(select(DICOMResult).where(DICOMResult.instance_index == key)).all()
        row = next((one for one in rows if one.result_id == result_id), None)
        if row is None:
            id_ = uuid.uuid4().hex
            patient, plaintext = _patient_index(session, result_id), msgspec.json.encode(names)
            content = SealedRow(session, keyring, DICOMResult, id_).seal(
                "content", plaintext, patient_index=patient
            )
            row = DICOMResult(
                id=id_,
                result_id=result_id,
                kind=kind,
                instance_index=key,
                content=content,
                state=StoreState.PENDING.value,
                created_at=now,
                updated_at=now,
            )
        if any(one.state == StoreState.STORED for one in rows):
            row.state, row.failure = StoreState.STORED.value, None
        if row.state not in (StoreState.STORED, StoreState.REFUSED):
            row.state, row.attempts, row.updated_at = StoreState.PENDING.value, row.attempts + counts, now
            begun[names.sop_instance_uid] = row.id
        session.add(row)
        session.flush()
    return begun


def end(
    session: Session,
    row_id: str,
    state: StoreState,
    failure: str | None,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Note what became of an object."""
    row = session.get(DICOMResult, row_id, populate_existing=True)
    if row is None or row.state == StoreState.STORED:
        return
    row.state, row.failure, row.updated_at = state.value, failure and failure[:64], clock()
    session.add(row)
    session.flush()


def give_up(session: Session, objects: Iterable[StoredObject], failure: str, *, now: float) -> None:
    """Try no more to store those of the objects that the PACS lacks."""
    for one in objects:
        row = session.get(DICOMResult, one.id, populate_existing=True)
        if row is not None and row.state in _UNSTORED:
            row.state, row.failure, row.updated_at = StoreState.REFUSED.value, failure, now
            session.add(row)
    session.flush()


def count_untried(session: Session, result_id: str, *, since: float) -> None:
    """Count an attempt for what was due and was not made anew: what is out of date must not be due for ever."""
    query = select(DICOMResult).where(
        DICOMResult.result_id == result_id,
        col(DICOMResult.state).in_(_UNSTORED),
        col(DICOMResult.updated_at) < since,
    )
    for row in session.exec(query).all():
        if _is_due(row, since):
            row.attempts, row.updated_at = row.attempts + 1, since
            session.add(row)
    session.flush()


def results_beside(session: Session, object_id: str) -> list[str]:
    """Return the other results of which an object is as well: the same images under the same model."""
    row = session.get(DICOMResult, object_id)
    if row is None:
        return []
    query = select(DICOMResult.result_id).where(
        DICOMResult.instance_index == row.instance_index, DICOMResult.result_id != row.result_id
    )
    return list(session.exec(query))


def load_objects(session: Session, keyring: Keyring, result_id: str) -> list[StoredObject]:
    """Return the objects of a result in the order in which they were made."""
    query = (
        select(DICOMResult)
        .where(DICOMResult.result_id == result_id)
        .order_by(col(DICOMResult.created_at), col(DICOMResult.kind))
    )
    return [
        StoredObject(
            id=row.id,
            kind=row.kind,
            names=msgspec.json.decode(
                SealedRow(session, keyring, DICOMResult, row.id).open("content", row.content),
                type=ObjectNames,
            ),
            state=StoreState(row.state),
            failure=row.failure,
            attempts=row.attempts,
            updated_at=row.updated_at,
        )
        for row in session.exec(query)
    ]


def unlinked(session: Session, keyring: Keyring, result_id: str) -> list[StoredObject]:
    """Return the objects that were stored for this result, and that the EHR was not told of."""
    rows = select(DICOMResult.id).where(
        DICOMResult.result_id == result_id, col(DICOMResult.linked_at).is_(None)
    )
    open_ = frozenset(session.exec(rows))
    # Without an attempt the object was there already, for another result of the same images.
    return [
        one
        for one in load_objects(session, keyring, result_id)
        if one.id in open_ and one.state is StoreState.STORED and one.attempts
    ]


def set_linked(session: Session, objects: Iterable[StoredObject], *, now: float) -> None:
    for one in objects:
        row = session.get(DICOMResult, one.id)
        if row is not None:
            row.linked_at = now
            session.add(row)
    session.flush()


def awaits_objects(session: Session, result_id: str, *, now: float) -> bool:
    """Return whether the PACS lacks an object that another try could bring there.

    A result with a header kept and no object yet was cut off with its process.
    """
    rows = session.exec(select(DICOMResult).where(DICOMResult.result_id == result_id)).all()
    if not rows:
        source = session.get(DICOMSource, result_id)
        result = session.get(AnalysisResult, result_id)
        return source is not None and result is not None and now - result.created_at > _UNDER_WAY_S
    return any(_awaits(row, now) for row in rows)


def due_results(session: Session, *, now: float) -> list[tuple[str, str]]:
    """Return the results of which an object is to be tried again by itself, each with its EHR's id.

    Every try that failed doubles the time to the next; what waits for a token waits for who has one.
    """
    query = (
        select(DICOMResult, AnalysisResult.ehr_id)
        .join(AnalysisResult, col(AnalysisResult.id) == col(DICOMResult.result_id))
        .where(col(DICOMResult.state).in_(_UNSTORED))
        .where(col(DICOMResult.attempts) < MAX_ATTEMPTS)
        .where(col(DICOMResult.updated_at) <= now - _BACKOFF.first_s)
        .order_by(col(DICOMResult.updated_at))
    )
    due = {row.result_id: ehr_id for row, ehr_id in session.exec(query) if _is_due(row, now)}
    cut_off = (
        select(DICOMSource.result_id, AnalysisResult.ehr_id)
        .join(AnalysisResult, col(AnalysisResult.id) == col(DICOMSource.result_id))
        .where(col(DICOMSource.result_id).not_in(select(DICOMResult.result_id)))
        .where(col(AnalysisResult.created_at) <= now - _UNDER_WAY_S)
        .limit(AT_ONCE)
    )
    return list((due | dict(session.exec(cut_off).all())).items())[:AT_ONCE]


def _patient_index(session: Session, result_id: str) -> str:
    return session.exec(select(AnalysisResult.patient_index).where(AnalysisResult.id == result_id)).one()


def _is_due(row: DICOMResult, now: float) -> bool:
    if row.failure in NO_TOKEN:
        return False
    return _awaits(row, now) and now - row.updated_at >= _BACKOFF.pause_s(row.attempts)


def _awaits(row: DICOMResult, now: float) -> bool:
    if row.attempts >= MAX_ATTEMPTS:
        return False
    if row.state == StoreState.PENDING:
        return now - row.updated_at > _UNDER_WAY_S
    return row.state == StoreState.FAILED
