"""What stays in the clinical tables of a patient whose key is destroyed: rows that say nothing, and of nobody."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Table, delete, select, update
from sqlmodel import Session, SQLModel, col

from rayhook.auth.data_key import DataKey
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import ERASED_PREFIX, NOTHING
from rayhook.auth.sessions import close_sessions_of
from rayhook.fhir.errors import Erased, RayhookError, ServiceUnavailable
from rayhook.inference.answers import FindingAnswerRow
from rayhook.inference.arrival import ArrivalRow
from rayhook.inference.dicom_table import DICOMResult, DICOMSource, StoreState
from rayhook.inference.job_table import AnalysisJob, JobState, open_reference
from rayhook.inference.outbox import OutboxRow
from rayhook.inference.received import ReceivedInstance
from rayhook.inference.results import AnalysisResult, index
from rayhook.inference.reuse import ResultContent, StudyTurn
from rayhook.inference.signature import ReportSignatureRow

_WAITING: Final = (JobState.QUEUED.value, JobState.RUNNING.value)
_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class ErasedPatient:
    """Whose rows: by the index that they had, and the key that they are left under, about to be destroyed."""

    patient_index: str
    key: DataKey

    @property
    def mark(self) -> str:
        """What stands in the place of the index: it holds the patient's rows together, and leads to nobody."""
        return f"{ERASED_PREFIX}{self.key.id}"

    def nothing(self, table: str, column: str, row: str) -> bytes:
        """Return a sealed value without content: it takes the place of what older releases sealed otherwise."""
        return self.key.seal(NOTHING, table=table, column=column, row=row)


@dataclass(frozen=True, slots=True)
class ErasedCount:
    """What there was."""

    results: tuple[str, ...]
    jobs_cancelled: int
    sessions_closed: int


def erase_rows(session: Session, keyring: Keyring, erased: ErasedPatient) -> ErasedCount:
    """Overwrite what is sealed, end what is under way, and take the patient's index off; before the key goes."""
    results = _ids(session, AnalysisResult.id, AnalysisResult.patient_index, erased)
    _forget_arrivals(session, keyring, erased)
    cancelled = _end_jobs(session, erased)
    _end_errands(session, erased, results)
    for model, columns in (
        (AnalysisJob, ("reference",)),
        (AnalysisResult, ("reference", "result", "key_image", "resources")),
        (FindingAnswerRow, ("content",)),
        (ReportSignatureRow, ("content", "resources", "written")),
    ):
        table = _table(model)
        overwrite(session, erased, table, columns, _ids(session, table.c.id, table.c.patient_index, erased))
        moved = update(table).where(table.c.patient_index == erased.patient_index)
        session.execute(moved.values(patient_index=erased.mark))
    closed = close_sessions_of(session, erased.patient_index)
    return ErasedCount(tuple(results), cancelled, closed)


def overwrite(
    session: Session, erased: ErasedPatient, table: Table, columns: Iterable[str], rows: Iterable[str]
) -> None:
    """Leave nothing of the sealed columns, whatever they were sealed under; what is empty stays empty."""
    [key] = table.primary_key.columns
    for row in rows:
        for column in columns:
            change = update(table).where(key == row, table.c[column].is_not(None))
            session.execute(change.values({column: erased.nothing(table.name, column, row)}))


def _end_jobs(session: Session, erased: ErasedPatient) -> int:
    """Cancel what waits or runs, and let the same study be asked for anew."""
    job = _table(AnalysisJob).c
    ids = _ids(session, job.id, job.patient_index, erased)
    mine = update(_table(AnalysisJob)).where(job.patient_index == erased.patient_index)
    cancelled = session.execute(
        mine.where(job.state.in_(_WAITING)).values(
            state=JobState.CANCELLED.value, fence=job.fence + 1, lease_until=None, error_code=Erased.code
        )
    )
    session.execute(
        mine.values(
            key=ERASED_PREFIX + job.id,
            study_index=erased.mark,
            authorization=None,
            error_message=None,
            retryable=False,
            next_attempt_at=None,
        )
    )
    for some in _batches(ids):
        session.execute(delete(StudyTurn).where(col(StudyTurn.job_id).in_(some)))
    return int(cancelled.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result has it


def _end_errands(session: Session, erased: ErasedPatient, results: list[str]) -> None:
    """Send nothing more to an EHR or a PACS, and forget which objects and images there were."""
    objects = _table(DICOMResult)
    dicom, signature = objects.c, _table(ReportSignatureRow).c
    for some in _batches(results):
        session.execute(delete(OutboxRow).where(col(OutboxRow.result_id).in_(some)))
        session.execute(delete(DICOMSource).where(col(DICOMSource.result_id).in_(some)))
        session.execute(delete(ResultContent).where(col(ResultContent.result_id).in_(some)))
        rows = session.execute(select(dicom.id).where(dicom.result_id.in_(some))).scalars().all()
        overwrite(session, erased, objects, ("content",), rows)
        mine = update(objects).where(dicom.result_id.in_(some))
        session.execute(mine.values(instance_index=ERASED_PREFIX + dicom.id))
        lacking = mine.where(dicom.state != StoreState.STORED.value)
        session.execute(lacking.values(state=StoreState.REFUSED.value, failure=Erased.code))
        session.execute(
            update(_table(ReportSignatureRow))
            .where(signature.result_id.in_(some))
            .values(next_attempt_at=None, authorization=None)
        )


def _forget_arrivals(session: Session, keyring: Keyring, erased: ErasedPatient) -> None:
    """Forget how the patient's studies came here: the inbox knows them by their own names."""
    named: set[str] = set()
    jobs = select(AnalysisJob).where(col(AnalysisJob.patient_index) == erased.patient_index)
    for job in session.scalars(jobs):
        try:
            reference = open_reference(session, keyring, job)
        except ServiceUnavailable:
            raise
        except RayhookError:
            continue  # nobody can read it, and it must not keep the rest from being erased
        study = f"{reference.fhir_base_url}/ImagingStudy/{reference.imaging_study_id}"
        for subject in (study, f"study {reference.study_instance_uid}"):
            named.add(index(keyring, "arrival", reference.ehr_id, subject))
    for some in _batches(sorted(named)):
        session.execute(delete(ArrivalRow).where(col(ArrivalRow.subject_index).in_(some)))
        session.execute(delete(ReceivedInstance).where(col(ReceivedInstance.study_index).in_(some)))


def _ids(session: Session, id_: Any, patient_index: Any, erased: ErasedPatient) -> list[str]:
    return list(session.execute(select(id_).where(patient_index == erased.patient_index)).scalars())


def _batches(ids: list[str]) -> Iterable[list[str]]:
    return (ids[first : first + _AT_ONCE] for first in range(0, len(ids), _AT_ONCE))


def _table(model: type[SQLModel]) -> Table:
    return SQLModel.metadata.tables[str(model.__tablename__)]
