"""The same images under the same models are analysed once, whoever asks for them and as often as they are told of.

What makes images the same is their bytes: the EHR may tell of a study anew, in another version or under another id.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.audit.record import AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import patient_index
from rayhook.fhir.errors import Erased, ImageRefused
from rayhook.inference import jobs
from rayhook.inference.attempt import Attempt, reused_entry
from rayhook.inference.claims import hand_back
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.instance_names import is_own_result
from rayhook.inference.job_table import AnalysisJob, ClaimedJob, JobState
from rayhook.inference.results import index, load_result
from rayhook.inference.study import ModelIdentity, StudyReference, StudyResult

# Higher with every release whose answers to the same images differ though its models do not.
ANALYSIS_REVISION: Final = 1

_KEPT_BYTES = 256 << 20
_TURN_WAIT_S = 2.0
# What an image came to for want of time, not for what it is: another try may come to more.
_PASSING = frozenset({"decoder_timeout"})
_LIMITS = DecodeLimits()


class StudyTurn(SQLModel, table=True):
    """Which job has a study's images in hand: another one over the same study waits for what it comes to."""

    __tablename__ = "study_turn"

    study_key: str = Field(primary_key=True, max_length=64)
    job_id: str = Field(max_length=32)


class ResultContent(SQLModel, table=True):
    """Which result the same images came to; the key tells neither who nor what they show."""

    __tablename__ = "result_content"

    content_key: str = Field(primary_key=True, max_length=64)
    result_id: str = Field(foreign_key="analysis_result.id", index=True, max_length=32)


@dataclass(slots=True)
class Looked:
    """What is known of a study's images before any model is asked.

    result_id: what the same images came to before.  images: those to analyse where there is no such result.
    digests: those of the images that have passed; objects of our own in the study are none.
    """

    images: Generator[bytes]
    digests: set[str]
    result_id: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """All files of a study; only the first where they are more than are kept in memory."""

    digests: set[str]
    files: tuple[bytes, ...]
    is_whole: bool

    @classmethod
    def read(cls, files: Generator[bytes], *, max_bytes: int = _KEPT_BYTES) -> "Held":
        digests, kept, size = set[str](), list[bytes](), 0
        with closing(_noting(files, digests)) as passing:
            for data in passing:
                size += len(data)
                if size > max_bytes:
                    del kept[1:]
                if size <= max_bytes or not kept:
                    kept.append(data)
        return cls(digests, tuple(kept), size <= max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """models: those that would be asked, in their order."""

    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    models: Sequence[ModelIdentity]
    clock: Callable[[], float] = time.time

    def take_turn(self, attempt: Attempt) -> bool:
        """Return whether the job has its study's images in hand; False, and queued again, while another has."""
        claimed = attempt.claimed
        with self.sessions() as session:
            is_ours = self._take(session, claimed)
            if not is_ours:
                hand_back(session, claimed, until=self.clock() + _TURN_WAIT_S, clock=self.clock)
            session.commit()
        return is_ours

    def look(
        self, attempt: Attempt, files: Callable[[], Generator[bytes]], identifiers: frozenset[str]
    ) -> Looked:
        """Compare the images with those of an earlier analysis of the study, where there was one.

        Else they are analysed as they come in.  identifiers: as in IdentityGuard.
        """
        reference = attempt.claimed.reference
        with self.sessions() as session:
            is_known = self._has_earlier(session, reference)
        if not is_known:
            return _as_they_come(files())
        held = Held.read(files())
        with self.sessions() as session:
            found = self.find(session, self.content_key(reference, held.digests))
        if found is not None and is_of_patient(held.files, identifiers):
            return Looked(_each(()), held.digests, found)
        # Fetched anew they may be others than they were.
        return Looked(_each(held.files), held.digests) if held.is_whole else _as_they_come(files())

    def end(self, attempt: Attempt, result_id: str) -> bool:
        """End the job with the result that there is; False where the job has gone to another."""
        with self.sessions() as session:
            is_ours = jobs.reuse(session, attempt.claimed, result_id, clock=self.clock)
            if is_ours:
                self._end_turn(session, attempt.claimed)
                self.audit.record(session, reused_entry(attempt, result_id))
            session.commit()
        return is_ours

    def content_key(self, reference: StudyReference, digests: Collection[str]) -> str:
        """Return the key of what the images are, and of everything that decides what they come to."""
        return self._blind("analysis.content", reference, sorted(digests))

    def find(self, session: Session, content_key: str) -> str | None:
        """Return the result that the same images came to, where it can still be read."""
        row = session.get(ResultContent, content_key, populate_existing=True)
        if row is None:
            return None
        try:
            stored = load_result(session, self.keyring, row.result_id)
        except Erased:
            stored = None
        return None if stored is None else stored.id

    def note(
        self, session: Session, attempt: Attempt, content_key: str, result_id: str, result: StudyResult
    ) -> None:
        """Note what the images came to, unless another try may come to more.

        Raises IntegrityError where another job noted its result for them first.
        """
        self._end_turn(session, attempt.claimed)
        if any(one.error_code in _PASSING for one in result.instances):
            return
        row = session.get(ResultContent, content_key, populate_existing=True)
        if row is None:
            session.add(ResultContent(content_key=content_key, result_id=result_id))
        else:
            row.result_id = result_id  # `find` could not read the one before
            session.add(row)
        session.flush()

    def _take(self, session: Session, claimed: ClaimedJob) -> bool:
        key = self._study_key(claimed.reference)
        query = select(StudyTurn).where(StudyTurn.study_key == key).with_for_update()
        turn = session.exec(query, execution_options={"populate_existing": True}).first()
        if turn is None:
            try:
                with session.begin_nested():
                    session.add(StudyTurn(study_key=key, job_id=claimed.id))
            except IntegrityError:  # PostgreSQL: another took it since the look-up
                return False
            return True
        if turn.job_id != claimed.id and _is_in_hand(session, turn.job_id, self.clock()):
            return False
        turn.job_id = claimed.id
        session.add(turn)
        session.flush()
        return True

    def _end_turn(self, session: Session, claimed: ClaimedJob) -> None:
        turn = session.get(StudyTurn, self._study_key(claimed.reference), populate_existing=True)
        if turn is not None and turn.job_id == claimed.id:
            session.delete(turn)
            session.flush()

    def _has_earlier(self, session: Session, reference: StudyReference) -> bool:
        study = index(self.keyring, "study", reference.ehr_id, reference.study_instance_uid)
        query = select(AnalysisJob.id).where(
            AnalysisJob.study_index == study, col(AnalysisJob.result_id).is_not(None)
        )
        return session.exec(query.limit(1)).first() is not None

    def _study_key(self, reference: StudyReference) -> str:
        return self._blind("analysis.study-turn", reference, ())

    def _blind(self, purpose: str, reference: StudyReference, digests: Sequence[str]) -> str:
        content = [
            ANALYSIS_REVISION,
            reference.ehr_id,
            patient_index(self.keyring, reference.ehr_id, reference.patient_id),
            reference.study_instance_uid,
            msgspec.to_builtins(tuple(self.models)),
            list(digests),
        ]
        return self.keyring.blind_index(json.dumps(content), purpose=purpose)


def is_of_patient(files: Iterable[bytes], identifiers: frozenset[str]) -> bool:
    """Return whether images that were found to agree among themselves are those of the patient in context.

    identifiers: as in IdentityGuard.  False where no file tells.
    """
    if not identifiers:
        return True
    from rayhook.inference.dicom_attributes import Attributes
    from rayhook.inference.dicom_header import read_header

    for data in files:
        try:
            return Attributes.from_header(read_header(data, _LIMITS)).text("PatientID") in identifiers
        except ImageRefused:
            continue
    return False


def _as_they_come(files: Generator[bytes]) -> Looked:
    digests = set[str]()
    return Looked(_noting(files, digests), digests)


def _noting(files: Generator[bytes], digests: set[str]) -> Generator[bytes]:
    with closing(files):
        for data in files:
            if not is_own_result(data, _LIMITS):
                digests.add(hashlib.sha256(data).hexdigest())
            yield data


def _each(files: Iterable[bytes]) -> Generator[bytes]:
    yield from files


def _is_in_hand(session: Session, job_id: str, now: float) -> bool:
    job = session.get(AnalysisJob, job_id, populate_existing=True)
    if job is None or job.state != JobState.RUNNING:
        return False
    return job.lease_until is not None and job.lease_until > now
