"""What people answered to a result's findings: every answer kept, the newest of each finding counts.

Spec: HL7 AI Transparency 1.0.0-ballot (human review); EU AI Act article 14; OWASP ASVS 5.0.0 V2.3
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec
from sqlalchemy import Column, LargeBinary, UniqueConstraint
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import patient_index
from rayhook.fhir.errors import Conflict, InvalidRequest
from rayhook.inference.results import AnalysisResult, StoredResult
from rayhook.inference.sealed_row import SealedRow
from rayhook.inference.study import AnalysisStatus, Finding

MAX_TEXT: Final = 2000
MAX_DISPLAY: Final = 120
MAX_SIZE_MM: Final = 500.0

_ADDED_PREFIX = "added-"


class AnswerAction(StrEnum):
    """What was done with a finding. `added`: the model missed it; `withdrawn`: an added one taken back."""

    ACCEPTED = "accepted"
    ADDED = "added"
    EDITED = "edited"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"


class FindingValue(StrEnum):
    """What a person says of a finding."""

    ABSENT = "absent"
    PRESENT = "present"
    UNCERTAIN = "uncertain"


class Laterality(StrEnum):
    """Which side of the body."""

    BILATERAL = "bilateral"
    LEFT = "left"
    MIDLINE = "midline"
    RIGHT = "right"


class AnswerReason(StrEnum):
    """Why an answer differs from the model's: a closed list, so that reasons can be counted."""

    ARTEFACT = "artefact"
    CLINICAL_CONTEXT = "clinical-context"
    DUPLICATE = "duplicate"
    FALSE_NEGATIVE = "false-negative"
    FALSE_POSITIVE = "false-positive"
    IMAGE_QUALITY = "image-quality"
    NOT_ASSESSABLE = "not-assessable"
    NOT_LOOKED_FOR = "not-looked-for"
    OTHER = "other"
    OUTSIDE_INTENDED_USE = "outside-intended-use"
    SITE_OR_SIZE = "site-or-size"
    TAKEN_BACK = "taken-back"
    WRONG_STUDY = "wrong-study"


REASONS: Final[Mapping[AnswerAction, tuple[AnswerReason, ...]]] = MappingProxyType(
    {
        AnswerAction.ACCEPTED: (),
        AnswerAction.ADDED: (
            AnswerReason.FALSE_NEGATIVE,
            AnswerReason.NOT_LOOKED_FOR,
            AnswerReason.OTHER,
        ),
        AnswerAction.EDITED: (
            AnswerReason.FALSE_POSITIVE,
            AnswerReason.FALSE_NEGATIVE,
            AnswerReason.SITE_OR_SIZE,
            AnswerReason.NOT_ASSESSABLE,
            AnswerReason.CLINICAL_CONTEXT,
            AnswerReason.OTHER,
        ),
        AnswerAction.REJECTED: (
            AnswerReason.ARTEFACT,
            AnswerReason.IMAGE_QUALITY,
            AnswerReason.NOT_ASSESSABLE,
            AnswerReason.OUTSIDE_INTENDED_USE,
            AnswerReason.CLINICAL_CONTEXT,
            AnswerReason.DUPLICATE,
            AnswerReason.WRONG_STUDY,
            AnswerReason.OTHER,
        ),
        AnswerAction.WITHDRAWN: (AnswerReason.TAKEN_BACK,),
    }
)


class FindingAnswerRow(SQLModel, table=True):
    """One answer. What counts for the model's performance is open, what tells of the person is sealed."""

    __tablename__ = "finding_answer"
    __table_args__ = (UniqueConstraint("result_id", "finding", "version"),)

    id: str = Field(primary_key=True, max_length=32)
    result_id: str = Field(foreign_key="analysis_result.id", index=True, max_length=32)
    ehr_id: str = Field(max_length=128)
    patient_index: str = Field(max_length=64, index=True)
    finding: str = Field(max_length=64)
    version: int
    action: str = Field(max_length=16)
    value: str | None = Field(default=None, max_length=16)
    reason: str | None = Field(default=None, max_length=32)
    model_id: str = Field(max_length=128)
    model_version: str = Field(max_length=64)
    model_positive: bool | None = None
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    answered_at: float = Field(index=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDraft:
    """An answer as somebody gives it; `check` says whether it may stand.

    finding: the code of one of the result's findings, or of an added one; empty for a new one.
    display: the name of an added finding.  text: the reason in free words.
    """

    finding: str
    action: AnswerAction
    value: FindingValue | None = None
    reason: AnswerReason | None = None
    text: str = ""
    comment: str = ""
    display: str = ""
    site: str = ""
    laterality: Laterality | None = None
    size_mm: float | None = None

    def check(self) -> None:
        """Raise InvalidRequest that names the field which does not fit the action."""
        for field, limit in (("text", MAX_TEXT), ("comment", MAX_TEXT), ("site", MAX_DISPLAY)):
            if len(getattr(self, field)) > limit:
                raise _invalid(field, f"must have at most {limit} characters")
        allowed = REASONS[self.action]
        if (self.reason is None) == bool(allowed) or (self.reason and self.reason not in allowed):
            raise _invalid("reason", "must be one of those listed for this answer")
        if self.reason is AnswerReason.OTHER and not self.text.strip():
            raise _invalid("text", "must say what the other reason is")
        self._check_value()
        if self.size_mm is not None and not 0 < self.size_mm <= MAX_SIZE_MM:
            raise _invalid("size_mm", f"must be above 0 and at most {MAX_SIZE_MM:.0f}")

    def _check_value(self) -> None:
        needs_value = self.action in {AnswerAction.ADDED, AnswerAction.EDITED}
        if needs_value != (self.value is not None):
            raise _invalid("value", "must be given where a finding is edited or added, and only there")
        if self.action is AnswerAction.ADDED and self.value is FindingValue.ABSENT:
            raise _invalid("value", "must be present or uncertain for a finding that was missed")
        is_named = 0 < len(self.display.strip()) <= MAX_DISPLAY
        if self.action is AnswerAction.ADDED and not is_named:
            raise _invalid("display", f"must name the finding in at most {MAX_DISPLAY} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who answers or signs: `fhir_user` is a FHIR reference, such as "Practitioner/1"."""

    fhir_user: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingAnswer:
    """One stored answer. `at` is seconds since the epoch."""

    id: str
    finding: str
    version: int
    draft: AnswerDraft
    by: Person
    at: float

    @property
    def action(self) -> AnswerAction:
        return self.draft.action

    @property
    def is_added(self) -> bool:
        return is_added(self.finding)

    def value_of(self, finding: Finding | None) -> FindingValue | None:
        """Return what now counts for the finding; None where it was rejected or taken back."""
        if self.action is AnswerAction.ACCEPTED and finding is not None:
            return FindingValue.PRESENT if finding.positive else FindingValue.ABSENT
        return self.draft.value


@dataclass(frozen=True, slots=True)
class AnswerMark:
    """What one answer comes to. value: None for no statement."""

    finding: str
    version: int
    action: AnswerAction
    value: FindingValue | None


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers to one result, the oldest of each finding first."""

    history: tuple[FindingAnswer, ...] = ()

    @property
    def latest(self) -> Mapping[str, FindingAnswer]:
        """Return the answer that counts, by finding."""
        return {answer.finding: answer for answer in self.history}

    @property
    def added(self) -> tuple[FindingAnswer, ...]:
        """Return the findings that people added and did not take back."""
        return tuple(a for a in self.latest.values() if a.is_added and a.action is not AnswerAction.WITHDRAWN)

    def version(self, finding: str) -> int:
        """Return the version of the answer to a finding, 0 where there is none."""
        answer = self.latest.get(finding)
        return 0 if answer is None else answer.version

    def of(self, finding: str) -> tuple[FindingAnswer, ...]:
        """Return the answers to one finding, the oldest first."""
        return tuple(answer for answer in self.history if answer.finding == finding)

    def unanswered(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """Return the findings that nobody has answered yet."""
        latest = self.latest
        return tuple(finding for finding in findings if finding.code not in latest)

    @property
    def state(self) -> str:
        """Return what a signer has seen, in one word: another answer gives another."""
        newest = sorted((answer.finding, answer.version) for answer in self.latest.values())
        return ".".join(f"{finding}:{version}" for finding, version in newest)


def is_answerable(stored: StoredResult) -> bool:
    """Return whether a model answered: where none did there is nothing to answer or to sign."""
    return stored.result.status is AnalysisStatus.ANALYSED


def load_answers(session: Session, keyring: Keyring, result_id: str) -> Answers:
    query = (
        select(FindingAnswerRow)
        .where(FindingAnswerRow.result_id == result_id)
        # By version first: the clocks of two servers may differ, and the older answer must not count.
        .order_by(col(FindingAnswerRow.version), col(FindingAnswerRow.answered_at))
    )
    return Answers(tuple(_opened(session, keyring, row) for row in session.exec(query)))


def record_answer(
    session: Session,
    keyring: Keyring,
    stored: StoredResult,
    draft: AnswerDraft,
    *,
    expected_version: int,
    by: Person,
    clock: Callable[[], float] = time.time,
) -> FindingAnswer:
    """Add an answer in the caller's transaction.

    expected_version: of the answer that the person saw, 0 for none.
    Raises Conflict where somebody else answered since, InvalidRequest where the answer does not fit.
    """
    draft.check()
    _check_finding(stored, draft)
    lock_result(session, stored.id)
    finding = draft.finding or f"{_ADDED_PREFIX}{uuid.uuid4().hex[:12]}"
    current = load_answers(session, keyring, stored.id)
    if draft.finding and is_added(finding) and not current.version(finding):
        raise _invalid("finding", "must be one that a person added to this result")
    if current.version(finding) != expected_version:
        raise Conflict("somebody else has answered this finding since you opened it", code="answer_overtaken")
    answer = FindingAnswer(
        id=uuid.uuid4().hex,
        finding=finding,
        version=expected_version + 1,
        draft=draft,
        by=by,
        at=clock(),
    )
    session.add(_row(session, keyring, stored, answer))
    session.flush()
    return answer


def lock_result(session: Session, result_id: str) -> None:
    """Let one person at a time answer or sign a result."""
    session.exec(select(AnalysisResult.id).where(AnalysisResult.id == result_id).with_for_update()).first()


def finding_of(stored: StoredResult, code: str) -> Finding | None:
    return next((finding for finding in stored.result.findings if finding.code == code), None)


def load_marks(
    session: Session, keyring: Keyring, ehr_id: str, patient_id: str
) -> Mapping[str, Sequence[AnswerMark]]:
    """Return all answers to the patient's results without their words, by result id; the oldest of each first."""
    query = (
        select(FindingAnswerRow)
        .where(FindingAnswerRow.patient_index == patient_index(keyring, ehr_id, patient_id))
        .order_by(col(FindingAnswerRow.version))
    )
    marks: dict[str, list[AnswerMark]] = {}
    for row in session.exec(query):
        value = None if row.value is None else FindingValue(row.value)
        mark = AnswerMark(row.finding, row.version, AnswerAction(row.action), value)
        marks.setdefault(row.result_id, []).append(mark)
    return marks


def is_added(finding: str) -> bool:
    """Return whether a finding was added by a person, and not looked for by the model."""
    return finding.startswith(_ADDED_PREFIX)


def _check_finding(stored: StoredResult, draft: AnswerDraft) -> None:
    if not is_answerable(stored):
        raise Conflict("the model gave no answer: there is nothing to answer", code="nothing_to_answer")
    of_person = draft.action in {AnswerAction.ADDED, AnswerAction.WITHDRAWN}
    by_person = draft.finding == "" or is_added(draft.finding)
    if of_person != by_person or (draft.action is AnswerAction.WITHDRAWN and not draft.finding):
        raise _invalid("finding", "must be one of the model's for this answer, or one that a person added")
    if not by_person and finding_of(stored, draft.finding) is None:
        raise _invalid("finding", "must be one of this result's findings")


def _row(session: Session, keyring: Keyring, stored: StoredResult, answer: FindingAnswer) -> FindingAnswerRow:
    model, finding = stored.result.model, finding_of(stored, answer.finding)
    value = answer.value_of(finding)
    plaintext = msgspec.json.encode([answer.draft, answer.by])
    patient = patient_index(keyring, stored.ehr_id, stored.patient_id)
    return FindingAnswerRow(
        id=answer.id,
        result_id=stored.id,
        ehr_id=stored.ehr_id,
        patient_index=patient,
        finding=answer.finding,
        version=answer.version,
        action=answer.action.value,
        value=None if value is None else value.value,
        reason=None if answer.draft.reason is None else answer.draft.reason.value,
        model_id="" if model is None else model.id,
        model_version="" if model is None else model.version,
        model_positive=None if finding is None else finding.positive,
        content=SealedRow(session, keyring, FindingAnswerRow, answer.id).seal(
            "content", plaintext, patient_index=patient
        ),
        answered_at=answer.at,
    )


def _opened(session: Session, keyring: Keyring, row: FindingAnswerRow) -> FindingAnswer:
    plaintext = SealedRow(session, keyring, FindingAnswerRow, row.id).open("content", row.content)
    draft, by = msgspec.json.decode(plaintext, type=tuple[AnswerDraft, Person])
    return FindingAnswer(
        id=row.id, finding=row.finding, version=row.version, draft=draft, by=by, at=row.answered_at
    )


def _invalid(field: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {rule}", code="answer_invalid", expression=field)
