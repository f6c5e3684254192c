"""Images that were stored here: sealed in a spool until their study is analysed, and found by blind index.

We are no archive: what is here is a copy on its way. It goes once its study is analysed, and after a day in any case.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import RayhookError, ServiceUnavailable
from rayhook.inference.arrival import ArrivalRow, ArrivalState
from rayhook.inference.job_table import AnalysisJob, JobState, open_reference
from rayhook.inference.results import index
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.inference.study import StudyReference

KEPT_S: Final = 86_400.0
_AT_ONCE: Final = 500
_UNCOUNTED_S: Final = 600.0  # a request under way says of its files that they are awaited, each minute
_UNDER_WAY: Final = (JobState.QUEUED.value, JobState.RUNNING.value)
# Not what failed: it may be tried again, and the images need not be sent again then.
_ENDED: Final = (JobState.CANCELLED.value, JobState.DEAD.value, JobState.DONE.value, JobState.REFUSED.value)
_LONGEST_S: Final = 5 * 86_400.0  # longer than any study waits for its EHR


class ReceivedInstance(SQLModel, table=True):
    """One file in the spool, under the name of its id. `is_image` is False for our own results, which came back."""

    __tablename__ = "received_instance"

    id: str = Field(primary_key=True, max_length=32)
    ehr_id: str = Field(max_length=128)
    study_index: str = Field(max_length=64, index=True)
    instance_index: str = Field(max_length=64, unique=True)
    digest_index: str = Field(max_length=64)
    is_image: bool
    received_at: float = Field(index=True)


# Their EHR is still to be asked about the study.
_AWAITED: Final = (
    select(ArrivalRow.id)
    .where(ArrivalRow.state == ArrivalState.WAITING.value, ArrivalRow.ehr_id == ReceivedInstance.ehr_id)
    .where(col(ArrivalRow.subject_index) == col(ReceivedInstance.study_index))
    .exists()
)


class Reception(Enum):
    """What became of one file: `known` is one that we have, byte for byte, `differs` another under the same UID."""

    DIFFERS = "differs"
    KNOWN = "known"
    STORED = "stored"


@dataclass(frozen=True, slots=True)
class InstanceName:
    study_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One file that is in the spool and counts for nothing yet. id: its name there."""

    id: str
    name: InstanceName
    digest_index: str
    is_image: bool


@dataclass(frozen=True, slots=True)
class ReceivedImages:
    """The spool and its rows. A row is committed after its file is on the disk, and removed before it."""

    spool: SealedSpool
    sessions: Sessions
    keyring: Keyring
    clock: Callable[[], float] = time.time

    def put(self, name: InstanceName, data: bytes, *, is_image: bool) -> SpooledFile:
        """Write one file to the spool.

        Raises ServiceUnavailable with code `spool_full` where there is no room for it.
        """
        digest_index = self.keyring.blind_index(hashlib.sha256(data).hexdigest(), purpose="received.digest")
        file = SpooledFile(uuid.uuid4().hex, name, digest_index, is_image)
        self.spool.write(file.id, [data])
        return file

    def admit(self, session: Session, ehr_id: str, file: SpooledFile) -> Reception:
        """Let a file count from the caller's commit on. One that is not `stored` is for the caller to discard."""
        instance_index = index(self.keyring, "received_instance", ehr_id, file.name.sop_instance_uid)
        known = _reception(session, instance_index, file.digest_index)
        if known is not None:
            return known
        row = ReceivedInstance(
            id=file.id,
            ehr_id=ehr_id,
            study_index=self._study_index(ehr_id, file.name.study_instance_uid),
            instance_index=instance_index,
            digest_index=file.digest_index,
            is_image=file.is_image,
            received_at=self.clock(),
        )
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:  # another request brought the same instance since the look-up
            return _reception(session, instance_index, file.digest_index) or Reception.DIFFERS
        return Reception.STORED

    def keep(self, files: Iterable[SpooledFile]) -> None:
        """Say that the request that brought the files goes on: they are not left over from one that was killed."""
        self.spool.refresh(file.id for file in files)

    def has_lost(self, files: Iterable[SpooledFile]) -> bool:
        return not {file.id for file in files} <= set(self.spool.names())

    def discard(self, files: Iterable[SpooledFile]) -> None:
        for file in files:
            self.spool.remove(file.id)

    def has_all(self, reference: StudyReference) -> bool:
        """Return whether as many images as the EHR counts instances are here, in the spool of this process.

        Our own results among them stand for no image: an EHR that counts those too has the PACS asked.
        """
        return self._is_complete(reference) and self._are_files(self._names(reference))

    def is_elsewhere(self, reference: StudyReference) -> bool:
        """Return whether all images were stored, and not in a folder that this process has."""
        return self._is_complete(reference) and not self._are_files(self._names(reference))

    def retrieve(self, reference: StudyReference) -> Generator[bytes]:
        """Yield the study's images in the order in which they came, one at a time.

        Raises ServiceUnavailable for one that is gone, or cannot be opened: the next attempt asks the PACS.
        """
        for name in self._names(reference):
            try:
                data = self.spool.load(name)
            except RayhookError as error:
                self._forget(name)
                raise ServiceUnavailable(
                    "a stored image cannot be read any more", code="received_image_lost"
                ) from error
            yield data

    def forget_old(self, kept_s: float = KEPT_S) -> int:
        """Remove what was kept long enough, but for studies that their EHR was not asked about yet."""
        query = (
            select(ReceivedInstance)
            .where(col(ReceivedInstance.received_at) <= self.clock() - kept_s, ~_AWAITED)
            .limit(_AT_ONCE)
        )
        with self.sessions() as session:
            old = list(session.exec(query))
            names = [row.id for row in old]
            for row in old:
                session.delete(row)
            session.commit()
        for name in names:
            self.spool.remove(name)
        # Files whose request was killed before they counted.
        self.spool.sweep(max(kept_s, _LONGEST_S))
        return len(names)

    def forget_analysed(self, since: float) -> int:
        """Remove what was here for analyses that ended after `since`, unless another of the same study is under way.

        Spec: OWASP ASVS 5.0.0 V14.2.7
        """
        with self.sessions() as session:
            names = []
            if session.exec(select(ReceivedInstance.id).limit(1)).first() is not None:
                names = [name for job in self._ended(session, since) for name in self._left_by(session, job)]
            names += self._without_row(session)
            session.commit()
        for name in names:
            self.spool.remove(name)
        return len(names)

    def _without_row(self, session: Session) -> list[str]:
        """Return the files here whose row another process removed, or whose request was killed before they counted."""
        here = self.spool.names(older_than_s=_UNCOUNTED_S)[:_AT_ONCE]
        known = set(session.exec(select(ReceivedInstance.id).where(col(ReceivedInstance.id).in_(here))))
        return [name for name in here if name not in known]

    def _ended(self, session: Session, since: float) -> Iterator[AnalysisJob]:
        other = aliased(AnalysisJob)
        under_way = select(other.id).where(
            other.study_index == AnalysisJob.study_index, col(other.state).in_(_UNDER_WAY)
        )
        query = select(AnalysisJob).where(
            col(AnalysisJob.updated_at) >= since, col(AnalysisJob.state).in_(_ENDED), ~under_way.exists()
        )
        yield from session.exec(query)

    def _left_by(self, session: Session, job: AnalysisJob) -> list[str]:
        try:
            reference = open_reference(session, self.keyring, job)
        except ServiceUnavailable:
            raise
        except RayhookError:
            return []  # Erased, or altered: nobody can say of which study it was, and a day ends it.
        mine = select(ReceivedInstance).where(
            ReceivedInstance.study_index == self._index_of(reference),
            # What came since is of an analysis that is not asked for yet, and so is all where more came meanwhile.
            col(ReceivedInstance.received_at) <= job.updated_at,
            ~_AWAITED,
        )
        rows = session.exec(mine).all()
        for row in rows:
            session.delete(row)
        return [row.id for row in rows]

    def _is_complete(self, reference: StudyReference) -> bool:
        expected = reference.number_of_instances
        if expected is None or expected < 1:
            return False
        return len(self._names(reference, images_alone=True)) >= expected

    def _are_files(self, names: Iterable[str]) -> bool:
        return set(names) <= set(self.spool.names())

    def _forget(self, name: str) -> None:
        with self.sessions() as session:
            row = session.get(ReceivedInstance, name)
            if row is not None:
                session.delete(row)
            session.commit()

    def _names(self, reference: StudyReference, *, images_alone: bool = False) -> list[str]:
        kinds = (True,) if images_alone else (True, False)
        query = (
            select(ReceivedInstance.id)
            .where(ReceivedInstance.study_index == self._index_of(reference))
            .where(col(ReceivedInstance.is_image).in_(kinds))
            .order_by(col(ReceivedInstance.received_at), col(ReceivedInstance.id))
        )
        with self.sessions() as session:
            return list(session.exec(query))

    def _index_of(self, reference: StudyReference) -> str:
        return self._study_index(reference.ehr_id, reference.study_instance_uid)

    def _study_index(self, ehr_id: str, study_instance_uid: str) -> str:
        return index(self.keyring, "arrival", ehr_id, f"study {study_instance_uid}")


def _reception(session: Session, instance_index: str, digest_index: str) -> Reception | None:
    row = session.exec(
        select(ReceivedInstance).where(ReceivedInstance.instance_index == instance_index)
    ).first()
    if row is None:
        return None
    return Reception.KNOWN if row.digest_index == digest_index else Reception.DIFFERS
