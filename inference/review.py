"""How far people are with a patient's results: what was answered, what was signed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import func
from sqlmodel import Session, col, select

from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import ERASED_PREFIX
from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.inference.answers import (
    AnswerAction,
    AnswerMark,
    Answers,
    FindingValue,
    is_added,
    load_answers,
    load_marks,
)
from rayhook.inference.results import AnalysisResult
from rayhook.inference.review_text import day_of, person_text
from rayhook.inference.signature import ReportSignatureRow, load_acts, load_signatures
from rayhook.inference.study import StudyResult

__all__ = [
    "AnswerState",
    "SignedReview",
    "answer_summary",
    "load_answers",
    "load_review",
    "review_versions",
    "reviewed_result",
]

_ISSUED = frozenset(
    {DiagnosticReportStatus.AMENDED, DiagnosticReportStatus.CORRECTED, DiagnosticReportStatus.FINAL}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerState:
    """How far one result is.

    answered: how many of the model's findings have an answer.  added: findings that people added.
    status: of the report.  at, by: of the newest signature, change or withdrawal.
    said: what it says of each finding, None for no statement; empty where nobody signed.
    """

    answered: int = 0
    added: int = 0
    status: DiagnosticReportStatus = DiagnosticReportStatus.PRELIMINARY
    at: float | None = None
    by: str | None = None
    said: Mapping[str, FindingValue | None] = field(default_factory=dict)

    @property
    def is_signed(self) -> bool:
        """Return whether a person has signed the report, and it has not been withdrawn."""
        return self.status in _ISSUED

    @property
    def says_present(self) -> bool:
        """Return whether a signed report says of any finding that it is there."""
        return self.is_signed and FindingValue.PRESENT in self.said.values()


def answer_summary(
    session: Session, keyring: Keyring, ehr_id: str, patient_id: str
) -> Mapping[str, AnswerState]:
    """Return how far each of the patient's results is, by result id; those that nobody touched are left out."""
    marks = load_marks(session, keyring, ehr_id, patient_id)
    states = {
        result_id: _counted({one.finding: one.action for one in those}) for result_id, those in marks.items()
    }
    for result_id, act, at in load_acts(session, keyring, ehr_id, patient_id):
        states[result_id] = replace(
            states.get(result_id, AnswerState()),
            status=act.status,
            at=at,
            by=act.by.name or act.by.fhir_user,
            said=_said(marks.get(result_id, ()), act.answers) if act.status in _ISSUED else {},
        )
    return states


def _said(marks: Sequence[AnswerMark], state: str) -> Mapping[str, FindingValue | None]:
    versions = _versions(state)
    return {one.finding: one.value for one in marks if one.version <= versions.get(one.finding, 0)}


def _counted(actions: Mapping[str, AnswerAction]) -> AnswerState:
    added = [action for finding, action in actions.items() if is_added(finding)]
    standing = sum(action is not AnswerAction.WITHDRAWN for action in added)
    return AnswerState(answered=len(actions) - len(added), added=standing)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReview:
    """What counts of a result since somebody signed, cancelled or withdrew its report.

    day: of the signature.  values: by finding code, None where the model's answer was rejected.
    added: findings that people added, with what they said of them.
    """

    status: DiagnosticReportStatus
    by: str
    day: str
    values: Mapping[str, FindingValue | None]
    added: tuple[tuple[str, FindingValue], ...] = ()

    @property
    def is_issued(self) -> bool:
        """Return whether the report stands: it was neither cancelled nor withdrawn."""
        return self.status in _ISSUED

    @property
    def is_open(self) -> bool:
        """Return whether a person said of any finding that it is there, or that they are not certain."""
        every = (*self.values.values(), *(value for _, value in self.added))
        return not {FindingValue.PRESENT, FindingValue.UNCERTAIN}.isdisjoint(every)


def load_review(
    session: Session, keyring: Keyring, result_id: str, result: StudyResult
) -> SignedReview | None:
    """Return what was signed of a result; None where nobody signed: answers alone change nothing."""
    signatures = load_signatures(session, keyring, result_id)
    if not signatures:
        return None
    newest = signatures[-1]
    answers = _as_signed(load_answers(session, keyring, result_id), newest.act.answers)
    latest = answers.latest
    return SignedReview(
        status=newest.status,
        by=person_text(newest.act.by),
        day=day_of(newest.at),
        values={f.code: latest[f.code].value_of(f) for f in result.findings if f.code in latest},
        added=tuple(
            (answer.draft.display, answer.draft.value)
            for answer in answers.added
            if answer.draft.value is not None
        ),
    )


def review_versions(session: Session, result_ids: Iterable[str]) -> Mapping[str, int]:
    """Return the number of the newest act on each result's report, 0 where there is none.

    Results that are gone, or whose patient was erased, are left out.
    """
    result_id = col(AnalysisResult.id)
    newest = func.coalesce(func.max(col(ReportSignatureRow.version)), 0)
    query = (
        select(result_id, newest)
        .outerjoin(ReportSignatureRow, col(ReportSignatureRow.result_id) == result_id)
        .where(
            result_id.in_(list(result_ids)), col(AnalysisResult.patient_index).not_like(f"{ERASED_PREFIX}%")
        )
        .group_by(result_id)
    )
    return dict(session.exec(query).all())


def reviewed_result(result: StudyResult, review: SignedReview | None) -> StudyResult:
    """Return the result with a person's word in the place of the model's: what they did not find is not positive."""
    if review is None:
        return result
    stands = review.is_issued
    findings = tuple(
        replace(one, positive=stands and review.values.get(one.code) is FindingValue.PRESENT)
        for one in result.findings
    )
    return replace(result, findings=findings)


def _as_signed(answers: Answers, state: str) -> Answers:
    """Return the answers as they were when somebody signed: later ones are not signed."""
    versions = _versions(state)
    return Answers(tuple(a for a in answers.history if a.version <= versions.get(a.finding, 0)))


def _versions(state: str) -> Mapping[str, int]:
    """Return the version of the answer to each finding in an `Answers.state`."""
    parts = [part.rpartition(":") for part in state.split(".") if part]
    return {finding: int(version) for finding, _, version in parts}
